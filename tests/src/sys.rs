//! Raw system calls that the standard library does not offer. The only module here that may say `unsafe`.

use std::fs::File;
use std::io::{self, PipeWriter, Write};
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

/// From now on the kernel reads of a file what it is asked for, and nothing ahead.
///
/// # Errors
/// What posix_fadvise(2) says.
pub fn do_not_read_ahead(file: &File) -> io::Result<()> {
    // SAFETY: takes integers and a descriptor that `file` keeps open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A file's pages, held in the page cache until this is dropped. They are charged to who read them first.
#[derive(Debug)]
pub struct Pinned {
    address: *mut libc::c_void,
    bytes: usize,
}

impl Pinned {
    /// Maps a file that is not empty, reads all of it, and locks it in memory.
    ///
    /// # Errors
    /// What mmap(2) says; `EAGAIN` over RLIMIT_MEMLOCK without the right to.
    pub fn new(file: &File) -> io::Result<Pinned> {
        let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let flags = libc::MAP_SHARED | libc::MAP_LOCKED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice, which nobody reads through.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Pinned { address, bytes }) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, of which nobody has a reference.
        unsafe { libc::munmap(self.address, self.bytes) };
    }
}

/// A pipe's room.
///
/// # Errors
/// What fcntl(2) says; `EPERM` over /proc/sys/fs/pipe-max-size without the right to.
pub fn set_pipe_size(pipe: &PipeWriter, bytes: i32) -> io::Result<()> {
    // SAFETY: takes integers and a descriptor that `pipe` keeps open.
    match unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many bytes in a pipe nobody has read yet.
///
/// # Errors
/// What ioctl(2) says.
pub fn unread_bytes(pipe: &PipeWriter) -> io::Result<i32> {
    let mut bytes = 0;
    // SAFETY: FIONREAD stores an int, to which the pointer is (`pipe_ioctl` in fs/pipe.c).
    match unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } {
        0 => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}
