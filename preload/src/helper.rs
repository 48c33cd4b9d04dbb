//! A thread of our own, for the two things that must not happen on the application's descriptors: a wait that outlives
//! the application's close, and an fdatasync. It starts when it is first needed, keeps at most [`JOBS`] files for at
//! most [`KEEP_NS`] each, and ends when it has been idle for a second.
//!
//! It is made as [`apart`]'s are. Its first act is to give itself an empty descriptor table (close_range with UNSHARE), so nothing that it
//! opens or closes is seen by the application: its fcntl locks, leases and descriptor numbers stay as they are. Files
//! are re-opened through /proc, so that errors of writeback stay with the application's own descriptors.
//!
//! This is one of the modules that may say `unsafe`.

use crate::apart;
use crate::files::{self, File};
use crate::flush::How;
use crate::ledger;
use crate::sys::{self, raw};
use core::ffi::CStr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64};
use libc::c_int;

/// Files at a time.
const JOBS: usize = 512;
/// Longest time that a closed file is kept open.
const KEEP_NS: u64 = 1_000_000_000;
/// The same where cachestat cannot see its pages.
const KEEP_BLIND_NS: u64 = 300_000_000;
/// The thread ends after so long without a job.
const IDLE_NS: u64 = 1_000_000_000;
/// Time between two looks at kept files.
const LOOK_NS: u64 = 4_000_000;
/// Files are written in the order in which they came, more or less: a look ends at so many that are not yet.
const LOOK_FILES: u32 = 8;
/// Longest time that a caller waits for its file to be re-opened.
const HANDOVER_MS: u64 = 50;

/// Longest wait for it to leave.
const DISMISS_MS: u32 = 100;

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const POSTED: u32 = 2;
const OPENED: u32 = 3;
const FAILED: u32 = 4;

/// One file that the helper has, or is to open.
struct Job {
    state: AtomicU32,
    /// fdatasync first, for files whose pages are on the server only after a commit.
    sync: AtomicBool,
    /// cachestat cannot see its pages.
    blind: AtomicBool,
    /// The file is still open in the application; what the sync confirmed is credited to it.
    file: AtomicPtr<File>,
    tid: AtomicI32,
    fd: AtomicI32,
    key: AtomicU64,
    charge: AtomicU64,
    /// First byte of what may be dropped.
    from: AtomicU64,
    own_fd: AtomicI32,
    since_ns: AtomicU64,
}

static TABLE: [Job; JOBS] = [const {
    Job {
        state: AtomicU32::new(FREE),
        sync: AtomicBool::new(false),
        blind: AtomicBool::new(false),
        file: AtomicPtr::new(core::ptr::null_mut()),
        tid: AtomicI32::new(0),
        fd: AtomicI32::new(0),
        key: AtomicU64::new(0),
        charge: AtomicU64::new(0),
        from: AtomicU64::new(0),
        own_fd: AtomicI32::new(0),
        since_ns: AtomicU64::new(0),
    }
}; JOBS];

/// The helper's thread id; the kernel sets it to 0 when the thread has gone (CLONE_CHILD_CLEARTID).
static TID: AtomicI32 = AtomicI32::new(0);
/// The helper does not take jobs any more.
static LEAVING: AtomicBool = AtomicBool::new(false);
/// It could not be started, or not get a table of its own; not tried again.
static UNAVAILABLE: AtomicBool = AtomicBool::new(false);
/// It is to leave now, whatever it has.
static DISMISSED: AtomicBool = AtomicBool::new(false);
static BELL: AtomicU32 = AtomicU32::new(0);
/// The place of the next job; the table is a ring, oldest first behind it.
static NEXT: AtomicU32 = AtomicU32::new(0);
static STACK: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
const STACK_BYTES: usize = 64 << 10;

/// A child of fork has no helper.
pub fn reset() {
    TID.store(0, Relaxed);
    LEAVING.store(false, Relaxed);
    for job in &TABLE {
        job.state.store(FREE, Relaxed);
    }
}

/// There is none in this process, and there never will be.
pub fn give_up() {
    UNAVAILABLE.store(true, Relaxed);
}

/// Ends the thread, and waits for that unless it is in the middle of a long call.
pub fn dismiss() {
    DISMISSED.store(true, Release);
    ring();
    for _ in 0..DISMISS_MS {
        if TID.load(Acquire) == 0 {
            break;
        }
        sys::sleep_ns(1_000_000);
    }
}

/// Asks for an fdatasync of an open file, and for its cache to be dropped then. `false`: the helper cannot; nothing
/// was taken off. `charge` is credited when the sync has returned.
pub fn sync(file: &'static File, fd: c_int, charge: u64) -> bool {
    file.syncing.fetch_add(charge, Relaxed);
    if post(fd, file, charge, true, true) {
        return true;
    }
    // the caller keeps the charge
    let _ = file.syncing.fetch_update(Relaxed, Relaxed, |syncing| Some(syncing.saturating_sub(charge)));
    false
}

/// Takes a file over that is about to be closed: it is kept until its pages are written, and then they are dropped.
/// Returns when it has been re-opened. `false`: the helper cannot.
pub fn keep(file: &'static File, fd: c_int, charge: u64, sync: bool) -> bool {
    post(fd, file, charge, sync, false)
}

/// All places are taken; one will be free when the disk has written some more.
pub fn is_full() -> bool {
    !UNAVAILABLE.load(Relaxed) && next().is_some_and(|job| job.state.load(Relaxed) != FREE)
}

fn next() -> Option<&'static Job> {
    TABLE.get(NEXT.load(Relaxed) as usize % JOBS)
}

fn post(fd: c_int, file: &'static File, charge: u64, sync: bool, stays: bool) -> bool {
    // opening a file again would break the application's lease on it
    if UNAVAILABLE.load(Relaxed) || sys::has_lease(fd) || !start() {
        return false;
    }
    let Some(job) = next().filter(|job| job.state.compare_exchange(FREE, CLAIMED, AcqRel, Relaxed).is_ok()) else {
        return false;
    };
    NEXT.fetch_add(1, Relaxed);
    job.sync.store(sync, Relaxed);
    job.blind.store(file.how() != How::Ranges, Relaxed);
    let file_at = if stays { core::ptr::from_ref(file).cast_mut() } else { core::ptr::null_mut() };
    job.file.store(file_at, Relaxed);
    job.tid.store(sys::gettid(), Relaxed);
    job.fd.store(fd, Relaxed);
    job.key.store(file.key(), Relaxed);
    job.charge.store(charge, Relaxed);
    job.from.store(file.droppable_from(), Relaxed);
    job.since_ns.store(sys::now_ns(), Relaxed);
    job.state.store(POSTED, Release);
    ring();
    let deadline = sys::now_ns().wrapping_add(HANDOVER_MS * 1_000_000);
    loop {
        match job.state.load(Acquire) {
            POSTED => {}
            FAILED => {
                job.state.store(FREE, Release);
                return false;
            }
            _ => return true,
        }
        if sys::now_ns() > deadline {
            // not opened in time: take the job back, unless it was opened just now
            return match job.state.compare_exchange(POSTED, FREE, AcqRel, Acquire) {
                Ok(_) => false,
                Err(FAILED) => {
                    job.state.store(FREE, Release);
                    false
                }
                Err(_) => true,
            };
        }
        wait(&job.state, POSTED, 2_000_000);
    }
}

fn ring() {
    BELL.fetch_add(1, Release);
    raw!(libc::SYS_futex, BELL.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1, 0, 0, 0);
}

fn wait(word: &AtomicU32, value: u32, nanoseconds: u64) {
    let time =
        libc::timespec { tv_sec: (nanoseconds / 1_000_000_000) as i64, tv_nsec: (nanoseconds % 1_000_000_000) as i64 };
    let how = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    raw!(libc::SYS_futex, word.as_ptr(), how, value, &raw const time, 0, 0);
}

fn wake(word: &AtomicU32) {
    raw!(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX, 0, 0, 0);
}

/// Makes sure that the thread runs.
fn start() -> bool {
    if TID.load(Acquire) != 0 {
        return !LEAVING.load(Acquire);
    }
    if TID.compare_exchange(0, -1, AcqRel, Relaxed).is_err() {
        return !LEAVING.load(Acquire);
    }
    let mut stack = STACK.load(Acquire);
    if stack.is_null() {
        stack = sys::map_private(STACK_BYTES);
        if stack.is_null() {
            UNAVAILABLE.store(true, Relaxed);
            TID.store(0, Release);
            return false;
        }
        STACK.store(stack, Release);
    }
    LEAVING.store(false, Release);
    DISMISSED.store(false, Release);
    // SAFETY: the stack is ours, mapped for good, and free: the last helper has gone (its TID was cleared by the
    // kernel after it had left its stack for the last time).
    let made = unsafe { apart::spawn(stack.add(STACK_BYTES), &TID, run) };
    if made < 0 {
        UNAVAILABLE.store(true, Relaxed);
        TID.store(0, Release);
        return false;
    }
    let _ = TID.compare_exchange(-1, made as i32, AcqRel, Relaxed);
    true
}

/// The thread. Uses no libc function but what the compiler calls for memory, and no thread-local storage.
extern "C" fn run() -> ! {
    const CLOSE_RANGE_UNSHARE: isize = 2;
    if raw!(libc::SYS_close_range, 0, u32::MAX, CLOSE_RANGE_UNSHARE) != 0 {
        // an old kernel: without a table of its own it must not open anything
        UNAVAILABLE.store(true, Relaxed);
        leave();
    }
    let mut busy_at = sys::now_ns();
    let mut looked_at = 0;
    loop {
        let bell = BELL.load(Acquire);
        let first = NEXT.load(Relaxed) as usize;
        let oldest_first = || (0..JOBS).filter_map(|step| TABLE.get((first + step) % JOBS));
        for job in oldest_first() {
            take_over(job);
        }
        let now = sys::now_ns();
        if now.wrapping_sub(looked_at) >= LOOK_NS {
            looked_at = now;
            let mut unwritten = 0;
            for job in oldest_first().filter(|job| job.state.load(Acquire) == OPENED) {
                unwritten += u32::from(!finish(job, now));
                if unwritten == LOOK_FILES {
                    break;
                }
            }
        }
        let is_busy = TABLE.iter().any(|job| job.state.load(Relaxed) != FREE);
        if is_busy {
            busy_at = now;
        }
        if now.wrapping_sub(busy_at) > IDLE_NS || DISMISSED.load(Acquire) {
            leave();
        }
        wait(&BELL, bell, if is_busy { LOOK_NS } else { IDLE_NS });
    }
}

/// Ends the thread. Jobs that come from here on start a new one; those that came before are refused.
fn leave() -> ! {
    LEAVING.store(true, Release);
    for job in &TABLE {
        if job.state.compare_exchange(POSTED, FAILED, AcqRel, Relaxed).is_ok() {
            wake(&job.state);
        } else if job.state.load(Acquire) == OPENED {
            // dismissed: its descriptors go with the thread's table
            settle(job);
            job.state.store(FREE, Release);
        }
    }
    apart::exit()
}

/// Opens a file that was posted.
fn take_over(job: &Job) {
    if job.state.load(Acquire) != POSTED {
        return;
    }
    let fd = reopen(job);
    job.own_fd.store(fd, Relaxed);
    let next = if fd >= 0 { OPENED } else { FAILED };
    if job.state.compare_exchange(POSTED, next, AcqRel, Relaxed).is_err() {
        sys::close(fd); // the caller has given up
    } else {
        wake(&job.state);
    }
}

/// Ends a job whose file has been written, or whose time is up; `false`: not yet.
fn finish(job: &Job, now: u64) -> bool {
    let fd = job.own_fd.load(Relaxed);
    let charge = job.charge.load(Relaxed);
    if job.sync.load(Relaxed) {
        sys::fdatasync(fd);
    } else {
        let kept_ns = now.wrapping_sub(job.since_ns.load(Relaxed));
        let is_waiting = match sys::cachestat(fd, 0, 0) {
            Ok(stat) if stat.cached > 0 => {
                if stat.dirty > 0 && stat.writeback == 0 {
                    sys::start_writeback(fd, 0, 0);
                }
                stat.dirty + stat.writeback > 0 && kept_ns < KEEP_NS
            }
            Ok(_) if !job.blind.load(Relaxed) => false, // the kernel has taken it back already
            _ => kept_ns < KEEP_BLIND_NS,
        };
        if is_waiting {
            return false;
        }
    }
    let before = sys::cachestat(fd, 0, 0).unwrap_or_default().cached;
    sys::drop_cache(fd, job.from.load(Relaxed), 0);
    let after = sys::cachestat(fd, 0, 0).unwrap_or_default().cached;
    ledger::TOTALS.dropped_bytes.fetch_add(before.saturating_sub(after).saturating_mul(ledger::PAGE), Relaxed);
    settle(job);
    ledger::TOTALS.confirmed_bytes.fetch_add(charge, Relaxed);
    sys::close(fd);
    job.state.store(FREE, Release);
    true
}

/// Takes a job's charge off.
fn settle(job: &Job) {
    let charge = job.charge.load(Relaxed);
    // SAFETY: the pointer is null or came from a `&'static File`.
    match unsafe { job.file.load(Relaxed).as_ref() } {
        Some(file) => {
            // what was drained meanwhile stands in the closed files' account, and is credited there
            let taken = file.syncing.fetch_update(Relaxed, Relaxed, |all| Some(all.saturating_sub(charge)));
            ledger::credit(taken.unwrap_or(0).min(charge));
        }
        None => ledger::credit(charge),
    }
}

/// Opens the file behind the application's descriptor anew: for reading, or for writing where it may not be read.
fn reopen(job: &Job) -> c_int {
    let mut path = [0u8; 64];
    let path = descriptor_path(&mut path, job.tid.load(Relaxed), job.fd.load(Relaxed));
    let Some(path) = path else { return -1 };
    let mut fd = sys::open(path, libc::O_RDONLY | libc::O_NONBLOCK);
    if fd < 0 {
        fd = sys::open(path, libc::O_WRONLY | libc::O_NONBLOCK);
    }
    if fd >= 0 && sys::fstat(fd).is_none_or(|stat| files::key(&stat) != job.key.load(Relaxed)) {
        sys::close(fd);
        return -1;
    }
    fd
}

/// `/proc/self/task/TID/fd/FD`: by the thread, because the process's own table is its first thread's, which may have
/// ended.
fn descriptor_path(buffer: &mut [u8; 64], tid: i32, fd: c_int) -> Option<&CStr> {
    let mut end = 0;
    let mut put = |bytes: &[u8]| {
        for &byte in bytes {
            if let Some(slot) = buffer.get_mut(end) {
                *slot = byte;
                end += 1;
            }
        }
    };
    put(b"/proc/self/task/");
    put(decimal(&mut [0; 10], tid as u32));
    put(b"/fd/");
    put(decimal(&mut [0; 10], fd as u32));
    put(b"\0");
    CStr::from_bytes_until_nul(buffer).ok()
}

/// A number as text.
pub fn decimal(buffer: &mut [u8; 10], mut number: u32) -> &[u8] {
    let mut start = buffer.len();
    for slot in buffer.iter_mut().rev() {
        *slot = b'0' + (number % 10) as u8;
        start -= 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    buffer.get(start..).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(descriptor_path(&mut [0; 64], 4_294_967, 0).unwrap(), c"/proc/self/task/4294967/fd/0");
        assert_eq!(descriptor_path(&mut [0; 64], 1, 1_048_575).unwrap(), c"/proc/self/task/1/fd/1048575");
    }
}
