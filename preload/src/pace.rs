//! The slow path: what happens when a chunk is full, when the window is full, and when a file is closed.
//!
//! A writer starts a chunk's writeback as soon as the chunk is full. When it owes its window it waits, in steps of
//! 2 ms, until the kernel says that the *oldest* chunk's pages have arrived; so one call is held back for about a
//! chunk's time, and what is owed stays within the window. Waiting is polling: it consumes no writeback error, holds no
//! lock, and a signal handler or a fatal signal gets through at once.
//!
//! One thread at a time does the looking: it has the *pace*, a word that names it. The word is not a lock. Nobody
//! waits for it, nobody sleeps while holding it; met again by the same thread in a signal handler it says "nested", and
//! one whose thread has gone, or that is too old, is taken over.

use crate::descriptors::{self, Entry};
use crate::files::{self, Chunk, File};
use crate::flush::{self, How};
use crate::ledger::{self, TOTALS};
use crate::{apart, group, helper, process, region, sys};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use freeboard_budget::Mode;
use freeboard_budget::law::{COUNTER_LAG, MIN_WINDOW};
use freeboard_budget::layout::Aside;
use libc::c_int;

/// Time between two looks of a call that is held back.
const STEP_NS: u64 = 2_000_000;
/// A pace that its own thread or a living one has held for so long was left by siglongjmp, or hangs in the kernel.
const TAKE_OVER_MS: u64 = 1_000;
/// Pages left dirty in a chunk whose writeback has ended: the ones that the next chunk has touched again.
const EDGE_PAGES: u64 = 2;
/// Bytes on a remote filesystem that are written to the server before a commit is asked for, at most.
const COMMIT_BYTES: u64 = 16 << 20;
/// Least time after an attempt to drop what has not arrived: it makes every processor empty its list of new pages.
const ATTEMPT_NS: u64 = 20_000_000;
/// An NFS client that has not committed for so long what it has sent does not do so by itself.
const COMMIT_LATE_NS: u64 = 1_000_000_000;
/// Closes of files that still owed something, before the helper is worth its start.
const CLOSES_BEFORE_HELPER: u64 = 4;
/// The shortest piece of a call that is written in pieces, and of a file that is flushed before its chunk is full.
const PIECE_MIN: u64 = 256 << 10;
/// The kernel writes no more than this in one call (`MAX_RW_COUNT` in include/linux/fs.h).
const MAX_RW_COUNT: usize = 0x7fff_f000;
/// The largest block that a filesystem may have.
const BLOCK_MAX: usize = 64 << 10;
/// What a copy inside the kernel is expected to bring, at most, where it is not taken in pieces.
const COPY_RESERVE: usize = 64 << 20;

/// The process says what it does, and hears what it may do, at least every so many bytes.
const LOOK_BYTES: u64 = 8 << 20;

static PACE: AtomicU64 = AtomicU64::new(0);
/// When a call that is held back was last seen to be: a time and not a count, because one can be left by siglongjmp.
static HELD_AT: AtomicU64 = AtomicU64::new(0);
static CLOSES: AtomicU64 = AtomicU64::new(0);
/// What the process had written when it looked last.
static LOOKED_AT_BYTES: AtomicU64 = AtomicU64::new(0);
/// The group's unwritten as last read, where files of ours are measured by it; `u64::MAX`: they are not.
static GROUP_UNWRITTEN: AtomicU64 = AtomicU64::new(u64::MAX);

/// The right to look at the ledger, or why not.
enum Turn {
    /// With it, the signals that were blocked before: none is handled in this thread until it is given back.
    Mine(u64),
    Nested,
    Theirs,
}

fn take() -> Turn {
    let signals = sys::block_signals();
    let turn = take_with(signals);
    if !matches!(turn, Turn::Mine(_)) {
        sys::restore_signals(signals);
    }
    turn
}

fn take_with(signals: u64) -> Turn {
    let tid = sys::gettid();
    let now_ms = sys::now_ns() / 1_000_000;
    let mine = (tid as u64) << 32 | (now_ms & 0xffff_ffff);
    let before = PACE.load(Acquire);
    if before == 0 {
        let taken = PACE.compare_exchange(0, mine, AcqRel, Relaxed).is_ok();
        return if taken { Turn::Mine(signals) } else { Turn::Theirs };
    }
    let holder = (before >> 32) as i32;
    let age_ms = (now_ms & 0xffff_ffff).wrapping_sub(before & 0xffff_ffff) & 0xffff_ffff;
    let is_left = age_ms > TAKE_OVER_MS
        && (holder == tid || age_ms > 5 * TAKE_OVER_MS || !sys::thread_exists(process::pid(), holder));
    if is_left && PACE.compare_exchange(before, mine, AcqRel, Relaxed).is_ok() {
        return Turn::Mine(signals);
    }
    if holder == tid { Turn::Nested } else { Turn::Theirs }
}

fn give(signals: u64) {
    PACE.store(0, Release);
    sys::restore_signals(signals);
}

/// A child of fork has the pace to itself.
pub fn reset() {
    PACE.store(0, Relaxed);
    HELD_AT.store(0, Relaxed);
    FIRST_BEGAN.store(0, Relaxed);
    CLOSES.store(0, Relaxed);
    LOOKED_AT_BYTES.store(0, Relaxed);
}

/// A call of `bytes` through a descriptor at an offset that only the kernel knows: write, writev, sendfile, splice.
/// Written whole; where it is larger than the window, it waits for an empty one first and is paced afterwards.
#[inline(always)]
pub fn plain(fd: c_int, bytes: usize, call: impl Fn() -> isize + Copy) -> isize {
    let entry = descriptors::get(fd);
    if entry.is_aside() {
        return call();
    }
    if is_small(bytes)
        && let Some(file) = entry.file()
    {
        file.touch_plain();
        if file.book(bytes as u64, ledger::charge(bytes)) {
            let wrote = call();
            if wrote != bytes as isize {
                fell_short(file, 0, bytes, wrote);
            }
            return wrote;
        }
    }
    plain_slowly(fd, bytes, call)
}

/// A call of `bytes` at `offset`: pwrite, pwritev. May be called in pieces: `call(done, length)`.
#[inline(always)]
pub fn positional(fd: c_int, offset: i64, bytes: usize, call: impl Fn(usize, usize) -> isize + Copy) -> isize {
    let entry = descriptors::get(fd);
    if entry.is_aside() {
        return call(0, bytes);
    }
    if is_small(bytes)
        && let Some(file) = entry.file()
    {
        file.touch(offset as u64, bytes as u64);
        if file.book(bytes as u64, ledger::charge_at(offset as u64, bytes)) {
            let wrote = call(0, bytes);
            if wrote != bytes as isize {
                fell_short(file, offset as u64, bytes, wrote);
            }
            return wrote;
        }
    }
    positional_slowly(fd, offset, bytes, call)
}

/// A call whose length stands in memory of the application's, which only the kernel may read unharmed: what it brings is
/// booked afterwards. `offset`: where it writes, if that is not the file's own place. Never taken apart.
#[inline(always)]
pub fn vectored(fd: c_int, offset: Option<u64>, call: impl Fn() -> isize + Copy) -> isize {
    let entry = descriptors::get(fd);
    if entry.is_aside() {
        return call();
    }
    // the grant has room for as much as any small call can bring
    if let Some(file) = entry.file()
        && file.has_granted(ledger::SMALL as u64)
    {
        let wrote = call();
        let (bytes, charge) = touched(file, offset, wrote);
        if is_small(bytes) {
            file.book_anyway(bytes as u64, charge);
        } else {
            settle(file, fd, 0, wrote, charge);
        }
        return wrote;
    }
    vectored_slowly(fd, offset, call)
}

#[cold]
#[inline(never)]
fn vectored_slowly(fd: c_int, offset: Option<u64>, call: impl Fn() -> isize) -> isize {
    let Some(file) = tracked(fd) else { return call() };
    let reserved = ledger::charge(ledger::SMALL.min(ledger::window() as usize / 4));
    admit(file, fd, reserved);
    let wrote = call();
    let (_, charge) = touched(file, offset, wrote);
    settle(file, fd, reserved, wrote, charge);
    file.grant();
    wrote
}

/// Notes where a call wrote; its bytes and their charge.
fn touched(file: &File, offset: Option<u64>, wrote: isize) -> (usize, u64) {
    let bytes = wrote.max(0) as usize;
    match offset {
        Some(offset) => {
            file.touch(offset, bytes as u64);
            (bytes, ledger::charge_at(offset, bytes))
        }
        None => {
            file.touch_plain();
            (bytes, ledger::charge(bytes))
        }
    }
}

/// A call that the hot path takes; not one of no bytes at all.
#[inline(always)]
const fn is_small(bytes: usize) -> bool {
    bytes.wrapping_sub(1) < ledger::SMALL - 1
}

/// Takes off what a booked call did not write: it failed, or wrote less.
#[cold]
fn fell_short(file: &'static File, offset: u64, wanted: usize, wrote: isize) {
    let wrote = wrote.max(0) as usize;
    let charge = ledger::charge_at(offset, wanted).saturating_sub(ledger::charge_at(offset, wrote));
    file.unbook(wanted.saturating_sub(wrote) as u64, charge, wrote == 0);
}

// The slow ways take their closures by value, so that what they capture is put together only where it is needed.

#[cold]
#[inline(never)]
fn plain_slowly(fd: c_int, bytes: usize, call: impl Fn() -> isize) -> isize {
    whole(fd, bytes, &call)
}

#[cold]
#[inline(never)]
fn positional_slowly(fd: c_int, offset: i64, bytes: usize, call: impl Fn(usize, usize) -> isize) -> isize {
    in_pieces(fd, offset, bytes, &call)
}

fn whole(fd: c_int, bytes: usize, call: &dyn Fn() -> isize) -> isize {
    let Some(file) = tracked(fd) else { return call() };
    let charge = ledger::charge(bytes.min(MAX_RW_COUNT));
    admit(file, fd, charge);
    file.touch_plain();
    let wrote = call();
    settle(file, fd, charge, wrote, ledger::charge(wrote.max(0) as usize));
    if is_small(bytes) {
        file.grant();
    }
    wrote
}

fn in_pieces(fd: c_int, offset: i64, bytes: usize, call: &dyn Fn(usize, usize) -> isize) -> isize {
    let Some(file) = tracked(fd) else { return call(0, bytes) };
    let bytes_max = bytes.min(MAX_RW_COUNT);
    let start = offset.max(0) as u64;
    // a write across RLIMIT_FSIZE is short when whole and raises SIGXFSZ when split; O_APPEND makes an offset void; what
    // would run over a signed offset is refused
    let is_whole = offset < 0
        || bytes_max < ledger::SMALL
        || ledger::window() == u64::MAX
        || start.saturating_add(bytes as u64) > sys::file_size_limit().min(i64::MAX as u64)
        || sys::status_flags(fd) & libc::O_APPEND != 0;
    let mut done = 0;
    loop {
        let at = start + done as u64;
        let left = bytes_max - done;
        let piece = if is_whole { left } else { left.min(piece_at(at)) };
        let charge = ledger::charge_at(at, piece);
        admit(file, fd, charge);
        file.touch(at, piece as u64);
        let errno = sys::errno();
        let wrote = call(done, if is_whole { bytes } else { piece });
        settle(file, fd, charge, wrote, ledger::charge_at(at, wrote.max(0) as usize));
        if wrote < 0 {
            return failed_after(done, wrote, errno);
        }
        done += wrote as usize;
        if wrote as usize != piece || done >= bytes_max {
            if is_small(bytes) {
                file.grant();
            }
            return done as isize;
        }
    }
}

/// Books what a call has written that was admitted, and waits where that is more than the window.
fn settle(file: &'static File, fd: c_int, reserved: u64, wrote: isize, charge: u64) {
    file.harvest();
    let mut expected = reserved;
    if charge > reserved {
        ledger::reserve_anyway(charge - reserved);
        file.owe(charge - reserved);
        expected = charge;
    } else {
        ledger::credit(file.forgive(reserved - charge));
    }
    file.count(expected, wrote.max(0) as u64);
    let since = TOTALS.written_bytes.load(Relaxed).wrapping_sub(LOOKED_AT_BYTES.load(Relaxed));
    if file.current() >= ledger::chunk() || since >= LOOK_BYTES {
        look_after(file, fd);
    }
    if ledger::owed() > ledger::window() {
        drain_to_window(file, fd);
    }
}

/// sendfile, as [`copying`] does it. The kernel refuses what would run over a signed offset: at the source what is asked
/// for, at the target what it does at once (`do_sendfile` in fs/read_write.c).
///
/// # Safety
/// `from_at` is what the application passes to the kernel.
pub unsafe fn sending(
    fd: c_int,
    from: c_int,
    from_at: *const i64,
    bytes: usize,
    call: &mut dyn FnMut(usize) -> isize,
) -> isize {
    let fits = || {
        let last = i64::MAX as u64;
        ends_by(from, from_at, bytes, last) && ends_by(fd, core::ptr::null(), bytes.min(MAX_RW_COUNT), last)
    };
    // SAFETY: null; the source's is not read but through the kernel.
    unsafe { copy(fd, core::ptr::null(), from, bytes, fits, call) }
}

/// copy_file_range: a copy inside the kernel that one call may carry on for a whole file. `call(length)` is repeated, and
/// the kernel moves the offsets; the result is what one call would have given. `at`, `from_at`: where the application
/// keeps the offsets, or null for the files' own.
///
/// # Safety
/// `at` and `from_at` are what the application passes to the kernel.
pub unsafe fn copying(
    fd: c_int,
    at: *const i64,
    from: c_int,
    from_at: *const i64,
    bytes: usize,
    call: &mut dyn FnMut(usize) -> isize,
) -> isize {
    let fits = || ends_by(from, from_at, bytes, u64::MAX) && ends_by(fd, at, bytes, u64::MAX);
    // SAFETY: the caller's.
    unsafe { copy(fd, at, from, bytes, fits, call) }
}

/// Do `bytes` from a descriptor's offset on, or the application's own, end at `last` or before?
fn ends_by(fd: c_int, at: *const i64, bytes: usize, last: u64) -> bool {
    let start = if at.is_null() { Some(sys::position(fd)) } else { sys::read_offset(at) };
    let end = start.and_then(|start| u64::try_from(start).ok()?.checked_add(bytes as u64));
    end.is_some_and(|end| end <= last)
}

/// # Safety
/// `at` is null, or what the application passes to the kernel.
unsafe fn copy(
    fd: c_int,
    at: *const i64,
    from: c_int,
    bytes: usize,
    fits: impl Fn() -> bool,
    call: &mut dyn FnMut(usize) -> isize,
) -> isize {
    if descriptors::get(fd).is_aside() {
        return call(bytes);
    }
    let Some(file) = tracked(fd) else { return call(bytes) };
    let bytes_max = bytes.min(MAX_RW_COUNT);
    // within one file the kernel looks at the whole of both ranges
    let is_whole = bytes <= piece_at(0)
        || ledger::window() == u64::MAX
        || sys::file_size_limit() != u64::MAX
        || descriptors::is_on(from, file)
        || !fits();
    let mut done = 0;
    loop {
        let left = bytes_max - done;
        let piece = match piece_at(0) {
            _ if is_whole => bytes,
            // a filesystem that shares blocks rounds down what it is asked for, but never to nothing
            piece if left < piece + BLOCK_MAX => left,
            piece => piece,
        };
        // a copy to the end of a file is asked for with a huge length: reserve what can be expected
        let charge = ledger::charge(piece.min(COPY_RESERVE));
        admit(file, fd, charge);
        let errno = sys::errno();
        let wrote = call(piece);
        if wrote > 0 && !at.is_null() {
            // SAFETY: the kernel has just written the new offset there.
            let end = unsafe { at.read_unaligned() };
            file.touch((end as u64).saturating_sub(wrote as u64), wrote as u64);
        } else {
            file.touch_plain();
        }
        settle(file, fd, charge, wrote, ledger::charge(wrote.max(0) as usize));
        if wrote < 0 {
            return failed_after(done, wrote, errno);
        }
        done += wrote as usize;
        if wrote as usize != piece || done >= bytes_max {
            return done as isize;
        }
    }
}

/// The result of a call that was made in pieces, of which one failed: what was done before it, and then no error.
fn failed_after(done: usize, failed: isize, errno: c_int) -> isize {
    if done == 0 {
        return failed;
    }
    sys::set_errno(errno);
    done as isize
}

/// From a pipe: what can come is no more than a pipe holds.
pub fn splicing(fd: c_int, at: *const i64, bytes: usize, call: &mut dyn FnMut() -> isize) -> isize {
    if descriptors::get(fd).is_aside() {
        return call();
    }
    let Some(file) = tracked(fd) else { return call() };
    let charge = ledger::charge(bytes.min(ledger::SMALL));
    admit(file, fd, charge);
    file.touch_plain();
    if !at.is_null() {
        file.scatter();
    }
    let wrote = call();
    settle(file, fd, charge, wrote, ledger::charge(wrote.max(0) as usize));
    wrote
}

/// Length of the next piece of a long call at an offset: a chunk, ending where a large folio does.
fn piece_at(offset: u64) -> usize {
    let chunk = ledger::chunk().clamp(PIECE_MIN, 1 << 30);
    let end = (offset.wrapping_add(chunk)) & !(chunk.next_power_of_two() / 2 - 1) & !(ledger::PAGE - 1);
    if end > offset { (end - offset) as usize } else { chunk as usize }
}

/// The file of a descriptor, as the kernel sees it now: the table may be stale.
fn tracked(fd: c_int) -> Option<&'static File> {
    if !process::is_open() {
        return None;
    }
    let known = descriptors::get(fd);
    if let Some(file) = known.file() {
        if descriptors::is_on(fd, file) {
            return Some(file);
        }
        if process::is_ours() {
            descriptors::forget(fd);
        }
    }
    let entry = descriptors::look(fd);
    if !process::is_ours() {
        ledger::aside(Aside::Outside);
        return None;
    }
    entry.file()
}

/// A chunk may be full: looks at the file, if nobody else is looking.
#[cold]
fn look_after(file: &'static File, fd: c_int) {
    if !process::is_ours() {
        return;
    }
    LOOKED_AT_BYTES.store(TOTALS.written_bytes.load(Relaxed), Relaxed);
    if let Turn::Mine(signals) = take() {
        region::refresh();
        file.harvest();
        if descriptors::is_on(fd, file) {
            file.set_last_fd(fd);
            advance(file, fd, false);
            confirm(file, fd);
        } else {
            descriptors::forget(fd);
        }
        region::publish(ledger::owed(), is_holding());
        give(signals);
    }
}

/// Reserves a charge, and waits for the disk where the window has no room. It is the file's from here on, so that a call
/// which is left in the middle (a cancelled thread, siglongjmp) owes nothing that a look at the file would not mend.
fn admit(file: &'static File, fd: c_int, charge: u64) {
    reserve(file, fd, charge);
    file.owe(charge);
}

fn reserve(file: &'static File, fd: c_int, charge: u64) {
    if ledger::reserve(charge) {
        return;
    }
    region::refresh();
    if ledger::reserve(charge) {
        return;
    }
    let reserved = hold(file, fd, || {
        let is_large = charge > ledger::window() && ledger::owed() <= ledger::chunk();
        ledger::reserve(charge) || ((is_large || group_has_room(charge)) && anyway(charge))
    });
    if !reserved {
        ledger::reserve_anyway(charge);
    }
}

fn anyway(charge: u64) -> bool {
    ledger::reserve_anyway(charge);
    true
}

/// Where files of ours are measured by the group alone, our own share of what is unwritten is not known: it is enough
/// that the group is within what it may owe.
fn group_has_room(charge: u64) -> bool {
    let unwritten = GROUP_UNWRITTEN.load(Relaxed);
    unwritten != u64::MAX && unwritten.saturating_add(charge).saturating_add(COUNTER_LAG) <= region::allowed()
}

/// A call that was larger than the window has been written: waits until the rest fits again.
fn drain_to_window(file: &'static File, fd: c_int) {
    hold(file, fd, || ledger::owed() <= ledger::window() || group_has_room(0));
}

/// Holds the calling thread until `enough`, looking every 2 ms. `false`: it was let go without, because it came on top
/// of our own slow path, or because the disk made no progress for `max_stall`.
fn hold(file: &'static File, fd: c_int, mut enough: impl FnMut() -> bool) -> bool {
    if !process::is_ours() {
        ledger::aside(Aside::Outside);
        return false;
    }
    let began = sys::now_ns();
    let mut slept = false;
    let turn = Queue { began };
    let mut progress = (TOTALS.confirmed_bytes.load(Relaxed), began);
    let result = loop {
        let mut look_ns = 0;
        match take() {
            Turn::Mine(signals) => {
                let from = sys::now_ns();
                look_at_all(Some((file, fd)));
                give(signals);
                look_ns = sys::now_ns().wrapping_sub(from);
            }
            Turn::Nested => {
                ledger::aside(Aside::Nested);
                break false;
            }
            Turn::Theirs => {}
        }
        let now = sys::now_ns();
        if turn.is_first(now) && enough() {
            break true;
        }
        let confirmed = TOTALS.confirmed_bytes.load(Relaxed);
        if confirmed != progress.0 {
            progress = (confirmed, now);
        } else if now.wrapping_sub(progress.1) > region::max_stall_ns() {
            ledger::aside(Aside::Stalled);
            forget_debts();
            break false;
        }
        HELD_AT.store(now, Relaxed);
        slept = true;
        sys::sleep_ns(STEP_NS.max(look_ns.saturating_mul(8)));
    };
    turn.leave();
    if slept {
        let held = sys::now_ns().wrapping_sub(began);
        TOTALS.held_back_ns.fetch_add(held, Relaxed);
        TOTALS.longest_held_back_ns.fetch_max(held, Relaxed);
        TOTALS.held_calls.fetch_add(1, Relaxed);
        TOTALS.dev.store(file.dev(), Relaxed);
    }
    result
}

/// The disk makes no progress: what it owes us is not waited for any more, and no other disk's writers either.
fn forget_debts() {
    if let Turn::Mine(mine) = take() {
        for file in files::all() {
            ledger::credit(file.take_all());
        }
        ledger::credit(files::closed().swap(0, Relaxed));
        give(mine);
    }
}

/// Is some call held back?
fn is_holding() -> bool {
    sys::now_ns().wrapping_sub(HELD_AT.load(Relaxed)) < QUEUE_NS
}

/// Held calls get room in the order in which they came: the word is the time at which the longest waiting one began.
/// One that does not look for [`QUEUE_NS`] (its thread was stopped, or has left by siglongjmp) is passed over.
struct Queue {
    began: u64,
}

static FIRST_BEGAN: AtomicU64 = AtomicU64::new(0);
static FIRST_SEEN: AtomicU64 = AtomicU64::new(0);
const QUEUE_NS: u64 = 50_000_000;

impl Queue {
    fn is_first(&self, now: u64) -> bool {
        let first = FIRST_BEGAN.load(Relaxed);
        let is_lost = now.wrapping_sub(FIRST_SEEN.load(Relaxed)) > QUEUE_NS;
        if first == 0 || self.began <= first || is_lost {
            FIRST_BEGAN.store(self.began, Relaxed);
            FIRST_SEEN.store(now, Relaxed);
            return true;
        }
        false
    }

    fn leave(&self) {
        let _ = FIRST_BEGAN.compare_exchange(self.began, 0, Relaxed, Relaxed);
    }
}

/// Every file that owes: sends what is not on its way, takes off what has arrived. The caller has the pace.
fn look_at_all(caller: Option<(&'static File, c_int)>) {
    region::refresh();
    let mut started = 0;
    let mut by_group = 0;
    let mut known = 0;
    for file in files::all() {
        file.harvest();
        if file.owed() == 0 {
            continue;
        }
        let fd = match caller {
            Some((at, fd)) if core::ptr::eq(at, file) && descriptors::is_on(fd, file) => Some(fd),
            _ if file.is_open() => descriptors::find(file),
            _ => None,
        };
        let Some(fd) = fd else {
            file.drain(); // closed: its debt is seen in the group's unwritten
            continue;
        };
        advance(file, fd, ledger::owed() >= ledger::window() / 2);
        confirm(file, fd);
        started += file.started();
        if matches!(file.how(), How::Group | How::Layered) {
            by_group += file.owed();
        } else {
            known += file.owed();
        }
    }
    let closed = files::closed().load(Relaxed);
    if closed + by_group > 0 {
        settle_by_group(known);
    } else {
        GROUP_UNWRITTEN.store(u64::MAX, Relaxed);
    }
    if started == 0 {
        // nothing is on its way, so nothing would ever arrive: send all that is there
        for file in files::all() {
            if file.owed() > 0
                && let Some(fd) = descriptors::find(file)
            {
                send(file, fd);
            }
        }
    }
    measure_speed();
    region::publish(ledger::owed(), is_holding());
}

/// A file's current charge: is it a chunk, and is it really dirty? `pressed`: the window is more than half full, so
/// also what is less than a chunk goes where nothing else of the file is on its way.
fn advance(file: &'static File, fd: c_int, pressed: bool) {
    if file.mode() == Mode::Observe {
        ledger::credit(file.forgive(u64::MAX));
        return;
    }
    let current = file.current();
    let due = current >= ledger::chunk() || (pressed && current >= PIECE_MIN && file.started() == 0);
    if !due {
        return;
    }
    if file.how() == How::Ranges {
        // a chunk of writes is a reason to look, not yet to flush: pages that are written again and again, and pages
        // that the kernel has written already, are taken off
        let (low, high) = file.current_range(sys::position(fd));
        if let Some(stat) = flush::measure(file, fd, low, high) {
            let unwritten = (stat.dirty + stat.writeback).saturating_mul(ledger::PAGE);
            if unwritten < current / 2 && file.how() == How::Ranges {
                ledger::credit(file.forgive(current.saturating_sub(unwritten)));
                return;
            }
        }
    }
    send(file, fd);
}

/// Starts writeback of all that the file's current charge stands for.
fn send(file: &'static File, fd: c_int) {
    if file.current() > 0 {
        let (low, high) = file.current_range(sys::position(fd));
        flush::start(file, fd, low, high);
        let charge = file.cut(low, high);
        TOTALS.flushed_bytes.fetch_add(charge, Relaxed);
    }
    if file.how() == How::Remote {
        commit(file, fd);
    }
}

/// On a remote filesystem only a commit tells: asks the helper for one of all that was sent, one at a time.
fn commit(file: &'static File, fd: c_int) {
    if file.syncing.load(Relaxed) == 0 {
        if file.started() < COMMIT_BYTES.min(ledger::window() / 3) {
            return;
        }
        while file.oldest().is_some() {
            file.syncing.fetch_add(file.pop(), Relaxed);
        }
    }
    if !helper::commit(file, fd) {
        file.measure_by_group();
    }
}

/// Takes off what has arrived, oldest chunk first, and drops it where that is wanted.
fn confirm(file: &'static File, fd: c_int) {
    while let Some(chunk) = file.oldest() {
        let (low, high) = (chunk.low.load(Relaxed), chunk.high.load(Relaxed));
        let charge = chunk.charge.load(Relaxed);
        match file.how() {
            How::Ranges => {
                let Some(stat) = flush::measure(file, fd, low, high) else { return };
                let left = (stat.dirty + stat.writeback).saturating_mul(ledger::PAGE);
                if stat.writeback > 0 || stat.dirty > EDGE_PAGES {
                    // not below what others have added to it since
                    let _ = chunk
                        .charge
                        .fetch_update(Relaxed, Relaxed, |now| Some(now.saturating_sub(charge.saturating_sub(left))));
                    arrived(charge.saturating_sub(left));
                    if stat.writeback > 0 {
                        return;
                    }
                    // written, and dirty again: by the application, whose later charge stands for it; or never sent
                    if !chunk.again.swap(true, Relaxed) {
                        flush::start(file, fd, low, high);
                        return;
                    }
                }
            }
            How::Unstable => {
                if !confirm_by_dropping(file, fd, chunk) {
                    return;
                }
                arrived(file.pop());
                continue;
            }
            How::Group | How::Layered if charge > 0 => return,
            How::Remote => break,
            _ => {}
        }
        arrived(file.pop());
        let always = file.mode() == Mode::Always || region::wants_drop();
        if always {
            flush::drop_range(file, fd, low, high, region::is_over_target());
        }
    }
    if file.how() == How::Remote {
        commit(file, fd);
    }
}

/// The oldest chunk of a file on NFS: drops what has arrived of it. `false`: some has not.
fn confirm_by_dropping(file: &'static File, fd: c_int, chunk: &Chunk) -> bool {
    let now = sys::now_ns();
    if now.wrapping_sub(file.attempted_ns.load(Relaxed)) < ATTEMPT_NS {
        return false;
    }
    let (low, high) = (chunk.low.load(Relaxed), chunk.high.load(Relaxed));
    if low.saturating_add(ledger::PAGE) <= file.droppable_from() {
        file.set_how(How::Remote); // what was there before stays cached
        return false;
    }
    let Some(left) = flush::drop_arrived(file, fd, low, high) else { return false };
    let left_bytes = left.cached.saturating_mul(ledger::PAGE);
    let before = chunk.charge.fetch_min(left_bytes, Relaxed);
    arrived(before.saturating_sub(left_bytes));
    if left.cached <= EDGE_PAGES {
        file.late_since_ns.store(0, Relaxed);
        return true;
    }
    if left.writeback == 0 {
        file.attempted_ns.store(now, Relaxed);
    }
    if left.dirty + left.writeback > 0 || left_bytes < before || file.late_since_ns.load(Relaxed) == 0 {
        file.late_since_ns.store(now, Relaxed);
    } else if now.wrapping_sub(file.late_since_ns.load(Relaxed)) > COMMIT_LATE_NS {
        file.set_how(How::Remote);
    }
    false
}

fn arrived(bytes: u64) {
    ledger::credit(bytes);
    TOTALS.confirmed_bytes.fetch_add(bytes, Relaxed);
}

/// Closed files, and files that cachestat cannot see: together they owe no more than the group has unwritten, less what
/// is known to be owed otherwise. `known`: what open files owe by cachestat.
fn settle_by_group(known: u64) {
    let Some(unwritten) = apart::run(group::unwritten) else { return };
    let Some(unwritten) = unwritten else {
        GROUP_UNWRITTEN.store(u64::MAX, Relaxed);
        fall_back();
        return;
    };
    GROUP_UNWRITTEN.store(unwritten, Relaxed);
    let mut left = unwritten.saturating_sub(known).saturating_sub(COUNTER_LAG);
    // the youngest debts are the ones that can still be unwritten
    for file in files::all().filter(|file| matches!(file.how(), How::Group | How::Layered)) {
        left = left.saturating_sub(file.current());
    }
    let closed = files::closed();
    let mut owed = closed.load(Relaxed);
    for file in files::all().filter(|file| matches!(file.how(), How::Group | How::Layered)) {
        owed = owed.saturating_add(file.started());
    }
    let mut excess = owed.saturating_sub(left);
    let before = closed.load(Relaxed);
    let taken = excess.min(before);
    let _ = closed.fetch_update(Relaxed, Relaxed, |debt| Some(debt.saturating_sub(taken)));
    arrived(taken);
    excess -= taken;
    for file in files::all().filter(|file| matches!(file.how(), How::Group | How::Layered)) {
        while excess > 0 {
            let Some(chunk) = file.oldest() else { break };
            let charge = chunk.charge.load(Relaxed);
            let taken = charge.min(excess);
            chunk.charge.store(charge - taken, Relaxed);
            arrived(taken);
            excess -= taken;
            if charge > taken {
                break;
            }
            match descriptors::find(file) {
                Some(fd) => confirm(file, fd),
                None => {
                    file.pop();
                }
            }
        }
    }
}

/// Neither cachestat nor the cgroup can be read: only a wait in the helper tells.
fn fall_back() {
    let debt = files::closed().swap(0, Relaxed);
    arrived(debt);
    for file in files::all().filter(|file| file.how() == How::Group) {
        file.set_how(How::Remote);
    }
}

/// A descriptor is about to be closed. Where the group is pressed, what its file owes is sent on its way; where usage
/// is near its target, the helper keeps the file until it is written, and drops it.
pub fn before_close(fd: c_int, entry: Entry) {
    let Some(file) = entry.file() else { return };
    if matches!(file.how(), How::Remote | How::Unstable) {
        // close itself writes everything back to the server (nfs(5), close-to-open)
        if file.is_last_user() {
            helper::release(file, region::max_stall_ns());
        }
        return;
    }
    file.harvest();
    let owed = file.owed();
    if owed == 0 || file.mode() == Mode::Observe || !descriptors::is_on(fd, file) {
        return;
    }
    region::refresh();
    let drops = file.mode() == Mode::Always || region::wants_drop_closed();
    if !(drops || region::is_pressed() || ledger::is_pressed()) {
        return;
    }
    let Turn::Mine(signals) = take() else { return };
    send(file, fd);
    region::publish(ledger::owed(), is_holding());
    give(signals);
    if !drops || !file.is_last_user() {
        hold_short_process(file, fd);
    } else if CLOSES.fetch_add(1, Relaxed) >= CLOSES_BEFORE_HELPER && !sys::has_lease(fd) {
        let charge = file.take_all();
        let mut kept = false;
        // the helper has room for so many: when it is full, the disk is the slow one
        hold(file, fd, || {
            kept = helper::keep(file, fd, charge);
            kept || !helper::is_full()
        });
        if !kept {
            files::closed().fetch_add(charge, Relaxed);
            hold_until_clean(file, fd);
            sys::drop_cache(fd, file.droppable_from(), 0);
        }
    }
}

/// A process that writes more than a window is held by that; of many short ones none ever fills it.
fn hold_short_process(file: &'static File, fd: c_int) {
    if region::is_crowded() && TOTALS.written_bytes.load(Relaxed) < MIN_WINDOW {
        hold_until_clean(file, fd);
    }
}

/// Waits until nothing of the file is on its way any more, or the group is no longer crowded.
fn hold_until_clean(file: &'static File, fd: c_int) {
    hold(file, fd, || {
        !region::is_crowded()
            || flush::measure(file, fd, 0, u64::MAX).is_none_or(|stat| stat.dirty + stat.writeback <= EDGE_PAGES)
    });
}

/// The process ends: what is owed is sent on its way where the group is pressed.
pub fn end() {
    if !region::is_attached() && files::all().next().is_none() || !process::is_ours() {
        return;
    }
    if let Turn::Mine(signals) = take() {
        for file in files::all() {
            file.harvest();
            if file.owed() > 0
                && (region::is_pressed() || ledger::is_pressed())
                && let Some(fd) = descriptors::find(file)
            {
                send(file, fd);
            }
        }
        give(signals);
        for file in files::all() {
            if file.owed() > 0
                && let Some(fd) = descriptors::find(file)
            {
                hold_short_process(file, fd);
            }
        }
    }
    region::end();
}

// The disk's speed as this process measures it, for the time without a sidecar.
static SPEED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static SPEED_FROM: AtomicU64 = AtomicU64::new(0);
static SPEED_BYTES: AtomicU64 = AtomicU64::new(0);
static SPEED_SECONDS: AtomicU64 = AtomicU64::new(0);

/// Bytes a second: the lowest of the last three seconds in which calls were held back throughout; 0: not yet known.
pub fn speed() -> u64 {
    SPEED.iter().map(|speed| speed.load(Relaxed)).filter(|&speed| speed != 0).min().unwrap_or(0)
}

/// A second counts where the disk was the slow one from its beginning to its end.
fn measure_speed() {
    let now = sys::now_ns();
    let confirmed = TOTALS.confirmed_bytes.load(Relaxed);
    let since = now.wrapping_sub(SPEED_FROM.load(Relaxed));
    if !is_holding() || since > 2_000_000_000 {
        SPEED_FROM.store(now, Relaxed);
        SPEED_BYTES.store(confirmed, Relaxed);
    } else if since > 1_000_000_000 {
        let bytes = confirmed.wrapping_sub(SPEED_BYTES.load(Relaxed));
        let place = SPEED_SECONDS.fetch_add(1, Relaxed) % 3;
        if let Some(slot) = SPEED.get(place as usize) {
            slot.store(bytes / (since / 1_000_000).max(1) * 1000, Relaxed);
        }
        SPEED_FROM.store(now, Relaxed);
        SPEED_BYTES.store(confirmed, Relaxed);
    }
}
