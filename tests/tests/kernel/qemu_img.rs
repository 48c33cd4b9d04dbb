//! `qemu-img convert` to XFS on a disk of 30 MiB/s in a memory cgroup of 200 MB: killed plainly, at home under the
//! library.

use freeboard_tests::cgroup::measure;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::path::Path;
use std::process::Command;

const LIMIT: u64 = 200 * MB;
const DISK: u64 = 30 * MIB;
const TARGET: u64 = LIMIT / 100 * 80;
const DATA: u64 = 600 * MIB;

fn convert(cache: &str, format: &str, options: &[&str], source: &Path, output: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-t", cache, "-f", "raw", "-O", format]).args(options).arg(source).arg(output);
    command
}

fn assert_identical(format: &str, source: &Path, output: &Path) {
    let compare = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", format])
        .args([source, output])
        .output()
        .expect("cannot start qemu-img");
    assert!(compare.status.success(), "{}", String::from_utf8_lossy(&compare.stdout));
}

/// Plain, with O_DIRECT, and under the library, each to an idle disk.
fn three_ways(test: &str, format: &str, options: &[&str]) {
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file(&lab, DATA);
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let output = disk.dir().join("output");
    let run = |command: &mut Command| {
        let run = measure(&lab, LIMIT, command);
        disk.settle();
        run
    };
    let writeback = || convert("writeback", format, options, &source, &output);

    let plain = run(&mut writeback());
    let direct = run(&mut convert("none", format, options, &source, &output));
    let under = run(&mut freeboard::under(&writeback(), None));
    table::print(test, &[("plain", &plain), ("-t none", &direct), ("freeboard", &under)]);

    plain.assert_oom_killed("plain");
    direct.assert_ok("-t none");
    under.assert_never_at_the_limit("freeboard");
    under.assert_peak_usage_within(TARGET + 4 * MIB, "freeboard");
    under.assert_wall_within(1.02, &direct, "freeboard");
    assert_identical(format, &source, &output);
}

#[test]
fn raw() {
    three_ways("qemu-img convert to raw", "raw", &[]);
}

#[test]
fn qcow2() {
    three_ways("qemu-img convert to qcow2", "qcow2", &[]);
}

#[test]
fn out_of_order() {
    three_ways("qemu-img convert -W to raw", "raw", &["-W"]);
}

#[test]
fn cold_source_and_mode_always() {
    let test = "qemu-img convert to raw, cold source and mode always";
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file(&lab, DATA);
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let output = disk.dir().join("output");
    let writeback = convert("writeback", "raw", &[], &source, &output);

    let direct = measure(&lab, LIMIT, &mut convert("none", "raw", &[], &source, &output));
    disk.settle();

    let workload = freeboard::workload(lab.dir(), "[writes]\nmode = \"always\"\nwindow = \"4MiB\"\n");
    let always = measure(&lab, LIMIT, &mut freeboard::under(&writeback, Some(&workload)));
    let left = truth::cached(&output);
    disk.settle();
    assert_identical("raw", &source, &output);

    let on_disk = programs::random_file_on_disk(DATA);
    truth::make_cold(&on_disk);
    let from_disk = convert("writeback", "raw", &[], &on_disk, &output);
    let cold = measure(&lab, LIMIT, &mut freeboard::under(&from_disk, None));
    disk.settle();
    assert_identical("raw", &source, &output);

    table::print(test, &[("-t none", &direct), ("always, 4 MiB", &always), ("auto, cold source", &cold)]);
    direct.assert_ok("-t none");
    always.assert_never_at_the_limit("always");
    always.assert_wall_within(1.02, &direct, "always");
    assert!(always.figures.peak_cache_bytes <= 10 * MIB, "always: peak cache {:?}", always.figures);
    assert!(left.bytes <= 10 * MIB && left.unwritten_bytes == 0, "always: left in the cache: {left:?}");
    cold.assert_ok("cold source");
    cold.assert_wall_within(1.02, &direct, "cold source");
}
