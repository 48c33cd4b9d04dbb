//! The sidecar is killed in the middle of a `qemu-img convert`, and another one starts; the disk that its region lies on
//! hangs.

use freeboard_tests::cgroup::Group;
use freeboard_tests::freeboard::{self, Latencies, Sidecar};
use freeboard_tests::lab::{Lab, path_str, run};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, programs, table, truth};
use std::fs;
use std::path::Path;
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

/// A filesystem whose writers are held until this is dropped.
struct Frozen<'disk>(&'disk Path);

impl<'disk> Frozen<'disk> {
    fn new(dir: &'disk Path) -> Frozen<'disk> {
        run("fsfreeze", &["--freeze", &path_str(dir)]);
        Frozen(dir)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", &path_str(self.0)]);
    }
}

/// It goes on looking and answering: the library needs none of the region's files.
#[test]
fn the_disk_of_its_region_hangs() {
    let test = "a region on a disk that hangs";
    let Some(lab) = Lab::shared(test) else { return };
    let (disk, regions) =
        (SlowDisk::new(&lab, Filesystem::Xfs, 30 * MIB), SlowDisk::new(&lab, Filesystem::Ext4, 30 * MIB));
    let sidecar = Sidecar::start_in(regions.dir().join("region"), &lab, None);
    let frozen = Frozen::new(regions.dir());
    std::thread::sleep(Duration::from_millis(500)); // by then it is at its files

    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=65537", "count=2000", "status=none"]);
    sidecar.serves(dd.arg(format!("of={}", disk.dir().join("output").display())));
    let group = Group::new(&lab, 120 * MB);
    let member = group.spawn(&mut dd);
    std::thread::sleep(Duration::from_secs(1));
    let regions = mapped_regions(member.pid());
    let run = member.wait();
    drop(frozen);
    table::print(test, &[("freeboard", &run)]);
    run.assert_never_at_the_limit(test);
    assert!(!regions.is_empty(), "the sidecar did not answer");
}
