//! Where the usual flush does nothing or there is no file: overlayfs over XFS, and a block device. 250 MiB at 30 MiB/s,
//! limit 120 MB.

use freeboard_tests::cgroup::{Run, measure};
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::path::Path;
use std::process::Command;

const LIMIT: u64 = 120 * MB;
const DISK: u64 = 30 * MIB;
const DATA: u64 = 250 * MIB;

fn convert(cache: &str, source: &Path, output: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-n", "-t", cache, "-f", "raw", "-O", "raw"]).arg(source).arg(output);
    command
}

/// Plain, with O_DIRECT, and under the library; `settle` writes all out in between.
fn three_ways(test: &str, lab: &Lab, source: &Path, output: &Path, settle: impl Fn()) -> [Run; 3] {
    let writeback = || convert("writeback", source, output);
    let runs =
        [writeback(), convert("none", source, output), freeboard::under(&writeback(), None)].map(|mut command| {
            let run = measure(lab, LIMIT, &mut command);
            settle();
            run
        });
    let [plain, direct, under] = &runs;
    table::print(test, &[("plain", plain), ("-t none", direct), ("freeboard", under)]);
    runs
}

fn assert_at_home(test: &str, [plain, direct, under]: &[Run; 3]) {
    assert!(plain.figures.limit_hits > 0, "{test}: the plain run was never at the limit: this shows nothing");
    direct.assert_ok("-t none");
    under.assert_never_at_the_limit(test);
    under.assert_wall_within(1.05, direct, test);
}

#[test]
fn overlayfs() {
    let test = "overlayfs over XFS";
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file(&lab, DATA);
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let overlay = disk.overlay();
    let output = overlay.join("output");
    std::fs::File::create(&output).and_then(|file| file.set_len(DATA)).expect("cannot make the output");
    let runs = three_ways(test, &lab, &source, &output, || disk.write_out());
    truth::assert_same(&output, &source);
    assert_at_home(test, &runs);
}

#[test]
fn block_device() {
    let test = "a block device";
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file(&lab, DATA);
    let disk = SlowDisk::bare(&lab, 1 << 30, DISK);
    let runs = three_ways(test, &lab, &source, disk.device(), || disk.settle());
    truth::assert_starts_with(disk.device(), &source);
    assert_at_home(test, &runs);
}
