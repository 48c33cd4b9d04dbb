//! Which process is this, and may its state be touched? Answers for fork (a child with a copy of everything), vfork (a
//! child that runs in the parent's memory), and calls before start-up or after the end.
//!
//! One page of memory that the kernel wipes in a child of fork tells the two kinds of children apart: the pid is
//! another in both, but only a real copy finds the page empty. Where nobody has called [`vfork`] or clone, there is
//! only that kind, and the pid is not asked for.
//!
//! This is one of the modules that may say `unsafe`.

use crate::elf::Object;
use crate::{apart, closing, files, helper, ledger, pace, reads, region, seccomp, sweep, sys, vfork};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32};

static READY: AtomicBool = AtomicBool::new(false);
static PID: AtomicI32 = AtomicI32::new(0);
static MARK: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());

/// glibc's `__libc_single_threaded` (since 2.32); elsewhere a byte that is always 0.
static SINGLE: AtomicPtr<AtomicU8> = AtomicPtr::new(core::ptr::from_ref(&MANY).cast_mut());
static MANY: AtomicU8 = AtomicU8::new(0);

const PAGE: usize = 4096;
/// What the mark says: that this is a child of fork; that its state is being made its own; that it is.
const WIPED: u32 = 0;
const BEING_RESET: u32 = 1;
const MARKED: u32 = 2;

/// Looks for libc's word on threads, which the program itself may define in libc's place (a copy relocation), so the
/// first object that has it counts. From the constructor.
pub fn resolve(object: &Object) {
    if core::ptr::eq(SINGLE.load(Relaxed), &MANY)
        && let Some(at) = object.symbol(c"__libc_single_threaded")
    {
        SINGLE.store(at as *mut AtomicU8, Relaxed);
    }
}

/// Makes the mark and opens the gates. Once, from the constructor.
pub fn start() {
    let page = sys::map_private(PAGE);
    if !page.is_null() {
        if sys::wipe_on_fork(page, PAGE) {
            let mark = page.cast::<AtomicU32>();
            // SAFETY: a fresh page of our own, aligned, never unmapped.
            unsafe { (*mark).store(MARKED, Relaxed) };
            MARK.store(mark, Release);
        } else {
            sys::unmap(page, PAGE);
        }
    }
    PID.store(sys::getpid(), Relaxed);
    READY.store(true, Release);
}

/// Shuts the gates: every later call goes through unseen.
pub fn end() {
    READY.store(false, Release);
}

/// The gates are open: after start-up, before the end, and not in a process that filters its system calls.
pub fn is_open() -> bool {
    READY.load(Acquire)
}

/// No other thread of the application exists. (The helper is none of it, and changes no word of a file's.)
#[inline(always)]
pub fn has_one_thread() -> bool {
    // SAFETY: libc's byte or ours; both stay for the life of the process.
    unsafe { (*SINGLE.load(Relaxed)).load(Relaxed) != 0 }
}

/// Opens them again.
pub fn reopen() {
    region::reopen();
    READY.store(true, Release);
}

/// The process that the state belongs to.
pub fn pid() -> i32 {
    PID.load(Relaxed)
}

/// May the caller change the library's state? `false` in a vfork child, before start-up and after the end. The first
/// call in a child of fork makes the state the child's own: it owes nothing of what its parent wrote.
pub fn is_ours() -> bool {
    if !READY.load(Acquire) {
        return false;
    }
    let mark = MARK.load(Acquire);
    // SAFETY: null, or the page, which is mapped for the life of the process and only changed atomically.
    let is_marked = unsafe { mark.as_ref() }.is_some_and(|mark| mark.load(Acquire) == MARKED);
    if is_marked && !vfork::may_share_memory() {
        return true;
    }
    let pid = sys::getpid();
    if mark.is_null() || is_marked {
        return pid == PID.load(Relaxed);
    }
    // SAFETY: the page is mapped for the life of the process and all access to it is atomic.
    let wiped = unsafe { (*mark).compare_exchange(WIPED, BEING_RESET, AcqRel, Relaxed) }.is_ok();
    if wiped {
        pace::reset();
        closing::reset();
        helper::reset();
        apart::reset();
        region::reset();
        files::reset();
        ledger::reset();
        seccomp::reset();
        sweep::reset();
        reads::reset();
        PID.store(pid, Relaxed);
        // SAFETY: as above.
        unsafe { (*mark).store(MARKED, Release) };
    }
    wiped
}
