//! `reads = "drop-behind"`: what a program reads once, from one end to the other, goes from the page cache behind it.
//!
//! Where no rule asks for that, a call that reads is one load and a jump. A process that has a sidecar does not know
//! its rules before it asks, when it first reads from a file that is worth it ([`undecided`]).
//!
//! A [`Stream`] is a descriptor that reads a file of such a rule. Pages that were cached before it came stay: what lies
//! [`AHEAD_BYTES`] ahead of it is looked at before the kernel reads ahead, and a step of which something was there is
//! left alone. What is dirty, mapped or locked stays, and so does all of a file whose pages come back after they were
//! dropped: then somebody reads it again. Everything is atomic and nothing is waited for, because hooks run in many
//! threads and in signal handlers; who is at a stream has its `busy`, and others pass by.

use crate::seccomp::{self, Forbidden};
use crate::{files, flush, ledger, process, region, sys};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64};
use libc::c_int;
use plan::STEP_BYTES;

/// What a read call has to do with us.
static STATE: AtomicU8 = AtomicU8::new(OFF);
/// Nothing.
const OFF: u8 = 0;
/// It is not known what the rules say.
const UNDECIDED: u8 = 1;
/// Some rule asks for it.
const ON: u8 = 2;

/// The rules are asked for where a file has so many bytes, or after so many calls that read smaller ones.
const WORTH_IT_BYTES: u64 = 128 << 10;
const CALLS: u32 = 32;
static SMALL_FILES_CALLS: AtomicU32 = AtomicU32::new(0);
/// So often; whoever then got no answer asks no more.
const ASKS: u32 = 2;
static ASKED: AtomicU32 = AtomicU32::new(0);

/// Descriptors from here on are left alone.
const DESCRIPTORS: usize = 4096;
/// Streams at a time; more are left alone.
const STREAMS: usize = 128;
/// How far ahead of a stream is looked what was cached before it came, and how much of that has to be known at any
/// time: farther than the kernel reads ahead (8 MiB on some disks, twice as much where a program says that it reads in
/// a row, and that much once more while it does).
const AHEAD_BYTES: u64 = 48 * STEP_BYTES;
const AHEAD_LEAST_BYTES: u64 = 32 * STEP_BYTES;
/// How far behind a stream somebody is noticed who reads what was dropped.
const BEHIND_BYTES: u64 = 16 * STEP_BYTES;
/// So many pages that came back are no accident.
const CAME_BACK_PAGES: u64 = 64;

/// What each descriptor is: not looked at, left alone, or from 2 on the index of its stream.
static TABLE: [AtomicU8; DESCRIPTORS] = [const { AtomicU8::new(UNKNOWN) }; DESCRIPTORS];
const UNKNOWN: u8 = 0;
const LEFT_ALONE: u8 = 1;
const FIRST: u8 = 2;
const _: () = assert!(STREAMS + FIRST as usize <= 256);

/// A descriptor that reads a file of a rule.
struct Stream {
    /// One more than its number; 0: the record is free.
    fd: AtomicI32,
    /// Somebody looks at it.
    busy: AtomicBool,
    /// The file ([`files::key`]).
    key: AtomicU64,
    /// Where the next call reads, as far as the calls tell.
    at: AtomicU64,
    /// Where it was at the last look.
    looked: AtomicU64,
    /// It was read in a row so far, and what was cached is known from `from` to `known_to`.
    streams: AtomicBool,
    /// The calls name their offsets.
    positional: AtomicBool,
    /// Where it began to read in a row: nothing before it was dropped.
    start: AtomicU64,
    /// What lies before it is done with.
    from: AtomicU64,
    known_to: AtomicU64,
    /// The file's size as last seen.
    size: AtomicU64,
    /// A bit for each step from `from` to `known_to`, by its number: it had pages.
    had_pages: AtomicU64,
    /// Pages that the last drop left from `left_from` to `from`.
    left_pages: AtomicU64,
    left_from: AtomicU64,
    /// The last try to drop something was in vain.
    is_stuck: AtomicBool,
}

static POOL: [Stream; STREAMS] = [const { Stream::new() }; STREAMS];

/// There may be rules, which a sidecar will tell of. Until then only what is no file is known, and left alone. From the
/// constructor.
pub fn may_be() {
    STATE.store(UNDECIDED, Relaxed);
}

/// The rules are known, or have changed.
pub fn decide(is_asked_for: bool) {
    if is_asked_for || is_on() {
        forget_all();
    }
    STATE.store(if is_asked_for { ON } else { OFF }, Relaxed);
}

/// A child of fork has the offsets of its descriptors in common with its parent. Of its parent's threads it has one.
pub fn reset() {
    if is_on() {
        forget_all();
        for stream in &POOL {
            stream.busy.store(false, Relaxed);
        }
    }
}

#[inline(always)]
fn is_off() -> bool {
    STATE.load(Relaxed) == OFF
}

#[inline(always)]
fn is_on() -> bool {
    STATE.load(Relaxed) == ON
}

/// Where a call reads.
#[derive(Clone, Copy)]
enum Place {
    /// At the descriptor's own offset.
    Own,
    At(u64),
    /// At the one that the application keeps there.
    Kept(*const i64),
}

impl Place {
    /// The offset, if it is not the descriptor's own. `None`: the kernel will refuse it.
    fn named(self) -> Option<Option<u64>> {
        match self {
            Place::Own => Some(None),
            Place::At(offset) => Some(Some(offset)),
            Place::Kept(at) => u64::try_from(sys::read_offset(at)?).ok().map(Some),
        }
    }
}

/// A call that reads so many bytes at the descriptor's own offset.
#[inline(always)]
pub fn plain(fd: c_int, bytes: usize, call: impl FnOnce() -> isize) -> isize {
    if is_off() { call() } else { watched(fd, Place::Own, bytes, call) }
}

/// A call that reads at `offset`; a negative one is preadv2's way of saying "at the file's own".
#[inline(always)]
pub fn positional(fd: c_int, offset: i64, bytes: usize, call: impl FnOnce() -> isize) -> isize {
    if is_off() { call() } else { watched(fd, u64::try_from(offset).map_or(Place::Own, Place::At), bytes, call) }
}

/// preadv2. One that may not wait is counted, no more.
#[inline(always)]
pub fn flagged(fd: c_int, offset: i64, bytes: usize, flags: c_int, call: impl FnOnce() -> isize) -> isize {
    if is_off() || flags & libc::RWF_NOWAIT == 0 {
        return positional(fd, offset, bytes, call);
    }
    let read = call();
    if read > 0
        && is_on()
        && process::is_ours()
        && let Some(stream) = stream_of(fd)
    {
        let offset = u64::try_from(offset).ok();
        stream.aim(fd, offset);
        stream.count(offset, read as u64);
    }
    read
}

/// A call that moves data out of a file. `at`: where the application keeps the offset, or null.
#[inline(always)]
pub fn moving(fd: c_int, at: *const i64, bytes: usize, call: impl FnOnce() -> isize) -> isize {
    if is_off() { call() } else { watched(fd, if at.is_null() { Place::Own } else { Place::Kept(at) }, bytes, call) }
}

#[cold]
#[inline(never)]
fn watched(fd: c_int, place: Place, bytes: usize, call: impl FnOnce() -> isize) -> isize {
    let stream = before(fd, place, bytes as u64);
    let read = call();
    if let Some((stream, offset)) = stream
        && read > 0
    {
        stream.has_read(fd, offset, read as u64);
    }
    read
}

/// The stream of a call that is about to read, if it has one, and the offset that the call names; what is ahead of it
/// is known then.
#[inline(never)]
fn before(fd: c_int, place: Place, bytes: u64) -> Option<(&'static Stream, Option<u64>)> {
    if get(fd) == LEFT_ALONE || !process::is_ours() {
        return None;
    }
    if STATE.load(Relaxed) == UNDECIDED {
        undecided(fd, bytes);
    }
    if !is_on() {
        return None;
    }
    let stream = match stream_of(fd) {
        Some(stream) => stream,
        None => meet(fd, place)?,
    };
    let offset = place.named()?;
    stream.aim(fd, offset);
    if stream.streams.load(Relaxed) {
        let at = stream.at.load(Relaxed);
        let (known_to, size) = (stream.known_to.load(Relaxed), stream.size.load(Relaxed));
        let end = at.saturating_add(bytes);
        if at >= size || known_to < size && end.saturating_add(AHEAD_LEAST_BYTES) > known_to {
            stream.look_ahead(fd, end);
        }
    }
    stream.is_of(fd).then_some((stream, offset))
}

/// Asks for the rules, if this call is a sign that it would be worth it.
#[cold]
#[inline(never)]
fn undecided(fd: c_int, bytes: u64) {
    if bytes < ledger::PAGE || !may_ask() {
        return;
    }
    let Some(stat) = sys::fstat(fd) else { return };
    if !stat.is_file() {
        return leave_alone(fd);
    }
    let is_due = stat.size >= WORTH_IT_BYTES || SMALL_FILES_CALLS.fetch_add(1, Relaxed) % CALLS == CALLS - 1;
    if is_due && (region::ask_for_rules() || ASKED.fetch_add(1, Relaxed) >= ASKS - 1) {
        // where it was told, this is decided already
        let _ = STATE.compare_exchange(UNDECIDED, OFF, Relaxed, Relaxed);
    }
}

/// No filter stands between us and the system calls that this takes.
fn may_ask() -> bool {
    seccomp::forbids().is_some_and(|forbidden| matches!(forbidden, Forbidden::Nothing))
}

fn get(fd: c_int) -> u8 {
    TABLE.get(fd as usize).map_or(LEFT_ALONE, |word| word.load(Acquire))
}

/// A descriptor that is read for the first time.
#[cold]
#[inline(never)]
fn meet(fd: c_int, place: Place) -> Option<&'static Stream> {
    if !may_ask() {
        return None;
    }
    let word = TABLE.get(fd as usize)?;
    let stat = sys::fstat(fd)?;
    let is_for_us = stat.is_file()
        && sys::status_flags(fd) & libc::O_DIRECT == 0
        && region::drops_behind(fd)
        && flush::How::of(fd, false).is_some()
        && !sys::NO_CACHESTAT.load(Relaxed);
    let at = if is_for_us { place.named()?.or_else(|| u64::try_from(sys::position(fd)).ok()) } else { None };
    let Some((at, index)) = at.and_then(|at| Some((at, POOL.iter().position(|stream| stream.take(fd))?))) else {
        leave_alone(fd);
        return None;
    };
    let stream = POOL.get(index)?;
    stream.key.store(files::key(&stat), Relaxed);
    stream.size.store(stat.size, Relaxed);
    stream.begin(at, plan::down(at));
    stream.busy.store(false, Release);
    if word.compare_exchange(UNKNOWN, FIRST + index as u8, AcqRel, Relaxed).is_err() {
        stream.fd.store(0, Release); // another thread was first
        return None;
    }
    Some(stream)
}

/// The application has moved a descriptor's offset.
#[inline(always)]
pub fn moved(fd: c_int, to: i64) {
    if is_on()
        && let Ok(to) = u64::try_from(to)
        && process::is_ours()
        && let Some(stream) = stream_of(fd)
    {
        stream.go_to(fd, to);
    }
}

/// A descriptor is about to be closed: what is left of its stream goes too.
#[inline(always)]
pub fn before_close(fd: c_int) {
    if !is_off() {
        end_of(fd);
    }
}

/// What a descriptor was does not hold any more.
#[inline(always)]
pub fn forget(fd: c_int) {
    if !is_off() {
        forget_now(fd);
    }
}

/// The process ends, with these files open.
pub fn end() {
    if is_on() {
        for fd in POOL.iter().map(|stream| stream.fd.load(Relaxed)).filter(|&fd| fd != 0) {
            end_of(fd - 1);
        }
    }
}

/// Descriptors of a range that are about to be closed.
pub fn before_close_range(first: u32, last: u32) {
    if !is_off() {
        for stream in &POOL {
            let fd = stream.fd.load(Relaxed) - 1;
            if fd >= 0 && (first..=last).contains(&(fd as u32)) {
                end_of(fd);
            }
        }
        for fd in first..=last.min(DESCRIPTORS as u32) {
            forget_now(fd as c_int);
        }
    }
}

#[cold]
fn end_of(fd: c_int) {
    if get(fd) != UNKNOWN && process::is_ours() {
        if let Some(stream) = stream_of(fd) {
            stream.end(fd);
        }
        forget_now(fd);
    }
}

fn stream_of(fd: c_int) -> Option<&'static Stream> {
    POOL.get(usize::from(get(fd).checked_sub(FIRST)?))
}

#[cold]
fn forget_now(fd: c_int) {
    if get(fd) != UNKNOWN
        && process::is_ours()
        && let Some(word) = TABLE.get(fd as usize)
    {
        free(word.swap(UNKNOWN, AcqRel));
    }
}

fn free(word: u8) {
    if let Some(index) = word.checked_sub(FIRST)
        && let Some(stream) = POOL.get(usize::from(index))
    {
        stream.fd.store(0, Release);
    }
}

/// The rest of this descriptor's file is left alone.
fn leave_alone(fd: c_int) {
    if let Some(word) = TABLE.get(fd as usize) {
        free(word.swap(LEFT_ALONE, AcqRel));
    }
}

fn forget_all() {
    for stream in POOL.iter().filter(|stream| stream.fd.load(Relaxed) != 0) {
        stream.fd.store(0, Release);
    }
    for word in &TABLE {
        // most of them were never written, and their memory is not there
        if word.load(Relaxed) != UNKNOWN {
            word.store(UNKNOWN, Release);
        }
    }
}

impl Stream {
    const fn new() -> Stream {
        Stream {
            fd: AtomicI32::new(0),
            busy: AtomicBool::new(false),
            key: AtomicU64::new(0),
            at: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            streams: AtomicBool::new(false),
            positional: AtomicBool::new(false),
            start: AtomicU64::new(0),
            from: AtomicU64::new(0),
            known_to: AtomicU64::new(0),
            size: AtomicU64::new(0),
            had_pages: AtomicU64::new(0),
            left_pages: AtomicU64::new(0),
            left_from: AtomicU64::new(0),
            is_stuck: AtomicBool::new(false),
        }
    }

    /// It reads in a row from here on; what lies before `from` is none of it.
    fn begin(&self, at: u64, from: u64) {
        self.at.store(at, Relaxed);
        self.looked.store(at, Relaxed);
        self.start.store(from, Relaxed);
        self.from.store(from, Relaxed);
        self.known_to.store(from, Relaxed);
        self.had_pages.store(0, Relaxed);
        self.left_pages.store(0, Relaxed);
        self.left_from.store(from, Relaxed);
        self.is_stuck.store(false, Relaxed);
        self.streams.store(true, Relaxed);
    }

    /// Takes the record for a descriptor, if it is free and nobody is at it any more; `busy` is then the caller's.
    fn take(&self, fd: c_int) -> bool {
        if self.fd.load(Relaxed) != 0 || self.busy.swap(true, AcqRel) {
            return false;
        }
        let is_free = self.fd.compare_exchange(0, fd + 1, AcqRel, Relaxed).is_ok();
        if !is_free {
            self.busy.store(false, Release);
        }
        is_free
    }

    /// Is it still this descriptor's?
    fn is_of(&self, fd: c_int) -> bool {
        stream_of(fd).is_some_and(|stream| core::ptr::eq(stream, self))
    }

    /// A call reads at this offset, or at the descriptor's own.
    fn aim(&self, fd: c_int, offset: Option<u64>) {
        if let Some(offset) = offset {
            self.go_to(fd, offset);
        }
        self.positional.store(offset.is_some(), Relaxed);
    }

    /// The next call reads at `to`. Who goes back to what was not dropped yet (a header that is read twice) still
    /// streams; others have to read a step in a row first. Who goes back to what was dropped reads the file twice.
    fn go_to(&self, fd: c_int, to: u64) {
        let (at, from) = (self.at.load(Relaxed), self.from.load(Relaxed));
        if to == at {
            return;
        }
        if to < from && from > self.start.load(Relaxed) {
            return leave_alone(fd);
        }
        self.at.store(to, Relaxed);
        self.looked.store(to, Relaxed);
        if to > at || to < from {
            self.streams.store(false, Relaxed);
        }
    }

    /// Counts what a call has read. How far it has come since the last look.
    fn count(&self, offset: Option<u64>, bytes: u64) -> u64 {
        let at = match offset {
            Some(offset) => {
                let at = offset.saturating_add(bytes);
                self.at.store(at, Relaxed);
                at
            }
            None => self.at.fetch_add(bytes, Relaxed).saturating_add(bytes),
        };
        at.saturating_sub(self.looked.load(Relaxed))
    }

    /// Some call has read so much.
    fn has_read(&'static self, fd: c_int, offset: Option<u64>, bytes: u64) {
        if self.is_of(fd) && self.count(offset, bytes) >= STEP_BYTES {
            self.look_behind(fd);
        }
    }

    /// Is it still this descriptor's, and that still open on this file? If so, the file's size is brought up to date.
    fn is_at(&self, fd: c_int) -> bool {
        if !self.is_of(fd) {
            return false;
        }
        let stat = sys::fstat(fd).filter(|stat| files::key(stat) == self.key.load(Relaxed));
        match &stat {
            Some(stat) => self.size.store(stat.size, Relaxed),
            None => forget_now(fd),
        }
        stat.is_some()
    }

    /// Does the descriptor stand where the calls have left it? Of several threads some have read what they have not
    /// counted yet.
    fn is_in_place(&self, fd: c_int, at: u64) -> bool {
        if self.positional.load(Relaxed) {
            return true;
        }
        let Ok(position) = u64::try_from(sys::position(fd)) else { return false };
        let is_in_place = (at..=at.saturating_add(STEP_BYTES)).contains(&position);
        if !is_in_place {
            self.go_to(fd, position);
            self.streams.store(false, Relaxed);
        }
        is_in_place
    }

    /// Only one thread at a time, and not in a handler on top of it. One that is left by siglongjmp is never looked at
    /// again: what its descriptor reads stays cached.
    fn alone(&self, look: impl FnOnce()) {
        if process::is_ours() && !self.busy.swap(true, AcqRel) {
            look();
            self.busy.store(false, Release);
        }
    }

    /// Learns what is cached ahead of a call that reads up to `end`.
    #[cold]
    #[inline(never)]
    fn look_ahead(&'static self, fd: c_int, end: u64) {
        self.alone(|| {
            if !self.is_at(fd) {
                return;
            }
            let known_to = self.known_to.load(Relaxed);
            let to = plan::up(end.saturating_add(AHEAD_BYTES)).min(self.size.load(Relaxed));
            if to <= known_to {
                return;
            }
            let Some(ahead) = cached(fd, known_to, to) else { return leave_alone(fd) };
            if ahead.cached > 0 {
                // a call for more than there are bits for
                if to - plan::down(self.from.load(Relaxed)) > plan::TOLD_APART_BYTES {
                    self.streams.store(false, Relaxed);
                    return;
                }
                let mut low = known_to;
                while low < to {
                    let high = plan::down(low).saturating_add(STEP_BYTES).min(to);
                    if cached(fd, low, high).is_none_or(|step| step.cached > 0) {
                        self.had_pages.fetch_or(plan::bit(low), Relaxed);
                    }
                    low = high;
                }
            }
            self.known_to.store(to, Relaxed);
        });
    }

    /// Drops what is far enough behind.
    #[cold]
    #[inline(never)]
    fn look_behind(&'static self, fd: c_int) {
        self.alone(|| {
            let at = self.at.load(Relaxed);
            self.looked.store(at, Relaxed);
            if !self.is_at(fd) || !self.is_in_place(fd, at) {
                return;
            }
            if self.streams.load(Relaxed) {
                self.drop_to(fd, plan::end_behind(at));
            } else {
                // it reads in a row again, and what the kernel has read ahead meanwhile counts as somebody's
                self.begin(at, plan::up(at));
            }
        });
    }

    /// It is closed. What is left goes where the file was read to its end, or much of it.
    fn end(&'static self, fd: c_int) {
        self.alone(|| {
            let at = self.at.load(Relaxed);
            if !self.streams.load(Relaxed) || !self.is_at(fd) || !self.is_in_place(fd, at) {
                return;
            }
            let size = self.size.load(Relaxed);
            if at >= size {
                self.drop_to(fd, size);
            } else if self.from.load(Relaxed) > self.start.load(Relaxed) {
                self.drop_to(fd, plan::down(at));
            }
        });
    }

    /// Drops what lies before `to`, except what was cached before or is dirty. Leaves the file alone where somebody
    /// reads again what was dropped, or what is read does not go.
    fn drop_to(&'static self, fd: c_int, to: u64) {
        let from = self.from.load(Relaxed);
        let to = to.min(self.known_to.load(Relaxed));
        if to <= from {
            return;
        }
        let (left_from, left_pages) = (self.left_from.load(Relaxed), self.left_pages.load(Relaxed));
        if left_from < from && cached(fd, left_from, from).is_none_or(|now| now.cached > left_pages + CAME_BACK_PAGES) {
            return leave_alone(fd);
        }
        let (mut tried, mut dropped) = (0, 0);
        for (low, high) in plan::Runs::new(from, to, self.had_pages.load(Relaxed)) {
            let high = high.next_multiple_of(ledger::PAGE);
            let Some(before) = cached(fd, low, high) else { return leave_alone(fd) };
            // dirty pages would be sent
            if before.cached == 0 || before.dirty + before.writeback > 0 {
                continue;
            }
            // another thread may have put another file there
            if !self.is_at(fd) {
                return;
            }
            sys::drop_cache(fd, low, high - low);
            let left = cached(fd, low, high).map_or(before.cached, |after| after.cached);
            tried += before.cached;
            dropped += before.cached.saturating_sub(left);
        }
        ledger::TOTALS.dropped_bytes.fetch_add(dropped.saturating_mul(ledger::PAGE), Relaxed);
        if tried > 0 && dropped == 0 {
            // mapped, or locked in memory; or a socket still has them, and they go with the next step
            if self.is_stuck.swap(true, Relaxed) {
                leave_alone(fd);
            }
            return;
        }
        self.is_stuck.store(false, Relaxed);
        let done = plan::down(to);
        self.had_pages.fetch_and(!plan::bits(from, done), Relaxed);
        self.from.store(done, Relaxed);
        let left_from = done.saturating_sub(BEHIND_BYTES).max(self.start.load(Relaxed));
        let left = if left_from < done { cached(fd, left_from, done) } else { None };
        self.left_pages.store(left.map_or(0, |left| left.cached), Relaxed);
        self.left_from.store(left_from, Relaxed);
    }
}

/// What is cached of a range, which is not empty: a length of 0 would be all of the file's rest.
fn cached(fd: c_int, low: u64, high: u64) -> Option<sys::CacheStat> {
    sys::cachestat(fd, low, high.saturating_sub(low)).ok()
}

/// Which ranges go; pure.
mod plan {
    /// Large folios are dropped as a whole or not at all, and have up to so many bytes.
    pub const STEP_BYTES: u64 = 2 << 20;

    /// Steps have a bit each as long as no more lies between the first and the last of them.
    pub const TOLD_APART_BYTES: u64 = 63 * STEP_BYTES;

    pub const fn down(offset: u64) -> u64 {
        offset & !(STEP_BYTES - 1)
    }

    pub const fn up(offset: u64) -> u64 {
        down(offset.saturating_add(STEP_BYTES - 1))
    }

    /// Where what may go ends behind a reader: the last whole step behind it stays.
    pub const fn end_behind(at: u64) -> u64 {
        down(at).saturating_sub(STEP_BYTES)
    }

    /// The bit of the step that an offset lies in.
    pub const fn bit(offset: u64) -> u64 {
        1 << (offset / STEP_BYTES % 64)
    }

    /// The bits of the steps that lie within a range as a whole.
    pub fn bits(from: u64, to: u64) -> u64 {
        let steps = (down(to).saturating_sub(down(from)) / STEP_BYTES).min(64);
        (0..steps).fold(0, |bits, step| bits | bit(from.saturating_add(step * STEP_BYTES)))
    }

    /// The parts of a range without the steps whose bit is set.
    pub struct Runs {
        at: u64,
        to: u64,
        kept: u64,
    }

    impl Runs {
        pub const fn new(from: u64, to: u64, kept: u64) -> Runs {
            Runs { at: from, to, kept }
        }
    }

    impl Iterator for Runs {
        type Item = (u64, u64);

        fn next(&mut self) -> Option<(u64, u64)> {
            while self.at < self.to && self.kept & bit(self.at) != 0 {
                self.at = down(self.at).saturating_add(STEP_BYTES);
            }
            let low = self.at;
            while self.at < self.to && self.kept & bit(self.at) == 0 {
                self.at = if self.kept == 0 { self.to } else { down(self.at).saturating_add(STEP_BYTES) };
            }
            let high = self.at.min(self.to);
            (low < high).then_some((low, high))
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        const MIB: u64 = 1 << 20;

        #[test]
        fn the_last_whole_step_behind_a_reader_stays() {
            for (at, end) in [(0, 0), (1, 0), (2, 0), (3, 0), (4, 2), (5, 2), (6, 4), (100, 98)] {
                assert_eq!(end_behind(at * MIB), end * MIB, "{at} MiB");
            }
            assert_eq!(end_behind(4 * MIB - 1), 0);
            assert_eq!(end_behind(u64::MAX), down(u64::MAX) - STEP_BYTES);
        }

        #[test]
        fn what_was_cached_before_is_passed_over() {
            let runs = |from: u64, to: u64, kept: &[u64]| {
                let kept = kept.iter().fold(0, |bits, &at| bits | bit(at * MIB));
                Runs::new(from * MIB, to * MIB, kept).map(|(low, high)| (low / MIB, high / MIB)).collect::<Vec<_>>()
            };
            assert_eq!(runs(0, 8, &[]), [(0, 8)]);
            assert_eq!(runs(0, 0, &[]), []);
            assert_eq!(runs(0, 9, &[0]), [(2, 9)]);
            assert_eq!(runs(0, 9, &[8]), [(0, 8)]);
            assert_eq!(runs(0, 10, &[3, 4]), [(0, 2), (6, 10)]);
            assert_eq!(runs(0, 4, &[0, 2]), []);
            // 64 steps are told apart
            assert_eq!(runs(128, 132, &[2]), [(128, 130)]);
            assert_eq!(Runs::new(0, 3 * MIB + 5, bit(0)).collect::<Vec<_>>(), [(2 * MIB, 3 * MIB + 5)]);
            assert_eq!(Runs::new(down(u64::MAX), u64::MAX, 0).count(), 1);
        }

        #[test]
        fn only_whole_steps_are_done_with() {
            assert_eq!(bits(0, 4 * MIB), 0b11);
            assert_eq!(bits(2 * MIB, 5 * MIB), 0b10);
            assert_eq!(bits(0, MIB), 0);
            assert_eq!(bits(0, 1000 * MIB), u64::MAX);
            assert_eq!(bits(u64::MAX, 0), 0);
        }
    }
}
