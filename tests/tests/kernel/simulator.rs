//! The simulator, in which the law is proven, against the kernel.

use freeboard_tests::cgroup::{Sample, measure};
use freeboard_tests::curve::{CALL, Curve, DISK, LIMIT, Moment, OWN, WRITTEN, simulated};
use freeboard_tests::freeboard::Sidecar;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MIB, table};
use std::process::Command;

#[test]
fn a_real_run_is_like_a_simulated_one() {
    let test = "a run that was simulated";
    let Some(lab) = Lab::alone(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let sidecar = Sidecar::start(&lab);
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "status=none"]).arg(format!("bs={CALL}")).arg(format!("count={}", WRITTEN / CALL));
    sidecar.serves(dd.arg(format!("of={}", disk.dir().join("output").display())));
    let run = measure(&lab, LIMIT, &mut dd);
    table::print(test, &[("dd", &run)]);
    run.assert_never_at_the_limit(test);

    let first = run.samples.iter().position(|sample| sample.unwritten_bytes > MIB).expect("nothing was written");
    let samples = &run.samples[first..];
    let mut own: Vec<u64> = samples.iter().map(|one| one.usage_bytes.saturating_sub(one.cache_bytes)).collect();
    own.sort_unstable();
    println!("{test}: {} KiB of its own, {} KiB simulated", own[own.len() / 2] >> 10, OWN >> 10);
    let moment = |sample: &Sample| Moment {
        at: sample.at - samples[0].at,
        usage: sample.usage_bytes,
        unwritten: sample.unwritten_bytes,
    };
    Curve::of(&samples.iter().map(moment).collect::<Vec<_>>()).assert_within(0.1, &simulated());
}
