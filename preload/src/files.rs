//! The files that this process writes: for each, what it has written and not yet seen reach the disk, as a short queue
//! of chunks, oldest first.
//!
//! Everything is atomic, because hooks run in many threads and in signal handlers. The queue is changed only by the
//! thread that has the pace ([`crate::pace`]); a charge is always *moved* by an atomic swap, so that even where two
//! threads meet, no byte is credited twice.

use crate::flush::How;
use crate::ledger::{self, word};
use crate::sys::Stat;
use crate::{calls, look, process, region, sys};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64};
use freeboard_budget::Mode;
use libc::c_int;

/// Files at a time; more are let through unpaced and counted.
const FILES: usize = 1024;
/// Times that a free record is looked for.
const ATTEMPTS: u32 = 16;
/// The smallest grant worth making, 64 KiB.
const GRANT_CLASS_MIN: u64 = word::class_within(64 << 10);
/// The first grant of a file, 128 KiB: most small files never need another.
const GRANT_CLASS_FIRST: u64 = word::class_within(128 << 10);
/// Least time between two drops of a whole file.
const SWEEP_NS: u64 = 250_000_000;
/// What was queued and has not come for so long stands for pages that were written again, or that failed.
const COMING_NS: u64 = 50_000_000;
/// Chunks in a file's queue; when it is full the youngest grows.
pub const CHUNKS: usize = 16;

/// A piece of a file whose writeback has been started.
pub struct Chunk {
    /// First byte.
    pub low: AtomicU64,
    /// End; `u64::MAX`: the end of the file.
    pub high: AtomicU64,
    /// What it may still owe, in bytes.
    pub charge: AtomicU64,
    /// Pages were left dirty although their writeback had been started, and it was started once more.
    pub again: AtomicBool,
}

impl Chunk {
    /// Takes off what it owes beyond so much, but nothing that is added to it meanwhile; what was taken, which is the
    /// caller's to credit.
    pub fn keep(&self, left: u64) -> u64 {
        let excess = self.charge.load(Relaxed).saturating_sub(left);
        let before = self.charge.fetch_update(Relaxed, Relaxed, |now| Some(now.saturating_sub(excess)));
        before.unwrap_or(0).min(excess)
    }
}

/// One file, known by device and inode. Laid out as written: what the hot path touches is on the first cache line.
#[repr(C, align(64))]
pub struct File {
    /// What small calls may write and have written since the last harvest ([`word`]).
    word: AtomicU64,
    /// The range that positional calls touched since the last cut: hints, stored without a lock. The low end is kept
    /// as its complement, so that a fresh record is all zero and costs no memory.
    not_low: AtomicU64,
    high: AtomicU64,
    key: AtomicU64,
    /// Descriptors that stand for it.
    users: AtomicI32,
    how: AtomicU32,
    mode: AtomicU32,
    /// One more than the descriptor that was last seen to be open on it; 0: none.
    last_fd: AtomicI32,
    dev: AtomicU64,
    append: AtomicBool,
    /// Plain (not positional) calls wrote since the last cut.
    plain: AtomicBool,
    /// The offset was moved, or several descriptors have one each: where plain writes went is not known.
    scattered: AtomicBool,
    /// Charge and bytes that were harvested and are in no chunk yet.
    current: AtomicU64,
    /// The charge that was left when the kernel was last asked what of it is dirty.
    measured: AtomicU64,
    /// Writes to it were queued, so that what is booked may not be dirty yet: when last, or when more of them was last
    /// seen to have come; 0: never.
    queued_ns: AtomicU64,
    /// What of them had come then.
    come: AtomicU64,
    current_bytes: AtomicU64,
    /// One more than the offset at which the current charge's plain calls began to write; 0: not known.
    plain_from: AtomicU64,
    /// Nothing below this was appended by us: the file's size when it was first seen.
    old_end: AtomicU64,
    /// What we appended and have not dropped starts here.
    kept_from: AtomicU64,
    /// The class of its last grant, or of one that was never made.
    class: AtomicU32,
    /// When all of it was last dropped because usage was over its target; 0: never.
    swept_ns: AtomicU64,
    /// Charge that a helper's sync will take off.
    pub syncing: AtomicU64,
    /// When its oldest chunk was last tried to be dropped, and did not go.
    pub attempted_ns: AtomicU64,
    /// Since when what is left of that chunk has been clean, and no less of it; since when a flush of its first one has
    /// had no effect; 0: not known.
    pub late_since_ns: AtomicU64,
    first: AtomicU32,
    count: AtomicU32,
    chunks: [Chunk; CHUNKS],
}

static TABLE: [File; FILES] = [const { File::new() }; FILES];
static USED: AtomicU32 = AtomicU32::new(0);
/// What closed files still owe, in bytes.
static CLOSED: AtomicU64 = AtomicU64::new(0);

/// Device and inode in one word; never 0. A block device is the same whatever names it.
pub fn key(stat: &Stat) -> u64 {
    let (dev, ino) = if stat.is_block_device() { (u64::MAX, stat.dev) } else { (stat.dev, stat.ino) };
    let mixed = (dev ^ ino.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29) ^ ino) | 1 << 63
}

/// The file of an index.
#[inline(always)]
pub fn get(index: usize) -> Option<&'static File> {
    TABLE.get(index)
}

/// All files that are or were in use.
pub fn all() -> impl Iterator<Item = &'static File> {
    TABLE.iter().take(USED.load(Acquire) as usize)
}

/// What closed files still owe.
pub fn closed() -> &'static AtomicU64 {
    &CLOSED
}

/// Finds or makes the record of a file that a descriptor was found to be open on; its index. `None`: all are in use.
pub fn open(stat: &Stat, fd: c_int, how: How, mode: Mode, append: bool) -> Option<usize> {
    // a free one can be another thread's before it is ours
    (0..ATTEMPTS).find_map(|_| try_open(stat, fd, how, mode, append))
}

fn try_open(stat: &Stat, fd: c_int, how: How, mode: Mode, append: bool) -> Option<usize> {
    let wanted = key(stat);
    let used = USED.load(Acquire) as usize;
    let mut free = None;
    for (index, file) in TABLE.iter().enumerate().take(used) {
        if file.key.load(Relaxed) == wanted {
            file.users.fetch_add(1, AcqRel);
            if file.key.load(Relaxed) == wanted {
                if file.users.load(Relaxed) > 1 && !append {
                    file.scattered.store(true, Relaxed);
                }
                file.mode.store(mode as u32, Relaxed);
                if append || file.users.load(Relaxed) == 1 {
                    file.append.store(append, Relaxed); // with one descriptor that appends, no offset says where
                }
                file.set_last_fd(fd);
                if stat.is_file() {
                    file.truncated(stat.size); // it can have been, by O_TRUNC, since it was last looked at
                }
                return Some(index);
            }
            file.users.fetch_sub(1, AcqRel);
        } else if free.is_none() && file.users.load(Relaxed) == 0 && file.owed() == 0 {
            free = Some(index);
        }
    }
    let grow = || {
        let index = USED.fetch_update(AcqRel, Relaxed, |used| (used < FILES as u32).then_some(used + 1)).ok()?;
        Some(index as usize)
    };
    // last of all, a closed file that still owes gives way: its debt is kept with that of the other closed ones
    let closed = || TABLE.iter().position(|file| file.users.load(Relaxed) == 0);
    let index = free.or_else(grow).or_else(closed)?;
    let file = TABLE.get(index)?;
    file.users.compare_exchange(0, 1, AcqRel, Relaxed).ok()?;
    if !file.is_empty() {
        file.drain();
    }
    file.key.store(wanted, Relaxed);
    file.dev.store(stat.dev, Relaxed);
    file.how.store(how as u32, Relaxed);
    file.mode.store(mode as u32, Relaxed);
    file.append.store(append, Relaxed);
    file.scattered.store(false, Relaxed);
    file.queued_ns.store(0, Relaxed);
    file.set_last_fd(fd);
    file.old_end.store(stat.size, Relaxed);
    file.kept_from.store(stat.size, Relaxed);
    file.class.store(GRANT_CLASS_FIRST as u32 - 2, Relaxed);
    file.swept_ns.store(0, Relaxed);
    file.current_bytes.store(0, Relaxed);
    file.plain_from.store(0, Relaxed);
    file.syncing.store(0, Relaxed);
    file.attempted_ns.store(0, Relaxed);
    file.late_since_ns.store(0, Relaxed);
    file.first.store(0, Relaxed);
    file.count.store(0, Relaxed);
    file.forget_range();
    Some(index)
}

impl File {
    const fn new() -> File {
        File {
            word: AtomicU64::new(0),
            not_low: AtomicU64::new(0),
            high: AtomicU64::new(0),
            key: AtomicU64::new(0),
            users: AtomicI32::new(0),
            how: AtomicU32::new(0),
            mode: AtomicU32::new(0),
            last_fd: AtomicI32::new(0),
            dev: AtomicU64::new(0),
            append: AtomicBool::new(false),
            plain: AtomicBool::new(false),
            scattered: AtomicBool::new(false),
            current: AtomicU64::new(0),
            measured: AtomicU64::new(0),
            queued_ns: AtomicU64::new(0),
            come: AtomicU64::new(0),
            current_bytes: AtomicU64::new(0),
            plain_from: AtomicU64::new(0),
            old_end: AtomicU64::new(0),
            kept_from: AtomicU64::new(0),
            class: AtomicU32::new(0),
            swept_ns: AtomicU64::new(0),
            syncing: AtomicU64::new(0),
            attempted_ns: AtomicU64::new(0),
            late_since_ns: AtomicU64::new(0),
            first: AtomicU32::new(0),
            count: AtomicU32::new(0),
            chunks: [const {
                Chunk {
                    low: AtomicU64::new(0),
                    high: AtomicU64::new(0),
                    charge: AtomicU64::new(0),
                    again: AtomicBool::new(false),
                }
            }; CHUNKS],
        }
    }

    pub fn key(&self) -> u64 {
        self.key.load(Relaxed)
    }

    pub fn dev(&self) -> u64 {
        self.dev.load(Relaxed)
    }

    pub fn how(&self) -> How {
        How::from_u32(self.how.load(Relaxed))
    }

    pub fn set_how(&self, how: How) {
        self.how.store(how as u32, Relaxed);
    }

    /// A remote file that nobody can commit: the group's unwritten has to tell what it owes.
    pub fn measure_by_group(&self) {
        self.set_how(How::Group);
        CLOSED.fetch_add(self.syncing.swap(0, Relaxed), Relaxed);
    }

    /// As of when it was opened; where the process is told to be left alone since then, it only counts.
    pub fn mode(&self) -> Mode {
        let opened = Mode::from_u8(self.mode.load(Relaxed) as u8);
        if region::mode() == Mode::Off { Mode::Observe } else { opened }
    }

    pub fn is_append(&self) -> bool {
        self.append.load(Relaxed)
    }

    pub fn has_queued(&self) -> bool {
        self.queued_ns.load(Relaxed) != 0
    }

    pub fn set_queued(&self) {
        self.queued_ns.store(sys::now_ns(), Relaxed);
    }

    /// So much of what was queued has come. May more of it be on the way?
    pub fn is_coming(&self, come: u64) -> bool {
        if self.come.swap(come, Relaxed) != come {
            self.set_queued();
        }
        sys::now_ns().wrapping_sub(self.queued_ns.load(Relaxed)) < COMING_NS
    }

    pub fn is_open(&self) -> bool {
        self.users.load(Relaxed) > 0
    }

    /// Exactly one descriptor stands for it.
    pub fn is_last_user(&self) -> bool {
        self.users.load(Relaxed) <= 1
    }

    pub fn last_fd(&self) -> c_int {
        self.last_fd.load(Relaxed) - 1
    }

    pub fn set_last_fd(&self, fd: c_int) {
        self.last_fd.store(fd + 1, Relaxed);
    }

    pub fn old_end(&self) -> u64 {
        self.old_end.load(Relaxed)
    }

    /// The file ends here now: what is written beyond is appended.
    pub fn truncated(&self, end: u64) {
        self.old_end.fetch_min(end, Relaxed);
        self.kept_from.fetch_min(end, Relaxed);
    }

    pub fn kept_from(&self) -> u64 {
        self.kept_from.load(Relaxed)
    }

    pub fn set_kept_from(&self, offset: u64) {
        self.kept_from.store(offset, Relaxed);
    }

    /// Is all of it to be dropped, for the first time or once more? Then it counts as done.
    pub fn set_swept(&self) -> bool {
        let now = sys::now_ns();
        let is_due = now.wrapping_sub(self.swept_ns.load(Relaxed)) > SWEEP_NS;
        if is_due {
            self.swept_ns.store(now, Relaxed);
        }
        is_due
    }

    /// The application moved the file offset.
    pub fn scatter(&self) {
        if !self.is_append() {
            self.scattered.store(true, Relaxed);
        }
    }

    pub fn retain(&self) {
        self.users.fetch_add(1, AcqRel);
    }

    pub fn release(&self) {
        self.users.fetch_sub(1, AcqRel);
    }

    /// Counts a small call that is about to write `bytes`, if what it was granted has room for its charge.
    #[inline(always)]
    pub fn book(&self, bytes: u64, charge: u64) -> bool {
        let has_room = self.has_granted(charge);
        if has_room {
            self.book_anyway(bytes, charge);
        }
        has_room
    }

    /// What it was granted has room for so much.
    #[inline(always)]
    pub fn has_granted(&self, charge: u64) -> bool {
        word::has_left(self.word.load(Relaxed), charge)
    }

    /// Counts a small call, whatever is left of the grant.
    #[inline(always)]
    pub fn book_anyway(&self, bytes: u64, charge: u64) {
        let call = word::of_call(bytes, charge);
        if process::has_one_thread() {
            sys::add_alone(&self.word, call);
        } else {
            self.word.fetch_add(call, Relaxed);
        }
    }

    /// Takes off what a booked call did not write after all. One that wrote nothing gives its whole charge back, so it
    /// is counted elsewhere: the grant no longer bounds how many such calls there can be.
    pub fn unbook(&self, bytes: u64, charge: u64, wrote_nothing: bool) {
        if wrote_nothing {
            self.word.fetch_sub(word::of_call(bytes, charge), Relaxed);
            ledger::TOTALS.calls.fetch_add(1, Relaxed);
        } else {
            self.word.fetch_sub(word::of_part(bytes, charge), Relaxed);
        }
    }

    /// Adds to the current charge what the ledger has reserved for a call that is about to be made, as if it would
    /// bring all of that.
    pub fn owe(&self, charge: u64) {
        self.current.fetch_add(charge, Relaxed);
        self.current_bytes.fetch_add(charge, Relaxed);
    }

    /// Counts what the call that was expected to bring `charge` has really written.
    pub fn count(&self, charge: u64, bytes: u64) {
        ledger::TOTALS.written_bytes.fetch_add(bytes, Relaxed);
        ledger::TOTALS.calls.fetch_add(1, Relaxed);
        let counted = |before: u64| Some(before.saturating_sub(charge).saturating_add(bytes));
        let _ = self.current_bytes.fetch_update(Relaxed, Relaxed, counted);
    }

    /// Takes so much off the current charge, or what there is of it; what was taken, which is the caller's to credit.
    pub fn forgive(&self, charge: u64) -> u64 {
        let before = self.current.fetch_update(Relaxed, Relaxed, |current| Some(current.saturating_sub(charge)));
        before.unwrap_or(0).min(charge)
    }

    /// From here on a close may drop what it caches: what we appended; all of it where usage is over its target.
    pub fn droppable_from(&self) -> u64 {
        if region::is_over_target() { 0 } else { self.old_end().next_multiple_of(ledger::PAGE) }
    }

    /// Grants the small calls that follow some room of their own: a chunk; where full chunks are sent, what is missing
    /// to one, or a quarter of one where that is more. At most an eighth of what the window has left, because it counts
    /// as owed until it is used or harvested.
    pub fn grant(&self) {
        let room = ledger::window().saturating_sub(ledger::owed()) / 8;
        let chunk = ledger::chunk();
        let is_sent = ledger::is_filling() || look::is_prompt(self);
        let wanted = if is_sent { chunk.saturating_sub(self.current()).max(chunk / 4) } else { chunk };
        let class = word::class_within(room.min(wanted));
        // fourfold each time, so that a file that is written little keeps little
        let class = class.min(u64::from(self.class.load(Relaxed)) + 2);
        let is_worth_it = class >= GRANT_CLASS_MIN;
        let class = class.min(word::class_within(calls::look_bytes()));
        if is_worth_it && ledger::reserve(word::grant(class)) {
            self.exchange(class);
            self.class.store(class as u32, Relaxed);
        }
    }

    /// Widens the range that was touched.
    #[inline(always)]
    pub fn touch(&self, offset: u64, bytes: u64) {
        widen(&self.not_low, !offset);
        widen(&self.high, offset.wrapping_add(bytes));
    }

    /// A plain call is about to write, at an offset that only the kernel knows.
    #[inline(always)]
    pub fn touch_plain(&self) {
        if !self.plain.load(Relaxed) {
            self.plain.store(true, Relaxed);
        }
    }

    fn forget_range(&self) {
        self.measured.store(0, Relaxed);
        self.plain.store(false, Relaxed);
        self.not_low.store(0, Relaxed);
        self.high.store(0, Relaxed);
    }

    /// Empties the word into the totals and the current charge, and ends its grant. Any thread, any time.
    pub fn harvest(&self) {
        if self.word.load(Relaxed) != 0 {
            self.exchange(0);
        }
    }

    /// The same, with a new grant that the ledger has reserved.
    fn exchange(&self, class: u64) {
        let before = self.word.swap(word::of_grant(class), Relaxed);
        if before == 0 {
            return;
        }
        let (bytes, charged) = counted(before);
        self.current_bytes.fetch_add(bytes as u64, Relaxed);
        if charged >= 0 {
            self.current.fetch_add(charged as u64, Relaxed);
        } else {
            self.forgive(charged.unsigned_abs());
        }
    }

    /// Takes off what small positional calls wrote again: so many bytes beside one another cannot leave more pages
    /// dirty than there are. What was taken, which is the caller's to credit.
    pub fn forgive_rewritten(&self) -> u64 {
        let (low, high) = (!self.not_low.load(Relaxed), self.high.load(Relaxed));
        if low >= high || self.plain.load(Relaxed) || self.is_append() {
            return 0;
        }
        let pages = high.saturating_sub(low & !(ledger::PAGE - 1)).saturating_add(ledger::PAGE - 1) / ledger::PAGE;
        self.forgive(self.current().saturating_sub(pages.saturating_mul(ledger::PAGE)))
    }

    /// The current charge is more than twice what the kernel was last asked about: so that all the asking costs no more
    /// than two looks at all of it.
    pub fn is_to_be_measured(&self) -> bool {
        self.current() >= self.measured.load(Relaxed).saturating_mul(2).saturating_add(ledger::chunk())
    }

    /// The kernel was asked, and what it did not know of was taken off.
    pub fn set_measured(&self) {
        self.measured.store(self.current(), Relaxed);
    }

    /// Charge that is in no chunk yet.
    pub fn current(&self) -> u64 {
        self.current.load(Relaxed)
    }

    /// The range of the current charge: what positional calls touched, and where plain writes ended at `position`
    /// (negative: not known). Reads move the offset on as well as writes do, and so do other processes that share it, so
    /// what was written says only how far back it may have begun. `u64::MAX` as the end: the end of the file.
    pub fn current_range(&self, position: i64) -> (u64, u64) {
        let (mut low, mut high) = (!self.not_low.load(Relaxed), self.high.load(Relaxed));
        if self.is_append() {
            (low, high) = (u64::MAX, 0); // on Linux it takes no offset (pwrite(2), BUGS)
        } else if !self.plain.load(Relaxed) {
            return if low < high { (low, high) } else { (0, u64::MAX) };
        }
        if self.scattered.load(Relaxed) {
            return (0, u64::MAX);
        }
        let Ok(position) = u64::try_from(position) else { return (0, u64::MAX) };
        let from = match self.plain_from.load(Relaxed) {
            0 if self.is_append() => self.old_end(),
            0 => 0,
            from => from - 1,
        };
        if position < from {
            return (0, u64::MAX); // somebody moved it back
        }
        high = high.max(position);
        low = low.min(from).min(position.saturating_sub(self.current_bytes.load(Relaxed)));
        if low < high { (low, high) } else { (0, u64::MAX) }
    }

    /// Where plain writes went is not known: anywhere in the file.
    pub fn is_scattered(&self) -> bool {
        self.scattered.load(Relaxed) && (self.plain.load(Relaxed) || self.is_append())
    }

    /// Moves the current charge into a new chunk; what it is charged, and its range. The charge goes first, and then it
    /// is asked where the file offset is: a thread that writes meanwhile has widened the range before it is charged.
    pub fn cut(&self, position: impl FnOnce() -> i64) -> (u64, u64, u64) {
        let charge = self.current.swap(0, Relaxed);
        let position = position();
        let (low, high) = self.current_range(position);
        self.plain_from.store((position.max(-1) + 1) as u64, Relaxed);
        self.current_bytes.store(0, Relaxed);
        self.forget_range();
        self.push(low, high, charge);
        (charge, low, high)
    }

    /// Moves so much of the current charge, the part from `low` to `end`, into a new chunk: the rest begins at `end`.
    pub fn cut_front(&self, low: u64, end: u64, charge: u64) -> u64 {
        let charge = self.forgive(charge);
        let cut = |bytes: u64| Some(bytes.saturating_sub(end - low));
        let _ = self.current_bytes.fetch_update(Relaxed, Relaxed, cut);
        if self.plain.load(Relaxed) {
            self.plain_from.fetch_max(end.saturating_add(1), Relaxed);
        }
        // not where a call has just gone below
        let _ = self.not_low.compare_exchange(!low, !end, Relaxed, Relaxed);
        if charge > 0 {
            self.push(low, end, charge);
        }
        charge
    }

    /// A new chunk at the young end, or more of the youngest where the queue is full.
    fn push(&self, low: u64, high: u64, charge: u64) {
        let count = self.count.load(Relaxed).min(CHUNKS as u32);
        let full = count == CHUNKS as u32;
        let place = self.first.load(Relaxed).wrapping_add(if full { count - 1 } else { count });
        if let Some(chunk) = self.chunks.get(place as usize % CHUNKS) {
            if full {
                chunk.low.fetch_min(low, Relaxed);
                chunk.high.fetch_max(high, Relaxed);
                chunk.charge.fetch_add(charge, Relaxed);
            } else {
                chunk.low.store(low, Relaxed);
                chunk.high.store(high, Relaxed);
                chunk.charge.store(charge, Relaxed);
                chunk.again.store(false, Relaxed);
                self.count.store(count + 1, Relaxed);
            }
        }
    }

    /// The chunk whose writeback was started first.
    pub fn oldest(&self) -> Option<&Chunk> {
        if self.count.load(Relaxed) == 0 {
            return None;
        }
        self.chunks.get(self.first.load(Relaxed) as usize % CHUNKS)
    }

    /// Takes the oldest chunk out of the queue; what it still owes.
    pub fn pop(&self) -> u64 {
        let first = self.first.load(Relaxed);
        let Some(chunk) = self.oldest() else { return 0 };
        // the pace can have been taken over from one that was at it
        if self.first.compare_exchange(first, first.wrapping_add(1), Relaxed, Relaxed).is_err() {
            return 0;
        }
        let charge = chunk.charge.swap(0, Relaxed);
        let _ = self.count.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
        charge
    }

    /// The chunks whose writeback was started, oldest first.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        let count = self.count.load(Relaxed).min(CHUNKS as u32);
        let first = self.first.load(Relaxed);
        (0..count).filter_map(move |step| self.chunks.get(first.wrapping_add(step) as usize % CHUNKS))
    }

    /// What they owe.
    pub fn started(&self) -> u64 {
        self.chunks().map(|chunk| chunk.charge.load(Relaxed)).fold(self.syncing.load(Relaxed), u64::saturating_add)
    }

    /// All that the file owes, but for calls in flight.
    pub fn owed(&self) -> u64 {
        let charged = word::read(self.word.load(Relaxed)).charged.max(0) as u64;
        charged.saturating_add(self.current()).saturating_add(self.started())
    }

    /// Nothing is granted, charged or on its way.
    fn is_empty(&self) -> bool {
        let words = [&self.word, &self.current, &self.syncing];
        words.iter().all(|word| word.load(Relaxed) == 0) && self.count.load(Relaxed) == 0
    }

    /// Its last descriptor has been closed: what it owes is the closed files' debt. Where some was sent, whoever has
    /// the pace may be at its chunks; the next look does it then.
    pub fn close(&self) {
        if self.mode() == Mode::Observe {
            self.harvest();
            ledger::credit(self.forgive(u64::MAX));
        } else if self.count.load(Relaxed) == 0 && self.syncing.load(Relaxed) == 0 {
            // what most small files come to: no more changes to shared words than it takes
            let (_, charged) = if self.word.load(Relaxed) == 0 { (0, 0) } else { counted(self.word.swap(0, Relaxed)) };
            let current = if self.current() == 0 { 0 } else { self.forgive(u64::MAX) };
            self.current_bytes.store(0, Relaxed);
            CLOSED.fetch_add(current.saturating_add_signed(charged), Relaxed);
        }
    }

    /// Hands all that it owes to the closed files' account. The caller has the pace.
    pub fn drain(&self) {
        CLOSED.fetch_add(self.take_all(), Relaxed);
    }

    /// Takes all that it owes out of it; the charge is the caller's, who has the pace.
    pub fn take_all(&self) -> u64 {
        self.harvest();
        let mut debt = self.current.swap(0, Relaxed);
        self.current_bytes.store(0, Relaxed);
        while self.oldest().is_some() {
            debt = debt.saturating_add(self.pop());
        }
        debt = debt.saturating_add(self.syncing.swap(0, Relaxed));
        self.forget_range();
        debt
    }
}

/// Raises an end of a range: what is owed is bounded by the range, so that of two threads neither may lose.
#[inline(always)]
fn widen(end: &AtomicU64, to: u64) {
    if to > end.load(Relaxed) {
        if process::has_one_thread() {
            end.store(to, Relaxed);
        } else {
            end.fetch_max(to, Relaxed);
        }
    }
}

/// Counts in the totals what an emptied word says, and gives the ledger back what is left of its grant. The bytes, and
/// what they are charged, which are the caller's.
fn counted(before: u64) -> (i64, i64) {
    let account = word::read(before);
    ledger::TOTALS.written_bytes.fetch_add(account.bytes as u64, Relaxed);
    ledger::TOTALS.calls.fetch_add(account.calls, Relaxed);
    let unused = account.granted - account.charged;
    if unused >= 0 {
        ledger::credit(unused as u64);
    } else {
        ledger::reserve_anyway(unused.unsigned_abs());
    }
    (account.bytes, account.charged)
}

/// A child of fork owes nothing; its descriptors still stand for the same files, at offsets that it has in common with
/// its parent and its siblings.
pub fn reset() {
    for file in all() {
        file.drain();
        file.scattered.store(true, Relaxed);
    }
    CLOSED.store(0, Relaxed);
}
