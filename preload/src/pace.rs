//! Whose turn it is to look, and how a call waits for the disk.
//!
//! A call that finds no room in the window waits, in steps of 2 ms, until the kernel says that the *oldest* chunk's
//! pages have arrived; so it is held back for about a chunk's time, and what is owed stays within the window. Waiting
//! is polling: it consumes no writeback error, holds no lock, and a signal handler or a fatal signal gets through at
//! once.
//!
//! One thread at a time does the looking: it has the *pace*, a word that names it. The word is not a lock. Nobody
//! waits for it, nobody sleeps while holding it; met again by the same thread in a signal handler it says "nested", and
//! one whose thread has gone, or that is too old, is taken over.

use crate::files::{self, File};
use crate::ledger::{self, TOTALS};
use crate::{look, process, region, sweep, sys};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use freeboard_budget::layout::Aside;
use libc::c_int;

/// Time between two looks of a call that is held back.
const STEP_NS: u64 = 2_000_000;
/// A pace that its own thread or a living one has held for so long was left by siglongjmp, or hangs in the kernel.
const TAKE_OVER_MS: u64 = 1_000;
static PACE: AtomicU64 = AtomicU64::new(0);
/// When a call that is held back was last seen to be: a time and not a count, because one can be left by siglongjmp.
static HELD_AT: AtomicU64 = AtomicU64::new(0);

/// The right to look at the ledger, or why not.
pub enum Turn {
    /// No signal is handled in this thread until it is given back.
    Mine(Mine),
    Nested,
    Theirs,
}

/// The pace, to be given back.
pub struct Mine {
    word: u64,
    /// The signals that were blocked before.
    signals: u64,
}

pub fn take() -> Turn {
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
    let word = (tid as u64) << 32 | (now_ms & 0xffff_ffff);
    let before = PACE.load(Acquire);
    if before == 0 {
        let taken = PACE.compare_exchange(0, word, AcqRel, Relaxed).is_ok();
        return if taken { Turn::Mine(Mine { word, signals }) } else { Turn::Theirs };
    }
    let holder = (before >> 32) as i32;
    let age_ms = (now_ms & 0xffff_ffff).wrapping_sub(before & 0xffff_ffff) & 0xffff_ffff;
    let is_left = age_ms > TAKE_OVER_MS
        && (holder == tid || age_ms > 5 * TAKE_OVER_MS || !sys::thread_exists(process::pid(), holder));
    if is_left && PACE.compare_exchange(before, word, AcqRel, Relaxed).is_ok() {
        return Turn::Mine(Mine { word, signals });
    }
    if holder == tid { Turn::Nested } else { Turn::Theirs }
}

/// Gives it back, unless it was taken over meanwhile.
pub fn give(mine: Mine) {
    let _ = PACE.compare_exchange(mine.word, 0, Release, Relaxed);
    sys::restore_signals(mine.signals);
}

/// A child of fork has the pace to itself.
pub fn reset() {
    PACE.store(0, Relaxed);
    HELD_AT.store(0, Relaxed);
    FIRST_BEGAN.store(0, Relaxed);
}

/// Holds the calling thread until `enough`, looking every 2 ms. `false`: it was let go without, because it came on top
/// of our own slow path, or because the disk made no progress for `max_stall`.
pub fn hold(file: &'static File, fd: c_int, enough: impl FnMut() -> bool) -> bool {
    hold_for(Some((file, fd)), enough)
}

/// The same for a call of which it is not known to what file it writes.
pub fn hold_for(caller: Option<(&'static File, c_int)>, mut enough: impl FnMut() -> bool) -> bool {
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
            Turn::Mine(mine) => {
                let from = sys::now_ns();
                look::look_at_all(caller);
                give(mine);
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
        sys::sleep_ns(STEP_NS.max(look_ns.saturating_mul(8)).min(QUEUE_NS / 2));
    };
    turn.leave();
    if slept {
        let held = sys::now_ns().wrapping_sub(began);
        TOTALS.held_back_ns.fetch_add(held, Relaxed);
        TOTALS.longest_held_back_ns.fetch_max(held, Relaxed);
        TOTALS.held_calls.fetch_add(1, Relaxed);
        if let Some((file, _)) = caller {
            TOTALS.dev.store(file.dev(), Relaxed);
        }
    }
    result
}

/// The disk makes no progress: what it owes us is not waited for any more, and no other disk's writers either.
fn forget_debts() {
    if let Turn::Mine(mine) = take() {
        for file in files::all() {
            ledger::credit(file.take_all());
        }
        files::closed().store(0, Relaxed);
        sweep::forget();
        // whatever was lost on the way, too: else it would be waited for with every call
        ledger::forget();
        give(mine);
    }
}

/// Is some call held back?
pub fn is_holding() -> bool {
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
