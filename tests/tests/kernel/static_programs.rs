//! Programs whose writes no library sees, because they are static or written in Go: under `freeboard run`, which has
//! the kernel tell of their writes. 250 MiB to XFS on a disk of 30 MiB/s in a memory cgroup of 100 MB.

use freeboard_tests::cgroup::{Group, Run, measure};
use freeboard_tests::lab::{Lab, path_str, run};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, sys, table, truth};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: u64 = 100 * MB;
const DISK: u64 = 30 * MIB;
const DATA: u64 = 250 * MIB;

/// A disk with the source on it: so copy_file_range has two files of one filesystem.
fn disk_with_source(lab: &Lab) -> (SlowDisk<'_>, PathBuf, PathBuf) {
    let disk = SlowDisk::new(lab, Filesystem::XfsWithoutReflinks, DISK);
    let [source, output] = ["source", "output"].map(|name| disk.dir().join(name));
    disk.full_speed();
    fs::copy(programs::random_file_on_disk(DATA), &source).expect("cannot copy the source");
    disk.settle();
    (disk, source, output)
}

fn dd(source: &Path, copy: &Path) -> Command {
    let mut dd = Command::new("busybox");
    dd.args(["dd", "bs=64k"]).args([format!("if={}", source.display()), format!("of={}", copy.display())]);
    dd
}

fn command(words: &[&str], source: &Path, copy: &Path) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args([source, copy]);
    command
}

/// `freeboard run` with flags of its own.
fn run_with(flags: &[&str], command: &Command) -> Command {
    let mut run = Command::new(freeboard::program());
    run.arg("run").args(flags).arg("--").arg(command.get_program()).args(command.get_args());
    run
}

/// One number of a report.
fn reported(report: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(report).expect("there is no report");
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("\"{key}\": ")));
    line.and_then(|value| value.trim_end_matches(',').parse().ok()).unwrap_or_else(|| panic!("no {key} in {text}"))
}

/// A name, a command, and what looks at its output and at its report.
type Case<'a> = (&'a str, Command, &'a dyn Fn(&Path));

/// Runs each command plainly and under `freeboard run`; what the latter wrote is looked at.
fn both(lab: &Lab, disk: &SlowDisk, source: &Path, output: &Path, cases: &[Case]) -> Vec<(String, Run)> {
    let report = lab.dir().join("report.json");
    let mut rows = Vec::new();
    for (name, command, arrived) in cases {
        for under in [false, true] {
            fs::create_dir(output).expect("cannot make the output directory");
            let mut command = if under {
                run_with(&["--quiet", "--report", &path_str(&report)], command)
            } else {
                let mut plain = Command::new(command.get_program());
                plain.args(command.get_args());
                plain
            };
            let warm = truth::keep_warm(source);
            let run = measure(lab, LIMIT, &mut command);
            drop(warm);
            disk.settle();
            if under && run.status.success() {
                arrived(&report);
            }
            fs::remove_dir_all(output).expect("cannot remove the output");
            rows.push((format!("{name}{}", if under { ", freeboard" } else { "" }), run));
        }
    }
    rows
}

#[test]
fn they_are_paced() {
    let test = "static programs";
    let Some(lab) = Lab::shared(test) else { return };
    let (disk, source, output) = disk_with_source(&lab);
    let copy = output.join("copy");
    let go = path_str(&programs::go_program(&lab, "copy"));
    let identical = arrived(&copy, &source);
    let archive = programs::archive_of_small_files(&lab, 5000);
    let mut untar = Command::new("busybox");
    untar.args(["tar", "-xf"]).arg(&archive).arg("-C").arg(&output);
    let unpacked = |_: &Path| {
        run("tar", &["--compare", "--file", &path_str(&archive), "--directory", &path_str(&output)]);
    };
    let cases: [Case; 5] = [
        ("busybox dd", dd(&source, &copy), &identical),
        ("busybox cp", command(&["busybox", "cp"], &source, &copy), &identical),
        ("busybox untar", untar, &unpacked),
        ("Go, writes", command(&[&go, "writes"], &source, &copy), &identical),
        ("Go, io.Copy", command(&[&go, "kernel"], &source, &copy), &identical),
    ];
    assert_paced(test, &both(&lab, &disk, &source, &output, &cases));
}

/// It has the library, which sees what its C side writes; the kernel tells of the rest, and each byte is paced once.
#[test]
fn go_with_cgo_is_paced() {
    let test = "Go with cgo";
    let Some(lab) = Lab::shared(test) else { return };
    let (disk, source, output) = disk_with_source(&lab);
    let copy = output.join("copy");
    let go = path_str(&programs::cgo_program(&lab, "cgo"));
    let interpreter = run("readelf", &["--program-headers", "--wide", &go]);
    assert!(interpreter.contains("INTERP"), "it is static: this shows nothing\n{interpreter}");
    let told = arrived(&copy, &source);
    let seen = |report: &Path| {
        truth::assert_same(&copy, &source);
        assert_eq!(reported(report, "notified_bytes"), 0);
        // Go ends without libc's knowledge, so the library has no last word; it speaks every 8 MiB
        let written = reported(report, "written_bytes");
        assert!((DATA - 8 * MIB..=DATA).contains(&written), "{written} bytes were reported");
    };
    let cases: [Case; 3] = [
        ("cgo, writes", command(&[&go, "writes"], &source, &copy), &told),
        ("cgo, io.Copy", command(&[&go, "kernel"], &source, &copy), &told),
        ("cgo, libc", command(&[&go, "libc"], &source, &copy), &seen),
    ];
    assert_paced(test, &both(&lab, &disk, &source, &output, &cases));
}

/// All bytes have arrived, and the kernel has told of each once.
fn arrived(copy: &Path, source: &Path) -> impl Fn(&Path) {
    move |report| {
        truth::assert_same(copy, source);
        assert_eq!(reported(report, "notified_bytes"), DATA);
        assert_eq!(reported(report, "written_bytes"), DATA);
    }
}

/// # Panics
/// Unless each command was never at the limit, and plainly was.
fn assert_paced(test: &str, rows: &[(String, Run)]) {
    table::print(test, &rows.iter().map(|(name, run)| (name.as_str(), run)).collect::<Vec<_>>());
    for pair in rows.chunks(2) {
        let [(name, plain), (_, under)] = pair else { unreachable!("rows come in pairs") };
        assert!(plain.figures.limit_hits > 0, "{name}: the plain run was never at the limit: this shows nothing");
        under.assert_never_at_the_limit(name);
    }
}

/// A process that may not administer the system has to give up what setuid programs may do; the rest is the same.
#[test]
fn any_user_is_served() {
    let test = "a static program of another user";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    run("chmod", &["777", &path_str(lab.dir()), &path_str(disk.dir())]);
    // what this user may not read in the build's directory
    for file in [freeboard::program(), freeboard::library()] {
        fs::copy(&file, lab.dir().join(file.file_name().expect("a file has a name"))).expect("cannot copy a program");
    }
    let (source, copy) = (programs::random_file(&lab, 120 * MIB), disk.dir().join("copy"));
    let report = lab.dir().join("report.json");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    command.arg("env").arg(format!("TMPDIR={}", lab.dir().display())).arg(lab.dir().join("freeboard"));
    let inner = dd(&source, &copy);
    command.args(["run", "--quiet", "--report"]).arg(&report).arg("--").arg("busybox").args(inner.get_args());
    let under = measure(&lab, 60 * MB, &mut command);
    disk.settle();
    table::print(test, &[("busybox dd, freeboard", &under)]);
    under.assert_never_at_the_limit(test);
    truth::assert_same(&copy, &source);
    assert_eq!(reported(&report, "notified_bytes"), 120 * MIB);
}

#[test]
fn no_write_is_lost_with_the_launcher() {
    let test = "kill -9 of the launcher";
    let Some(lab) = Lab::shared(test) else { return };
    let (disk, source, copy) = disk_with_source(&lab);
    let warm = truth::keep_warm(&source);
    let group = Group::new(&lab, LIMIT);
    let launcher = group.spawn(&mut run_with(&["--quiet"], &dd(&source, &copy)));
    std::thread::sleep(Duration::from_secs(3));
    let before = fs::metadata(&copy).expect("nothing was written yet").len();
    assert!(before > 0 && before < DATA, "{before} bytes: the program is not in the middle of its work");
    // what follows is not paced
    group.set_limit(1000 * MB);
    sys::kill(launcher.pid(), libc::SIGKILL).expect("cannot kill the launcher");
    let run = launcher.wait();
    assert!(!run.status.success(), "the launcher ended before it was killed");

    // neither the program nor the process that answered for it stays
    let start = Instant::now();
    let members = || fs::read_to_string(group.dir().join("cgroup.procs")).expect("cannot read cgroup.procs");
    while !members().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "still there: {:?}", members());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{test}: {} MiB were written, all {} after {:?} more", before / MIB, DATA / MIB, start.elapsed());
    drop(warm);
    disk.settle();
    truth::assert_same(&copy, &source);
    assert_eq!(group.figures().oom_kills, 0);
}

#[test]
fn where_the_kernel_refuses_it_runs_unpaced_and_says_so() {
    let test = "a launcher under a launcher";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let (source, copy) = (programs::random_file(&lab, 20 * MIB), disk.dir().join("copy"));
    // the kernel has one notifier for a process: the outer launcher's
    for (flags, said) in [(&[][..], 1), (&["--quiet"], 0)] {
        let inner = run_with(flags, &dd(&source, &copy));
        let run = measure(&lab, LIMIT, &mut run_with(&["--quiet", "--notify", "always"], &inner));
        disk.settle();
        run.assert_never_at_the_limit(test);
        truth::assert_same(&copy, &source);
        assert_eq!(run.output.matches("the kernel does not tell of writes here").count(), said, "{}", run.output);
    }
}

/// What such a disk owes is waited for once, not by each call that comes later.
#[test]
fn a_disk_that_makes_no_progress_holds_no_more_than_a_window_at_a_time() {
    let test = "a static program, a disk that stands still";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 4096);
    let source = programs::random_file(&lab, 3 * MIB);
    let workload = freeboard::workload(lab.dir(), "[writes]\nwindow = \"1MiB\"\nmax_stall = \"1s\"\n");
    // 48 calls, of which 16 fit into the window
    let command = freeboard::under(&dd(&source, &disk.dir().join("copy")), Some(&workload));
    let run = measure(&lab, LIMIT, &mut { command });
    disk.full_speed();
    run.assert_ok(test);
    println!("{test}: {:.1} s", run.wall.as_secs_f64());
    assert!(run.wall > Duration::from_millis(900), "{test}: nothing was held: this shows nothing");
    assert!(run.wall < Duration::from_secs(8), "{test}: {:?}", run.wall);
}

/// A program that has begun a copy by the kernel would forget what was copied, or give up, if a later call were refused.
#[test]
fn a_copy_is_refused_at_its_beginning_or_not_at_all() {
    let test = "copies of files that grow";
    let Some(lab) = Lab::shared(test) else { return };
    let program = path_str(&programs::static_program(&lab, "grown"));
    let dir = programs::data_dir().join(format!("grown-{}", std::process::id()));
    fs::create_dir(&dir).expect("cannot make a directory");
    let run = measure(&lab, LIMIT, &mut run_with(&["--quiet"], Command::new(program).arg(&dir)));
    fs::remove_dir_all(&dir).expect("cannot remove a directory");
    println!("{test}: {}", run.output);
    run.assert_ok(test);
    // so the program was under the notifier
    let refused = [("copy_file_range", libc::EXDEV), ("sendfile", libc::EINVAL)];
    for (call, errno) in refused {
        let why = std::io::Error::from_raw_os_error(errno).to_string();
        let why = why.split(" (").next().unwrap_or_default();
        let lines = run.output.lines().filter(|line| line.starts_with(call) && line.ends_with(why));
        assert_eq!(lines.count(), 4, "{}", run.output);
    }
}
