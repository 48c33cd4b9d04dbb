//! A program that holds a lock, a lease and a mount, and counts its descriptors, finds all of them as they would be
//! without the library.

use freeboard_tests::cgroup::measure;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs};
use std::process::Command;

/// What the program prints: a line for each thing it holds.
fn said(lab: &Lab, on_overlay: bool, under: bool) -> String {
    let program = programs::c_program(lab, "untouched");
    let always = freeboard::workload(lab.dir(), "[writes]\nmode = \"always\"\nwindow = \"4MiB\"\n");
    let disks = [(); 2].map(|()| SlowDisk::new(lab, Filesystem::Xfs, 30 * MIB));
    let [held, unmounted] = [0, 1].map(|n| if on_overlay { disks[n].overlay() } else { disks[n].dir().to_owned() });
    let mut plain = Command::new(&program);
    plain.args([held, unmounted]);
    let mut command = if under { freeboard::under(&plain, Some(&always)) } else { plain };
    let run = measure(lab, 200 * MB, &mut command);
    run.assert_ok("untouched");
    run.output
}

#[test]
fn untouched_on_xfs() {
    let test = "a lock, a lease and a mount on XFS";
    let Some(lab) = Lab::shared(test) else { return };
    let [plain, under] = [false, true].map(|under| said(&lab, false, under));
    println!("{test}, freeboard:\n{under}");
    assert!(plain.lines().all(|line| line.ends_with(": fine")), "plainly:\n{plain}");
    assert_eq!(plain, under);
}

#[test]
fn untouched_on_overlayfs() {
    let test = "a lock, a lease and a mount on overlayfs";
    let Some(lab) = Lab::shared(test) else { return };
    let [plain, under] = [false, true].map(|under| said(&lab, true, under));
    println!("{test}, freeboard:\n{under}");
    assert_eq!(plain, under);
}
