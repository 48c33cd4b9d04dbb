//! What a seccomp filter forbids. A filter may kill a process for a system call that it does not know, and the
//! application was never meant to make ours. So, where a process starts under a filter, each call is first tried in a
//! throw-away child; where a process filters itself, the library leaves it alone from then on.
//!
//! The child is clone(2)'s with the parent's memory and the parent waiting (as vfork's), with no signal at its end, so
//! that the application's wait functions and SIGCHLD handlers do not see it.
//!
//! This is one of the modules that may say `unsafe`.

use crate::sys::{self, raw};
use crate::{apart, helper, process, region, sweep, vfork};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize};
use libc::{c_int, c_long};

/// What a call is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Everything: without it the library makes no call any more.
    All,
    /// Starting writeback and dropping: without it the library stands aside, and can say so.
    Flushing,
    /// Looking at page cache; the group's counters do instead.
    Cachestat,
    /// An offset that the application keeps; it is trusted instead, as libc does.
    Memory,
    /// Looking at a file; fstat does instead.
    Statx,
    /// Threads of our own.
    Helper,
    /// What no hook sees.
    Sweep,
    /// The sidecar's socket.
    Socket,
}

/// Each call that the library makes after start-up, with arguments that do nothing.
const CALLS: &[(c_long, [isize; 6], For)] = &[
    (libc::SYS_prlimit64, [0, 1000, 0, 0, 0, 0], For::All),
    (libc::SYS_getpid, [0; 6], For::All),
    (libc::SYS_gettid, [0; 6], For::All),
    (libc::SYS_tgkill, [-1, -1, 0, 0, 0, 0], For::All),
    (libc::SYS_clock_gettime, [-1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_nanosleep, [0; 6], For::All),
    (libc::SYS_rt_sigprocmask, [-1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_fstat, [-1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_fstatfs, [-1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_fcntl, [-1, libc::F_GETFL as isize, 0, 0, 0, 0], For::All),
    (libc::SYS_lseek, [-1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_sync_file_range, [-1, 0, 0, 0, 0, 0], For::Flushing),
    (libc::SYS_fadvise64, [-1, 0, 0, 0, 0, 0], For::Flushing),
    (libc::SYS_openat, [-1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_read, [-1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_close, [-1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_readlinkat, [-1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_mmap, [0; 6], For::All),
    (libc::SYS_munmap, [1, 0, 0, 0, 0, 0], For::All),
    (libc::SYS_getrandom, [0; 6], For::All),
    (sys::SYS_CACHESTAT as c_long, [-1, 0, 0, 0, 0, 0], For::Cachestat),
    (libc::SYS_statx, [-1, 0, 0, 0, 0, 0], For::Statx),
    (libc::SYS_process_vm_readv, [-1, 0, 0, 0, 0, 0], For::Memory),
    (libc::SYS_clone, [libc::CLONE_THREAD as isize, 0, 0, 0, 0, 0], For::Helper),
    (libc::SYS_close_range, [1, 0, 0, 0, 0, 0], For::Helper),
    (libc::SYS_futex, [0, -1, 0, 0, 0, 0], For::Helper),
    (libc::SYS_fcntl, [-1, libc::F_SETLK as isize, 0, 0, 0, 0], For::Helper),
    (libc::SYS_fdatasync, [-1, 0, 0, 0, 0, 0], For::Helper),
    (libc::SYS_getdents64, [-1, 0, 0, 0, 0, 0], For::Sweep),
    (libc::SYS_socket, [-1, 0, 0, 0, 0, 0], For::Socket),
    (libc::SYS_connect, [-1, 0, 0, 0, 0, 0], For::Socket),
    (libc::SYS_sendmsg, [-1, 0, 0, 0, 0, 0], For::Socket),
    (libc::SYS_recvmsg, [-1, 0, 0, 0, 0, 0], For::Socket),
    (libc::SYS_ppoll, [0, -1, 0, 0, 0, 0], For::Socket),
];

/// What a filter forbids of what the library cannot do without.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Forbidden {
    Nothing = 2,
    Flushing = 3,
    All = 4,
}

const UNKNOWN: u8 = 0;
const TRYING: u8 = 1;

static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
/// What a child has read.
static FILTERED: AtomicBool = AtomicBool::new(false);
/// The call that the child is at.
static AT: AtomicUsize = AtomicUsize::new(0);
const STACK_BYTES: usize = 16 << 10;

/// A child of fork whose parent was trying begins anew.
pub fn reset() {
    let _ = STATE.compare_exchange(TRYING, UNKNOWN, Relaxed, Relaxed);
}

/// What is forbidden in this process. `None`: somebody is finding out. That is done once, and costs 30 µs, or 200 µs
/// under a filter.
pub fn forbids() -> Option<Forbidden> {
    if STATE.load(Acquire) == Forbidden::Nothing as u8 {
        return Some(Forbidden::Nothing);
    }
    match STATE.compare_exchange(UNKNOWN, TRYING, Acquire, Acquire) {
        Err(TRYING) => None,
        Err(state) if state == Forbidden::Nothing as u8 => Some(Forbidden::Nothing),
        Err(state) if state == Forbidden::Flushing as u8 => Some(Forbidden::Flushing),
        Err(_) => Some(Forbidden::All),
        Ok(_) => {
            let forbidden = if is_filtered() { try_all() } else { Forbidden::Nothing };
            STATE.store(forbidden as u8, Release);
            Some(forbidden)
        }
    }
}

/// Is this process under a filter?
fn is_filtered() -> bool {
    if process::has_one_thread() && !vfork::may_share_memory() {
        return reads_filtered();
    }
    // in a child, which has a descriptor table of its own: another thread, or a process that shares the table, may be
    // about to get the number
    let stack = sys::map_private(STACK_BYTES);
    if stack.is_null() {
        return reads_filtered();
    }
    // no handler of the application's runs in the child; whoever has threads may block signals
    let signals = sys::block_signals();
    // SAFETY: the stack is ours and free.
    let has_read = unsafe { in_child(stack, read_filtered) };
    sys::restore_signals(signals);
    sys::unmap(stack, STACK_BYTES);
    if has_read { FILTERED.load(Relaxed) } else { reads_filtered() }
}

extern "C" fn read_filtered() -> ! {
    FILTERED.store(reads_filtered(), Relaxed);
    apart::exit(0)
}

/// What a dynamic program's loader does is all that is done here.
fn reads_filtered() -> bool {
    const NAME: &[u8] = b"\nSeccomp:\t";
    let fd = sys::open(c"/proc/self/status", libc::O_RDONLY);
    if fd < 0 {
        return false;
    }
    let mut buffer = [0u8; 512]; // it may be on a small signal stack
    let mut matched = 0;
    let mut mode = None;
    while let Some(got) = sys::read(fd, &mut buffer).filter(|&got| got > 0 && mode.is_none()) {
        for &byte in buffer.iter().take(got) {
            if matched == NAME.len() {
                mode = mode.or(Some(byte));
            } else {
                matched = if NAME.get(matched) == Some(&byte) { matched + 1 } else { usize::from(byte == b'\n') };
            }
        }
    }
    sys::close(fd);
    mode == Some(b'2')
}

/// Tries all calls; what one may not be had for is given up.
fn try_all() -> Forbidden {
    let stack = sys::map_private(STACK_BYTES);
    if stack.is_null() {
        return Forbidden::All;
    }
    AT.store(0, Relaxed);
    let mut forbidden = Forbidden::Nothing;
    while forbidden != Forbidden::All && AT.load(Relaxed) < CALLS.len() {
        // SAFETY: the stack is ours and free.
        if !unsafe { in_child(stack, try_calls) } {
            forbidden = Forbidden::All;
            break;
        }
        // where it stopped short is what killed it
        if let Some(&(_, _, purpose)) = CALLS.get(AT.load(Relaxed)) {
            match purpose {
                For::All => forbidden = Forbidden::All,
                For::Flushing => forbidden = Forbidden::Flushing,
                For::Cachestat => sys::NO_CACHESTAT.store(true, Relaxed),
                For::Memory => sys::trust_memory(),
                For::Statx => sys::without_statx(),
                For::Helper => {
                    helper::give_up();
                    apart::give_up();
                }
                For::Sweep => sweep::give_up(),
                For::Socket => region::without_socket(),
            }
            AT.fetch_add(1, Relaxed);
        }
    }
    sys::unmap(stack, STACK_BYTES);
    forbidden
}

/// Calls `act` in a child that has this process's memory, and waits until it has gone. `false`: there can be none.
///
/// # Safety
/// `stack` has [`STACK_BYTES`] that nobody else uses; `act` keeps to what [`sys::clone_on`] asks for.
unsafe fn in_child(stack: *mut u8, act: extern "C" fn() -> !) -> bool {
    // SAFETY: the caller's.
    let child = unsafe { sys::clone_on(stack.add(STACK_BYTES), libc::CLONE_VM | libc::CLONE_VFORK, 0, act) };
    while child > 0 && raw!(libc::SYS_wait4, child, 0, libc::__WALL, 0) == -(libc::EINTR as isize) {}
    child > 0
}

/// In the child: makes each call, and says before which one it is.
extern "C" fn try_calls() -> ! {
    // a signal that the filter raises then kills the child, whatever handler the application has; and no core is left
    let (all, no_core) = (u64::MAX, libc::rlimit { rlim_cur: 0, rlim_max: 0 });
    raw!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, 0, 8);
    raw!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, &raw const no_core, 0);
    while let Some(&(number, arguments, _)) = CALLS.get(AT.load(Relaxed)) {
        // SAFETY: with these arguments none of them does anything but fail.
        unsafe { sys::call(number as isize, arguments) };
        AT.fetch_add(1, Relaxed);
    }
    apart::exit(0)
}

/// The application installs a filter by `call`, which is negative where that failed. What the filter allows is made for
/// the application alone, so from here on it is left alone.
pub fn filters<T: PartialOrd + From<i8>>(call: impl FnOnce() -> T) -> T {
    let is_ours = process::is_ours();
    if is_ours {
        helper::dismiss();
        crate::finish();
    }
    let result = call();
    if is_ours && result < T::from(0) {
        helper::readmit();
        process::reopen();
    }
    result
}

/// Does this prctl(2) install a filter?
pub const fn is_filter(option: c_int) -> bool {
    option == libc::PR_SET_SECCOMP
}

/// Does this seccomp(2)?
pub const fn is_filter_operation(operation: c_long) -> bool {
    operation == libc::SECCOMP_SET_MODE_STRICT as c_long || operation == libc::SECCOMP_SET_MODE_FILTER as c_long
}
