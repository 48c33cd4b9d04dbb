//! Raw system calls that the standard library does not offer. The only module here that may say `unsafe`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets `command` enter the cgroup whose `cgroup.procs` file this is, before it becomes its program.
pub fn enter_group_on_exec(command: &mut Command, procs: File) {
    // SAFETY: between fork and exec the closure makes one write(2) of a constant and allocates nothing.
    unsafe { command.pre_exec(move || (&procs).write_all(b"0")) };
}

/// Sends a signal to one process.
///
/// # Errors
/// What kill(2) says; `ESRCH` when there is no such process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: takes two integers.
    match unsafe { libc::kill(pid as i32, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What cachestat(2) says of a file, in pages. The layout is `struct cachestat` of Linux 6.5's `mman.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CacheStat {
    /// In the page cache.
    pub cached: u64,
    /// Dirty.
    pub dirty: u64,
    /// Under writeback.
    pub writeback: u64,
    /// Evicted since the page cache last forgot.
    pub evicted: u64,
    /// Evicted so lately that it should have stayed.
    pub recently_evicted: u64,
}

/// Asks cachestat(2) about a range of a file; of no length: to its end.
///
/// # Errors
/// `ENOSYS` before Linux 6.5.
pub fn cachestat(file: &File, offset: u64, bytes: u64) -> io::Result<CacheStat> {
    const SYS_CACHESTAT: i64 = 451;
    let range = [offset, bytes];
    let mut stat = CacheStat::default();
    // SAFETY: both pointers are to live values of the layout that the call takes: two and five 64-bit words.
    match unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), &raw mut stat, 0) } {
        0 => Ok(stat),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes what is clean of a file out of the page cache.
///
/// # Errors
/// What posix_fadvise(2) says.
pub fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: takes integers and a descriptor that `file` keeps open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
