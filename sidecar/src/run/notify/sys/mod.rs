//! The system calls behind the notifier that have no safe interface in the crates used here, and what runs in forked
//! processes. This is one of the crate's modules that may say `unsafe`.

pub mod forked;

use libc::{c_ulong, seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog};
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Calls that can wait for their answer at a time; more wait in the kernel.
pub const PLACES: usize = 256;

/// `cachestat` has one number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Puts the filter in force for this process and all that come of it, and gives the descriptor that its calls are
/// told on. Async-signal-safe.
///
/// A process that may administer its system keeps what setuid programs may do; any other one has to give that up for
/// good (no_new_privs), or the kernel refuses.
fn install(program: &[sock_filter]) -> io::Result<OwnedFd> {
    let wanted = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // from Linux 5.19 on: a call that was told of is not begun anew by each signal that comes
    let killable = wanted | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    match install_with(killable, program) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install_with(wanted, program),
        done => done,
    }
}

fn install_with(flags: c_ulong, program: &[sock_filter]) -> io::Result<OwnedFd> {
    match set_filter(flags, program) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            // SAFETY: plain integers.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
            set_filter(flags, program)
        }
        done => done,
    }
}

fn set_filter(flags: c_ulong, program: &[sock_filter]) -> io::Result<OwnedFd> {
    let program = sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions from `filter` and writes none; what it returns is a new descriptor.
    unsafe {
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let fd = check(libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// What a call that was told of is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// As if it had not been told of.
    Go,
    /// Return with this errno.
    Fail(i32),
}

/// Answers a call. One that is gone meanwhile needs none.
fn send(listener: BorrowedFd, id: u64, answer: Answer) {
    let (error, flags) = match answer {
        Answer::Go => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Answer::Fail(errno) => (-errno, 0),
    };
    let mut response = seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the kernel reads one struct of this kind.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
}

/// Where calls lie from the moment the kernel tells of them until they are answered: memory that a forked process
/// shares. The kernel hands a call out once; one whose receiver died before it answered would wait for ever, if nobody
/// else knew its number. So the kernel writes it here directly.
#[derive(Debug)]
pub struct Desk(*mut seccomp_notif);

// SAFETY: the memory belongs to the value until the process ends, and one thread of one process at a time uses it.
unsafe impl Send for Desk {}

impl Desk {
    /// Memory of its own, never unmapped.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> io::Result<Desk> {
        let (bytes, access) = (PLACES * size_of::<seccomp_notif>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a fresh mapping at a place of the kernel's choice.
        let memory =
            unsafe { libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0) };
        if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Desk(memory.cast())) }
    }

    fn place(&self, index: usize) -> *mut seccomp_notif {
        assert!(index < PLACES);
        // SAFETY: within the mapping, which has room for PLACES.
        unsafe { self.0.add(index) }
    }

    /// Takes the next call, which lies in the place `index` until it is answered. Waits for one.
    ///
    /// # Errors
    /// ENOENT: it was gone before it could be taken.
    pub fn take(&self, listener: BorrowedFd, index: usize) -> io::Result<seccomp_notif> {
        let place = self.place(index);
        // SAFETY: the place is ours alone and writable, zero is a valid value, and the kernel wants it zero and writes
        // one struct.
        unsafe {
            place.write_bytes(0, 1);
            match check(libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, place).into()) {
                Ok(_) => Ok(ptr::read(place)),
                Err(error) => {
                    place.write_bytes(0, 1);
                    Err(error)
                }
            }
        }
    }

    /// Answers the call in the place `index`, if there is one, and frees the place.
    pub fn answer(&self, listener: BorrowedFd, index: usize, answer: Answer) {
        let place = self.place(index);
        // SAFETY: the place is ours alone; all its values are valid.
        unsafe {
            let id = (&raw const (*place).id).read_volatile();
            if id != 0 {
                send(listener, id, answer);
                // after the answer: whoever takes over between the two answers once more, which does nothing
                place.write_bytes(0, 1);
            }
        }
    }
}

/// Blocks every signal that can be blocked, in this thread.
fn block_signals() {
    let mut all = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut());
    }
}

/// Whether this is Linux 5.9 or later, which says when nobody is left who could be told of.
pub fn is_new_enough() -> bool {
    // close_range came with the same version
    close_range(u32::MAX, u32::MAX).is_ok()
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: closes numbers of this process; see the callers.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(|_| ())
}

/// Closes every descriptor of this process but two: for one that uses no other again.
fn close_all_but(keep: [BorrowedFd; 2]) {
    let [low, high] = keep.map(|fd| fd.as_raw_fd() as u32);
    let (low, high) = (low.min(high), low.max(high));
    if low > 0 {
        let _ = close_range(0, low - 1);
    }
    if high - low > 1 {
        let _ = close_range(low + 1, high - 1);
    }
    let _ = close_range(high + 1, u32::MAX);
}

/// A word of a program's memory, if it can be read.
pub fn word(thread: u32, address: u64) -> Option<u64> {
    let mut word = 0u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: size_of::<u64>() };
    let remote = libc::iovec { iov_base: ptr::without_provenance_mut(address as usize), iov_len: size_of::<u64>() };
    // SAFETY: the kernel writes at most the word, and touches no other memory of this process.
    let read = unsafe { libc::process_vm_readv(thread as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0) };
    (usize::try_from(read) == Ok(size_of::<u64>())).then_some(word)
}

/// The sum of the lengths in a program's vector; 0 where its memory cannot be read.
pub fn vector_bytes(thread: u32, address: u64, count: u64) -> u64 {
    /// IOV_MAX: the kernel takes no more.
    const MOST: usize = 1024;
    let mut vector = [MaybeUninit::<libc::iovec>::uninit(); MOST];
    let count = usize::try_from(count).unwrap_or(MOST).min(MOST);
    let bytes = count * size_of::<libc::iovec>();
    let local = libc::iovec { iov_base: vector.as_mut_ptr().cast(), iov_len: bytes };
    let remote = libc::iovec { iov_base: ptr::without_provenance_mut(address as usize), iov_len: bytes };
    // SAFETY: the kernel writes at most `bytes`, which fit, into `vector`, and touches no other memory of this process.
    let read = unsafe { libc::process_vm_readv(thread as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0) };
    let whole = usize::try_from(read).unwrap_or(0) / size_of::<libc::iovec>();
    // SAFETY: that many were written; any bits are a length.
    vector[..whole].iter().fold(0, |sum: u64, one| sum.saturating_add(unsafe { one.assume_init_ref() }.iov_len as u64))
}

/// Starts writeback of a file's dirty pages in a range without waiting for any (sync_file_range(2)); of no length: to
/// its end.
pub fn start_writeback(file: BorrowedFd, offset: u64, bytes: u64) {
    let [offset, bytes] = [offset, bytes].map(|it| i64::try_from(it).unwrap_or(i64::MAX));
    // SAFETY: plain integers.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE) };
}

/// What the page cache holds of a file, in pages of 4 KiB (`include/uapi/linux/mman.h`).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CacheStat {
    /// All of it.
    pub cached: u64,
    /// Not yet on its way to the disk.
    pub dirty: u64,
    /// On its way.
    pub writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Asks what the page cache holds of a file; Linux 6.5 and later.
pub fn cachestat(file: BorrowedFd) -> io::Result<CacheStat> {
    cachestat_of(file, 0, 0)
}

/// The same of a range; of no length: to the file's end.
pub fn cachestat_of(file: BorrowedFd, offset: u64, bytes: u64) -> io::Result<CacheStat> {
    let range = [offset, bytes];
    let mut stat = CacheStat::default();
    // SAFETY: the kernel reads two words of the range and writes one struct of this layout.
    check(unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), &raw mut stat, 0) })?;
    Ok(stat)
}
