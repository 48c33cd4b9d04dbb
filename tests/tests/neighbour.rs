//! A neighbour in the writer's cgroup suddenly wants 300 MB: ext4 on a disk of 16 MB/s, limit 600 MB, and the group has
//! as much page cache as it has after half a minute of writing.

use freeboard_tests::cgroup::{Figures, Group};
use freeboard_tests::lab::Lab;
use freeboard_tests::neighbour::Stall;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs};
use std::fs;
use std::process::Command;
use std::time::Duration;

const LIMIT: u64 = 600 * MB;
/// Clean page cache that the group starts with: what it would have written by the time that usage reaches its target.
const CACHED: u64 = 430 * MIB;

struct Taken {
    stall: Stall,
    figures: Figures,
}

fn take_300_mb(lab: &Lab, disk: &SlowDisk, writer: &mut Command) -> Taken {
    disk.settle();
    let group = Group::new(lab, LIMIT);
    let cached = format!("if={}", disk.dir().join("cached").display());
    group.run(Command::new("dd").args([&cached, "of=/dev/null", "bs=1M"])).assert_ok("dd");
    let mut writer = group.spawn(writer);
    std::thread::sleep(Duration::from_secs(5));
    let run = group.run(Command::new(env!("CARGO_BIN_EXE_neighbour")).arg((300 * MB).to_string()));
    assert!(!writer.ended(), "the writer was done before its neighbour: this shows nothing");
    run.assert_ok("the neighbour");
    let figures = group.figures();
    writer.kill();
    Taken { stall: run.output.parse().unwrap_or_else(|error| panic!("{error:#}")), figures }
}

#[test]
fn three_hundred_megabytes_are_there_at_once() {
    let test = "a neighbour takes 300 MB";
    let Some(lab) = Lab::alone(test) else { return };
    let source = programs::random_file(&lab, 1024 * MIB);
    let disk = SlowDisk::new(&lab, Filesystem::Ext4, 16 * MB);
    disk.full_speed();
    fs::copy(programs::random_file_on_disk(CACHED), disk.dir().join("cached")).expect("cannot copy");
    let mut plain = Command::new("qemu-img");
    plain.args(["convert", "-t", "writeback", "-f", "raw", "-O", "raw"]).arg(&source).arg(disk.dir().join("output"));
    let mut taken = vec![take_300_mb(&lab, &disk, &mut plain)];
    taken.extend((0..3).map(|_| take_300_mb(&lab, &disk, &mut freeboard::under(&plain, None))));
    for (n, taken) in taken.iter().enumerate() {
        let name = if n == 0 { "plain".into() } else { format!("freeboard {n}") };
        let unwritten = taken.figures.peak_unwritten_bytes / MIB;
        println!(
            "{test}, {name}: {:.2?}, worst MiB {:.2?}, peak unwritten {unwritten} MiB",
            taken.stall.all, taken.stall.worst_mib
        );
    }

    let plain = taken[0].stall.all;
    assert!(plain > Duration::from_secs(5), "plainly it took only {plain:?}: this shows nothing");
    let median = |pick: fn(&Stall) -> Duration| {
        let mut of: Vec<_> = taken[1..].iter().map(|taken| pick(&taken.stall)).collect();
        of.sort_unstable();
        of[1]
    };
    let (all, worst_mib) = (median(|stall| stall.all), median(|stall| stall.worst_mib));
    assert!(all <= Duration::from_millis(500), "median of all: {all:?}");
    assert!(worst_mib <= Duration::from_millis(10), "median of the worst MiB: {worst_mib:?}");
}
