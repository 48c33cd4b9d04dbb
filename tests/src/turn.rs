//! Who may run beside whom: libtest may begin all tests at once, and each waits here for its turn. One at a time keeps
//! a processor busy, and beside it a few wait for slow disks. Who measures what others would disturb has the machine
//! for himself, when nobody else is waiting any more: so nobody stands idle until a last one beside him is done.
//!
//! Other processes' tests know nothing of these turns: a lock file keeps at least those who want the machine for
//! themselves apart from them.

use std::cell::Cell;
use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// So many wait for disks at a time.
const AT_DISKS: usize = 2;

/// What a test takes most of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// All of the machine.
    Machine,
    /// A processor.
    Processor,
    /// The time of a slow disk of its own.
    Disk,
}

/// Those of this process.
struct Turns {
    next_ticket: u64,
    waiting: Vec<(u64, Need)>,
    running: Vec<Need>,
}

static TURNS: Mutex<Turns> = Mutex::new(Turns { next_ticket: 0, waiting: Vec::new(), running: Vec::new() });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static HAS_A_TURN: Cell<bool> = const { Cell::new(false) };
}

/// Lasts until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    need: Need,
    _apart_from_other_processes: File,
}

impl Turn {
    /// Waits for it.
    ///
    /// # Panics
    /// Where this thread has one: it would wait for itself.
    pub(crate) fn wait(need: Need) -> Turn {
        assert!(!HAS_A_TURN.replace(true), "a test has one lab");
        let mut turns = turns();
        let ticket = turns.enqueue(need);
        while !turns.may_begin(ticket, need) {
            turns = CHANGED.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        turns.begin(ticket, need);
        drop(turns);
        // who waited behind this one may be the first now
        CHANGED.notify_all();
        let file = File::create(std::env::temp_dir().join("freeboard-tests.lock")).expect("cannot make the lock file");
        if need == Need::Machine { file.lock() } else { file.lock_shared() }.expect("cannot lock");
        Turn { need, _apart_from_other_processes: file }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HAS_A_TURN.set(false);
        turns().end(self.need);
        CHANGED.notify_all();
    }
}

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    fn enqueue(&mut self, need: Need) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push((ticket, need));
        ticket
    }

    fn may_begin(&self, ticket: u64, need: Need) -> bool {
        let run = |need: Need| self.running.iter().filter(|&&other| other == need).count();
        let is_first = self.waiting.iter().all(|&(other, of)| of != need || other >= ticket);
        is_first
            && match need {
                Need::Machine => self.running.is_empty() && self.waiting.iter().all(|&(_, of)| of == Need::Machine),
                Need::Processor => run(Need::Machine) + run(Need::Processor) == 0,
                Need::Disk => run(Need::Machine) == 0 && run(Need::Disk) < AT_DISKS,
            }
    }

    fn begin(&mut self, ticket: u64, need: Need) {
        self.waiting.retain(|&(other, _)| other != ticket);
        self.running.push(need);
    }

    fn end(&mut self, need: Need) {
        if let Some(place) = self.running.iter().position(|&other| other == need) {
            self.running.swap_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Need::{Disk, Machine, Processor};

    /// Lets all begin that may, in whatever order they look. Which are running then.
    fn settle(turns: &mut Turns) -> Vec<Need> {
        while let Some(&(ticket, need)) =
            turns.waiting.iter().rev().find(|&&(ticket, need)| turns.may_begin(ticket, need))
        {
            turns.begin(ticket, need);
        }
        turns.running.clone()
    }

    #[test]
    fn two_at_disks_beside_one_at_a_processor_and_those_who_want_all_at_the_end() {
        let mut turns = Turns { next_ticket: 0, waiting: Vec::new(), running: Vec::new() };
        for need in [Disk, Machine, Processor, Disk, Processor, Machine, Disk] {
            turns.enqueue(need);
        }
        let count = |running: &[Need], need| running.iter().filter(|&&other| other == need).count();
        let counts = |running: Vec<Need>| [Disk, Processor, Machine].map(|need| count(&running, need));
        assert_eq!(counts(settle(&mut turns)), [2, 1, 0]);
        turns.end(Disk);
        assert_eq!(counts(settle(&mut turns)), [2, 1, 0]);
        turns.end(Disk);
        assert_eq!(counts(settle(&mut turns)), [1, 1, 0]);
        turns.end(Processor);
        turns.end(Disk);
        assert_eq!(counts(settle(&mut turns)), [0, 1, 0], "the second at a processor is still there");
        turns.end(Processor);
        assert_eq!(counts(settle(&mut turns)), [0, 0, 1]);
        turns.enqueue(Disk);
        assert_eq!(counts(settle(&mut turns)), [0, 0, 1], "nobody runs beside one who has the machine");
        turns.end(Machine);
        assert_eq!(counts(settle(&mut turns)), [1, 0, 0], "others go first");
        turns.end(Disk);
        assert_eq!(counts(settle(&mut turns)), [0, 0, 1]);
    }

    #[test]
    fn who_came_first_begins_first() {
        let mut turns = Turns { next_ticket: 0, waiting: Vec::new(), running: Vec::new() };
        let [first, second] = [(); 2].map(|()| turns.enqueue(Processor));
        assert!(turns.may_begin(first, Processor) && !turns.may_begin(second, Processor));
    }
}
