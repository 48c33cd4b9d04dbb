//! Unmodified programs that copy 250 MiB on XFS, on a disk of 30 MiB/s, in a memory cgroup of 120 MB. Plainly each of
//! them meets the limit, and some are killed; under the library none does, and all bytes arrive.

use freeboard_tests::cgroup::{Run, measure};
use freeboard_tests::lab::{Lab, run};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const LIMIT: u64 = 120 * MB;
const DISK: u64 = 30 * MIB;
const DATA: u64 = 250 * MIB;

/// A disk with the source on it: so copy_file_range has two files of one filesystem, as in a container's volume.
struct Bench<'lab> {
    lab: &'lab Lab,
    disk: SlowDisk<'lab>,
    source: PathBuf,
    output: PathBuf,
    rows: Vec<(String, Run)>,
}

impl<'lab> Bench<'lab> {
    fn new(lab: &'lab Lab) -> Bench<'lab> {
        let disk = SlowDisk::new(lab, Filesystem::XfsWithoutReflinks, DISK);
        let [source, output] = ["source", "output"].map(|name| disk.dir().join(name));
        disk.full_speed();
        fs::copy(programs::random_file_on_disk(DATA), &source).expect("cannot copy the source");
        disk.settle();
        Bench { lab, disk, source, output, rows: Vec::new() }
    }

    /// Runs a command plainly and under the library; `arrived` looks at what the latter wrote, read from the disk.
    fn both(&mut self, name: &str, command: &Command, arrived: impl Fn(&Bench)) {
        for under in [false, true] {
            fs::create_dir(&self.output).expect("cannot make the output directory");
            let mut command = if under { freeboard::under(command, None) } else { again(command) };
            let warm = truth::keep_warm(&self.source);
            let run = measure(self.lab, LIMIT, &mut command);
            drop(warm);
            self.disk.settle();
            if under && run.status.success() {
                arrived(self);
            }
            fs::remove_dir_all(&self.output).expect("cannot remove the output");
            self.rows.push((format!("{name}{}", if under { ", freeboard" } else { "" }), run));
        }
    }

    /// Runs a command whose last two arguments are the source and the copy.
    fn copies(&mut self, name: &str, words: &[&str]) {
        let copy = self.output.join("copy");
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args([&self.source, &copy]);
        self.both(name, &command, |bench| truth::assert_same(&copy, &bench.source));
    }

    fn print(&self, test: &str) {
        let rows: Vec<_> = self.rows.iter().map(|(name, run)| (name.as_str(), run)).collect();
        table::print(test, &rows);
    }

    fn assert_never_at_the_limit(&self) {
        for pair in self.rows.chunks(2) {
            let [(name, plain), (_, under)] = pair else { unreachable!("rows come in pairs") };
            assert!(plain.figures.limit_hits > 0, "{name}: the plain run was never at the limit: this shows nothing");
            under.assert_never_at_the_limit(name);
        }
    }
}

fn again(command: &Command) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    again
}

#[test]
fn coreutils() {
    let test = "cp and dd";
    let Some(lab) = Lab::shared(test) else { return };
    let mut bench = Bench::new(&lab);
    bench.copies("cp, copy_file_range", &["cp"]);
    bench.copies("cp, read and write", &["cp", "--reflink=never"]);
    for size in ["4096", "65537", "1M"] {
        let blocks = format!("bs={size}");
        let dd = ["sh", "-c", r#"exec dd "$0" if="$1" of="$2""#, &blocks];
        bench.copies(&format!("dd {blocks}"), &dd);
    }
    bench.print(test);
    bench.assert_never_at_the_limit();
}

#[test]
fn archives() {
    let test = "tar, untar, rsync";
    let Some(lab) = Lab::shared(test) else { return };
    let mut bench = Bench::new(&lab);

    let archive = bench.output.join("archive.tar");
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(&archive).arg("--directory").arg(bench.disk.dir()).arg("source");
    bench.both("tar", &tar, |bench| {
        let mut compare = Command::new("tar");
        compare.arg("--compare").arg("--file").arg(&archive).arg("--directory").arg(bench.disk.dir());
        assert!(compare.status().expect("cannot start tar").success(), "the archive differs from the source");
    });

    let small_files = programs::archive_of_small_files(&lab, 20_000);
    let mut untar = Command::new("tar");
    untar.arg("--extract").arg("--file").arg(&small_files).arg("--directory").arg(&bench.output);
    bench.both("untar of 20,000 files", &untar, |bench| {
        let mut compare = Command::new("tar");
        compare.arg("--compare").arg("--file").arg(&small_files).arg("--directory").arg(&bench.output);
        assert!(compare.status().expect("cannot start tar").success(), "the files differ from the archive");
    });

    bench.copies("rsync", &["rsync", "--whole-file"]);
    bench.print(test);
    bench.assert_never_at_the_limit();
}

#[test]
fn runtimes() {
    let test = "python, Java, node";
    let Some(lab) = Lab::shared(test) else { return };
    let mut bench = Bench::new(&lab);

    let python = run("python3", &["-c", "import sys; print(sys.executable)"]);
    bench.copies("python shutil", &[&python, "-c", "import shutil, sys; shutil.copyfile(*sys.argv[1:])"]);

    let classes = programs::java_classes(&lab, "Copy");
    let classes = classes.to_str().expect("our paths are UTF-8");
    for way in ["files", "channel", "transfer"] {
        // a heap that leaves room for the virtual machine itself under the target of 96 MB
        let java = ["java", "-Xmx16m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", classes, "Copy", way];
        bench.copies(&format!("java {way}"), &java);
    }

    bench.copies("node copyFile", &["node", "-e", "require('fs').copyFileSync(...process.argv.slice(1))"]);
    let streams = "const [, from, to] = process.argv, fs = require('fs');
        fs.createReadStream(from).pipe(fs.createWriteStream(to))";
    bench.copies("node streams", &["node", "-e", streams]);
    bench.print(test);
    bench.assert_never_at_the_limit();
}

#[test]
fn many_writers() {
    let test = "several writers at once";
    let Some(lab) = Lab::shared(test) else { return };
    let mut bench = Bench::new(&lab);

    let four = r#"for n in 1 2 3 4; do
        dd if="$0" of="$1/$n" bs=64K count=1000 & writers="$writers $!"
    done; for writer in $writers; do wait "$writer" || exit; done"#;
    let mut writers = Command::new("sh");
    writers.args(["-c", four]).args([&bench.source, &bench.output]);
    bench.both("four writers", &writers, |bench| {
        for n in 1..=4 {
            let copy = bench.output.join(n.to_string());
            assert_eq!(fs::metadata(&copy).expect("a writer's file is missing").len(), 1000 * (64 << 10));
            truth::assert_starts_with(&bench.source, &copy);
        }
    });

    let threads = programs::c_program(&lab, "threads_one_file");
    bench.copies("16 threads, one file", &[threads.to_str().expect("our paths are UTF-8")]);
    bench.print(test);
    bench.assert_never_at_the_limit();
}

#[test]
fn short_processes() {
    let test = "4,000 processes that copy 60 KB each";
    let Some(lab) = Lab::alone(test) else { return };
    let mut bench = Bench::new(&lab);
    let small = lab.dir().join("small");
    fs::write(&small, vec![b'x'; 60_000]).expect("cannot write");

    // in both cases until all bytes are on the disk: else the plain run leaves most of its work to afterwards
    let script = r#"n=0; while [ $n -lt 4000 ]; do cp "$0" "$1/$n" || exit; n=$((n + 1)); done; sync -f "$1""#;
    let mut copies = Command::new("sh");
    copies.args(["-c", script]).args([&small, &bench.output]);
    let allowed = DISK.max(LIMIT / 10);
    let mut ratios = Vec::new();
    // in pairs, of which most decide: one of the two can meet what else the machine does
    while ratios.len() < 3 && ratios.iter().filter(|&&ratio| ratio <= 1.05).count() < 2 {
        bench.rows.clear();
        bench.both("4,000 times cp", &copies, |bench| {
            for n in 0..4000 {
                truth::assert_same(&bench.output.join(n.to_string()), &small);
            }
        });
        bench.print(test);
        let (plain, under) = (&bench.rows[0].1, &bench.rows[1].1);
        assert!(plain.figures.peak_unwritten_bytes > allowed, "the plain run owed the disk little: this shows nothing");
        under.assert_ok(test);
        let unwritten = under.figures.peak_unwritten_bytes;
        assert!(unwritten <= allowed, "unwritten {unwritten} is over what is allowed, {allowed}");
        ratios.push(under.wall.as_secs_f64() / plain.wall.as_secs_f64());
    }
    let held = ratios.iter().filter(|&&ratio| ratio <= 1.05).count();
    assert!(held >= 2, "{test}: times plain {ratios:.3?}, most of them over 1.05");
}
