//! What the processes of one container say of themselves, added up tick by tick.
//!
//! Nothing here is trusted: counts saturate, and a wrong one spoils the numbers of its own container alone.

use super::speed::{Flow, Flows};
use crate::region::counters::Counters;
use freeboard_budget::layout::{ASIDES, Slot, TICK_MS};
use freeboard_budget::slots::{Owned, Phase, Report};
use std::sync::atomic::Ordering::Relaxed;

/// A process that wrote within this many ticks is a writer: one second.
pub const WRITER_TICKS: u64 = 1000 / TICK_MS;
/// A process that wrote nothing for this long may have been killed: what its slot says that it owes counts no more.
const IDLE_TICKS: u64 = 60_000 / TICK_MS;
/// Slots of such processes are taken back when free ones get scarce: when less than one in this many is left. Not
/// before, because one that lives after all claims another slot, and counts as one more process.
const SCARCE: usize = 4;

/// The shared row 0 is nobody's, so nobody sets its state or ends it.
const SHARED: Owned = Owned { nonce: 0, phase: Phase::Live };

/// Counters of [`Report`]s, added up over processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Processes that had a slot; one whose slot was taken back and that wrote again counts as two.
    pub processes: u64,
    /// As [`Report::written_bytes`].
    pub written_bytes: u64,
    /// As [`Report::flushed_bytes`].
    pub flushed_bytes: u64,
    /// As [`Report::swept_bytes`].
    pub swept_bytes: u64,
    /// As [`Report::confirmed_bytes`].
    pub confirmed_bytes: u64,
    /// As [`Report::dropped_bytes`].
    pub dropped_bytes: u64,
    /// As [`Report::held_back_ns`].
    pub held_back_ns: u64,
    /// The longest of all.
    pub longest_held_back_ns: u64,
    /// As [`Report::calls`].
    pub calls: u64,
    /// As [`Report::held_calls`].
    pub held_calls: u64,
    /// As [`Report::aside`].
    pub aside: [u64; ASIDES],
}

impl Totals {
    fn of(report: &Report) -> Totals {
        Totals {
            processes: 1,
            written_bytes: report.written_bytes,
            flushed_bytes: report.flushed_bytes,
            swept_bytes: report.swept_bytes,
            confirmed_bytes: report.confirmed_bytes,
            dropped_bytes: report.dropped_bytes,
            held_back_ns: report.held_back_ns,
            longest_held_back_ns: report.longest_held_back_ns,
            calls: report.calls,
            held_calls: report.held_calls,
            aside: report.aside,
        }
    }

    /// Adds others to these.
    pub fn add(&mut self, more: &Totals) {
        for (sum, count) in [
            (&mut self.processes, more.processes),
            (&mut self.written_bytes, more.written_bytes),
            (&mut self.flushed_bytes, more.flushed_bytes),
            (&mut self.swept_bytes, more.swept_bytes),
            (&mut self.confirmed_bytes, more.confirmed_bytes),
            (&mut self.dropped_bytes, more.dropped_bytes),
            (&mut self.held_back_ns, more.held_back_ns),
            (&mut self.calls, more.calls),
            (&mut self.held_calls, more.held_calls),
        ] {
            *sum = sum.saturating_add(count);
        }
        for (sum, count) in self.aside.iter_mut().zip(more.aside) {
            *sum = sum.saturating_add(count);
        }
        self.longest_held_back_ns = self.longest_held_back_ns.max(more.longest_held_back_ns);
    }
}

/// What one tick's look at the slots gave.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pulse {
    /// Processes that wrote within the last second or are held back now.
    pub writers: u64,
    /// What those owe.
    pub writers_owed_bytes: u64,
    /// What all living ledgers owe.
    pub owed_bytes: u64,
    /// Most that ledgers which ended since the last look may have left on its way to the disk.
    pub left_behind_bytes: u64,
    /// What happened on each disk that a writer uses.
    pub flows: Flows,
}

/// What a slot said at the last tick.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    nonce: u64,
    confirmed_bytes: u64,
    holding: bool,
    /// The tick at which its owner was met, or something of its last arrived.
    moved: u64,
}

/// One container's slots over time.
#[derive(Debug)]
pub struct Ledgers {
    counters: Counters,
    seen: Vec<Seen>,
    /// Slots in use at the last look.
    used: usize,
    /// Of processes that ended.
    retired: Totals,
}

impl Ledgers {
    /// Begins with counters that nobody has used yet.
    pub fn new(counters: Counters) -> Ledgers {
        let seen = vec![Seen::default(); counters.len()];
        Ledgers { counters, seen, used: 0, retired: Totals::default() }
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Looks at all slots, takes back those of processes that ended, and adds up the rest. `tick` is the
    /// budget's.
    ///
    /// # Errors
    /// What reading the region's file gave.
    pub fn harvest(&mut self, tick: u64) -> std::io::Result<Pulse> {
        self.counters.refresh()?;
        let mut pulse = Pulse::default();
        let scarce = self.used > self.counters.len() - self.counters.len() / SCARCE;
        self.used = 0;
        for index in 0..self.counters.end_of_used() {
            let Some(slot) = self.counters.slot(index) else { break };
            let seen = &mut self.seen[index];
            let Some(owned) = (if index == 0 { Some(SHARED) } else { slot.owned() }) else {
                *seen = Seen::default();
                continue;
            };
            match owned.phase {
                Phase::Claimed => self.used += 1,
                Phase::Live => {
                    self.used += 1;
                    let says = Says::of_live(slot);
                    look(owned, says, seen, tick, &mut pulse);
                    if scarce && index != 0 && is_idle(says, tick) && !seen.holding {
                        self.counters.end(index, owned.nonce);
                    }
                }
                Phase::Ended => {
                    let Some(report) = self.counters.collect(index) else { continue };
                    let left_behind = report.written_bytes.saturating_sub(report.confirmed_bytes);
                    pulse.left_behind_bytes = pulse.left_behind_bytes.saturating_add(left_behind);
                    // what it saw reach the disk since the last look counts for the disk's speed
                    look(owned, Says::of_ended(&report), seen, tick, &mut pulse);
                    self.retired.add(&Totals::of(&report));
                    *seen = Seen::default();
                }
            }
        }
        Ok(pulse)
    }

    /// The counters of all processes so far, living and ended.
    pub fn totals(&self) -> Totals {
        let mut totals = self.retired;
        for index in 0..self.counters.end_of_used() {
            let Some(slot) = self.counters.slot(index) else { break };
            let owned = slot.owned();
            let report = slot.report();
            let is_used = if index == 0 { report.calls > 0 } else { owned.is_some_and(|o| o.phase != Phase::Claimed) };
            if is_used {
                totals.add(&Totals::of(&report));
            }
        }
        totals
    }
}

/// What counts of a slot at every tick: half of its row, which is twice as soon looked at as all of it.
#[derive(Clone, Copy)]
struct Says {
    last_tick: u64,
    owed_bytes: u64,
    confirmed_bytes: u64,
    holding: bool,
    dev: u64,
}

impl Says {
    fn of_live(slot: &Slot) -> Says {
        Says {
            last_tick: slot.last_tick.load(Relaxed),
            owed_bytes: slot.owed_bytes.load(Relaxed),
            confirmed_bytes: slot.confirmed_bytes.load(Relaxed),
            holding: slot.holding.load(Relaxed) != 0,
            dev: slot.dev.load(Relaxed),
        }
    }

    fn of_ended(report: &Report) -> Says {
        Says {
            last_tick: report.last_tick,
            owed_bytes: 0,
            confirmed_bytes: report.confirmed_bytes,
            holding: report.holding != 0,
            dev: report.dev,
        }
    }
}

fn is_idle(says: Says, tick: u64) -> bool {
    tick.saturating_sub(says.last_tick) > IDLE_TICKS
}

/// Adds what the owner of one slot says to the pulse.
fn look(owned: Owned, says: Says, seen: &mut Seen, tick: u64, pulse: &mut Pulse) {
    let is_still = seen.nonce == owned.nonce && seen.confirmed_bytes == says.confirmed_bytes;
    let moved = if is_still { seen.moved } else { tick };
    // who was killed while it was held says so for ever
    let holding = says.holding && tick.saturating_sub(moved.max(says.last_tick)) <= IDLE_TICKS;
    let now = Seen { nonce: owned.nonce, confirmed_bytes: says.confirmed_bytes, holding, moved };
    // A process that is met for the first time may have written for hours before this sidecar started: what it
    // confirmed until now says nothing of the disk's speed. One that has ended already lived no longer than since the
    // last look. A row that was met between its claim and its first report says nothing yet either.
    let before = match owned.phase {
        _ if seen.nonce == owned.nonce && seen.confirmed_bytes > 0 => *seen,
        _ if seen.nonce == owned.nonce => Seen { holding: seen.holding, ..now },
        Phase::Ended => Seen::default(),
        _ => Seen { holding: false, ..now },
    };
    *seen = now;

    let owed = says.owed_bytes;
    let held = now.holding || before.holding;
    if held || !is_idle(says, tick) {
        pulse.owed_bytes = pulse.owed_bytes.saturating_add(owed);
    }
    let writes = held || tick.saturating_sub(says.last_tick) <= WRITER_TICKS;
    if !writes {
        return;
    }
    pulse.writers += 1;
    pulse.writers_owed_bytes = pulse.writers_owed_bytes.saturating_add(owed);
    let dev = says.dev;
    if dev != 0 {
        let confirmed_bytes = now.confirmed_bytes.saturating_sub(before.confirmed_bytes);
        pulse.flows.entry(dev).or_default().join(Flow { confirmed_bytes, held, owed_bytes: owed });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn ledgers() -> Ledgers {
        Ledgers::new(Counters::sealed(1).unwrap())
    }

    /// Makes row `index` that of a live process, by what a library would store.
    type Field = (fn(&Slot) -> &AtomicU64, u64);

    fn process(ledgers: &Ledgers, index: usize, nonce: u64, fields: &[Field]) {
        let slot = ledgers.counters().slot(index).unwrap();
        if slot.owned().map(|owned| owned.nonce) != Some(nonce) {
            slot.state.store(0, Relaxed);
            assert!(slot.claim(nonce, 0, 0));
            ledgers.counters().note_used(index);
        }
        for (field, value) in fields {
            field(slot).store(*value, Relaxed);
        }
    }

    fn phase(ledgers: &Ledgers, index: usize) -> Option<Phase> {
        ledgers.counters().slot(index).unwrap().owned().map(|owned| owned.phase)
    }

    #[test]
    fn an_ended_process_is_added_up_once_and_its_row_is_free_again() {
        let mut ledgers = ledgers();
        process(
            &ledgers,
            5,
            77,
            &[
                (|s| &s.written_bytes, 100),
                (|s| &s.confirmed_bytes, 40),
                (|s| &s.owed_bytes, 30),
                (|s| &s.last_tick, 9),
            ],
        );
        let pulse = ledgers.harvest(10).unwrap();
        assert_eq!((pulse.owed_bytes, pulse.writers_owed_bytes, pulse.left_behind_bytes), (30, 30, 0));
        ledgers.counters().end(5, 77);
        assert_eq!(ledgers.totals().written_bytes, 100);
        let pulse = ledgers.harvest(11).unwrap();
        assert_eq!((pulse.owed_bytes, pulse.left_behind_bytes), (0, 60), "100 written, 40 seen on the disk");
        assert_eq!(phase(&ledgers, 5), None);
        assert_eq!((ledgers.totals().written_bytes, ledgers.totals().processes), (100, 1));
        assert_eq!(ledgers.harvest(12).unwrap(), Pulse::default());
        assert_eq!(ledgers.totals().written_bytes, 100);
    }

    #[test]
    fn silent_rows_owe_nothing_and_are_taken_back_when_rows_are_scarce() {
        let mut ledgers = ledgers();
        let rows = ledgers.counters().len();
        process(&ledgers, 1, 11, &[(|s| &s.calls, 4), (|s| &s.owed_bytes, 8)]);
        process(&ledgers, 2, 22, &[(|s| &s.holding, 1), (|s| &s.owed_bytes, 16)]);
        process(&ledgers, 3, 33, &[(|s| &s.last_tick, 500), (|s| &s.owed_bytes, 32)]);
        let late = IDLE_TICKS + 1;
        assert_eq!(ledgers.harvest(IDLE_TICKS).unwrap().owed_bytes, 8 + 16 + 32);
        assert_eq!(ledgers.harvest(late).unwrap().owed_bytes, 16 + 32);
        assert_eq!([1, 2, 3].map(|index| phase(&ledgers, index)), [Some(Phase::Live); 3]);
        for index in 4..rows - rows / SCARCE + 1 {
            process(&ledgers, index, index as u64, &[(|s| &s.last_tick, late)]);
        }
        ledgers.harvest(late).unwrap();
        ledgers.harvest(late).unwrap();
        assert_eq!([1, 2, 3].map(|index| phase(&ledgers, index)), [Phase::Ended, Phase::Live, Phase::Live].map(Some));
        ledgers.harvest(late).unwrap();
        assert_eq!(phase(&ledgers, 1), None);
        assert_eq!(ledgers.totals().calls, 4);
    }

    #[test]
    fn who_was_killed_while_it_was_held_is_no_writer_for_ever() {
        let mut ledgers = ledgers();
        process(&ledgers, 1, 11, &[(|s| &s.holding, 1), (|s| &s.owed_bytes, 8), (|s| &s.last_tick, 100)]);
        assert_eq!(ledgers.harvest(100).unwrap().writers, 1);
        assert_eq!(ledgers.harvest(100 + IDLE_TICKS).unwrap().writers, 1, "a disk may stand still");
        ledgers.harvest(101 + IDLE_TICKS).unwrap();
        let pulse = ledgers.harvest(102 + IDLE_TICKS).unwrap();
        assert_eq!((pulse.writers, pulse.owed_bytes), (0, 0));
        process(&ledgers, 1, 11, &[(|s| &s.confirmed_bytes, 1)]);
        assert_eq!(ledgers.harvest(103 + IDLE_TICKS).unwrap().writers, 1, "it lives after all");
    }

    #[test]
    fn flows_count_what_changed_since_an_owner_was_first_seen() {
        let mut ledgers = ledgers();
        let fields: &[Field] =
            &[(|s| &s.dev, 8), (|s| &s.confirmed_bytes, 100), (|s| &s.holding, 1), (|s| &s.owed_bytes, 7)];
        process(&ledgers, 1, 11, fields);
        ledgers.harvest(1).unwrap();
        process(&ledgers, 1, 11, &[(|s| &s.confirmed_bytes, 150), (|s| &s.holding, 0)]);
        process(&ledgers, 2, 22, &[(|s| &s.dev, 8), (|s| &s.confirmed_bytes, 5), (|s| &s.owed_bytes, 1)]);
        let flow = ledgers.harvest(2).unwrap().flows[&8];
        assert_eq!(flow, Flow { confirmed_bytes: 50, held: true, owed_bytes: 8 }, "the 5 can be from before our time");
        process(&ledgers, 2, 22, &[(|s| &s.confirmed_bytes, 11)]);
        let flow = ledgers.harvest(3).unwrap().flows[&8];
        assert_eq!((flow.confirmed_bytes, flow.held), (6, false), "nobody is held any more");
        process(&ledgers, 1, 12, &[(|s| &s.dev, 8), (|s| &s.confirmed_bytes, 20)]);
        assert_eq!(ledgers.harvest(4).unwrap().flows[&8].confirmed_bytes, 0, "another owner");
        process(&ledgers, 1, 12, &[(|s| &s.confirmed_bytes, 3)]);
        assert_eq!(ledgers.harvest(5).unwrap().flows[&8].confirmed_bytes, 0, "a count that goes back says nothing");
    }

    #[test]
    fn who_wrote_nothing_for_a_second_owes_but_is_no_writer() {
        let mut ledgers = ledgers();
        process(&ledgers, 1, 11, &[(|s| &s.owed_bytes, 9), (|s| &s.last_tick, 1), (|s| &s.dev, 8)]);
        let pulse = ledgers.harvest(1 + WRITER_TICKS).unwrap();
        assert_eq!((pulse.owed_bytes, pulse.writers_owed_bytes, pulse.flows.len()), (9, 9, 1));
        let pulse = ledgers.harvest(2 + WRITER_TICKS).unwrap();
        assert_eq!((pulse.owed_bytes, pulse.writers_owed_bytes, pulse.flows.len()), (9, 0, 0));
    }

    #[test]
    fn the_regions_file_is_read_and_written_and_may_be_truncated() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledgers = Ledgers::new(Counters::in_region(dir.path(), 1).unwrap());
        let path = dir.path().join("counters");
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let layout = freeboard_budget::layout::counters_layout(crate::region::SLOTS);
        assert_eq!(bytes.len() as u64, layout.file_bytes);
        let at = u64::from(layout.tables[0].offset) + 3 * u64::from(layout.tables[0].stride);
        let put = |field: usize, value: u64| {
            std::os::unix::fs::FileExt::write_all_at(&file, &value.to_ne_bytes(), at + field as u64).unwrap();
        };
        let ended = Slot::default();
        assert!(ended.claim(5, 0, 0) && ended.end(5));
        let tick = std::mem::offset_of!(freeboard_budget::layout::Header, tick) as u64;
        std::os::unix::fs::FileExt::write_all_at(&file, &3u64.to_ne_bytes(), tick).unwrap();
        put(std::mem::offset_of!(Slot, written_bytes), 1234);
        put(std::mem::offset_of!(Slot, state), ended.state.load(Relaxed));
        ledgers.harvest(1).unwrap();
        assert_eq!(ledgers.totals().written_bytes, 1234);
        let state = std::fs::read(&path).unwrap()[at as usize..][..size_of::<u64>()].to_vec();
        assert_eq!(state, [0; size_of::<u64>()], "the row is free for the next");
        file.set_len(100).unwrap();
        ledgers.harvest(2).unwrap();
        file.set_len(0).unwrap();
        ledgers.harvest(3).unwrap();
        assert_eq!(ledgers.totals().written_bytes, 1234);
    }
}
