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

/// Takes 300 MB in a group that has its page cache already, while `writer` writes, if there is one.
fn take_300_mb(lab: &Lab, disk: &SlowDisk, writer: Option<&mut Command>) -> Taken {
    disk.settle();
    let group = Group::new(lab, LIMIT);
    let cached = format!("if={}", disk.dir().join("cached").display());
    group.run(Command::new("dd").args([&cached, "of=/dev/null", "bs=1M"])).assert_ok("dd");
    let writer = writer.map(|writer| group.spawn(writer));
    std::thread::sleep(Duration::from_secs(if writer.is_some() { 5 } else { 1 }));
    let run = group.run(Command::new(env!("CARGO_BIN_EXE_neighbour")).arg((300 * MB).to_string()));
    run.assert_ok("the neighbour");
    let figures = group.figures();
    if let Some(mut writer) = writer {
        assert!(!writer.ended(), "the writer was done before its neighbour: this shows nothing");
        writer.kill();
    }
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
    let measure = |name: &str, writer: Option<&mut Command>| {
        let taken = take_300_mb(&lab, &disk, writer);
        let (stall, unwritten) = (taken.stall, taken.figures.peak_unwritten_bytes / MIB);
        println!(
            "{test}, {name}: {:.2?}, worst MiB {:.2?}, peak unwritten {unwritten} MiB",
            stall.all, stall.worst_mib
        );
        stall
    };
    let unpaced = measure("plain", Some(&mut plain));
    assert!(unpaced.all > Duration::from_secs(5), "plainly it took only {:?}: this shows nothing", unpaced.all);
    let (mut calm, mut paced) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        calm.push(measure("nobody writes", None));
        paced.push(measure("freeboard", Some(&mut freeboard::under(&plain, None))));
    }
    for (what, pick, most) in [
        ("all", (|stall| stall.all) as fn(&Stall) -> Duration, Duration::from_millis(500)),
        ("the worst MiB", |stall| stall.worst_mib, Duration::from_millis(10)),
    ] {
        let mut took: Vec<_> = paced.iter().map(pick).collect();
        took.sort_unstable();
        // a machine on which this takes longer while nobody writes shows nothing by it
        let most = calm.iter().map(pick).max().map_or(most, |slowest| most.max(2 * slowest));
        assert!(took[1] <= most, "median of {what}: {:?} is over {most:?}", took[1]);
    }
}
