//! Errands that need descriptors of our own: reading the cgroup's files, talking to the sidecar. In the application's
//! table they would take numbers that its other threads are about to get, and a thread that closes what is not its own
//! (a daemon on its way up) would close ours. So, where there are other threads, or the table is full, a thread is made
//! for the length of the errand; the first thing that it does is to give itself an empty descriptor table.
//!
//! It is made by a bare clone(2), not by pthread_create: no allocation, no thread-local storage of its own, all signals
//! blocked. They are blocked in the caller too, which waits: no handler can leave an errand by siglongjmp.
//!
//! This is one of the modules that may say `unsafe`.

use crate::sys::{self, raw};
use crate::{process, vfork};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr};
use libc::c_int;

/// Somebody is at it.
static BUSY: AtomicBool = AtomicBool::new(false);
/// The thread's id, -1 before it is known; the kernel sets it to 0 when the thread has gone (CLONE_CHILD_CLEARTID).
static TID: AtomicI32 = AtomicI32::new(0);
/// What is to be done: of the types of the thread's function.
static ERRAND: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
/// The application's descriptor table has been full.
static CROWDED: AtomicBool = AtomicBool::new(false);
/// A filter forbids such a thread.
static UNAVAILABLE: AtomicBool = AtomicBool::new(false);
static STACK: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
const STACK_BYTES: usize = 64 << 10;

/// A child of fork has no such thread.
pub fn reset() {
    BUSY.store(false, Relaxed);
}

/// There is no such thread in this process, and never will be.
pub fn give_up() {
    UNAVAILABLE.store(true, Relaxed);
}

/// There was no room for a descriptor: errands are done elsewhere from now on.
pub fn crowded() {
    CROWDED.store(true, Relaxed);
}

/// Says that its holder is on an errand, alone.
pub struct Apart(());

struct Errand<A, T> {
    act: Option<A>,
    result: Option<T>,
}

/// Does `act`, which opens no descriptors, while nobody is on an errand. `None`: somebody else is at it.
pub fn alone<T>(act: impl FnOnce(&Apart) -> T) -> Option<T> {
    let signals = sys::block_signals();
    let result = (!BUSY.swap(true, AcqRel)).then(|| {
        let result = act(&Apart(()));
        BUSY.store(false, Release);
        result
    });
    sys::restore_signals(signals);
    result
}

/// Does `act` where it may open descriptors. `None`: somebody else is at it. Where there can be no thread, or no table
/// of its own for it (Linux before 5.9), it is done here.
pub fn run<A: FnOnce(&Apart) -> T, T>(act: A) -> Option<T> {
    let signals = sys::block_signals();
    if BUSY.swap(true, AcqRel) {
        sys::restore_signals(signals);
        return None;
    }
    let mut errand = Errand { act: Some(act), result: None };
    // what libc says of threads says nothing of a process that shares the table
    let is_seen = !process::has_one_thread() || vfork::may_share_memory() || CROWDED.load(Relaxed);
    let stack = if is_seen && !UNAVAILABLE.load(Relaxed) { stack() } else { core::ptr::null_mut() };
    if !stack.is_null() {
        TID.store(-1, Relaxed);
        ERRAND.store((&raw mut errand).cast(), Release);
        // SAFETY: BUSY was not set, so nobody is on the stack; `errand` outlives the thread, which is waited for.
        let made = unsafe { spawn(stack.add(STACK_BYTES), &TID, on_its_thread::<A, T>) };
        if made > 0 {
            let _ = TID.compare_exchange(-1, made as i32, AcqRel, Relaxed);
            wait_until_gone();
        }
    }
    if let Some(act) = errand.act.take() {
        errand.result = Some(act(&Apart(())));
    }
    BUSY.store(false, Release);
    sys::restore_signals(signals);
    errand.result
}

fn stack() -> *mut u8 {
    let mut stack = STACK.load(Acquire);
    if stack.is_null() {
        stack = sys::map_private(STACK_BYTES);
        STACK.store(stack, Release);
    }
    stack
}

fn wait_until_gone() {
    loop {
        let tid = TID.load(Acquire);
        if tid == 0 {
            return;
        }
        // not FUTEX_PRIVATE: the kernel's own wake at the thread's end is not
        raw!(libc::SYS_futex, TID.as_ptr(), libc::FUTEX_WAIT, tid, 0, 0, 0);
    }
}

/// The thread. Uses no libc function but what the compiler calls for memory, and no thread-local storage.
extern "C" fn on_its_thread<A: FnOnce(&Apart) -> T, T>() -> ! {
    const CLOSE_RANGE_UNSHARE: isize = 2;
    if raw!(libc::SYS_close_range, 0, u32::MAX, CLOSE_RANGE_UNSHARE) == 0 {
        // SAFETY: the errand of the caller that made this thread of the same types; it does not touch it until this
        // thread has gone.
        let errand = unsafe { &mut *ERRAND.load(Acquire).cast::<Errand<A, T>>() };
        if let Some(act) = errand.act.take() {
            errand.result = Some(act(&Apart(())));
        }
    }
    exit(0)
}

/// Ends a thread that [`spawn`] has made.
pub fn exit(status: c_int) -> ! {
    raw!(libc::SYS_exit, status);
    loop {
        core::hint::spin_loop();
    }
}

/// Makes a thread with all signals blocked in it, which calls `run`. Its id, or a negative error; the kernel sets `tid`
/// to 0 when it has gone.
///
/// # Safety
/// `top` is the 16-byte aligned end of a stack that nobody else uses until then.
pub unsafe fn spawn(top: *mut u8, tid: &'static AtomicI32, run: extern "C" fn() -> !) -> isize {
    let all = u64::MAX;
    let mut old = 0u64;
    raw!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut old, 8);
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_CHILD_CLEARTID;
    // SAFETY: the caller's; `run` keeps to what a thread without thread-local storage may do.
    let made = unsafe { sys::clone_on(top, flags, tid.as_ptr() as usize, run) };
    raw!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const old, 0, 8);
    made
}
