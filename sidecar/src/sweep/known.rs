//! What the last looks told of a file: whether it grows, what was dropped of it, and how long it is left alone because
//! it was read again.

use super::reads::Reads;
use super::{Pressure, plan};
use std::ops::Range;
use std::time::Duration;

/// What is kept of the end of a file that grows, while nobody was seen to read farther back.
const TAIL: u64 = 16 << 20;
/// A file counts as growing for so long after its last change.
pub const SETTLE: Duration = Duration::from_secs(2);
/// How long a file is left alone at first; twice as long each time that it is read again.
const QUIET: Duration = Duration::from_secs(1);
/// How long nothing is dropped before a reader who came to what had been dropped before him.
const SPARED: Duration = Duration::from_secs(1);
/// A file is left alone for [`QUIET`] x 2^9 at most, and 16 MiB x 2^9 of its end are kept.
const HOTTEST: u32 = 9;
/// Ranges that are remembered as dropped.
const MOST_RUNS: usize = 8;

/// A file's length and the time of its last change, as stat says them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    /// Its length.
    pub bytes: u64,
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
}

/// A range that was dropped, and what was cached of it afterwards.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Run {
    range: Range<u64>,
    left_pages: u64,
}

/// One file.
#[derive(Clone, Debug)]
pub struct Known {
    stamp: Stamp,
    /// When something of it was last found in the page cache.
    pub looked: Duration,
    /// Since when it has not changed; `None`: for longer than matters.
    changed: Option<Duration>,
    runs: Vec<Run>,
    /// The highest piece that is cached, and how many pages of it: where somebody reads who is not seen.
    front: Option<(u64, u64)>,
    /// Where readers were seen at the last look.
    readers: Vec<u64>,
    spared_until: Duration,
    heat: u32,
    quiet_until: Duration,
    cooler_at: Duration,
    /// Of a file whose page cache cannot be seen: up to where it was dropped, and what was sent when.
    pub unseen: Unseen,
    /// Of a file whose rule says that what is read of it goes.
    pub reads: Option<Box<Reads>>,
}

/// The progress through a file whose page cache cannot be seen: each part is sent, given back, and given back again,
/// for the first time may have come too early, and on overlayfs it only starts writeback.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unseen {
    /// All before was given back twice.
    twice_to: u64,
    /// All before was given back.
    once_to: u64,
    /// All before was sent, and when.
    sent: Option<(u64, Duration)>,
}

impl Unseen {
    /// What was sent, once that is long enough ago for it to be written.
    pub fn written(&mut self, now: Duration, takes: Duration) -> Option<u64> {
        self.sent.take_if(|(_, at)| now.saturating_sub(*at) >= takes).map(|(to, _)| to)
    }

    /// The part to give back where all before `to` may go; it is gone then.
    pub fn give_back(&mut self, to: u64) -> Option<Range<u64>> {
        let part = (to > self.twice_to).then_some(self.twice_to..to);
        (self.twice_to, self.once_to) = (self.twice_to.max(self.once_to.min(to)), self.once_to.max(to));
        part
    }

    /// The part to send now of what ends at `end`, `most` bytes of it. Empty: there is but something to give back
    /// again.
    pub fn send(&mut self, end: u64, most: u64, now: Duration) -> Option<Range<u64>> {
        if self.is_under_way() || end <= self.twice_to {
            return None;
        }
        let part = self.once_to..end.min(self.once_to.saturating_add(most));
        self.sent = Some((part.end, now));
        Some(part)
    }

    /// Whether something was sent and is to be given back.
    pub fn is_under_way(&self) -> bool {
        self.sent.is_some()
    }
}

impl Known {
    /// A file at its first look, so long after its last change.
    pub fn new(stamp: Stamp, now: Duration, age: Duration) -> Known {
        Known {
            stamp,
            looked: now,
            changed: (age < SETTLE).then(|| now.saturating_sub(age)),
            runs: Vec::new(),
            front: None,
            readers: Vec::new(),
            spared_until: Duration::ZERO,
            heat: 0,
            quiet_until: Duration::ZERO,
            cooler_at: Duration::ZERO,
            unseen: Unseen::default(),
            reads: None,
        }
    }

    /// Notes its state at a later look. Returns whether it changed since the last one.
    pub fn look(&mut self, stamp: Stamp, now: Duration) -> bool {
        let has_changed = stamp != self.stamp;
        if stamp.bytes < self.stamp.bytes {
            // emptied and written anew: what comes now was never dropped
            self.runs.clear();
            self.unseen = Unseen::default();
        }
        if has_changed {
            self.changed = Some(now);
        }
        (self.stamp, self.looked) = (stamp, now);
        has_changed
    }

    /// What of its end is kept. Over the target, of a file that did not change since the last look nothing is.
    pub fn tail(&self, now: Duration, has_changed: bool, pressure: Pressure) -> u64 {
        let is_growing = match pressure {
            Pressure::Over => has_changed,
            _ => self.changed.is_some_and(|changed| now.saturating_sub(changed) < SETTLE),
        };
        if is_growing { TAIL << self.heat } else { 0 }
    }

    /// Where somebody may be filling the page cache at the moment: the highest cached piece, if it holds another number
    /// of pages than at the last look.
    pub fn moving_front(&mut self, front: Option<(u64, u64)>) -> Option<u64> {
        let before = std::mem::replace(&mut self.front, front);
        front.filter(|_| front != before).map(|(start, _)| start)
    }

    /// Asks for each range that was dropped how much is cached now. More than was left: it was read again, or written.
    pub fn was_touched(&mut self, cached_pages: impl Fn(&Range<u64>) -> u64) -> bool {
        let mut touched = false;
        for run in &mut self.runs {
            let pages = cached_pages(&run.range);
            touched |= pages > run.left_pages;
            run.left_pages = pages;
        }
        touched
    }

    /// Takes note of where readers are. What one of them comes to is his to read: had it been dropped, it is so no more,
    /// and for a while nothing else is dropped before a reader.
    pub fn meet(&mut self, readers: &[u64], now: Duration) {
        let mut readers = readers.to_vec();
        readers.sort_unstable();
        // nobody says who is who: none has overtaken another
        let ways = readers.iter().enumerate().map(|(index, &reader)| {
            let from = self.readers.get(index).copied().unwrap_or(reader).min(reader);
            plan::around(from).start..plan::around(reader).end
        });
        let ways: Vec<_> = ways.collect();
        self.readers = readers;
        for way in ways {
            for run in std::mem::take(&mut self.runs) {
                let left = plan::without(vec![run.range.clone()], std::slice::from_ref(&way));
                if left == [run.range.clone()] {
                    self.runs.push(run);
                    continue;
                }
                self.spared_until = now + SPARED;
                self.runs.extend(left.into_iter().map(|range| Run { range, left_pages: u64::MAX }));
            }
        }
    }

    /// Whether nothing before a reader is dropped.
    pub fn is_spared(&self, now: Duration) -> bool {
        now < self.spared_until
    }

    /// Notes that a range was dropped.
    pub fn dropped(&mut self, range: Range<u64>) {
        let mut all = range;
        self.runs.retain(|run| {
            let apart = run.range.end < all.start || run.range.start > all.end;
            if !apart {
                all = all.start.min(run.range.start)..all.end.max(run.range.end);
            }
            apart
        });
        if self.runs.len() == MOST_RUNS {
            self.runs.remove(0);
        }
        self.runs.push(Run { range: all, left_pages: u64::MAX });
    }

    /// Leaves it alone, for twice as long as the last time.
    pub fn back_off(&mut self, now: Duration) {
        let quiet = QUIET * (1 << self.heat);
        self.heat = (self.heat + 1).min(HOTTEST);
        self.quiet_until = now + quiet;
        self.cooler_at = now + quiet * 4;
    }

    /// Forgets half of that for each time that it has not been read again for long.
    pub fn cool(&mut self, now: Duration) {
        while self.heat > 0 && now >= self.cooler_at {
            self.heat -= 1;
            self.cooler_at += QUIET * (1 << self.heat) * 4;
        }
    }

    /// How often it was read again, and when something of it was last cached: what is least of all is worth least.
    pub fn worth(&self) -> (u32, Duration) {
        (self.heat, self.looked)
    }

    /// Keeps only how hot it is, while nobody looks at what is dropped and read. Returns whether it is at all.
    pub fn rest(&mut self, now: Duration) -> bool {
        self.runs.clear();
        self.cool(now);
        self.heat > 0
    }

    /// Whether it is left alone.
    pub fn is_quiet(&self, now: Duration) -> bool {
        now < self.quiet_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn known(age: Duration) -> Known {
        Known::new(Stamp { bytes: 100, modified: (1, 0) }, SECOND * 100, age)
    }

    #[test]
    fn the_tail_of_a_file_that_grows_is_kept() {
        let mut file = known(SECOND);
        let at = |seconds| SECOND * seconds;
        assert_eq!(file.tail(at(100), false, Pressure::Near), TAIL);
        assert_eq!(file.tail(at(101), false, Pressure::Near), 0, "two seconds old");
        assert!(!file.look(Stamp { bytes: 100, modified: (1, 0) }, at(102)));
        assert!(file.look(Stamp { bytes: 101, modified: (2, 0) }, at(103)));
        assert_eq!(file.tail(at(103), true, Pressure::Over), TAIL);
        assert_eq!(file.tail(at(103), false, Pressure::Over), 0);
        assert_eq!(file.tail(at(104), false, Pressure::Near), TAIL);
        assert_eq!(known(SECOND * 3).tail(at(100), false, Pressure::Near), 0);
    }

    #[test]
    fn a_file_that_is_read_again_is_left_alone_for_twice_as_long_each_time() {
        let mut file = known(SECOND * 9);
        let mut now = SECOND * 100;
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512] {
            assert!(!file.is_quiet(now));
            file.back_off(now);
            assert!(file.is_quiet(now + SECOND * seconds - Duration::from_millis(1)), "{seconds}");
            now += SECOND * seconds;
        }
        file.cool(now);
        file.back_off(now);
        assert!(file.is_quiet(now + SECOND * 511), "it did not cool yet");
        // left alone by its readers, it cools down, each time sooner, whether or not somebody looks meanwhile
        let mut unseen = file.clone();
        for (seconds, heat) in [(4 * 512, 8), (4 * 256, 7), (4 * 128, 6), (4 * 64, 5)] {
            now += SECOND * seconds;
            file.cool(now - SECOND);
            assert_eq!(file.heat, heat + 1);
            file.cool(now);
            assert_eq!(file.heat, heat);
        }
        assert!(unseen.rest(now));
        assert_eq!(unseen.worth(), file.worth());
        now += SECOND * 4 * 64;
        assert!(!unseen.rest(now), "it is as if it had never been read");
        unseen.back_off(now);
        assert!(!unseen.is_quiet(now + SECOND));
    }

    #[test]
    fn what_cannot_be_counted_is_given_back_twice() {
        let mut progress = Unseen::default();
        let at = |seconds| SECOND * seconds;
        let step = |progress: &mut Unseen, second, end, may_go: u64| {
            let written = progress.written(at(second), SECOND);
            let gone = written.and_then(|to| progress.give_back(to.min(may_go)));
            let sent = progress.send(end, 64, at(second));
            [gone, sent].map(|part| part.map_or((0, 0), |part| (part.start, part.end)))
        };
        assert_eq!(step(&mut progress, 0, 100, 100), [(0, 0), (0, 64)]);
        assert_eq!(progress.written(at(0), SECOND), None, "a moment ago");
        assert_eq!(step(&mut progress, 1, 100, 100), [(0, 64), (64, 100)]);
        assert_eq!(step(&mut progress, 2, 100, 100), [(0, 100), (100, 100)]);
        assert_eq!(step(&mut progress, 3, 100, 100), [(64, 100), (0, 0)], "and that was all");
        assert_eq!(step(&mut progress, 4, 100, 100), [(0, 0), (0, 0)]);
        // it grows, and somebody reads at 110
        assert_eq!(step(&mut progress, 5, 130, 110), [(0, 0), (100, 130)]);
        assert_eq!(step(&mut progress, 6, 130, 110), [(100, 110), (110, 130)]);
        assert_eq!(step(&mut progress, 7, 130, 110), [(100, 110), (110, 130)]);
        assert_eq!(step(&mut progress, 8, 130, 110), [(0, 0), (110, 130)]);
        assert_eq!(step(&mut progress, 9, 130, 130), [(110, 130), (130, 130)]);
        assert_eq!(step(&mut progress, 10, 130, 130), [(110, 130), (0, 0)]);
    }

    #[test]
    fn what_is_cached_again_was_touched() {
        let mut file = known(SECOND * 9);
        file.dropped(0..100);
        assert!(!file.was_touched(|_| 3), "just dropped, and three pages would not go");
        assert!(!file.was_touched(|_| 2));
        assert!(file.was_touched(|_| 3));
        assert!(!file.was_touched(|_| 3), "it was told of");
        // emptied and written anew
        file.dropped(0..100);
        file.was_touched(|_| 0);
        file.look(Stamp { bytes: 10, modified: (9, 9) }, SECOND * 200);
        assert!(!file.was_touched(|_| 10));
    }

    #[test]
    fn ranges_that_meet_become_one_and_few_are_remembered() {
        let ranges = |file: &Known| file.runs.iter().map(|run| (run.range.start, run.range.end)).collect::<Vec<_>>();
        let mut file = known(SECOND * 9);
        for range in [0..10, 20..30, 10..20, 25..40] {
            file.dropped(range);
        }
        assert_eq!(ranges(&file), [(0, 40)]);
        for start in 1..100 {
            file.dropped(start * 100..start * 100 + 1);
        }
        assert_eq!(file.runs.len(), MOST_RUNS);
    }

    #[test]
    fn a_front_that_moves_is_told() {
        let mut file = known(SECOND * 9);
        assert_eq!(file.moving_front(Some((16, 3))), Some(16));
        assert_eq!(file.moving_front(Some((16, 5))), Some(16));
        assert_eq!(file.moving_front(Some((16, 5))), None);
        assert_eq!(file.moving_front(None), None);
    }

    #[test]
    fn what_a_reader_comes_to_is_his() {
        const MIB: u64 = 1 << 20;
        let ranges =
            |file: &Known| file.runs.iter().map(|run| (run.range.start / MIB, run.range.end / MIB)).collect::<Vec<_>>();
        let mut file = known(SECOND * 9);
        let meet = |file: &mut Known, readers: &[u64], second| {
            file.meet(&readers.iter().map(|reader| reader * MIB).collect::<Vec<_>>(), SECOND * second);
            file.is_spared(SECOND * second)
        };
        // one has stopped at 100, and another follows closely
        assert!(!meet(&mut file, &[300, 100], 100));
        for range in [0..84, 116..284] {
            file.dropped(range.start * MIB..range.end * MIB);
        }
        assert!(!meet(&mut file, &[310, 100], 101));
        assert_eq!(ranges(&file), [(0, 84), (116, 284)]);
        // he goes on: what was dropped before him he reads again
        assert!(meet(&mut file, &[320, 110], 102));
        assert_eq!(ranges(&file), [(0, 84), (126, 284)]);
        assert!(!meet(&mut file, &[330, 110], 104), "he has stopped again");
        // and has caught up before somebody looks
        assert!(meet(&mut file, &[340, 340], 105));
        assert_eq!(ranges(&file), [(0, 84)]);
        assert!(!file.was_touched(|_| 0) && file.was_touched(|_| 1), "somebody else reads what lies behind them");
    }
}
