//! The law in a simulated container: the sidecar's own code (how often it looks, what it measures of the disk, what it
//! judges, what it publishes) and the library's rules of a writer, on a disk and a kernel of which everything is known.
//!
//! Time goes in steps of 2 ms, in which a held call of the library looks once. A simulated kernel writes nothing that
//! it is not told to, and takes nothing back by itself: whatever keeps usage under its target is the law.

use super::container::headroom;
use super::speed::{Flow, Speeds};
use super::{IDLE, until_half_full};
use crate::region::budget::Row;
use freeboard_budget::cgroup::{Version, stat};
use freeboard_budget::law::{self, COUNTER_LAG, Level, MIB, MIN_ALLOWED, Target};
use freeboard_budget::layout::STALE_MS;
use freeboard_tests::curve::{self, Curve, Moment};
use std::collections::VecDeque;
use std::time::Duration;

const STEP: Duration = Duration::from_millis(2);
const STEP_S: f64 = 0.002;
/// What all writers together could write if nobody held them.
const MEMORY_BYTES_PER_S: u64 = 8_000_000_000;
/// A file's shortest piece that goes although it is less than a chunk (`PIECE_MIN` of the library).
const PIECE_MIN: u64 = 256 << 10;
/// Bytes after which a process looks in any case (`LOOK_BYTES` of the library).
const LOOK_BYTES: u64 = 8 << 20;
/// Time within which the first step of an answer to somebody else's burst must be made: the sidecar's period, and the
/// library's between two drops of a whole file.
const ANSWER: Duration = Duration::from_millis(400);
/// A disk that writes less in a second cannot fill a container between two looks.
const FAST: u64 = 100_000_000;
/// What one look lets a process start on its way.
const PIECES_PER_LOOK: usize = 2;

/// Who applies the law.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Sidecar {
    Live,
    /// Every second it does nothing for 0.7 s.
    Late,
    /// It is killed after a third of the time, and another one starts after two thirds.
    Dies,
    /// Each process by itself, and none knows of another. They start 2 ms apart.
    None,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    disk: u64,
    limit: u64,
    writers: usize,
    /// Bytes of one write call.
    call: u64,
    version: Version,
    sidecar: Sidecar,
    /// Anonymous memory from the beginning.
    anon: u64,
    /// As much more comes within 0.1 s after 3 s, and goes after 6 s.
    burst: u64,
    /// Reclaimable slab: grows to this within 4 s.
    slab: u64,
    /// memory.stat is that of so long ago, usage is not.
    stat_lag: Duration,
}

const USUAL: Case = Case {
    disk: 31_000_000,
    limit: 200_000_000,
    writers: 1,
    call: 64 << 10,
    version: Version::V1,
    sidecar: Sidecar::Live,
    anon: 0,
    burst: 0,
    slab: 0,
    stat_lag: Duration::ZERO,
};

/// What came of a case.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    /// Most by which usage was over what is promised, in bytes; negative: it stayed below.
    over: i64,
    /// What reached the disk, as a share of what it can write, after the first two seconds.
    throughput: f64,
    /// Least that was allowed after the first second, in bytes.
    least_allowed: u64,
}

#[derive(Clone, Default)]
struct Writer {
    /// Written and not sent.
    dirty: u64,
    /// Sent and not seen to arrive.
    sent: u64,
    /// Of that, what the disk has not written.
    in_flight: u64,
    clean: u64,
    confirmed: u64,
    window: u64,
    chunk: u64,
    held: bool,
    since_look: u64,
    refreshed: Option<Duration>,
    swept: Option<Duration>,
    published_owed: u64,
    published_confirmed: u64,
    published_holding: bool,
    alone: Alone,
}

/// What a process knows that goes by its own cgroup (`judge_own` in the library's region.rs, `speed.rs`).
#[derive(Clone, Default)]
struct Alone {
    judged: Option<Duration>,
    verdict: Option<law::Verdict>,
    unwritten: u64,
    owed: u64,
    speeds: [u64; 3],
    seconds: usize,
    from: Option<(Duration, u64)>,
}

impl Alone {
    fn speed(&self) -> Option<u64> {
        self.speeds.iter().copied().filter(|&speed| speed != 0).min()
    }

    fn measure(&mut self, now: Duration, holding: bool, confirmed: u64) {
        let (from, bytes) = *self.from.get_or_insert((now, confirmed));
        let since = now - from;
        if !holding || since > Duration::from_secs(2) {
            self.from = Some((now, confirmed));
        } else if since > Duration::from_secs(1) {
            self.speeds[self.seconds % 3] = ((confirmed - bytes) as f64 / since.as_secs_f64()) as u64;
            self.seconds += 1;
            self.from = Some((now, confirmed));
        }
    }
}

impl Writer {
    fn owed(&self) -> u64 {
        self.dirty + self.sent
    }

    fn is_filling(&self) -> bool {
        self.owed() >= self.window / 8 * 7
    }
}

/// What the kernel counts.
#[derive(Clone, Copy, Default)]
struct Kernel {
    anon: u64,
    slab: u64,
    dirty: u64,
    writeback: u64,
    clean: u64,
}

impl Kernel {
    fn unwritten(&self) -> u64 {
        self.dirty + self.writeback
    }

    fn usage(&self) -> u64 {
        self.anon + self.slab + self.unwritten() + self.clean
    }
}

struct World {
    case: Case,
    target: u64,
    now: Duration,
    kernel: Kernel,
    /// The kernel's counts of the last steps, the newest last.
    past: VecDeque<Kernel>,
    writers: Vec<Writer>,
    /// (writer, bytes), the oldest first.
    queue: VecDeque<(usize, u64)>,
    disk_left: f64,
    written: u64,
    noise: u64,
    speeds: Speeds,
    row: Option<Row>,
    last_look: Duration,
    due: Duration,
    last_beat: Duration,
    collected: u64,
    /// Sums over what the writers published.
    owed_sum: u64,
    held_count: usize,
    confirmed_sum: u64,
}

impl World {
    fn new(case: Case) -> World {
        World {
            case,
            target: Target::Percent(80).bytes(case.limit),
            now: Duration::ZERO,
            kernel: Kernel { anon: case.anon, ..Kernel::default() },
            past: VecDeque::new(),
            writers: vec![Writer::default(); case.writers],
            queue: VecDeque::new(),
            disk_left: 0.0,
            written: 0,
            noise: 1,
            speeds: Speeds::default(),
            row: None,
            last_look: Duration::ZERO,
            due: Duration::ZERO,
            last_beat: Duration::ZERO,
            collected: 0,
            owed_sum: 0,
            held_count: 0,
            confirmed_sum: 0,
        }
    }

    /// A level as its files say it: through the text that they hold, each count off by what the kernel keeps per CPU.
    fn level(&mut self) -> Level {
        let steps = (self.case.stat_lag.as_nanos() / STEP.as_nanos()) as usize;
        let then = self.past.len().checked_sub(1 + steps).map_or(self.kernel, |at| self.past[at]);
        let mut off = |count: u64| {
            self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (count + (self.noise >> 33) % (COUNTER_LAG / 2)).saturating_sub(COUNTER_LAG / 4)
        };
        let (anon, dirty, writeback) = (off(then.anon), off(then.dirty), off(then.writeback));
        let file = off(then.unwritten() + then.clean);
        let text = match self.case.version {
            Version::V1 => format!(
                "total_cache {file}\ntotal_rss {anon}\ntotal_shmem 0\ntotal_dirty {dirty}\ntotal_writeback {writeback}\n"
            ),
            Version::V2 => format!(
                "anon {anon}\nfile {file}\nshmem 0\nfile_dirty {dirty}\nfile_writeback {writeback}\nslab_reclaimable {}\n",
                then.slab
            ),
        };
        let stat = stat(text.as_bytes());
        let usage = self.kernel.usage();
        Level {
            limit: self.case.limit,
            target: self.target,
            usage,
            other: stat.other(self.case.version, usage, self.case.limit).unwrap(),
            unwritten: stat.unwritten().unwrap(),
        }
    }

    fn sidecar_is_up(&self, end: Duration) -> bool {
        match self.case.sidecar {
            Sidecar::Live => true,
            Sidecar::Late => self.now.subsec_millis() < 300,
            Sidecar::Dies => self.now < end / 3 || self.now > end * 2 / 3,
            Sidecar::None => false,
        }
    }

    /// What `Container::tick` does, by the same steps.
    fn look_of_the_sidecar(&mut self) {
        let elapsed = self.now - self.last_look;
        self.last_look = self.now;
        self.last_beat = self.now;
        let confirmed_bytes = self.confirmed_sum - self.collected;
        self.collected = self.confirmed_sum;
        let flow = Flow { confirmed_bytes, held: self.held_count > 0, owed_bytes: self.owed_sum };
        self.speeds.add(8, flow, elapsed, self.now);
        let level = self.level();
        let verdict = law::judge(&level, self.speeds.slowest_in_use());
        let row = Row {
            verdict,
            limit: level.limit,
            target: level.target,
            usage: level.usage,
            unwritten: level.unwritten,
            writeback: self.kernel.writeback,
            other: level.other,
            unowned: level.unwritten.saturating_sub(self.owed_sum),
            speed: self.speeds.slowest_in_use(),
            limit_hits: 0,
            peak_unwritten: 0,
        };
        self.due = self.now + until_half_full(headroom(&row)).min(IDLE);
        self.row = Some(row);
    }

    fn row_if_live(&self) -> Option<Row> {
        self.row.filter(|_| self.now - self.last_beat < Duration::from_millis(STALE_MS))
    }

    /// Whoever judges knows the disk's speed.
    fn is_measured(&self) -> bool {
        self.row_if_live().map_or(self.writers[0].alone.speed(), |row| row.speed).is_some()
    }

    /// The library's `region::refresh`.
    fn refresh(&mut self, index: usize) {
        let now = self.now;
        if self.writers[index].refreshed.is_some_and(|then| now - then < Duration::from_millis(5)) {
            return;
        }
        self.writers[index].refreshed = Some(now);
        let owed = self.writers[index].owed();
        let others_owed = self.owed_sum - self.writers[index].published_owed;
        let count = self.case.writers as u64;
        let share = match self.row_if_live() {
            Some(row) => law::share(row.verdict.allowed, row.unowned, count, others_owed, row.speed, 0),
            None => {
                if self.writers[index].alone.judged.is_none_or(|then| now - then >= Duration::from_millis(20)) {
                    let level = self.level();
                    let alone = &mut self.writers[index].alone;
                    alone.judged = Some(now);
                    alone.verdict = Some(law::judge(&level, alone.speed()));
                    alone.unwritten = level.unwritten;
                    alone.owed = owed;
                }
                let alone = &self.writers[index].alone;
                let allowed = alone.verdict.unwrap().allowed;
                if self.case.sidecar == Sidecar::None {
                    law::share_unseen(allowed, alone.unwritten, alone.owed, alone.speed(), 0)
                } else {
                    // the counters stay mapped, and the heartbeat's last tick with them
                    law::share(allowed, 0, count, others_owed, alone.speed(), 0)
                }
            }
        };
        (self.writers[index].window, self.writers[index].chunk) = (share.window, share.chunk);
    }

    fn verdict(&self, index: usize) -> Option<law::Verdict> {
        self.row_if_live().map(|row| row.verdict).or(self.writers[index].alone.verdict)
    }

    /// The library's `look_at_all`, for a process with one file.
    fn look(&mut self, index: usize) {
        self.refresh(index);
        let now = self.now;
        let drops = self.verdict(index).is_some_and(|verdict| verdict.drop);
        let writer = &mut self.writers[index];
        writer.since_look = 0;
        if writer.is_filling() {
            for _ in 0..PIECES_PER_LOOK {
                let is_due = writer.dirty >= writer.chunk || (writer.dirty >= PIECE_MIN && writer.sent == 0);
                if !is_due {
                    break;
                }
                let pieces = writer.dirty / writer.chunk;
                let bytes = if pieces < 2 { writer.dirty } else { writer.dirty / pieces };
                send(writer, index, bytes, &mut self.queue, &mut self.kernel);
            }
        }
        if writer.sent == 0 && writer.held {
            let bytes = writer.dirty;
            send(writer, index, bytes, &mut self.queue, &mut self.kernel);
        }
        let arrived = writer.sent - writer.in_flight;
        writer.sent -= arrived;
        writer.confirmed += arrived;
        writer.clean += arrived;
        if drops {
            let is_swept = writer.swept.is_none_or(|then| now - then >= Duration::from_millis(250));
            let gone = if is_swept { writer.clean } else { arrived };
            if is_swept {
                writer.swept = Some(now);
            }
            writer.clean -= gone;
            self.kernel.clean -= gone;
        }
        let (owed, holding) = (writer.owed(), writer.held);
        writer.alone.measure(now, holding, writer.confirmed);
        self.owed_sum = self.owed_sum - writer.published_owed + owed;
        self.confirmed_sum += writer.confirmed - writer.published_confirmed;
        self.held_count = self.held_count + usize::from(holding) - usize::from(writer.published_holding);
        (writer.published_owed, writer.published_confirmed, writer.published_holding) =
            (owed, writer.confirmed, holding);
    }

    /// What one program does in one step, if nobody holds it: calls, one after the other.
    fn write(&mut self, index: usize) {
        let call = self.case.call;
        let mut left = (MEMORY_BYTES_PER_S as f64 * STEP_S / self.case.writers as f64) as u64;
        left = left.max(call);
        if self.writers[index].held || self.writers[index].window == 0 {
            self.look(index);
        }
        while left >= call {
            let fits = |writer: &Writer| writer.owed() + call <= writer.window;
            if !fits(&self.writers[index]) {
                self.refresh(index);
            }
            if !fits(&self.writers[index]) {
                self.writers[index].held = true;
                self.look(index);
                let writer = &self.writers[index];
                let is_large = call > writer.window && writer.owed() <= writer.chunk;
                if !fits(writer) && !is_large {
                    return;
                }
            }
            let writer = &mut self.writers[index];
            writer.held = false;
            writer.dirty += call;
            writer.since_look += call;
            self.kernel.dirty += call;
            left -= call;
            if (writer.dirty >= writer.chunk && writer.is_filling()) || writer.since_look >= LOOK_BYTES {
                self.look(index);
            }
        }
    }

    fn disk(&mut self) {
        self.disk_left += self.case.disk as f64 * STEP_S;
        while let Some((index, bytes)) = self.queue.front_mut() {
            let done = (*bytes).min(self.disk_left as u64);
            if done == 0 {
                break;
            }
            *bytes -= done;
            self.disk_left -= done as f64;
            self.writers[*index].in_flight -= done;
            self.kernel.writeback -= done;
            self.kernel.clean += done;
            self.written += done;
            if *bytes == 0 {
                self.queue.pop_front();
            }
        }
        if self.queue.is_empty() {
            // a disk that had nothing to do does not catch up
            self.disk_left = 0.0;
        }
    }

    /// Anonymous memory that came at once.
    fn burst(&self, now: Duration) -> u64 {
        let since = now.as_secs_f64() - 3.0;
        let is_over = now > Duration::from_secs(6);
        if is_over { 0 } else { (self.case.burst as f64 * (since / 0.1).clamp(0.0, 1.0)) as u64 }
    }

    /// One step of all, in a run of that length.
    fn step(&mut self, end: Duration) {
        self.now += STEP;
        self.kernel.anon = self.case.anon + self.burst(self.now);
        self.kernel.slab = (self.case.slab as f64 * (self.now.as_secs_f64() / 4.0).min(1.0)) as u64;
        self.disk();
        if self.now >= self.due && self.sidecar_is_up(end) {
            if self.case.sidecar == Sidecar::Dies && self.now - self.last_look > Duration::from_secs(1) {
                // the next one knows nothing yet
                (self.speeds, self.last_look) = (Speeds::default(), self.now - STEP);
            }
            self.look_of_the_sidecar();
        }
        let turn = (self.now.as_nanos() / STEP.as_nanos()) as usize;
        // one process starts after the other
        let is_alone = self.case.sidecar == Sidecar::None;
        let begun = if is_alone { self.case.writers.min(turn) } else { self.case.writers };
        (0..begun).for_each(|index| self.write((index + turn) % begun));
        self.past.push_back(self.kernel);
        if self.past.len() > 1000 {
            self.past.pop_front();
        }
    }

    fn run(mut self) -> Outcome {
        let end = Duration::from_secs(8);
        let case = self.case;
        // the kernel's lag, a call of each writer, and what arrives before a process asks for its flags again (5 ms)
        let step = (self.case.disk as f64 * STEP_S) as u64;
        let allowance = COUNTER_LAG * 2 + self.case.writers as u64 * self.case.call + step * 5 / 2;
        let mut outcome = Outcome { over: i64::MIN, throughput: 0.0, least_allowed: u64::MAX };
        let (mut may_be_unwritten, mut written_before) = (u64::MAX, 0);
        let mut unmeasured = Duration::ZERO;
        while self.now < end {
            self.step(end);
            if self.now <= Duration::from_secs(2) {
                written_before = self.written;
            }

            // Promised: unwritten fits beside the rest, or, where a burst took its place, is on its way out at the
            // disk's speed. The kernel takes slab back by itself, so a tenth goes beside that.
            let Kernel { anon, slab, .. } = self.kernel;
            let tenth = (self.case.limit / 10).min(self.target.saturating_sub(anon));
            let room = self.target.saturating_sub(anon + slab).max(if slab > 0 { tenth } else { 0 }).max(MIN_ALLOWED);
            may_be_unwritten = if may_be_unwritten == u64::MAX { room } else { may_be_unwritten };
            may_be_unwritten = room.max(may_be_unwritten.saturating_sub(step / 5 * 4));
            let grown = anon - case.anon - self.burst(self.now.saturating_sub(ANSWER)).min(anon - case.anon);
            let most = self.target.max(anon + slab + may_be_unwritten) + allowance + grown;
            // before it was measured, a fast disk may fill the rest with what is clean, which the kernel takes back
            if !self.is_measured() {
                unmeasured = self.now;
            }
            let counts_all = case.disk < FAST || self.now > unmeasured + ANSWER;
            let held = self.kernel.usage() - if counts_all { 0 } else { self.kernel.clean };
            outcome.over = outcome.over.max(held as i64 - most as i64);
            if self.now > Duration::from_secs(1)
                && let Some(verdict) = self.verdict(0)
            {
                outcome.least_allowed = outcome.least_allowed.min(verdict.allowed);
            }
        }
        let seconds = (end - Duration::from_secs(2)).as_secs_f64();
        outcome.throughput = (self.written - written_before) as f64 / seconds / self.case.disk as f64;
        outcome
    }
}

fn send(writer: &mut Writer, index: usize, bytes: u64, queue: &mut VecDeque<(usize, u64)>, kernel: &mut Kernel) {
    if bytes > 0 {
        writer.dirty -= bytes;
        writer.sent += bytes;
        writer.in_flight += bytes;
        kernel.dirty -= bytes;
        kernel.writeback += bytes;
        queue.push_back((index, bytes));
    }
}

/// Runs all, and says which broke what is promised.
fn check(cases: impl IntoIterator<Item = Case>) {
    let mut broken = Vec::new();
    let (mut count, mut worst, mut slowest) = (0, i64::MIN, f64::MAX);
    for case in cases {
        let outcome = World::new(case).run();
        count += 1;
        worst = worst.max(outcome.over);
        // A held call looks every 2 ms: of a disk that empties the whole window sooner it gets a window in that time.
        let fastest = outcome.least_allowed as f64 / 4.0 / 0.004;
        let want = 0.95f64.min(fastest / case.disk as f64 * 0.95);
        slowest = slowest.min(outcome.throughput / (want / 0.95));
        if outcome.over > 0 || outcome.throughput < want {
            broken.push(format!(
                "over by {:.1} MiB, {:.3} of the disk, at least {:.1} MiB allowed: {case:?}",
                outcome.over as f64 / MIB as f64,
                outcome.throughput,
                outcome.least_allowed as f64 / MIB as f64
            ));
        }
    }
    println!(
        "{count} cases: usage at most {:.1} MiB over its bound, at least {slowest:.3} of what the disk can",
        worst as f64 / MIB as f64
    );
    assert!(broken.is_empty(), "{} of {count}:\n{}", broken.len(), broken.join("\n"));
}

const DISKS: [u64; 4] = [5_000_000, 31_000_000, 500_000_000, 5_000_000_000];
const LIMITS: [u64; 4] = [64 * MIB, 200_000_000, 2 << 30, 64 << 30];

#[test]
fn disks_limits_and_writers() {
    let cases = DISKS.into_iter().flat_map(|disk| LIMITS.map(|limit| (disk, limit)));
    check(cases.flat_map(|(disk, limit)| [1, 7, 40].map(|writers| Case { disk, limit, writers, ..USUAL })));
}

#[test]
fn a_thousand_writers() {
    let cases =
        [(5_000_000, 64 * MIB), (31_000_000, 200_000_000), (1_000_000_000, 200_000_000), (1_000_000_000, 8 << 30)];
    check(cases.map(|(disk, limit)| Case { disk, limit, writers: 1000, ..USUAL }));
}

#[test]
fn late_dead_and_no_sidecars() {
    let sidecars = [Sidecar::Late, Sidecar::Dies, Sidecar::None];
    let cases = [5_000_000, 31_000_000, 1_000_000_000].into_iter().flat_map(|disk| {
        [64 * MIB, 200_000_000, 8 << 30]
            .into_iter()
            .flat_map(move |limit| [1, 7, 100].map(|writers| (disk, limit, writers)))
    });
    check(cases.flat_map(|(disk, limit, writers)| {
        sidecars.map(|sidecar| Case { disk, limit, writers, sidecar, version: Version::V2, ..USUAL })
    }));
}

#[test]
fn bursts_of_anonymous_memory() {
    let cases = [(200_000_000, 10), (200_000_000, 60), (8 << 30, 30)].into_iter().flat_map(|(limit, anon)| {
        // what is left for it after a burst: much, little, nothing
        [20, 5, 0].map(|left| (limit, limit / 100 * anon, limit / 100 * (80 - anon) - limit / 100 * left))
    });
    check(cases.flat_map(|(limit, anon, burst)| {
        [(5_000_000, 1), (31_000_000, 7), (1_000_000_000, 1)].into_iter().flat_map(move |(disk, writers)| {
            [Sidecar::Live, Sidecar::Dies, Sidecar::None].map(|sidecar| Case {
                disk,
                limit,
                writers,
                anon,
                burst,
                sidecar,
                ..USUAL
            })
        })
    }));
}

#[test]
fn counts_that_lag() {
    let cases =
        [5_000_000, 31_000_000, 1_000_000_000].into_iter().flat_map(|disk| [1, 7].map(|writers| (disk, writers)));
    check(cases.flat_map(|(disk, writers)| {
        [(Version::V1, 100), (Version::V2, 100), (Version::V2, 500)].into_iter().flat_map(move |(version, lag)| {
            let stat_lag = Duration::from_millis(lag);
            [Case { disk, writers, version, stat_lag, ..USUAL }]
        })
    }));
}

#[test]
fn reclaimable_slab_does_not_shrink_the_window() {
    for version in [Version::V1, Version::V2] {
        for limit in [200_000_000, 1 << 30] {
            let case = Case { limit, version, anon: limit / 10, slab: limit / 100 * 60, ..USUAL };
            let outcome = World::new(case).run();
            assert!(outcome.least_allowed >= limit / 10, "{version:?}, {limit}: {outcome:?}");
            check([case]);
        }
    }
}

#[test]
fn calls_larger_than_a_window() {
    let cases = [MIB, 16 * MIB].into_iter().flat_map(|call| [1, 7].map(|writers| (call, writers)));
    check(cases.map(|(call, writers)| Case { limit: 1 << 30, call, writers, ..USUAL }));
}

#[test]
fn the_run_that_a_real_one_is_held_against() {
    let case = Case { disk: curve::DISK, limit: curve::LIMIT, call: curve::CALL, anon: curve::OWN, ..USUAL };
    let (mut world, end) = (World::new(case), Duration::from_secs(30));
    let mut moments = Vec::new();
    let written = |world: &World| world.writers.iter().map(|writer| writer.owed() + writer.confirmed).sum::<u64>();
    while written(&world) < curve::WRITTEN && world.now < end {
        world.step(end);
        let (usage, unwritten) = (world.kernel.usage(), world.kernel.unwritten());
        moments.push(Moment { at: world.now, usage, unwritten });
    }
    Curve::of(&moments).assert_within(0.01, &curve::simulated());
}
