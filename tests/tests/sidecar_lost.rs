//! The sidecar is killed in the middle of a `qemu-img convert`, and another one starts.

use freeboard_tests::cgroup::Group;
use freeboard_tests::freeboard::{self, Latencies, Sidecar};
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, programs, table, truth};
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Inode numbers of the memory files (memfd) that a process has mapped: the region as a sidecar handed it over.
fn mapped_regions(pid: u32) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("cannot read the program's maps");
    let regions = maps.lines().filter(|line| line.contains("/memfd:"));
    regions.filter_map(|line| line.split_whitespace().nth(4)).map(str::to_owned).collect()
}

#[test]
fn the_program_goes_on_and_takes_the_next_one() {
    let test = "kill -9 of the sidecar";
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file(&lab, 600 * MIB);
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 30 * MIB);
    let (output, log) = (disk.dir().join("output"), lab.dir().join("latencies"));
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-t", "writeback", "-f", "raw", "-O", "raw"]).args([&source, &output]);

    let sidecar = Sidecar::start(&lab);
    let client = || {
        let mut command = freeboard::probed(&convert, &log);
        sidecar.serves(&mut command);
        command
    };
    let undisturbed = Group::new(&lab, 200 * MB).run(&mut client());
    let usual = Latencies::read(&log).longest();
    disk.settle();

    let group = Group::new(&lab, 200 * MB);
    let member = group.spawn(&mut client());
    std::thread::sleep(Duration::from_secs(5));
    let before = mapped_regions(member.pid());
    let killed = SystemTime::now();
    sidecar.kill();
    std::thread::sleep(Duration::from_secs(6));
    let alone = group.figures();
    let _next = Sidecar::start(&lab);
    std::thread::sleep(Duration::from_secs(4));
    let after = mapped_regions(member.pid());
    let run = member.wait();
    disk.settle();

    let afterwards = Latencies::read(&log).longest_within(killed, Duration::from_secs(10));
    table::print(test, &[("undisturbed", &undisturbed), ("sidecar killed", &run)]);
    println!("{test}: longest call usually {usual:?}, in the ten seconds after the kill {afterwards:?}");
    println!("{test}: limit hits before the next sidecar {}, peak usage {}", alone.limit_hits, alone.peak_usage_bytes);
    undisturbed.assert_never_at_the_limit("undisturbed");
    run.assert_never_at_the_limit(test);
    truth::assert_same(&output, &source);
    assert!(!before.is_empty(), "the program had mapped no region of the first sidecar");
    assert!(after.iter().any(|region| !before.contains(region)), "the second sidecar was not picked up: {after:?}");
    assert!(afterwards <= usual + Duration::from_secs(1), "a call of {afterwards:?} after the kill, usually {usual:?}");
}
