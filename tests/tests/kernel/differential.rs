//! Random operations on every filesystem that the host can make, each as without the library; NFS and vfat are in the
//! guest's suite.
//!
//! `FREEBOARD_DIFFERENTIAL_OPERATIONS` asks for another number of operations in all, `FREEBOARD_DIFFERENTIAL_SEED` for
//! others.

use freeboard_tests::differential::{self, number};
use freeboard_tests::lab::Lab;
use freeboard_tests::programs;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use std::fs;
use std::path::Path;

/// Carries out so many hundredths of all operations.
fn compare(lab: &Lab, filesystem: &str, dir: &Path, hundredths: usize) {
    let operations = number("FREEBOARD_DIFFERENTIAL_OPERATIONS", 1_000_000) / 100 * hundredths;
    let program = programs::c_program(lab, "differential");
    let held_calls = differential::compare(lab, &program, filesystem, dir, operations);
    assert!(filesystem == "tmpfs" || held_calls.iter().all(|&calls| calls > 0.0), "no call was held back");
}

fn on_disk(filesystem: Filesystem, name: &str, hundredths: usize) {
    let Some(lab) = Lab::with_own_disks(name) else { return };
    let disk = SlowDisk::new(&lab, filesystem, 0);
    compare(&lab, name, disk.dir(), hundredths);
}

#[test]
fn ext4() {
    on_disk(Filesystem::Ext4, "ext4", 25);
}

#[test]
fn xfs() {
    on_disk(Filesystem::Xfs, "xfs", 25);
}

#[test]
fn btrfs() {
    on_disk(Filesystem::Btrfs, "btrfs", 15);
}

#[test]
fn overlayfs() {
    let Some(lab) = Lab::with_own_disks("overlayfs") else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 0);
    let overlay = disk.overlay();
    compare(&lab, "overlayfs", &overlay, 15);
}

#[test]
fn tmpfs() {
    let Some(lab) = Lab::with_own_disks("tmpfs") else { return };
    let dir = lab.dir().join("directory");
    fs::create_dir(&dir).expect("cannot make a directory");
    compare(&lab, "tmpfs", &dir, 20);
}
