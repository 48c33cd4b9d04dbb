//! How fast the disks are, as held-back writers measure it.
//!
//! A disk's speed is what it confirmed over the time that somebody waited for it: while nobody waits, the writer is the
//! slow one and says nothing about the disk. Time counts in whole ticks, those at one of whose ends some writer of that
//! disk was held: between two waits a writer is let go for the few milliseconds that it needs to fill the next chunk,
//! and the bytes of a wait are confirmed just when it ends. A longer time between two waits counts too where something
//! was owed throughout: an NFS server that commits half a second's worth at once lets the writer go for as long as it
//! needs to write that again, while the disk works on the other half.
//!
//! A bucket closes when it holds a second of such time *and* something was just confirmed: a filesystem that confirms
//! 32 MiB at once every second (NFS with its COMMIT) would else be seen at nothing and at twice its speed in turns.
//! The speed is the least of the last three buckets: what the law hands out is to be taken back within a second also
//! in the disk's worse moments.

use std::collections::BTreeMap;
use std::mem::take;
use std::time::Duration;

/// Least time in a bucket.
const BUCKET: Duration = Duration::from_secs(1);
/// Time between two waits that counts where something was owed throughout, at most.
const PAUSE: Duration = Duration::from_millis(500);
/// Buckets kept.
const BUCKETS: usize = 3;
/// More disks than this at a time are not told apart: what a hostile process names must not grow without bound.
const MOST_DEVICES: usize = 64;

/// What happened on one disk during one tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// Bytes that its writers saw reach it.
    pub confirmed_bytes: u64,
    /// Some writer was held at the tick's start or at its end.
    pub held: bool,
    /// What its writers owe it at the tick's end.
    pub owed_bytes: u64,
}

/// What happened during one tick, by st_dev.
pub type Flows = BTreeMap<u64, Flow>;

impl Flow {
    /// Adds what other processes did on the same disk in the same tick.
    pub fn join(&mut self, more: Flow) {
        self.confirmed_bytes = self.confirmed_bytes.saturating_add(more.confirmed_bytes);
        self.held |= more.held;
        self.owed_bytes = self.owed_bytes.saturating_add(more.owed_bytes);
    }
}

/// One disk's speed.
#[derive(Clone, Debug, Default)]
struct Meter {
    bytes: u64,
    time: Duration,
    /// The same since the last wait.
    pause_bytes: u64,
    pause: Duration,
    /// Speeds of the closed buckets in bytes per second, the newest last.
    closed: Vec<u64>,
    owed_bytes: u64,
    last_used: Duration,
}

impl Meter {
    fn add(&mut self, flow: Flow, elapsed: Duration) {
        self.owed_bytes = flow.owed_bytes;
        if !flow.held {
            self.pause_bytes = self.pause_bytes.saturating_add(flow.confirmed_bytes);
            self.pause += if flow.owed_bytes > 0 { elapsed } else { PAUSE };
            return;
        }
        let (pause_bytes, pause) = (take(&mut self.pause_bytes), take(&mut self.pause));
        if pause < PAUSE {
            self.bytes = self.bytes.saturating_add(pause_bytes);
            self.time += pause;
        }
        self.bytes = self.bytes.saturating_add(flow.confirmed_bytes);
        self.time += elapsed;
        if self.time >= BUCKET && flow.confirmed_bytes > 0 {
            let speed = u128::from(self.bytes) * 1_000_000_000 / self.time.as_nanos().max(1);
            if self.closed.len() == BUCKETS {
                self.closed.remove(0);
            }
            self.closed.push(u64::try_from(speed).unwrap_or(u64::MAX));
            (self.bytes, self.time) = (0, Duration::ZERO);
        }
    }

    fn speed(&self) -> Option<u64> {
        self.closed.iter().copied().min()
    }
}

/// The speeds of a container's disks, or of all.
#[derive(Clone, Debug, Default)]
pub struct Speeds {
    meters: Vec<(u64, Meter)>,
}

impl Speeds {
    /// Adds what happened on the disk `dev` within `elapsed` until `now` (any monotonic clock).
    pub fn add(&mut self, dev: u64, flow: Flow, elapsed: Duration, now: Duration) {
        let at = match self.meters.iter().position(|(known, _)| *known == dev) {
            Some(at) => at,
            None => {
                if self.meters.len() == MOST_DEVICES {
                    let oldest = (0..MOST_DEVICES).min_by_key(|&at| self.meters[at].1.last_used).unwrap_or(0);
                    self.meters.remove(oldest);
                }
                self.meters.push((dev, Meter::default()));
                self.meters.len() - 1
            }
        };
        let meter = &mut self.meters[at].1;
        meter.last_used = now;
        meter.add(flow, elapsed);
    }

    /// The slowest of the disks that were used last, in bytes per second; `None` until one was measured.
    pub fn slowest_in_use(&self) -> Option<u64> {
        let measured = || self.meters.iter().filter_map(|(_, meter)| Some((meter.last_used, meter.speed()?)));
        let last = measured().map(|(used, _)| used).max()?;
        measured().filter(|&(used, _)| used == last).map(|(_, speed)| speed).min()
    }

    /// (st_dev, speed, owed bytes) of each disk.
    pub fn devices(&self) -> impl Iterator<Item = (u64, Option<u64>, u64)> {
        self.meters.iter().map(|(dev, meter)| (*dev, meter.speed(), meter.owed_bytes))
    }

    /// Says that nobody writes to the disks not used since `now`.
    pub fn forget_owed(&mut self, now: Duration) {
        for (_, meter) in self.meters.iter_mut().filter(|(_, meter)| meter.last_used < now) {
            meter.owed_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;
    const TICK: Duration = Duration::from_millis(100);

    /// Feeds one disk tick by tick with (confirmed bytes, held); this much is owed all the time.
    fn speed_with(owed_bytes: u64, ticks: impl IntoIterator<Item = (u64, bool)>) -> Option<u64> {
        let mut speeds = Speeds::default();
        for (tick, (confirmed_bytes, held)) in (1..).zip(ticks) {
            speeds.add(8, Flow { confirmed_bytes, held, owed_bytes }, TICK, TICK * tick);
        }
        speeds.slowest_in_use()
    }

    fn speed_after(ticks: impl IntoIterator<Item = (u64, bool)>) -> Option<u64> {
        speed_with(0, ticks)
    }

    #[test]
    fn a_pause_in_which_the_disk_works_on_counts() {
        let bursts = || (0..40).map(|tick| (if tick % 5 == 4 { 15 * MB } else { 0 }, tick % 5 >= 2));
        assert_eq!(speed_with(20 * MB, bursts()), Some(30 * MB));
        assert!(speed_with(0, bursts()) > Some(40 * MB), "nothing was owed: the writer paused");
        let slow_writer = || (0..200).map(|tick| (3 * MB, tick % 20 < 10));
        assert_eq!(speed_with(MB, slow_writer()), Some(30 * MB), "a long pause says nothing");
    }

    #[test]
    fn table() {
        let steady = std::iter::repeat((3 * MB, true));
        type Case = (&'static str, Vec<(u64, bool)>, Option<u64>);
        let cases: Vec<Case> = vec![
            ("nothing", vec![], None),
            ("less than a second", steady.clone().take(9).collect(), None),
            ("a second", steady.clone().take(10).collect(), Some(30 * MB)),
            ("nobody was held", vec![(3 * MB, false); 100], None),
            (
                "ticks in which nobody was held do not count",
                steady.clone().take(10).chain(vec![(0, false); 50]).chain(steady.clone().take(10)).collect(),
                Some(30 * MB),
            ),
            (
                "the low side of three buckets",
                [(3 * MB, true), (MB, true), (2 * MB, true)].into_iter().flat_map(|tick| vec![tick; 10]).collect(),
                Some(10 * MB),
            ),
            (
                "a slow bucket is forgotten after three more",
                [(MB, true), (3 * MB, true), (3 * MB, true), (3 * MB, true)]
                    .into_iter()
                    .flat_map(|tick| vec![tick; 10])
                    .collect(),
                Some(30 * MB),
            ),
            (
                "32 MB at once every 11 ticks",
                (1..=44).map(|tick| (if tick % 11 == 0 { 33 * MB } else { 0 }, true)).collect(),
                Some(30 * MB),
            ),
            (
                "a disk that stands still has no new speed",
                {
                    let mut ticks: Vec<_> = steady.clone().take(10).collect();
                    ticks.extend(vec![(0, true); 50]);
                    ticks
                },
                Some(30 * MB),
            ),
            ("a hostile count", vec![(u64::MAX, true); 10], Some(u64::MAX)),
        ];
        for (name, ticks, want) in cases {
            assert_eq!(speed_after(ticks), want, "{name}");
        }
    }

    #[test]
    fn the_slowest_disk_in_use_counts_and_one_that_is_not_does_not() {
        let mut speeds = Speeds::default();
        for tick in 1..=10 {
            let flow = |bytes| Flow { confirmed_bytes: bytes, held: true, owed_bytes: 5 };
            speeds.add(1, flow(MB), TICK, TICK * tick);
            speeds.add(2, flow(3 * MB), TICK, TICK * tick);
        }
        assert_eq!(speeds.slowest_in_use(), Some(10 * MB));
        speeds.add(2, Flow::default(), TICK, TICK * 11);
        speeds.forget_owed(TICK * 11);
        assert_eq!(speeds.slowest_in_use(), Some(30 * MB));
        assert_eq!(speeds.devices().collect::<Vec<_>>(), [(1, Some(10 * MB), 0), (2, Some(30 * MB), 0)]);
    }

    #[test]
    fn devices_that_a_process_makes_up_push_each_other_out() {
        let mut speeds = Speeds::default();
        for dev in 1..=1000 {
            speeds.add(dev, Flow::default(), TICK, TICK * dev as u32);
        }
        assert_eq!(speeds.devices().count(), MOST_DEVICES);
        assert!(speeds.devices().any(|(dev, ..)| dev == 1000));
    }
}
