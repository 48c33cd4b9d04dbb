//! How long a single write call is held back on a slow disk: 64 KiB writes to XFS, 30 MiB/s, limit 200 MB.

use freeboard_tests::cgroup::measure;
use freeboard_tests::freeboard::{self, Latencies};
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, programs, table, truth};
use std::fs;
use std::process::Command;
use std::time::Duration;

fn calls_are_short(test: &str, queue_length: Option<u32>) {
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file(&lab, 600 * MIB);
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 30 * MIB);
    if let Some(requests) = queue_length {
        disk.queue_length(requests);
    }
    let (output, log) = (disk.dir().join("output"), lab.dir().join("latencies"));
    let mut dd = Command::new("qemu-img");
    dd.args(["dd", "-f", "raw", "-O", "raw", "bs=64k"]);
    dd.arg(format!("if={}", source.display())).arg(format!("of={}", output.display()));

    // a machine that stands still for half a second by itself does not do so in both of two runs
    let is_short = (0..2).any(|_| {
        let run = measure(&lab, 200 * MB, &mut freeboard::under(&freeboard::probed(&dd, &log), None));
        disk.settle();
        table::print(test, &[("freeboard", &run)]);
        run.assert_never_at_the_limit(test);
        truth::assert_same(&output, &source);
        fs::remove_file(&output).expect("cannot remove the output");

        let latencies = Latencies::read(&log);
        fs::remove_file(&log).expect("cannot remove the log");
        let (p50, p99, worst) = (latencies.per_mille(500), latencies.per_mille(990), latencies.longest());
        println!("{test}: {} calls, median {p50:?}, p99 {p99:?}, worst {worst:?}", latencies.count());
        assert!(latencies.count() >= 9600, "the probe missed calls");
        p99 <= Duration::from_millis(150) && worst <= Duration::from_millis(500)
    });
    assert!(is_short, "{test}: p99 over 150 ms or worst over 500 ms, twice");
}

#[test]
fn as_the_device_comes() {
    calls_are_short("latency of 64 KiB writes", None);
}

#[test]
fn with_a_queue_of_four_requests() {
    calls_are_short("latency of 64 KiB writes, nr_requests 4", Some(4));
}
