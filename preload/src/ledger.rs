//! What the process owes the disk, and what it has done so far: a handful of atomics.
//!
//! The ledger counts what is *owed*, not what was written. Bytes are reserved before the call that writes them is
//! issued, by that call or in advance for a file (a grant), whatever the number of threads, so the sum stays inside the
//! window by construction; they are taken off when the kernel says that they are on disk. Charges are whole pages,
//! because a dirty page is what the kernel counts.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use freeboard_budget::layout::ASIDES;
use freeboard_budget::slots::Report;

/// A page of the page cache, in bytes.
pub const PAGE: u64 = 4096;

/// Calls of at least this many bytes take the slow path: the word below is for small ones.
pub const SMALL: usize = 1 << 20;

/// On a cache line of its own: every writing thread changes it.
#[repr(align(64))]
struct Line<T>(T);

static OWED: Line<AtomicU64> = Line(AtomicU64::new(0));
static WINDOW: Line<AtomicU64> = Line(AtomicU64::new(0));
static CHUNK: AtomicU64 = AtomicU64::new(0);

/// The charge of `bytes` whose place in the file is not known: whole pages.
#[inline(always)]
pub const fn charge(bytes: usize) -> u64 {
    (bytes as u64).wrapping_add(PAGE - 1) & !(PAGE - 1)
}

/// The charge of `bytes` at `offset`: the pages that they touch.
#[inline(always)]
pub const fn charge_at(offset: u64, bytes: usize) -> u64 {
    charge((offset % PAGE) as usize + bytes)
}

/// Reserves a charge if the window has room for it.
#[inline(always)]
pub fn reserve(charge: u64) -> bool {
    if OWED.0.fetch_add(charge, Relaxed).wrapping_add(charge) <= WINDOW.0.load(Relaxed) {
        return true;
    }
    OWED.0.fetch_sub(charge, Relaxed);
    false
}

/// Reserves whether there is room or not.
pub fn reserve_anyway(charge: u64) {
    OWED.0.fetch_add(charge, Relaxed);
}

/// Takes a charge off. Never below zero: a charge can have been taken off twice where a signal handler left a call of
/// the application by siglongjmp.
pub fn credit(charge: u64) {
    let _ = OWED.0.fetch_update(Relaxed, Relaxed, |owed| Some(owed.saturating_sub(charge)));
}

/// Nothing is owed: what is in flight is credited in vain.
pub fn forget() {
    OWED.0.store(0, Relaxed);
}

/// What the process owes, calls in flight included, in bytes.
pub fn owed() -> u64 {
    OWED.0.load(Relaxed)
}

/// Most that it may owe.
pub fn window() -> u64 {
    WINDOW.0.load(Relaxed)
}

/// The piece in which it is flushed, in bytes; at least a page.
pub fn chunk() -> u64 {
    CHUNK.load(Relaxed).max(PAGE)
}

/// Sets the share that the law gives.
pub fn set_share(share: freeboard_budget::law::Share) {
    CHUNK.store(share.chunk, Relaxed);
    WINDOW.0.store(share.window, Relaxed);
}

/// The window is nearly full. Until then nothing is sent: the kernel may write in its own time, and what is written
/// again and again, or deleted soon, need never reach the disk.
pub fn is_filling() -> bool {
    owed() >= window() / 8 * 7
}

/// A file's word: what small calls wrote since it was last emptied, and the room that they were granted for it. One
/// atomic addition a call, before the call is issued, does both: it takes from the grant and counts.
///
/// From the lowest bit: 4 bits the class of the grant, 30 bits bytes (signed), 12 bits calls, 18 bits the pages that
/// are left of the grant (signed). A call charges a page at least and takes only what is left, so the calls fit; a few
/// threads that pass the check together can overdraw it, each by less than [`SMALL`].
pub mod word {
    use super::PAGE;

    const BYTES_SHIFT: u32 = 4;
    const CALLS_SHIFT: u32 = 34;
    const LEFT_SHIFT: u32 = 46;
    /// The largest grant's class: 2048 pages, 8 MiB.
    pub const CLASS_MAX: u64 = 12;

    /// What a word says.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Account {
        /// Bytes written; negative where a call was taken off that had been read already.
        pub bytes: i64,
        pub calls: u64,
        /// The grant, in bytes.
        pub granted: i64,
        /// What was charged to it, in bytes.
        pub charged: i64,
    }

    const fn pages(class: u64) -> u64 {
        (1 << class) >> 1
    }

    /// The class of the largest grant of at most so many bytes; 0: none.
    pub const fn class_within(bytes: u64) -> u64 {
        let class = (u64::BITS - (bytes / PAGE).leading_zeros()) as u64;
        if class < CLASS_MAX { class } else { CLASS_MAX }
    }

    /// The grant of a class in bytes.
    pub const fn grant(class: u64) -> u64 {
        pages(class) * PAGE
    }

    /// The word after a grant.
    pub const fn of_grant(class: u64) -> u64 {
        pages(class) << LEFT_SHIFT | class
    }

    /// What a call adds to it.
    #[inline(always)]
    pub const fn of_call(bytes: u64, charge: u64) -> u64 {
        of_part(bytes, charge).wrapping_add(1 << CALLS_SHIFT)
    }

    /// What a part of a call adds to it.
    #[inline(always)]
    pub const fn of_part(bytes: u64, charge: u64) -> u64 {
        (bytes << BYTES_SHIFT).wrapping_sub((charge / PAGE) << LEFT_SHIFT)
    }

    /// Is so much left of the grant?
    #[inline(always)]
    pub const fn has_left(word: u64, charge: u64) -> bool {
        word as i64 >> LEFT_SHIFT >= (charge / PAGE) as i64
    }

    /// A field that is negative borrows from the ones above it, so they are read from below.
    pub const fn read(word: u64) -> Account {
        let class = word & 0xf;
        let bytes = (word << (u64::BITS - CALLS_SHIFT)) as i64 >> (u64::BITS - CALLS_SHIFT + BYTES_SHIFT);
        let above = word.wrapping_sub((bytes << BYTES_SHIFT) as u64);
        let granted = grant(class) as i64;
        Account {
            bytes,
            calls: above >> CALLS_SHIFT & 0xfff,
            granted,
            charged: granted - (above as i64 >> LEFT_SHIFT) * PAGE as i64,
        }
    }
}

/// Counters of a [`Report`].
pub struct Totals {
    pub written_bytes: AtomicU64,
    pub flushed_bytes: AtomicU64,
    pub swept_bytes: AtomicU64,
    pub confirmed_bytes: AtomicU64,
    pub dropped_bytes: AtomicU64,
    pub held_back_ns: AtomicU64,
    pub longest_held_back_ns: AtomicU64,
    pub calls: AtomicU64,
    pub held_calls: AtomicU64,
    /// Device of the file last waited for.
    pub dev: AtomicU64,
    pub aside: [AtomicU64; ASIDES],
}

/// What the process did; published to its row from the slow path.
pub static TOTALS: Totals = Totals::new();

impl Totals {
    pub const fn new() -> Totals {
        Totals {
            written_bytes: AtomicU64::new(0),
            flushed_bytes: AtomicU64::new(0),
            swept_bytes: AtomicU64::new(0),
            confirmed_bytes: AtomicU64::new(0),
            dropped_bytes: AtomicU64::new(0),
            held_back_ns: AtomicU64::new(0),
            longest_held_back_ns: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            held_calls: AtomicU64::new(0),
            dev: AtomicU64::new(0),
            aside: [const { AtomicU64::new(0) }; ASIDES],
        }
    }

    /// All but what is so at the moment: the heartbeat's tick, what is owed, whether somebody is held back.
    pub fn report(&self) -> Report {
        let mut aside = [0; ASIDES];
        for (count, total) in aside.iter_mut().zip(&self.aside) {
            *count = total.load(Relaxed);
        }
        Report {
            written_bytes: self.written_bytes.load(Relaxed),
            flushed_bytes: self.flushed_bytes.load(Relaxed),
            swept_bytes: self.swept_bytes.load(Relaxed),
            confirmed_bytes: self.confirmed_bytes.load(Relaxed),
            dropped_bytes: self.dropped_bytes.load(Relaxed),
            held_back_ns: self.held_back_ns.load(Relaxed),
            longest_held_back_ns: self.longest_held_back_ns.load(Relaxed),
            calls: self.calls.load(Relaxed),
            held_calls: self.held_calls.load(Relaxed),
            dev: self.dev.load(Relaxed),
            aside,
            ..Report::default()
        }
    }

    pub fn set(&self, report: &Report) {
        self.written_bytes.store(report.written_bytes, Relaxed);
        self.flushed_bytes.store(report.flushed_bytes, Relaxed);
        self.swept_bytes.store(report.swept_bytes, Relaxed);
        self.confirmed_bytes.store(report.confirmed_bytes, Relaxed);
        self.dropped_bytes.store(report.dropped_bytes, Relaxed);
        self.held_back_ns.store(report.held_back_ns, Relaxed);
        self.longest_held_back_ns.store(report.longest_held_back_ns, Relaxed);
        self.calls.store(report.calls, Relaxed);
        self.held_calls.store(report.held_calls, Relaxed);
        self.dev.store(report.dev, Relaxed);
        for (total, count) in self.aside.iter().zip(report.aside) {
            total.store(count, Relaxed);
        }
    }
}

/// Counts one standing aside.
pub fn aside(reason: freeboard_budget::layout::Aside) {
    if let Some(counter) = TOTALS.aside.get(reason as usize) {
        counter.fetch_add(1, Relaxed);
    }
}

/// A child of fork owes nothing and has done nothing.
pub fn reset() {
    OWED.0.store(0, Relaxed);
    WINDOW.0.store(0, Relaxed);
    // the disk stays the same
    TOTALS.set(&Report { dev: TOTALS.dev.load(Relaxed), ..Report::default() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_are_the_pages_touched() {
        assert_eq!(charge(0), 0);
        assert_eq!(charge(1), PAGE);
        assert_eq!(charge(4097), 2 * PAGE);
        assert_eq!(charge_at(4095, 2), 2 * PAGE);
        assert_eq!(charge_at(8192, 4096), PAGE);
    }

    #[test]
    fn the_word_holds_what_many_threads_add() {
        let mut sum = word::of_grant(word::CLASS_MAX);
        for _ in 0..300 {
            sum = sum.wrapping_add(word::of_call(SMALL as u64 - 1, SMALL as u64));
        }
        let account = word::read(sum);
        assert_eq!(account.bytes, 300 * (SMALL as i64 - 1));
        assert_eq!(account.calls, 300);
        assert_eq!(account.granted, 8 << 20);
        assert_eq!(account.charged, 300 * SMALL as i64);
        assert!(!word::has_left(sum, PAGE));
    }

    #[test]
    fn the_word_gives_back_what_a_call_did_not_write() {
        let call = word::of_call(10_000, 3 * PAGE);
        let short = word::of_grant(5).wrapping_add(call).wrapping_sub(word::of_part(9_000, 2 * PAGE));
        assert_eq!(
            word::read(short),
            word::Account { bytes: 1000, calls: 1, granted: 16 * PAGE as i64, charged: PAGE as i64 }
        );
        // the word was emptied between the two
        let emptied = 0u64.wrapping_sub(word::of_part(9_000, 2 * PAGE));
        assert_eq!(
            word::read(emptied),
            word::Account { bytes: -9000, calls: 0, granted: 0, charged: -2 * PAGE as i64 }
        );
    }

    #[test]
    fn grants_are_powers_of_two() {
        assert_eq!(word::class_within(PAGE - 1), 0);
        assert_eq!(word::grant(0), 0);
        for class in 1..=word::CLASS_MAX {
            assert_eq!(word::class_within(word::grant(class)), class);
            assert!(word::has_left(word::of_grant(class), word::grant(class)));
            assert!(!word::has_left(word::of_grant(class), word::grant(class) + PAGE));
        }
        assert_eq!(word::class_within(u64::MAX), word::CLASS_MAX);
    }
}
