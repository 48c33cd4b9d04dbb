//! Fifteen programs on disks that fail and on filesystems that are full. Each hears of it plainly, and each must hear of
//! it under the library, in the mode that flushes most.

use freeboard_tests::cgroup::measure;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk, ThinDisk};
use freeboard_tests::{MB, MIB, freeboard, programs};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

const CASES: [&str; 15] = [
    "write_fsync",
    "write_fdatasync",
    "pwrite_fsync",
    "pwrite_fdatasync",
    "writev_fsync",
    "stdio_fsync",
    "write_through_dup",
    "fsync_through_dup",
    "child_writes",
    "close_reopen_fsync",
    "truncate_fsync",
    "fsync_through_second",
    "fsync_after_exec",
    "write_syncfs",
    "mmap_msync",
];
/// What the program exits with when a call reported an error.
const HEARD: Option<i32> = Some(3);
const HEARD_NOTHING: Option<i32> = Some(0);

/// The program, and a workload file for the mode that flushes most.
fn program_and_workload(lab: &Lab) -> (PathBuf, PathBuf) {
    let always = freeboard::workload(lab.dir(), "[writes]\nmode = \"always\"\nwindow = \"4MiB\"\n");
    (programs::c_program(lab, "lost_write"), always)
}

/// A disk that takes less than it promised: what is lost was written well.
#[test]
fn every_lost_write_is_reported() {
    let test = "lost writes";
    let Some(lab) = Lab::shared(test) else { return };
    let (program, always) = program_and_workload(&lab);

    let exit_code = |case: &str, capacity_bytes: u64, under: bool| {
        let disk = ThinDisk::new(&lab, capacity_bytes);
        let mut plain = Command::new(&program);
        plain.arg(case).arg(disk.dir().join("file"));
        let mut command = if under { freeboard::under(&plain, Some(&always)) } else { plain };
        measure(&lab, 200 * MB, &mut command).status.code()
    };
    let (small, roomy) = (40 * MIB, 200 * MIB);
    let plain = CASES.map(|case| exit_code(case, small, false));
    let under = CASES.map(|case| exit_code(case, small, true));
    let with_room = CASES.map(|case| exit_code(case, roomy, true));

    let count = |codes: &[Option<i32>], wanted: Option<i32>| codes.iter().filter(|&&code| code == wanted).count();
    println!(
        "{test}: plainly {} of {} heard of, under the library {}",
        count(&plain, HEARD),
        CASES.len(),
        count(&under, HEARD)
    );
    let cases = |codes: &[Option<i32>]| format!("{:#?}", CASES.iter().zip(codes).collect::<Vec<_>>());
    assert_eq!(count(&plain, HEARD), CASES.len(), "plainly, exit codes {}", cases(&plain));
    assert_eq!(count(&under, HEARD), CASES.len(), "under the library, exit codes {}", cases(&under));
    assert_eq!(
        count(&with_room, HEARD_NOTHING),
        CASES.len(),
        "with room on the disk, exit codes {}",
        cases(&with_room)
    );
}

/// A filesystem that has room for some of it: which call fails, and how, is as without us.
#[test]
fn a_full_filesystem_is_full_as_without_us() {
    let test = "full filesystems";
    let Some(lab) = Lab::shared(test) else { return };
    let (program, always) = program_and_workload(&lab);
    for filesystem in [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs] {
        let disk = SlowDisk::new(&lab, filesystem, 0);
        leave(&disk, 40);
        let file = disk.dir().join("file");
        let heard = |case: &str, under: bool| -> (ExitStatus, String) {
            let mut plain = Command::new("sh");
            plain.args(["-c", "exec 2>&1 \"$@\"", "sh"]).args([&program, &PathBuf::from(case), &file]);
            let mut command = if under { freeboard::under(&plain, Some(&always)) } else { plain };
            let run = measure(&lab, 200 * MB, &mut command);
            let _ = fs::remove_file(&file);
            disk.write_out(); // what was deleted is free again
            (run.status, run.output)
        };
        for case in CASES {
            let (plain, under) = (heard(case, false), heard(case, true));
            println!("{test}, {filesystem:?}, {case}: {}", plain.1.trim());
            assert_ne!(plain.0.code(), HEARD_NOTHING, "{filesystem:?}, {case}: it was not full, this shows nothing");
            assert_eq!(under, plain, "{filesystem:?}, {case}");
        }
    }
}

/// Takes up a filesystem's room, without writing, but for so many MiB.
fn leave(disk: &SlowDisk, free_mib: u32) {
    let taken = |name: &str, mib: u32| {
        let mut fallocate = Command::new("fallocate");
        fallocate.args(["--length", &format!("{mib}MiB")]).arg(disk.dir().join(name)).stderr(Stdio::null());
        fallocate.status().expect("cannot start fallocate").success()
    };
    assert!(taken("room", free_mib), "there is less room from the beginning");
    for mib in [640, 320, 160, 80, 40, 20, 10, 5, 2, 1] {
        (0..100).take_while(|n| taken(&format!("filler-{mib}-{n}"), mib)).for_each(drop);
    }
    fs::remove_file(disk.dir().join("room")).expect("cannot remove a file");
    disk.write_out();
}
