//! What a filesystem's name does not say: ext4 with data=journal is ext4, and yet sync_file_range leaves its pages
//! dirty; only a sync writes them. 30 MiB/s (all is written twice), limit 120 MB.

use freeboard_tests::cgroup::measure;
use freeboard_tests::lab::{Lab, path_str, run};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LIMIT: u64 = 120 * MB;
const DISK: u64 = 30 * MIB;

/// Runs a writer below a directory of the disk plainly and under the library, which may take `factor` times as long,
/// and looks at what is there after both.
fn both(lab: &Lab, test: &str, factor: f64, writer: impl Fn(&Path) -> Command, check: impl Fn(&Path)) {
    let disk = SlowDisk::new(lab, Filesystem::Ext4JournalsData, DISK);
    let dir: PathBuf = disk.dir().join("output");
    let runs = [writer(&dir), freeboard::under(&writer(&dir), None)].map(|mut command| {
        fs::create_dir(&dir).expect("cannot make a directory");
        let run = measure(lab, LIMIT, &mut command);
        disk.settle();
        if run.status.success() {
            check(&dir);
        }
        fs::remove_dir_all(&dir).expect("cannot remove a directory");
        disk.settle();
        run
    });
    let [plain, under] = &runs;
    table::print(test, &[("plain", plain), ("freeboard", under)]);
    assert!(plain.figures.limit_hits > 0, "{test}: the plain run was never at the limit: this shows nothing");
    under.assert_never_at_the_limit(test);
    under.assert_wall_within(factor, plain, test);
}

#[test]
fn one_large_file() {
    let test = "ext4 with data=journal, dd";
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file_on_disk(250 * MIB);
    let writer = |dir: &Path| {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", path_str(&source))).arg(format!("of={}", path_str(&dir.join("copy"))));
        dd.args(["bs=1M", "iflag=direct", "conv=fsync", "status=none"]);
        dd
    };
    both(&lab, test, 1.1, writer, |dir| truth::assert_same(&dir.join("copy"), &source));
}

#[test]
fn a_static_program() {
    let test = "ext4 with data=journal, a static program";
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file_on_disk(250 * MIB);
    let writer = |dir: &Path| {
        let mut dd = Command::new("busybox");
        dd.arg("dd").arg(format!("if={}", path_str(&source))).arg(format!("of={}", path_str(&dir.join("copy"))));
        dd.args(["bs=64k", "conv=fsync"]);
        truth::make_cold(&source);
        dd
    };
    both(&lab, test, 1.75, writer, |dir| truth::assert_same(&dir.join("copy"), &source));
}

/// Each of them is far from a window.
#[test]
fn sixteen_files_at_once() {
    let test = "ext4 with data=journal, 16 files at once";
    let Some(lab) = Lab::shared(test) else { return };
    let text = "
import os, sys
files = [os.open(f'{sys.argv[1]}/{n}', os.O_WRONLY | os.O_CREAT) for n in range(16)]
for _ in range(60):
    for file in files:
        os.write(file, bytes(256 << 10))
for file in files:
    os.fsync(file)
";
    let writer = |dir: &Path| {
        let mut python = Command::new("python3");
        python.args(["-c", text]).arg(dir);
        python
    };
    both(&lab, test, 1.1, writer, |dir| {
        for n in 0..16 {
            let length = fs::metadata(dir.join(n.to_string())).expect("a file is missing").len();
            assert_eq!(length, 60 * (256 << 10), "file {n}");
        }
    });
}

/// Most are closed before anything can be learned from them.
#[test]
fn small_files() {
    let test = "ext4 with data=journal, 6,000 small files";
    let Some(lab) = Lab::shared(test) else { return };
    let archive = programs::archive_of_small_files(&lab, 6000);
    let writer = |dir: &Path| {
        let mut tar = Command::new("sh");
        tar.args(["-c", r#"tar --extract --file "$1" --directory "$2" && sync --file-system "$2""#, "sh"]);
        tar.arg(&archive).arg(dir);
        tar
    };
    both(&lab, test, 1.5, writer, |dir| {
        run("tar", &["--compare", "--file", &path_str(&archive), "--directory", &path_str(dir)]);
    });
}

/// binfmt_misc is known to nobody by name, has no page cache, and takes as many commands as one likes.
#[test]
fn where_there_is_nothing_to_flush_to() {
    let test = "binfmt_misc";
    let Some(lab) = Lab::shared(test) else { return };
    let dir = lab.dir().join("binfmt_misc");
    fs::create_dir(&dir).expect("cannot make a directory");
    run("mount", &["-t", "binfmt_misc", "none", &path_str(&dir)]);
    let commands = lab.dir().join("commands");
    fs::write(&commands, "1\n".repeat(40_000)).expect("cannot write the commands");
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", path_str(&commands))).arg(format!("of={}", path_str(&dir.join("status"))));
    dd.args(["bs=2", "conv=notrunc", "status=none"]);
    let report = lab.dir().join("report");
    let small = freeboard::workload(lab.dir(), "[writes]\nwindow = \"4MiB\"\n");
    let under = measure(&lab, LIMIT, &mut freeboard::reporting(&dd, &small, &report));
    under.assert_ok(test);
    let held = freeboard::reported(&report, "longest_held_back_s");
    println!("{test}: {:.2} s, longest wait {held} s", under.wall.as_secs_f64());
    assert!(held < 0.05, "{test}: a call waited {held} s for a disk that is not there");
}
