//! A thread of our own, for the two things that must not happen on the application's descriptors: a wait that outlives
//! the application's close, and a commit of what a remote server has. It starts when it is first needed, keeps at most
//! [`JOBS`] files for at most [`KEEP_NS`] each, and ends when it has been idle for a second.
//!
//! It is made as [`apart`]'s are. Its first act is to give itself an empty descriptor table (close_range with UNSHARE),
//! so nothing that it opens or closes is seen by the application: its fcntl locks, leases and descriptor numbers stay
//! as they are. Files are re-opened through /proc, so that errors of writeback stay with the application's own
//! descriptors.
//!
//! This is one of the modules that may say `unsafe`.

use crate::apart;
use crate::files::{self, File};
use crate::flush::{How, magic};
use crate::sweep::Sweeper;
use crate::sys::{self, raw};
use crate::{ledger, probe, process, region, sweep};
use core::ffi::CStr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64};
use freeboard_budget::Mode;
use libc::c_int;

/// Files at a time.
const JOBS: usize = 512;
/// Longest time that a closed file is kept open.
pub const KEEP_NS: u64 = 1_000_000_000;
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
/// Time after its last commit that a remote file stays open: opening it is a call to the server.
const KEEP_REMOTE_NS: u64 = 100_000_000;

/// A thread that has said that it ends has done so within this time, and is looked for so often.
const ENDING_NS: u64 = 20_000_000;
const ENDING_LOOK_NS: u64 = 1_000_000;

/// Longest wait for it to leave.
const DISMISS_MS: u32 = 2000;

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const POSTED: u32 = 2;
const OPENED: u32 = 3;
const FAILED: u32 = 4;

/// One file that the helper has, or is to open.
struct Job {
    state: AtomicU32,
    /// cachestat cannot see its pages.
    blind: AtomicBool,
    /// A file that is open in the application, remote or one that only a sync writes: what its commits confirm is taken
    /// off it. Null: a closed one.
    file: AtomicPtr<File>,
    /// That is on NFS.
    nfs: AtomicBool,
    /// The application is about to close it, and waits for us to do so first.
    leave: AtomicBool,
    tid: AtomicI32,
    fd: AtomicI32,
    key: AtomicU64,
    dev: AtomicU64,
    charge: AtomicU64,
    /// First byte of what is to be dropped; `u64::MAX`: nothing is.
    from: AtomicU64,
    own_fd: AtomicI32,
    since_ns: AtomicU64,
}

static TABLE: [Job; JOBS] = [const {
    Job {
        state: AtomicU32::new(FREE),
        blind: AtomicBool::new(false),
        file: AtomicPtr::new(core::ptr::null_mut()),
        nfs: AtomicBool::new(false),
        leave: AtomicBool::new(false),
        tid: AtomicI32::new(0),
        fd: AtomicI32::new(0),
        key: AtomicU64::new(0),
        dev: AtomicU64::new(0),
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
/// It may not be started, or not get a table of its own; not tried again.
static UNAVAILABLE: AtomicBool = AtomicBool::new(false);
/// It could not be started in this process; not tried again here. A child may have one: after unshare(CLONE_NEWPID) it
/// is refused to the parent alone.
static REFUSED: AtomicBool = AtomicBool::new(false);
/// Somebody has waited for it for [`HANDOVER_MS`] in vain: nobody else does until it is back.
static LATE: AtomicBool = AtomicBool::new(false);
/// It is to leave now, whatever it has.
static DISMISSED: AtomicBool = AtomicBool::new(false);
/// A thread of the application's is about to end, and may be the last.
static IS_ENDING: AtomicBool = AtomicBool::new(false);
static BELL: AtomicU32 = AtomicU32::new(0);
/// The device whose commit or sync the helper is in; 0: none.
static WAITS_FOR_DEV: AtomicU64 = AtomicU64::new(0);
/// Calls under way that want no thread of ours beside them.
static ALONE: AtomicU32 = AtomicU32::new(0);
/// The place of the next job; the table is a ring, oldest first behind it.
static NEXT: AtomicU32 = AtomicU32::new(0);
static STACK: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
const STACK_BYTES: usize = 64 << 10;

/// A child of fork has no helper.
pub fn reset() {
    TID.store(0, Relaxed);
    ALONE.store(0, Relaxed);
    WAITS_FOR_DEV.store(0, Relaxed);
    for flag in [&LEAVING, &DISMISSED, &REFUSED, &LATE, &IS_ENDING] {
        flag.store(false, Relaxed);
    }
    for job in &TABLE {
        job.state.store(FREE, Relaxed);
    }
}

/// There is none in this process, and there never will be.
pub fn give_up() {
    UNAVAILABLE.store(true, Relaxed);
}

fn is_unavailable() -> bool {
    UNAVAILABLE.load(Relaxed) || REFUSED.load(Relaxed)
}

/// Ends the thread, and waits for that unless it is in the middle of a long call. None is made until [`readmit`].
pub fn dismiss() {
    // either this is seen by who makes one, or what they make is seen here
    ALONE.fetch_add(1, SeqCst);
    let tid = TID.load(SeqCst);
    if tid == 0 {
        return;
    }
    DISMISSED.store(true, Release);
    ring();
    for _ in 0..DISMISS_MS {
        // the kernel clears the word first, and only then closes its descriptors and lets it go
        if TID.load(Acquire) == 0 && (tid <= 0 || !sys::thread_exists(process::pid(), tid)) {
            break;
        }
        sys::sleep_ns(1_000_000);
    }
}

/// What [`dismiss`] was for has been done.
pub fn readmit() {
    ALONE.fetch_sub(1, SeqCst);
}

/// The calling thread ends by exit(2), which leaves the others alive: with the last of the application's, ours goes too.
pub fn a_thread_ends() {
    if TID.load(Acquire) != 0 {
        IS_ENDING.store(true, Release);
        ring();
    }
}

/// Asks for a commit of a remote file that is open in the application: what `file.syncing` holds is credited when it is
/// done. Does not wait; one that the helper is too busy to take, or drops, is asked for again at the next look.
/// `false`: the helper cannot. Nor may it where opening the file again would break the application's lease on it.
pub fn commit(file: &'static File, fd: c_int) -> bool {
    if is_unavailable() || sys::has_lease(fd) {
        return false;
    }
    if !start() {
        return !is_unavailable();
    }
    if TABLE.iter().any(|job| job.is_for(file)) {
        ring();
    } else {
        post(fd, file, 0, None);
    }
    true
}

/// The last descriptor of a remote file is about to be closed: waits until the helper has closed its own, at most
/// `longest_ns`. A file that somebody has open is not gone when it is unlinked, and keeps its filesystem mounted. The
/// commit that this may take is one that close would make; for another server it waits no longer than [`HANDOVER_MS`].
pub fn release(file: &File, longest_ns: u64) {
    let now = sys::now_ns();
    let deadline = now.saturating_add(longest_ns);
    let is_for_another = |dev| dev != 0 && dev != file.dev();
    for job in TABLE.iter().filter(|job| job.is_for(file)) {
        job.leave.store(true, Release);
        if job.state.compare_exchange(POSTED, FREE, AcqRel, Relaxed).is_ok() {
            continue;
        }
        ring();
        while job.is_for(file) && TID.load(Acquire) != 0 && sys::now_ns() < deadline {
            wait(&job.state, OPENED, LOOK_NS);
            let waited_ns = sys::now_ns().wrapping_sub(now);
            if waited_ns > HANDOVER_MS * 1_000_000 && is_for_another(WAITS_FOR_DEV.load(Relaxed)) {
                return;
            }
        }
    }
}

/// What became of a file that the helper was to take over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is open there.
    Yes,
    /// All places are taken, or the helper waits for the same disk.
    NotYet,
    /// It cannot, or waits for another disk, which is none of this file's business.
    Never,
}

/// Takes a file over that is about to be closed: it is kept until its pages are written, and then, where that is
/// wanted, they are dropped. Returns when it has been re-opened, or soon.
pub fn keep(file: &'static File, fd: c_int, charge: u64, drops: bool) -> Kept {
    if is_unavailable() || sys::has_lease(fd) {
        return Kept::Never;
    }
    if !start() {
        return if is_unavailable() { Kept::Never } else { Kept::NotYet };
    }
    // it waits for the same disk: so may the caller
    let is_same_disk = || WAITS_FOR_DEV.load(Relaxed) == file.dev();
    if LATE.load(Relaxed) && !is_same_disk() {
        ring(); // it may have gone to sleep just before it was called late
        return Kept::Never;
    }
    let from = if drops { file.droppable_from() } else { u64::MAX };
    let Some(job) = post(fd, file, charge, Some(from)) else { return Kept::NotYet };
    let deadline = sys::now_ns().wrapping_add(HANDOVER_MS * 1_000_000);
    loop {
        match job.state.load(Acquire) {
            POSTED if sys::now_ns() <= deadline => wait(&job.state, POSTED, 2_000_000),
            POSTED => {
                if job.state.compare_exchange(POSTED, FREE, AcqRel, Acquire).is_ok() {
                    LATE.store(true, Relaxed);
                    return if is_same_disk() { Kept::NotYet } else { Kept::Never };
                }
            }
            FAILED => {
                job.state.store(FREE, Release);
                return Kept::Never;
            }
            _ => return Kept::Yes,
        }
    }
}

/// All places are taken; one will be free when the disk has written some more.
pub fn is_full() -> bool {
    !is_unavailable() && next().is_some_and(|job| job.state.load(Relaxed) != FREE)
}

fn next() -> Option<&'static Job> {
    TABLE.get(NEXT.load(Relaxed) as usize % JOBS)
}

/// `kept_from`: the first byte to be dropped of a file that is closed; `None`: it is open, and to be committed. There
/// can be no place for it.
fn post(fd: c_int, file: &'static File, charge: u64, kept_from: Option<u64>) -> Option<&'static Job> {
    let job = next().filter(|job| job.state.compare_exchange(FREE, CLAIMED, AcqRel, Relaxed).is_ok())?;
    NEXT.fetch_add(1, Relaxed);
    job.blind.store(!matches!(file.how(), How::Ranges | How::Unproven | How::Synced), Relaxed);
    let file_at = if kept_from.is_none() { core::ptr::from_ref(file).cast_mut() } else { core::ptr::null_mut() };
    job.file.store(file_at, Relaxed);
    job.leave.store(false, Relaxed);
    job.tid.store(sys::gettid(), Relaxed);
    job.fd.store(fd, Relaxed);
    job.key.store(file.key(), Relaxed);
    job.dev.store(file.dev(), Relaxed);
    job.charge.store(charge, Relaxed);
    job.from.store(kept_from.unwrap_or(u64::MAX), Relaxed);
    job.since_ns.store(sys::now_ns(), Relaxed);
    job.state.store(POSTED, Release);
    ring();
    Some(job)
}

impl Job {
    /// The remote file that it commits.
    fn remote(&self) -> Option<&'static File> {
        // SAFETY: the pointer is null or came from a `&'static File`.
        unsafe { self.file.load(Relaxed).as_ref() }
    }

    /// Does it commit this file, under the name that it has now?
    fn is_for(&self, file: &File) -> bool {
        matches!(self.state.load(Acquire), POSTED | OPENED)
            && core::ptr::eq(self.file.load(Relaxed), file)
            && self.key.load(Relaxed) == file.key()
    }
}

/// Makes sure that the thread runs, which sweeps as long as [`Sweeper::look`] says so. `false`: it cannot.
pub fn sweep() -> bool {
    !is_unavailable() && start()
}

/// It takes nothing any more, and has not gone yet.
pub fn is_leaving() -> bool {
    TID.load(Acquire) != 0 && (LEAVING.load(Acquire) || DISMISSED.load(Acquire))
}

/// Wakes the thread.
pub fn ring() {
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
    if TID.load(Acquire) != 0 || TID.compare_exchange(0, -1, SeqCst, Relaxed).is_err() {
        return !LEAVING.load(Acquire) && !DISMISSED.load(Acquire);
    }
    if ALONE.load(SeqCst) != 0 {
        TID.store(0, Release);
        return false;
    }
    let mut stack = STACK.load(Acquire);
    if stack.is_null() {
        stack = sys::map_private(STACK_BYTES);
        if stack.is_null() {
            REFUSED.store(true, Relaxed);
            TID.store(0, Release);
            return false;
        }
        STACK.store(stack, Release);
    }
    for flag in [&LEAVING, &DISMISSED, &LATE] {
        flag.store(false, Release);
    }
    // SAFETY: the stack is ours, mapped for good, and free: the last helper has gone (its TID was cleared by the
    // kernel after it had left its stack for the last time).
    let made = unsafe { apart::spawn(stack.add(STACK_BYTES), &TID, run) };
    if made < 0 {
        REFUSED.store(true, Relaxed);
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
        apart::exit(0);
    }
    let mut busy_at = sys::now_ns();
    let mut looked_at = 0;
    let (mut alive_at, mut ending_until) = (busy_at, 0);
    let mut sweeper = Sweeper::new();
    loop {
        let bell = BELL.load(Acquire);
        let first = NEXT.load(Relaxed) as usize;
        let oldest_first = || (0..JOBS).filter_map(|step| TABLE.get((first + step) % JOBS));
        take_posted();
        for (job, file) in oldest_first().filter_map(|job| Some((job, job.remote()?))) {
            serve(job, file);
        }
        let now = sys::now_ns();
        if now.wrapping_sub(looked_at) >= LOOK_NS {
            looked_at = now;
            let mut unwritten = 0;
            for job in oldest_first().filter(|job| job.remote().is_none()) {
                unwritten += u32::from(!finish(job, now));
                if unwritten == LOOK_FILES {
                    break;
                }
            }
        }
        let is_busy = TABLE.iter().any(|job| job.state.load(Relaxed) != FREE);
        let sweeps_in = sweeper.look();
        if is_busy || sweeps_in.is_some() {
            busy_at = now;
        }
        if IS_ENDING.swap(false, AcqRel) {
            ending_until = now.saturating_add(ENDING_NS);
        }
        let is_ending = now < ending_until;
        if is_ending || now.wrapping_sub(alive_at) >= IDLE_NS {
            alive_at = now;
            if let Some(status) = ended_with() {
                apart::exit(status);
            }
        }
        if now.wrapping_sub(busy_at) > IDLE_NS || DISMISSED.load(Acquire) {
            leave();
            busy_at = now;
        }
        let looks_in = match () {
            () if is_ending => ENDING_LOOK_NS,
            () if is_busy => LOOK_NS,
            () => IDLE_NS,
        };
        wait(&BELL, bell, looks_in.min(sweeps_in.unwrap_or(IDLE_NS)));
    }
}

/// The status of a process of which every thread of the application's has ended: the kernel reports that of the last
/// one, which is ours. The first one is kept for the parent to wait for, and counts with ours.
fn ended_with() -> Option<c_int> {
    let mut buffer = [0u8; 1024];
    let text = sys::read_file(c"/proc/self/stat", &mut buffer)?;
    // proc_pid_stat(5): behind the name in brackets the state, 17 words later the number of threads, 32 later the status
    let mut words = text.rsplit(|&byte| byte == b')').next()?.trim_ascii().split(|&byte| byte == b' ');
    let has_ended = words.next() == Some(b"Z") && matches!(words.nth(16), Some(b"1" | b"2"));
    let status = words.nth(31).filter(|_| has_ended)?;
    let status = status.iter().fold(0, |sum: c_int, &digit| sum.wrapping_mul(10).wrapping_add(c_int::from(digit & 15)));
    Some(status >> 8)
}

/// Ends the thread. Jobs that come from here on start a new one; those that came before are refused.
///
/// Returns where a reason to sweep came just now.
fn leave() {
    LEAVING.store(true, Release);
    sweep::end();
    if !DISMISSED.load(Acquire) && !UNAVAILABLE.load(Relaxed) && sweep::is_left_alone() {
        LEAVING.store(false, Release);
        sweep::go_on();
        return;
    }
    for job in &TABLE {
        let refused = if job.remote().is_some() { FREE } else { FAILED };
        if job.state.compare_exchange(POSTED, refused, AcqRel, Relaxed).is_ok() {
            wake(&job.state);
        } else if job.state.load(Acquire) == OPENED {
            // dismissed: its descriptors go with the thread's table
            files::closed().fetch_add(job.charge.load(Relaxed), Relaxed);
            job.state.store(FREE, Release);
        }
    }
    apart::exit(0)
}

/// Opens the files that were posted. For the helper's own thread.
pub fn take_posted() {
    let first = NEXT.load(Relaxed) as usize;
    for job in (0..JOBS).filter_map(|step| TABLE.get((first + step) % JOBS)) {
        take_over(job);
    }
    LATE.store(false, Relaxed);
}

/// Opens a file that was posted.
fn take_over(job: &Job) {
    if job.state.load(Acquire) != POSTED {
        return;
    }
    let fd = reopen(job);
    job.own_fd.store(fd, Relaxed);
    if job.remote().is_some() {
        job.nfs.store(sys::fs_magic(fd) == Some(magic::NFS), Relaxed);
    }
    let next = match job.remote() {
        _ if fd >= 0 => OPENED,
        None => FAILED,
        Some(file) => {
            // one that was only closed meanwhile is asked for by another descriptor, or owes with the closed ones
            if fd != -libc::ENOENT && file.key() == job.key.load(Relaxed) {
                file.measure_by_group();
            }
            FREE
        }
    };
    if job.state.compare_exchange(POSTED, next, AcqRel, Relaxed).is_ok() {
        wake(&job.state);
    } else if fd >= 0 {
        sys::close(fd); // the caller has given up
    }
}

/// Commits what was asked for of a remote file, and closes it when that was a while ago, or the application is about
/// to.
fn serve(job: &Job, file: &File) {
    if job.state.load(Acquire) != OPENED {
        return;
    }
    let fd = job.own_fd.load(Relaxed);
    // the record can have become another file's
    let is_same = || file.key() == job.key.load(Relaxed);
    let charge = if is_same() { file.syncing.load(Relaxed) } else { 0 };
    if charge > 0 {
        // An NFS client commits all that it has before it unlocks (do_unlk in the kernel's fs/nfs/file.c), and leaves
        // an error for the application's own write, fsync or close to report; close reports none that an fsync has
        // seen.
        waiting_for(job.dev.load(Relaxed), || {
            if !job.nfs.load(Relaxed) || sys::unlock(fd) != 0 {
                sys::fdatasync(fd);
            }
        });
        if file.how() != How::Synced || file.mode() == Mode::Always || region::wants_drop() {
            drop_from(fd, file.droppable_from());
        }
        if is_same() {
            // what was drained meanwhile stands in the closed files' account, and is credited there
            let taken = file.syncing.fetch_update(Relaxed, Relaxed, |all| Some(all.saturating_sub(charge)));
            ledger::credit(taken.unwrap_or(0).min(charge));
        }
        ledger::TOTALS.confirmed_bytes.fetch_add(charge, Relaxed);
        job.since_ns.store(sys::now_ns(), Relaxed);
    }
    let idle_ns = sys::now_ns().wrapping_sub(job.since_ns.load(Relaxed));
    if job.leave.load(Acquire) || idle_ns > KEEP_REMOTE_NS || !is_same() {
        sys::close(fd);
        job.state.store(FREE, Release);
        wake(&job.state);
    }
}

/// A call that takes as long as a device does.
fn waiting_for<T>(dev: u64, call: impl FnOnce() -> T) -> T {
    WAITS_FOR_DEV.store(dev, Relaxed);
    let result = call();
    WAITS_FOR_DEV.store(0, Relaxed);
    result
}

/// Ends the job of a closed file that has been written, or whose time is up, and with it what is known of its debt;
/// `false`: not yet.
fn finish(job: &Job, now: u64) -> bool {
    if job.state.load(Acquire) != OPENED {
        return true;
    }
    let fd = job.own_fd.load(Relaxed);
    let charge = job.charge.load(Relaxed);
    let kept_ns = now.wrapping_sub(job.since_ns.load(Relaxed));
    let (is_written, longest_ns) = match sys::cachestat(fd, 0, 0) {
        Ok(stat) if stat.cached > 0 => {
            let is_synced = stat.dirty > 0 && stat.writeback == 0 && start_or_sync(job, stat.dirty, kept_ns);
            (is_synced || stat.dirty + stat.writeback == 0, KEEP_NS)
        }
        Ok(_) if !job.blind.load(Relaxed) => (true, 0), // the kernel has taken it back already
        _ => (false, KEEP_BLIND_NS),
    };
    if !is_written && kept_ns < longest_ns {
        return false;
    }
    let from = job.from.load(Relaxed);
    if from != u64::MAX {
        drop_from(fd, from);
    }
    if is_written {
        ledger::credit(charge);
        ledger::TOTALS.confirmed_bytes.fetch_add(charge, Relaxed);
    } else {
        files::closed().fetch_add(charge, Relaxed); // the group's unwritten tells
    }
    sys::close(fd);
    job.state.store(FREE, Release);
    true
}

/// Starts writeback of a kept file that has so many dirty pages and none on its way. Where that has had no effect for
/// long, syncs it: `true`. That commits its neighbours' pages too, and a flush of theirs has an effect then.
fn start_or_sync(job: &Job, dirty: u64, kept_ns: u64) -> bool {
    let (fd, dev) = (job.own_fd.load(Relaxed), job.dev.load(Relaxed));
    sys::start_writeback(fd, 0, 0);
    let is_late = kept_ns > probe::late_ns(dev)
        && sys::cachestat(fd, 0, 0).is_ok_and(|after| after.dirty >= dirty && after.writeback == 0);
    if !is_late || waiting_for(dev, || sys::fdatasync(fd)) != 0 {
        return false;
    }
    probe::needs_sync(dev);
    let is_neighbour = |other: &&Job| {
        other.state.load(Acquire) == OPENED && other.remote().is_none() && other.dev.load(Relaxed) == dev
    };
    for other in TABLE.iter().filter(is_neighbour) {
        sys::start_writeback(other.own_fd.load(Relaxed), 0, 0);
    }
    true
}

/// Drops what is clean of a file from an offset on, and counts it.
fn drop_from(fd: c_int, offset: u64) {
    let before = sys::cachestat(fd, 0, 0).unwrap_or_default().cached;
    sys::drop_cache(fd, offset, 0);
    let after = sys::cachestat(fd, 0, 0).unwrap_or_default().cached;
    ledger::TOTALS.dropped_bytes.fetch_add(before.saturating_sub(after).saturating_mul(ledger::PAGE), Relaxed);
}

/// Opens the file behind the application's descriptor anew: for reading, or for writing where it may not be read.
/// Negative: an error, ENOENT where the descriptor is not open on that file any more.
fn reopen(job: &Job) -> c_int {
    let mut path = [0u8; 64];
    let path = descriptor_path(&mut path, job.tid.load(Relaxed), job.fd.load(Relaxed));
    let Some(path) = path else { return -libc::ENOENT };
    let mut fd = sys::open(path, libc::O_RDONLY | libc::O_NONBLOCK);
    if fd < 0 {
        fd = sys::open(path, libc::O_WRONLY | libc::O_NONBLOCK);
    }
    if fd >= 0 && sys::fstat(fd).is_none_or(|stat| files::key(&stat) != job.key.load(Relaxed)) {
        sys::close(fd);
        return -libc::ENOENT;
    }
    fd
}

/// `/proc/self/task/TID/fd/FD`: by the thread, because the process's own table is its first thread's, which may have
/// ended.
pub fn descriptor_path(buffer: &mut [u8; 64], tid: i32, fd: c_int) -> Option<&CStr> {
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
fn decimal(buffer: &mut [u8; 10], mut number: u32) -> &[u8] {
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
