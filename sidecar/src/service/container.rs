//! One container: its group, its ledgers, and what the law says of them.

use super::ledgers::{Ledgers, Totals};
use super::speed::{Flows, Speeds};
use crate::cgroup::{Crowd, Group, Lost, judge};
use crate::region::budget::Row;
use freeboard_budget::law::{COUNTER_LAG, Target};
use std::collections::VecDeque;
use std::time::Duration;

/// Bytes that nobody reports count as unseen when they stay for this long: a process reports a chunk at a time.
const UNSEEN_FOR: Duration = Duration::from_secs(1);

/// A container under the law.
#[derive(Debug)]
pub struct Container {
    /// Its cgroup.
    pub group: Group,
    /// Its processes' counters.
    pub ledgers: Ledgers,
    speeds: Speeds,
    /// Somebody wrote at the last tick, or is about to.
    busy: bool,
    last_tick: Option<Duration>,
    first_limit_hits: Option<u64>,
    last: Option<Row>,
    writers: Crowd,
    peak: Peak,
    unseen: Unseen,
}

/// Largest values of all ticks, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peak {
    /// Dirty plus writeback.
    pub unwritten: u64,
    /// Page cache, shmem included.
    pub cache: u64,
    /// Usage.
    pub usage: u64,
}

/// What the kernel said of a container's group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observed {
    /// The numbers of the last tick.
    pub last: Row,
    /// The largest of all ticks.
    pub peak: Peak,
}

/// What processes said of themselves, and what they did not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Their counters.
    pub totals: Totals,
    /// The largest part of a group's unwritten bytes that no process reported for a second on end: the kernel's count
    /// less what the living ledgers owe, less what ended ones left behind and what was there at first. The kernel's
    /// count lags, so only what is beyond [`COUNTER_LAG`] counts. In a group that others write in, theirs too.
    pub unseen_bytes: u64,
}

impl Container {
    /// A container that has just been heard of.
    pub fn new(group: Group, ledgers: Ledgers) -> Container {
        Container {
            group,
            ledgers,
            speeds: Speeds::default(),
            busy: true,
            last_tick: None,
            first_limit_hits: None,
            last: None,
            writers: Crowd::default(),
            peak: Peak::default(),
            unseen: Unseen::default(),
        }
    }

    /// Whether somebody writes, as far as the last tick told.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// What its writers can add before they are to be held back, or pages to be dropped, in bytes.
    pub fn headroom(&self) -> u64 {
        self.last.map_or(0, |row| headroom(&row))
    }

    /// Says that a process was let in, which is about to write.
    pub fn expect_writer(&mut self) {
        self.busy = true;
    }

    /// Who wrote in it, as far as the last tick told.
    pub fn writers(&self) -> Crowd {
        self.writers
    }

    /// Looks at the ledgers and the group at `now` of any monotonic clock, and gives the numbers of the container's
    /// row. What happened on its disks is added to `flows` too. `tick` is the budget's; `siblings` are those of
    /// [`judge`].
    ///
    /// # Errors
    /// [`Lost`]: the group is gone, or does not say what is needed.
    pub fn tick(
        &mut self,
        tick: u64,
        target: Target,
        now: Duration,
        flows: &mut Flows,
        siblings: impl Fn(u64) -> Crowd,
    ) -> Result<Row, Lost> {
        let elapsed = now.saturating_sub(self.last_tick.replace(now).unwrap_or(now));
        // where it cannot be read any more, nobody is to go by what it once was
        self.last = None;
        let pulse = self.ledgers.harvest(tick).map_err(|error| Lost::Unreadable(format!("counters: {error}")))?;
        self.busy = pulse.writers > 0;
        self.writers = Crowd { writers: pulse.writers, owed_bytes: pulse.writers_owed_bytes };
        for (&dev, &one) in &pulse.flows {
            self.speeds.add(dev, one, elapsed, now);
            flows.entry(dev).or_default().join(one);
        }
        let speed = self.speeds.slowest_in_use();
        let readings = self.group.read()?;
        let judgement = judge(&readings, target, speed, self.writers, siblings).ok_or_else(|| {
            Lost::Unreadable("memory.stat does not count dirty and writeback, as it does from Linux 4.2 on".into())
        })?;
        let own = &readings[0];
        let unwritten = own.stat.unwritten().unwrap_or(0);
        self.peak.unwritten = self.peak.unwritten.max(unwritten);
        self.peak.cache = self.peak.cache.max(own.stat.file.unwrap_or(0));
        self.peak.usage = self.peak.usage.max(own.usage);
        self.unseen.add(unwritten.saturating_sub(pulse.owed_bytes), pulse.left_behind_bytes, now);

        let first_limit_hits = *self.first_limit_hits.get_or_insert(own.limit_hits);
        let ruling = judgement.ruling;
        let row = Row {
            verdict: judgement.verdict,
            limit: ruling.limit,
            target: ruling.target,
            usage: ruling.usage,
            unwritten,
            other: ruling.other,
            unowned: judgement.unowned,
            speed,
            limit_hits: own.limit_hits.saturating_sub(first_limit_hits),
            peak_unwritten: self.peak.unwritten,
            writeback: own.stat.writeback.unwrap_or(0),
        };
        self.last = Some(row);
        Ok(row)
    }

    /// What the kernel said so far; `None` where the group could not be read at the last tick.
    pub fn observed(&self) -> Option<Observed> {
        Some(Observed { last: self.last?, peak: self.peak })
    }

    /// What the processes said so far.
    pub fn summary(&self) -> Summary {
        Summary { totals: self.ledgers.totals(), unseen_bytes: self.unseen.most_bytes }
    }
}

/// As [`Container::headroom`].
pub fn headroom(row: &Row) -> u64 {
    let unwritten = row.verdict.allowed.saturating_sub(row.unwritten);
    row.target.saturating_sub(row.usage).min(unwritten)
}

/// The unwritten bytes that nobody answers for.
#[derive(Debug)]
struct Unseen {
    /// Bytes on their way to the disk from processes that ended, and from before the group was first looked at.
    left_behind_bytes: u64,
    /// (time, bytes): candidates for the least of the last second; bytes grow from front to back.
    least: VecDeque<(Duration, u64)>,
    since: Option<Duration>,
    most_bytes: u64,
}

impl Default for Unseen {
    fn default() -> Unseen {
        Unseen { left_behind_bytes: u64::MAX, least: VecDeque::new(), since: None, most_bytes: 0 }
    }
}

impl Unseen {
    /// One look at `now`: `nobodys_bytes` are unwritten and owed by no living ledger; ledgers that ended since the last
    /// look left at most `left_behind_bytes` more behind.
    fn add(&mut self, nobodys_bytes: u64, left_behind_bytes: u64, now: Duration) {
        // what was left behind gets less as the disk takes it, and nobody says how much: no more than is there
        self.left_behind_bytes = self.left_behind_bytes.saturating_add(left_behind_bytes).min(nobodys_bytes);
        let bytes = nobodys_bytes.saturating_sub(self.left_behind_bytes).saturating_sub(COUNTER_LAG);
        while self.least.back().is_some_and(|&(_, larger)| larger >= bytes) {
            self.least.pop_back();
        }
        self.least.push_back((now, bytes));
        while self.least.len() > 1 && self.least.front().is_some_and(|&(then, _)| now.saturating_sub(then) > UNSEEN_FOR)
        {
            self.least.pop_front();
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_sub(since) >= UNSEEN_FOR
            && let Some(&(_, least)) = self.least.front()
        {
            self.most_bytes = self.most_bytes.max(least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The unseen bytes after looks every 100 ms at (nobody's bytes, left behind since).
    fn unseen(looks: impl IntoIterator<Item = (u64, u64)>) -> u64 {
        let mut unseen = Unseen::default();
        for (look, (nobodys, left_behind)) in (0..).zip(looks) {
            unseen.add(nobodys * MIB, left_behind * MIB, Duration::from_millis(100) * look);
        }
        unseen.most_bytes
    }

    #[test]
    fn what_is_unseen() {
        let repeat = |look, times| std::iter::repeat_n(look, times);
        assert_eq!(unseen(repeat((0, 0), 30)), 0);
        assert_eq!(unseen(repeat((50, 0), 30)), 0, "it was there before");
        assert_eq!(unseen([(0, 0)].into_iter().chain(repeat((50, 0), 30))), 50 * MIB - COUNTER_LAG);
        assert_eq!(unseen((0..30).map(|look| (look % 5 * 8, 0))), 0, "a chunk that is reported soon");
        let ended = [(0, 0), (20, 20)].into_iter().chain(repeat((20, 0), 30));
        assert_eq!(unseen(ended.clone()), 0, "a process ended and left it behind");
        let drained = ended.chain(repeat((0, 0), 1)).chain(repeat((20, 0), 30));
        assert_eq!(unseen(drained), 20 * MIB - COUNTER_LAG, "what it left is on the disk, and this is not it");
        assert_eq!(unseen([(0, 0)].into_iter().chain(repeat((9, 0), 5))), 0, "not yet for a second");
    }
}
