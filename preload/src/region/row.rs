//! This process's row of a container's counters: which one it is, and what has been reported in it.
//!
//! What an ended row says is added up for good. So where the sidecar took the row of an idle process back, or the
//! process ended and goes on after all, the next row says only what came since the last report that the old one took.
//!
//! One thread at a time publishes, the one that has the pace; a process that ends says its last word beside it. One at
//! a time claims, the one that is on an errand.
//!
//! This is one of the modules that may say `unsafe`, for a test.

use crate::apart::Apart;
use crate::ledger::Totals;
use crate::sys;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use freeboard_budget::layout::Slot;
use freeboard_budget::shm::Mapped;
use freeboard_budget::slots::{self, Others, Report};

const INDEX_BITS: u32 = 16;
/// Rows that can be told apart.
pub const ROWS_MAX: usize = 1 << INDEX_BITS;

/// The row's index, and the nonce by which it is ours: one word, so that nobody takes the one with another row's other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name(u64);

/// Time until a process asks again that found all rows taken.
const ASKS_AGAIN_TICKS: u64 = 10;

impl Name {
    /// None was claimed yet.
    pub const NONE: Name = Name(0);
    /// The process has said its last word.
    const ENDED: Name = Name(1 << INDEX_BITS);

    fn index(self) -> usize {
        (self.0 & (ROWS_MAX as u64 - 1)) as usize
    }

    fn nonce(self) -> u64 {
        self.0 >> INDEX_BITS
    }

    /// All rows were taken (0 is the shared one).
    fn is_refused(self) -> bool {
        self != Name::NONE && self != Name::ENDED && self.index() == 0
    }
}

pub struct Row {
    counters: Mapped,
    /// A [`Name`].
    name: AtomicU64,
    /// The tick at which all rows were taken.
    refused_at: AtomicU64,
    /// The totals when a row of ours last took a report.
    reported: Totals,
    /// The totals that ended rows of ours said.
    added_up: Totals,
}

impl Row {
    pub fn new(counters: Mapped) -> Row {
        Row {
            counters,
            name: AtomicU64::new(0),
            refused_at: AtomicU64::new(0),
            reported: Totals::new(),
            added_up: Totals::new(),
        }
    }

    fn name(&self) -> Name {
        Name(self.name.load(Acquire))
    }

    fn slot(&self, name: Name) -> Option<&Slot> {
        self.counters.row::<Slot>(name.index()).filter(|_| name.index() != 0)
    }

    /// None was claimed yet.
    pub fn is_none(&self) -> bool {
        self.name() == Name::NONE
    }

    /// A child of fork has a row of its own, and has reported nothing.
    pub fn reset(&self) {
        self.reopen();
        self.reported.set(&Report::default());
    }

    /// The process goes on after its last word.
    pub fn reopen(&self) {
        self.name.store(Name::NONE.0, Release);
    }

    /// Writes the process's totals to its row. An error: it has none, or that one takes no more numbers; to be claimed
    /// in its place.
    pub fn publish(&self, totals: &Report) -> Result<(), Name> {
        let name = self.name();
        let waits_ticks = totals.last_tick.saturating_sub(self.refused_at.load(Relaxed));
        if name == Name::ENDED || name.is_refused() && waits_ticks < ASKS_AGAIN_TICKS {
            return Ok(());
        }
        let report = totals.since(&self.added_up.report());
        if !self.slot(name).is_some_and(|slot| slot.publish(name.nonce(), &report)) {
            return Err(name);
        }
        self.reported.set(totals);
        Ok(())
    }

    /// Claims a row in place of one that is lost, or of none.
    pub fn claim(&self, _: &Apart, lost: Name, pid_container: u64, tick: u64) {
        if self.name() != lost {
            return; // somebody was here before us
        }
        self.added_up.set(&self.reported.report());
        let nonce = sys::random() >> INDEX_BITS | 1;
        let index = slots::claim(&self.counters, nonce, pid_container, tick).unwrap_or(0);
        self.refused_at.store(tick, Relaxed);
        let name = Name(nonce << INDEX_BITS | index as u64);
        if self.name.compare_exchange(lost.0, name.0, Release, Relaxed).is_err()
            && let Some(slot) = self.slot(name)
        {
            slot.end(nonce); // the process said its last word meanwhile
        }
    }

    /// The process has said its last word: no row any more, so that a thread that still writes claims no other.
    pub fn end(&self) {
        let name = Name(self.name.swap(Name::ENDED.0, AcqRel));
        if let Some(slot) = self.slot(name) {
            slot.end(name.nonce());
        }
    }

    /// Who else writes; see [`slots::others`].
    pub fn others(&self, tick: u64, ticks: u64) -> Others {
        slots::others(&self.counters, self.name().index(), tick, ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apart;
    use freeboard_budget::layout::counters_layout;

    #[test]
    fn a_row_is_asked_for_again_where_all_were_taken() {
        let fixed = counters_layout(2); // the shared one, and one more
        let memory = sys::map_private(fixed.file_bytes as usize);
        // SAFETY: fresh, zeroed, aligned memory that stays.
        let counters = unsafe { Mapped::create(memory, fixed, 1) };
        let has_row = |row: &Row, tick: u64| {
            let report = Report { last_tick: tick, ..Report::default() };
            if let Err(lost) = row.publish(&report) {
                apart::alone(|apart| row.claim(apart, lost, 0, tick));
                let _ = row.publish(&report);
            }
            row.slot(row.name()).is_some()
        };
        let [first, second] = [Row::new(counters), Row::new(counters)];
        assert!(has_row(&first, 1) && !has_row(&second, 1));
        first.end();
        assert!(counters.row::<Slot>(1).unwrap().collect().is_some());
        assert!(!has_row(&second, ASKS_AGAIN_TICKS), "it asks all the time");
        assert!(has_row(&second, 1 + ASKS_AGAIN_TICKS));
        assert!(!has_row(&first, 100), "it has said its last word");
    }
}
