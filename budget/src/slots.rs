//! The counters file's rows: every step that an application or the sidecar takes on one, and counting who else writes.
//!
//! A row goes FREE → claimed → live → ended → FREE. The application claims it, publishes, and ends it; the sidecar
//! takes it back from an application that seems to have been killed (that is, ends it in its place), and frees what has
//! ended when it has added it up. Every step but that last one is a compare-and-swap on [`Slot::state`], which names
//! the owner, so each is the owner's or fails; `tests/loom.rs` checks it.
//!
//! What the rows do not promise: an application that is stopped between a look at `state` and its stores, for so long
//! that the row is taken back, added up and claimed by another, then writes its own older numbers over the new owner's.
//! `state` is out of its reach, and the new owner's next [`Slot::publish`] writes every number anew; only between the
//! last one and the sidecar's look would a wrong number be added up. Row states that no store can get wrong would cost
//! the application a wait for other processes.

use crate::layout::{ASIDES, Kind, Slot};
use crate::shm::Mapped;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// [`Slot::state`] of a row that is free to be claimed.
const FREE: u64 = 0;
const PHASE_BITS: u32 = 2;

/// What stands in the lower bits of [`Slot::state`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Phase {
    /// The owner is about to clear it. Its numbers are the last owner's.
    Claimed = 1,
    /// The owner writes it.
    Live = 2,
    /// The owner has ended in order, or was taken for killed; its numbers wait to be added up.
    Ended = 3,
}

/// A row's owner and phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owned {
    /// The owner's, less its two highest bits.
    pub nonce: u64,
    /// Where in its life the row is.
    pub phase: Phase,
}

/// What a process says: the numbers of [`Slot`], under the same names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Report {
    pub last_tick: u64,
    pub owed_bytes: u64,
    pub written_bytes: u64,
    pub flushed_bytes: u64,
    pub confirmed_bytes: u64,
    pub dropped_bytes: u64,
    pub held_back_ns: u64,
    pub longest_held_back_ns: u64,
    pub holding: u64,
    pub calls: u64,
    pub held_calls: u64,
    pub swept_bytes: u64,
    pub dev: u64,
    pub aside: [u64; ASIDES],
}

impl Report {
    /// What was counted since an earlier report; the rest is as it is now.
    pub fn since(&self, earlier: &Report) -> Report {
        let mut since = *self;
        for (count, before) in [
            (&mut since.written_bytes, earlier.written_bytes),
            (&mut since.flushed_bytes, earlier.flushed_bytes),
            (&mut since.confirmed_bytes, earlier.confirmed_bytes),
            (&mut since.dropped_bytes, earlier.dropped_bytes),
            (&mut since.held_back_ns, earlier.held_back_ns),
            (&mut since.calls, earlier.calls),
            (&mut since.held_calls, earlier.held_calls),
            (&mut since.swept_bytes, earlier.swept_bytes),
        ] {
            // a call that failed after all is taken off again
            *count = count.saturating_sub(before);
        }
        for (count, before) in since.aside.iter_mut().zip(earlier.aside) {
            *count = count.saturating_sub(before);
        }
        since
    }
}

const fn word(nonce: u64, phase: Phase) -> u64 {
    nonce << PHASE_BITS | phase as u64
}

impl Slot {
    /// Takes the row for the process that `nonce` names (not 0 in its lower 62 bits), if it is free, and clears it.
    pub fn claim(&self, nonce: u64, pid_container: u64, tick: u64) -> bool {
        let claimed = word(nonce, Phase::Claimed);
        if self.state.compare_exchange(FREE, claimed, Acquire, Relaxed).is_err() {
            return false;
        }
        self.pid_container.store(pid_container, Relaxed);
        self.write(&Report { last_tick: tick, ..Report::default() });
        // nobody looks at a claimed row, so nobody takes the last owner's numbers for this one's
        self.state.store(word(nonce, Phase::Live), Release);
        true
    }

    /// Writes what the owner says. `true`: this, or what it says later, is what will be added up. `false`: the row has
    /// ended or is not its own any more, and what it said before is added up; it may claim another for what came since.
    pub fn publish(&self, nonce: u64, report: &Report) -> bool {
        let live = word(nonce, Phase::Live);
        if self.state.load(Acquire) != live {
            return false;
        }
        self.write(report);
        // a swap, so that whoever ends the row after it has seen the numbers
        self.state.compare_exchange(live, live, Release, Relaxed).is_ok()
    }

    /// The owner ends, or seems to have been killed: what it published last waits to be added up. `false`: the row is
    /// not live, or not its own any more.
    pub fn end(&self, nonce: u64) -> bool {
        let (live, ended) = (word(nonce, Phase::Live), word(nonce, Phase::Ended));
        self.state.compare_exchange(live, ended, Release, Relaxed).is_ok()
    }

    /// Who has the row; `None`: nobody, or it names a phase that there is not.
    pub fn owned(&self) -> Option<Owned> {
        let state = self.state.load(Acquire);
        let phase = match state & Phase::MASK {
            1 => Phase::Claimed,
            2 => Phase::Live,
            3 => Phase::Ended,
            _ => return None,
        };
        Some(Owned { nonce: state >> PHASE_BITS, phase })
    }

    /// The last word of an owner that ended; the row is free after it. For the sidecar alone.
    pub fn collect(&self) -> Option<Report> {
        self.owned().filter(|owned| owned.phase == Phase::Ended)?;
        let report = self.report();
        self.state.store(FREE, Release);
        Some(report)
    }

    /// What the row says now.
    pub fn report(&self) -> Report {
        let mut aside = [0; ASIDES];
        for (count, field) in aside.iter_mut().zip(&self.aside) {
            *count = field.load(Relaxed);
        }
        Report {
            last_tick: self.last_tick.load(Relaxed),
            owed_bytes: self.owed_bytes.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            flushed_bytes: self.flushed_bytes.load(Relaxed),
            confirmed_bytes: self.confirmed_bytes.load(Relaxed),
            dropped_bytes: self.dropped_bytes.load(Relaxed),
            held_back_ns: self.held_back_ns.load(Relaxed),
            longest_held_back_ns: self.longest_held_back_ns.load(Relaxed),
            holding: self.holding.load(Relaxed),
            calls: self.calls.load(Relaxed),
            held_calls: self.held_calls.load(Relaxed),
            swept_bytes: self.swept_bytes.load(Relaxed),
            dev: self.dev.load(Relaxed),
            aside,
        }
    }

    fn write(&self, report: &Report) {
        self.owed_bytes.store(report.owed_bytes, Relaxed);
        self.written_bytes.store(report.written_bytes, Relaxed);
        self.flushed_bytes.store(report.flushed_bytes, Relaxed);
        self.confirmed_bytes.store(report.confirmed_bytes, Relaxed);
        self.dropped_bytes.store(report.dropped_bytes, Relaxed);
        self.held_back_ns.store(report.held_back_ns, Relaxed);
        self.longest_held_back_ns.store(report.longest_held_back_ns, Relaxed);
        self.holding.store(report.holding, Relaxed);
        self.calls.store(report.calls, Relaxed);
        self.held_calls.store(report.held_calls, Relaxed);
        self.swept_bytes.store(report.swept_bytes, Relaxed);
        self.dev.store(report.dev, Relaxed);
        for (field, count) in self.aside.iter().zip(report.aside) {
            field.store(count, Relaxed);
        }
        self.last_tick.store(report.last_tick, Release);
    }
}

impl Phase {
    const MASK: u64 = (1 << PHASE_BITS) - 1;
}

/// Takes the first free row; see [`Slot::claim`]. `None`: all are taken, and the shared row 0 is to be used.
///
/// Rows are taken from the bottom and the highest one ever taken is kept in the header's tick, so that a short process
/// touches a page or two of the file and not all of it.
pub fn claim(counters: &Mapped, nonce: u64, pid_container: u64, tick: u64) -> Option<usize> {
    for index in 1..counters.count(Kind::Slots) {
        let slot = counters.row::<Slot>(index)?;
        // looks first, because even a failed swap takes the cache line away from the row's owner
        if slot.state.load(Relaxed) == FREE && slot.claim(nonce, pid_container, tick) {
            counters.tick().fetch_max(index as u64, AcqRel);
            return Some(index);
        }
    }
    None
}

/// One beyond the highest row that was ever taken.
pub fn end(counters: &Mapped) -> usize {
    let highest = usize::try_from(counters.tick().load(Acquire)).unwrap_or(usize::MAX);
    highest.saturating_add(1).min(counters.count(Kind::Slots))
}

/// Who else writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Others {
    /// Number of other processes that wrote within the last `ticks`.
    pub writers: u64,
    /// What they owe, in bytes.
    pub owed_bytes: u64,
}

/// Counts the living writers but the one in row `mine`. What they say is not trusted: it can make this process's share
/// smaller, never larger than it would be alone.
pub fn others(counters: &Mapped, mine: usize, tick: u64, ticks: u64) -> Others {
    let mut others = Others::default();
    for index in 1..end(counters) {
        let Some(slot) = counters.row::<Slot>(index) else { break };
        if index == mine || slot.owned().is_none_or(|owned| owned.phase != Phase::Live) {
            continue;
        }
        if tick.saturating_sub(slot.last_tick.load(Relaxed)) <= ticks {
            others.writers += 1;
            others.owed_bytes = others.owed_bytes.saturating_add(slot.owed_bytes.load(Relaxed));
        }
    }
    others
}
