//! Fifteen programs lose writes on a disk that ran full. Each hears of it plainly, and each must hear of it under the
//! library, in the mode that flushes most.

use freeboard_tests::cgroup::measure;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::ThinDisk;
use freeboard_tests::{MB, MIB, freeboard, programs};
use std::process::Command;

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

#[test]
fn every_lost_write_is_reported() {
    let test = "lost writes";
    let Some(lab) = Lab::shared(test) else { return };
    let program = programs::c_program(&lab, "lost_write");
    let always = freeboard::workload(lab.dir(), "[writes]\nmode = \"always\"\nwindow = \"4MiB\"\n");

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
