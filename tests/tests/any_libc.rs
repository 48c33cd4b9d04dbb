//! One library for every image: it loads, and paces, on the oldest and the newest glibc that can be had here and on
//! musl. A library that asks its libc for too much does not only fail: no program starts with it at all.

use freeboard_tests::cgroup::measure;
use freeboard_tests::docker::succeed;
use freeboard_tests::lab::{Lab, path_str};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::fs;
use std::process::Command;

const LIMIT: u64 = 60 * MB;
const DISK: u64 = 30 * MIB;
const DATA: u64 = 120 * MIB;

/// Debian's releases with glibc 2.31 and 2.41; this machine's own is in between.
const SUITES: [&str; 2] = ["bullseye", "trixie"];

/// `dd` as a release of Debian has it, started by that release's own loader, with that release's own libraries.
fn dd_of(lab: &Lab, suite: &str) -> Command {
    let root = lab.dir().join(suite);
    let mut fetch = Command::new("mmdebstrap");
    fetch.args(["--quiet", "--mode=root", "--variant=extract", "--include=libc6,coreutils", suite]).arg(&root);
    succeed(&mut fetch).unwrap_or_else(|error| panic!("cannot fetch glibc of {suite}: {error:#}"));
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let libraries = [&libraries, &root.join("lib/x86_64-linux-gnu")].map(|dir| path_str(dir)).join(":");
    let loader = ["usr/lib", "lib"]
        .map(|lib| root.join(lib).join("x86_64-linux-gnu/ld-linux-x86-64.so.2"))
        .into_iter()
        .find(|loader| loader.exists());
    let dd = ["usr/bin/dd", "bin/dd"].map(|dd| root.join(dd)).into_iter().find(|dd| dd.exists());
    let mut command = Command::new(loader.unwrap_or_else(|| panic!("{suite} has no loader")));
    command.args(["--library-path", &libraries]).arg(dd.unwrap_or_else(|| panic!("{suite} has no dd")));
    command
}

#[test]
fn it_loads_and_paces() {
    let test = "one library for every libc";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let source = programs::random_file(&lab, DATA);
    let copy = disk.dir().join("copy");

    let mut cases: Vec<(String, Command)> = Vec::new();
    for suite in SUITES {
        let mut dd = dd_of(&lab, suite);
        dd.arg("bs=64k").arg(format!("if={}", source.display())).arg(format!("of={}", copy.display()));
        cases.push((format!("glibc of {suite}"), dd));
    }
    let mut musl = Command::new(programs::musl_program(&lab, "copy"));
    musl.args([&source, &copy]);
    cases.push(("musl".into(), musl));

    let mut rows = Vec::new();
    for (name, command) in &cases {
        let run = measure(&lab, LIMIT, &mut freeboard::under(command, None));
        disk.settle();
        rows.push((name.as_str(), run));
        if rows.iter().all(|(_, run)| run.status.success()) {
            truth::assert_same(&copy, &source);
        }
        let _ = fs::remove_file(&copy);
    }
    let rows: Vec<_> = rows.iter().map(|(name, run)| (*name, run)).collect();
    table::print(test, &rows);
    for (name, run) in rows {
        run.assert_never_at_the_limit(name);
    }
}
