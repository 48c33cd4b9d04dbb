//! Calls that a ledger could lose count of: too little is counted, and the bound is broken; too much, and the program
//! crawls for the rest of its life.

use freeboard_tests::cgroup::measure;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table};
use std::process::Command;

const LIMIT: u64 = 120 * MB;
const DISK: u64 = 30 * MIB;
/// Longest call of an ordinary writer afterwards, in milliseconds; a stall would take ten seconds.
const LONGEST_MS: u64 = 5000;

#[test]
fn vectors_cancelled_calls_and_children_are_accounted_for() {
    let test = "what a ledger could lose count of";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let program = programs::c_program(&lab, "left");
    let mut rows = Vec::new();
    for what in ["vectors", "cancel", "fork", "moved", "many"] {
        let mut command = Command::new(&program);
        command.arg(what).arg(disk.dir());
        rows.push((what, measure(&lab, LIMIT, &mut freeboard::under(&command, None))));
        disk.settle();
    }
    table::print(test, &rows.iter().map(|(name, run)| (*name, run)).collect::<Vec<_>>());
    for (what, run) in rows {
        run.assert_ok(what);
        // what a short process has left clean stays, and the limit takes it back
        if what != "fork" {
            run.assert_never_at_the_limit(what);
        }
        assert_eq!(run.figures.oom_kills, 0, "{what}");
        let longest: u64 = run.output.trim().parse().unwrap_or_else(|_| panic!("{what} printed {:?}", run.output));
        println!("{what}: the longest call afterwards took {longest} ms");
        assert!(longest <= LONGEST_MS, "{what}: {longest} ms");
        // not past the target, whatever a call that was cancelled before it wrote makes of the disk's speed
        let unwritten = run.figures.peak_unwritten_bytes;
        assert!(unwritten <= LIMIT / 10 * 8, "{what}: {} MiB unwritten", unwritten / MIB);
    }
}
