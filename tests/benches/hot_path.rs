//! What the library costs a call that it has nothing to do for, and a process that starts. In a memory cgroup with a
//! limit and with a sidecar, as in a pod.

use freeboard_tests::cgroup::Group;
use freeboard_tests::freeboard::Sidecar;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, pairs, programs};
use std::path::Path;
use std::process::Command;

const PAIRS: usize = 21;

fn main() {
    let Some(lab) = Lab::alone("hot path") else { return };
    let program = programs::c_program(&lab, "hot_path");
    let disk = SlowDisk::new(&lab, Filesystem::Ext4, 30 * MIB);
    let sidecar = Sidecar::start(&lab);
    let group = Group::new(&lab, 600 * MB);

    let tracked = disk.dir().join("file");
    let cases = [
        ("1-byte write to /dev/null", "null", 2_000_000, Path::new("/dev/null"), 5.0),
        ("16-byte pwrite below the window", "pwrite", 500_000, tracked.as_path(), 15.0),
        ("start of a process", "start", 500, Path::new("/bin/true"), 200_000.0),
    ];
    println!("nanoseconds, medians of {PAIRS} pairs");
    println!("{:34}{:>12}{:>12}{:>12}{:>12}", "", "plain", "freeboard", "more", "at most");
    for (name, case, count, file, bound) in cases {
        let cost = pairs::measure(PAIRS, |is_under| {
            let mut command = Command::new(&program);
            command.args([case, &count.to_string()]).arg(file);
            if is_under {
                sidecar.serves(&mut command);
            }
            let run = group.run(&mut command);
            run.assert_ok(name);
            run.output.trim().parse().unwrap_or_else(|_| panic!("{name} printed {:?}", run.output))
        });
        let more = cost.under - cost.plain;
        let verdict = if more <= bound { "" } else { "  OVER" };
        println!("{name:34}{:12.1}{:12.1}{more:12.1}{bound:12.1}{verdict}", cost.plain, cost.under);
    }
}
