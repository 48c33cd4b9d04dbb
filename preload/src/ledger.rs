//! What the process owes the disk, and what it has done so far: a handful of atomics.
//!
//! The ledger counts what is *owed*, not what was written. Bytes are reserved before the call that writes them is
//! issued, whatever the number of threads, so the sum stays inside the window by construction; they are taken off when
//! the kernel says that they are on disk. Charges are whole pages, because a dirty page is what the kernel counts.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use freeboard_budget::layout::ASIDES;
use freeboard_budget::slots::Report;

/// A page of the page cache, in bytes.
pub const PAGE: u64 = 4096;

/// Calls of at least this many bytes take the slow path: the packed word below has room for small ones only.
pub const SMALL: usize = 1 << 20;

/// On a cache line of its own: every writing thread changes it.
#[repr(align(64))]
struct Line<T>(T);

static OWED: Line<AtomicU64> = Line(AtomicU64::new(0));
static WINDOW: Line<AtomicU64> = Line(AtomicU64::new(0));
static CHUNK: AtomicU64 = AtomicU64::new(0);

/// Pages after which a file's packed word is emptied even where no chunk is full.
const HARVEST_PAGES: u64 = 2048;

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

/// The process owes enough that a file which is closed should be on its way to the disk. Early, because nobody can send
/// a closed file's pages later, and until the kernel does (5 to 30 s) they take their part of the window.
pub fn is_pressed() -> bool {
    owed() >= window() / 8
}

/// A file's word: what was written since it was last emptied, in one atomic addition per call.
/// Bits 0-31 bytes, 32-51 pages charged, 52-63 calls. Calls of [`SMALL`] bytes and more do not go in here, and it is
/// emptied every [`HARVEST_PAGES`], so that 500 threads cannot make it overflow.
pub mod word {
    use super::{HARVEST_PAGES, PAGE, chunk};

    /// One call.
    #[inline(always)]
    pub const fn of_call(bytes: u64, charge: u64) -> u64 {
        bytes + ((charge / PAGE) << 32) + (1 << 52)
    }

    pub const fn bytes(word: u64) -> u64 {
        word & 0xffff_ffff
    }

    pub const fn charged(word: u64) -> u64 {
        ((word >> 32) & 0xf_ffff) * PAGE
    }

    pub const fn calls(word: u64) -> u64 {
        word >> 52
    }

    /// Has it come to a chunk, or to where it must be emptied?
    #[inline(always)]
    pub fn is_full(word: u64) -> bool {
        let charged = charged(word);
        charged >= HARVEST_PAGES * PAGE || charged >= chunk()
    }
}

/// What the process did; published to its slot from the slow path.
pub struct Totals {
    pub written_bytes: AtomicU64,
    pub flushed_bytes: AtomicU64,
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

pub static TOTALS: Totals = Totals {
    written_bytes: AtomicU64::new(0),
    flushed_bytes: AtomicU64::new(0),
    confirmed_bytes: AtomicU64::new(0),
    dropped_bytes: AtomicU64::new(0),
    held_back_ns: AtomicU64::new(0),
    longest_held_back_ns: AtomicU64::new(0),
    calls: AtomicU64::new(0),
    held_calls: AtomicU64::new(0),
    dev: AtomicU64::new(0),
    aside: [const { AtomicU64::new(0) }; ASIDES],
};

/// What the process says of itself, but for the heartbeat's tick and whether it is held back.
pub fn report(owed_bytes: u64) -> Report {
    let mut aside = [0; ASIDES];
    for (count, total) in aside.iter_mut().zip(&TOTALS.aside) {
        *count = total.load(Relaxed);
    }
    Report {
        owed_bytes,
        written_bytes: TOTALS.written_bytes.load(Relaxed),
        flushed_bytes: TOTALS.flushed_bytes.load(Relaxed),
        confirmed_bytes: TOTALS.confirmed_bytes.load(Relaxed),
        dropped_bytes: TOTALS.dropped_bytes.load(Relaxed),
        held_back_ns: TOTALS.held_back_ns.load(Relaxed),
        longest_held_back_ns: TOTALS.longest_held_back_ns.load(Relaxed),
        calls: TOTALS.calls.load(Relaxed),
        held_calls: TOTALS.held_calls.load(Relaxed),
        dev: TOTALS.dev.load(Relaxed),
        aside,
        ..Report::default()
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
    for counter in [
        &TOTALS.written_bytes,
        &TOTALS.flushed_bytes,
        &TOTALS.confirmed_bytes,
        &TOTALS.dropped_bytes,
        &TOTALS.held_back_ns,
        &TOTALS.longest_held_back_ns,
        &TOTALS.calls,
        &TOTALS.held_calls,
    ] {
        counter.store(0, Relaxed);
    }
    for counter in &TOTALS.aside {
        counter.store(0, Relaxed);
    }
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
        let mut sum = 0u64;
        for _ in 0..2000 {
            sum += word::of_call(SMALL as u64 - 1, SMALL as u64);
        }
        assert_eq!(word::bytes(sum), 2000 * (SMALL as u64 - 1));
        assert_eq!(word::charged(sum), 2000 * SMALL as u64);
        assert_eq!(word::calls(sum), 2000);
    }
}
