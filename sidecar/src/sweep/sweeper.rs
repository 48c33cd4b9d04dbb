//! One pass: the files that were in use at the last one, then the walk, until the pass's time or work is used up.

use super::known::{Known, SETTLE, Stamp};
use super::openers::{Identity, Openers, RARELY};
use super::pages::{Pages, Piece};
use super::reads::{Reads, Rules};
use super::walk::{Found, Step, Volume, Walk, reach};
use super::{Counted, PASS, Pressure, is_told_to_end, plan, processor_time};
use crate::leases::Leases;
use crate::service::now;
use rustix::fd::OwnedFd;
use rustix::fs::{Stat, fstat};
use rustix::param::page_size;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// What one pass may do; the time is a processor's, and that of the clock.
const MOST_TIME: Duration = Duration::from_millis(20);
const MOST_WALL: Duration = Duration::from_millis(100);
const MOST_ENTRIES: usize = 2000;
/// A file of which so much is on its way to the disk is sent no more of.
const MOST_FLUSHED: u64 = 64 * MIB;
const MOST_DROPPED: u64 = 256 * MIB;
/// Files of which something is known. One takes about 300 bytes.
const MOST_KNOWN: usize = 4096;
/// So many are forgotten at once where there are more.
const FORGOTTEN_AT_ONCE: usize = MOST_KNOWN / 8;
/// Where files are forgotten, one may go at its first look when it has not changed for so long: there may be no second.
const OLD: Duration = Duration::from_secs(30);
/// But not so soon after it was forgotten itself.
const RECENTLY: Duration = Duration::from_secs(60);
/// Files of which that is known. While there are more, none goes at its first look.
const MOST_FORGOTTEN: usize = 1 << 16;
/// Files that are visited at each pass, before the walk goes on: a walk through millions takes minutes.
const MOST_IN_USE: usize = 64;
/// Longest rest after a walk that found nothing.
const LONGEST_REST: Duration = Duration::from_secs(2);
/// Time between two walks while no container is near its target, and [`RARELY`] times as long as it kept a processor busy.
const UNHURRIED: Duration = Duration::from_secs(1);
/// The clock that files' times are taken from stands still for up to so long.
const COARSE: Duration = Duration::from_millis(10);
/// The walk's directories stay open for so long after a container was near its target.
const KEEP_PLACE: Duration = Duration::from_secs(10);
/// A range that is partly unwritten is dropped only for so much: what cannot go has the kernel empty a list on every
/// processor (`lru_add_drain_all`).
const WORTH_IT: u64 = 4 * MIB;
/// What a file needs to be written whose pages cannot be counted, before they are dropped.
const WRITTEN_AFTER: Duration = Duration::from_secs(1);

/// The sweep's state between passes.
#[derive(Debug)]
pub struct Sweeper {
    rules: Rules,
    walk: Walk,
    walk_due: Duration,
    unhurried_due: Duration,
    /// When the walk that goes on began, and the last one that came to its end.
    began: Option<Moment>,
    walked: Option<Moment>,
    rest: Duration,
    /// The walk that goes on has found something to do.
    has_found: bool,
    known: HashMap<Identity, Known>,
    /// Cached files that were forgotten, and when.
    forgotten: HashMap<Identity, Duration>,
    last_forgotten: Option<Duration>,
    /// Their paths, and where they lie.
    in_use: HashMap<Identity, (Vec<u8>, Volume)>,
    last_pressed: Duration,
    counted: Arc<Counted>,
}

/// By the monotonic clock, and since 1970.
#[derive(Clone, Copy, Debug)]
struct Moment {
    now: Duration,
    clock: Duration,
}

/// One pass.
struct Pass<'a> {
    now: Duration,
    /// Since 1970.
    clock: Duration,
    pressure: Pressure,
    openers: &'a Openers,
    until: Duration,
    stop: &'a OwnedFd,
    leases: Leases,
    flush_bytes: u64,
    drop_bytes: u64,
}

impl Pass<'_> {
    /// Whether it has taken long enough, whatever it waited for, or all is to end.
    fn is_over(&self) -> bool {
        now() > self.until || is_told_to_end(self.stop, Duration::ZERO)
    }
}

impl Sweeper {
    /// Nothing is known yet.
    pub fn new(patterns: &[String], rules: Rules, counted: Arc<Counted>) -> Sweeper {
        Sweeper {
            rules,
            walk: Walk::new(patterns),
            walk_due: Duration::ZERO,
            unhurried_due: Duration::ZERO,
            began: None,
            walked: None,
            rest: PASS,
            has_found: false,
            known: HashMap::new(),
            forgotten: HashMap::new(),
            last_forgotten: None,
            in_use: HashMap::new(),
            last_pressed: Duration::ZERO,
            counted,
        }
    }

    /// No container is near its target: what matters only then is forgotten.
    fn rest(&mut self, now: Duration) {
        if now.saturating_sub(self.last_pressed) > KEEP_PLACE {
            self.known.retain(|_, known| known.reads.is_some() || known.rest(now));
            self.forgotten = HashMap::new();
            if self.rules.are_none() {
                self.walk.reset();
                self.began = None;
                self.known.shrink_to_fit();
                self.in_use = HashMap::new();
            }
        }
    }

    /// Visits files, from a moment ago on (`at`); where there is no pressure, those that are read once.
    pub fn pass(&mut self, at: Duration, pressure: Pressure, openers: &Openers, stop: &OwnedFd) {
        if pressure > Pressure::None {
            self.last_pressed = at;
        } else {
            self.rest(at);
            if self.rules.are_none() {
                return;
            }
        }
        let mut pass = Pass {
            now: at,
            clock: Duration::try_from(clock_gettime(ClockId::Realtime)).unwrap_or_default(),
            pressure,
            openers,
            until: now() + MOST_WALL,
            stop,
            leases: Leases::default(),
            flush_bytes: MOST_FLUSHED,
            drop_bytes: MOST_DROPPED,
        };
        for (id, (path, volume)) in std::mem::take(&mut self.in_use) {
            if pass.is_over() {
                self.in_use.insert(id, (path, volume));
                continue;
            }
            let found = reach(&path).and_then(|place| Ok((fstat(&place)?, place)));
            if let Ok((stat, place)) = found
                && volume.holds(&place, &stat)
            {
                self.visit(Found { place, stat, path, volume }, &mut pass);
            }
        }
        let due = if pressure > Pressure::None { self.walk_due } else { self.unhurried_due };
        if at < due {
            return;
        }
        let busy = processor_time();
        let mut rest = Duration::ZERO;
        for _ in 0..MOST_ENTRIES {
            self.began.get_or_insert(Moment { now: at, clock: pass.clock });
            match self.walk.step() {
                Step::File(found) => self.has_found |= self.visit(found, &mut pass),
                Step::Other => {}
                Step::End => {
                    self.walked = self.began.take();
                    let found = std::mem::take(&mut self.has_found);
                    if pressure > Pressure::None {
                        self.rest = if found { PASS } else { (self.rest * 2).min(LONGEST_REST) };
                        self.walk_due = at + self.rest;
                    }
                    rest = UNHURRIED;
                    break;
                }
            }
            if processor_time().saturating_sub(busy) > MOST_TIME || pass.drop_bytes == 0 || pass.is_over() {
                break;
            }
        }
        self.unhurried_due = at + rest.max(processor_time().saturating_sub(busy) * RARELY);
    }

    /// Returns whether there was something to do that was not done a moment ago.
    fn visit(&mut self, found: Found, pass: &mut Pass) -> bool {
        let id = Identity { dev: found.stat.st_dev, ino: found.stat.st_ino };
        let is_read_once = self.rules.mean(&found.path);
        if pass.pressure == Pressure::None && !is_read_once {
            return false;
        }
        let is_fresh = self.known.get(&id).is_some_and(|known| pass.now.saturating_sub(known.looked) < PASS / 2);
        // to open a file with a lease breaks it
        if is_fresh || found.stat.st_size <= 0 || !pass.leases.may_open(id.ino) {
            return false;
        }
        let pages = match Pages::open(&found.place) {
            Ok(pages) => pages,
            Err(error) => {
                self.walk.failed(error, &found.path);
                return false;
            }
        };
        let bytes = found.stat.st_size.cast_unsigned();
        let pieces = if found.volume.is_layered { None } else { pages.pieces(bytes).ok() };
        if pieces.as_ref().is_some_and(Vec::is_empty) {
            if let Some(reads) = self.known.get_mut(&id).and_then(|known| known.reads.as_mut()) {
                reads.look(&[], false, pass.now);
            }
            return false;
        }
        if pieces.is_none() && pass.pressure == Pressure::None {
            return false;
        }
        // what cannot be counted needs a second look
        if pieces.is_none() && !self.known.contains_key(&id) && self.is_crowded(pass.now) {
            return false;
        }
        let modified = (found.stat.st_mtime, i64::try_from(found.stat.st_mtime_nsec).unwrap_or(0));
        let written = Duration::new(u64::try_from(modified.0).unwrap_or(0), u32::try_from(modified.1).unwrap_or(0));
        // a server's clock may be ahead
        let age = pass.clock.abs_diff(written);
        let stamp = Stamp { bytes, modified };
        let (mut known, has_changed, is_new) = match self.known.remove(&id) {
            Some(mut known) => {
                let has_changed = known.look(stamp, pass.now);
                (known, has_changed, false)
            }
            None => (Known::new(stamp, pass.now, age), age < SETTLE, true),
        };
        if let Some(pieces) = pieces.as_ref().filter(|_| is_read_once) {
            let may_be_others = if is_new { !self.was_seen_uncached(&found.stat) } else { has_changed };
            known.reads.get_or_insert_with(|| Box::new(Reads::new(pass.now))).look(pieces, may_be_others, pass.now);
        }
        if self.known.len() >= MOST_KNOWN {
            self.forget(pass.now);
        }
        let at_once = is_new && age > OLD && self.may_go_at_once(id, pass.now);
        let mut visit = Visit { pages, pass, known: &mut known, counted: &self.counted, bytes, has_changed };
        let readers = visit.pass.openers.readers(id);
        let is_in_use = match pieces {
            Some(pieces) if visit.pass.pressure == Pressure::None => visit.behind_readers(&pieces, &readers),
            Some(pieces) => visit.seen(&pieces, &readers, at_once),
            None => visit.unseen(&readers),
        };
        if is_in_use && self.in_use.len() < MOST_IN_USE {
            self.in_use.insert(id, (found.path, found.volume));
        }
        self.known.insert(id, known);
        is_in_use
    }

    /// Makes room for others: those go that were read again least often, and of these whose last look is longest ago.
    fn forget(&mut self, now: Duration) {
        self.forgotten.retain(|_, at| is_recent(*at, now));
        self.known.values_mut().for_each(|known| known.cool(now));
        let mut all: Vec<_> = self.known.iter().map(|(&id, known)| (known.worth(), id)).collect();
        all.sort_unstable_by_key(|&(worth, _)| worth);
        for ((_, looked), id) in all.into_iter().take(FORGOTTEN_AT_ONCE) {
            self.known.remove(&id);
            if is_recent(looked, now) && self.forgotten.len() < MOST_FORGOTTEN {
                self.forgotten.insert(id, now);
                self.last_forgotten = Some(now);
            }
        }
    }

    /// Whether the last walk met a file of which nothing is known, as it is now: then nothing of it was cached.
    fn was_seen_uncached(&self, stat: &Stat) -> bool {
        let changed =
            Duration::new(u64::try_from(stat.st_ctime).unwrap_or(0), u32::try_from(stat.st_ctime_nsec).unwrap_or(0));
        self.walked
            .is_some_and(|walk| changed + COARSE < walk.clock && self.last_forgotten.is_none_or(|at| at < walk.now))
    }

    /// Whether there are more cached files than are remembered.
    fn is_crowded(&self, now: Duration) -> bool {
        self.last_forgotten.is_some_and(|at| is_recent(at, now))
    }

    /// Whether a file that is new here may go, though it may be somebody's who reads it.
    fn may_go_at_once(&self, id: Identity, now: Duration) -> bool {
        let was_known = self.forgotten.get(&id).is_some_and(|&at| is_recent(at, now));
        self.is_crowded(now) && self.forgotten.len() < MOST_FORGOTTEN && !was_known
    }
}

fn is_recent(at: Duration, now: Duration) -> bool {
    now.saturating_sub(at) < RECENTLY
}

/// One file at one pass.
struct Visit<'a, 'b> {
    pages: Pages,
    pass: &'a mut Pass<'b>,
    known: &'a mut Known,
    counted: &'a Counted,
    bytes: u64,
    has_changed: bool,
}

impl Visit<'_, '_> {
    /// The end of what may be sent and dropped, and whether the file grows: its tail stays then.
    fn end(&self) -> (u64, bool) {
        match self.known.tail(self.pass.now, self.has_changed, self.pass.pressure) {
            0 => (self.bytes.next_multiple_of(page_size() as u64), false),
            tail => (plan::down(self.bytes.saturating_sub(tail)), true),
        }
    }

    fn back_off(&mut self) {
        self.known.back_off(self.pass.now);
        self.counted.back_offs.fetch_add(1, Relaxed);
    }

    /// Leaves it alone for longer where what was dropped has been read again.
    fn take_its_heat(&mut self, readers: &[u64]) {
        self.known.meet(readers, self.pass.now);
        let pages = &self.pages;
        let cached = |range: &Range<u64>| pages.stat(range).map_or(0, |stat| stat.cached);
        if self.known.was_touched(cached) {
            self.back_off();
        } else {
            self.known.cool(self.pass.now);
        }
    }

    /// Drops what was read once. Returns whether to come again soon.
    fn behind_readers(&mut self, pieces: &[Piece], readers: &[u64]) -> bool {
        self.take_its_heat(readers);
        let (end, _) = self.end();
        let looked = self.pass.openers.looked;
        let Some(reads) = self.known.reads.as_ref().filter(|_| !self.known.is_quiet(self.pass.now)) else {
            return false;
        };
        let is_under_way = reads.are_under_way(looked, self.pass.now);
        let ranges = reads.may_go(end, readers, looked, self.pass.now);
        self.drop_or_back_off(pieces, &ranges) > 0 || is_under_way
    }

    /// Sends and drops what the page cache holds. Returns whether to come again soon.
    fn seen(&mut self, pieces: &[Piece], readers: &[u64], at_once: bool) -> bool {
        self.take_its_heat(readers);
        let (end, is_growing) = self.end();
        // the last page of a file that grows is written to again
        let page = page_size() as u64;
        let sent = self.send(pieces, if is_growing { self.bytes / page * page } else { end });
        let front = pieces.last().map(|piece| (piece.range.start, piece.stat.cached));
        let moving = self.known.moving_front(front).filter(|_| !is_growing && !at_once);
        let mut dropped = 0;
        if !self.known.is_quiet(self.pass.now) {
            let pressure = if self.known.is_spared(self.pass.now) { Pressure::Near } else { self.pass.pressure };
            let ranges = plan::may_go(end.min(moving.unwrap_or(end)), readers, pressure);
            dropped = self.drop_or_back_off(pieces, &ranges);
        }
        let left: u64 = pieces.iter().map(|piece| piece.stat.cached).sum::<u64>().saturating_sub(dropped);
        let is_large = left * page_size() as u64 > MIB && !self.known.is_quiet(self.pass.now);
        sent > 0 || dropped > 0 || moving.is_some() || self.has_changed || is_large
    }

    /// Starts writeback before `end`; returns how many pages are on their way.
    fn send(&mut self, pieces: &[Piece], end: u64) -> u64 {
        let page = page_size() as u64;
        let mut under_way: u64 = pieces.iter().map(|piece| piece.stat.writeback).sum();
        let mut pages = 0;
        for Piece { range, stat } in pieces {
            let range = range.start..range.end.min(end);
            if stat.dirty == 0 || range.is_empty() {
                continue;
            }
            // the call would wait for room in the disk's queue
            if self.pass.flush_bytes == 0 || under_way * page >= MOST_FLUSHED || self.pass.is_over() {
                break;
            }
            let Ok(before) = self.pages.stat(&range) else { break };
            self.pages.send(&range);
            let after = self.pages.stat(&range).unwrap_or(before);
            let sent = before.dirty.saturating_sub(after.dirty);
            let bytes = sent * page;
            under_way += sent;
            self.pass.flush_bytes = self.pass.flush_bytes.saturating_sub(bytes);
            self.counted.flushed_bytes.fetch_add(bytes, Relaxed);
            pages += sent;
        }
        pages
    }

    /// Gives clean pages back, or leaves the file alone for longer where none would go: it is mapped, or locked in
    /// memory. Returns how many went.
    fn drop_or_back_off(&mut self, pieces: &[Piece], ranges: &[Range<u64>]) -> u64 {
        let (tried, dropped) = self.drop_ranges(pieces, ranges);
        if tried > 0 && dropped == 0 {
            self.back_off();
        }
        dropped
    }

    /// Gives clean pages back; returns how many there were and how many went.
    fn drop_ranges(&mut self, pieces: &[Piece], ranges: &[Range<u64>]) -> (u64, u64) {
        let page = page_size() as u64;
        let (mut tried, mut dropped) = (0, 0);
        for piece in pieces {
            for range in ranges {
                let range = range.start.max(piece.range.start)..range.end.min(piece.range.end);
                if range.is_empty() || self.pass.drop_bytes == 0 || self.pass.is_over() {
                    continue;
                }
                let Ok(before) = self.pages.stat(&range) else { continue };
                let unwritten = before.dirty + before.writeback;
                let clean = before.cached.saturating_sub(unwritten);
                if clean == 0 || unwritten > 0 && clean * page < WORTH_IT {
                    continue;
                }
                self.pages.give_back(&range);
                let after = self.pages.stat(&range).unwrap_or(before);
                let went = before.cached.saturating_sub(after.cached);
                if went > 0 {
                    self.known.dropped(range);
                    self.pass.drop_bytes = self.pass.drop_bytes.saturating_sub(went * page);
                    self.counted.dropped_bytes.fetch_add(went * page, Relaxed);
                }
                tried += clean;
                dropped += went;
            }
        }
        // what would not go is no sign of a reader
        let pages = &self.pages;
        self.known.was_touched(|range| pages.stat(range).map_or(0, |stat| stat.cached));
        (tried, dropped)
    }

    /// Sends each range once and drops it twice, as the file grows: nobody says what of it is cached, and so nobody
    /// would say that it was read again. Returns whether to come again soon.
    fn unseen(&mut self, readers: &[u64]) -> bool {
        let (end, _) = self.end();
        let mut progress = self.known.unseen;
        if let Some(written_to) = progress.written(self.pass.now, WRITTEN_AFTER) {
            let ranges = plan::may_go(written_to.min(end), readers, self.pass.pressure);
            let from_the_start = ranges.first().filter(|range| range.start == 0);
            if let Some(part) = from_the_start.and_then(|range| progress.give_back(range.end)) {
                self.pages.give_back(&part);
            }
        } else if self.pass.flush_bytes > 0
            && let Some(part) = progress.send(end, MOST_FLUSHED, self.pass.now)
            && !part.is_empty()
        {
            self.pages.send(&part);
            self.pass.flush_bytes = self.pass.flush_bytes.saturating_sub(part.end - part.start);
        }
        self.known.unseen = progress;
        progress.is_under_way() || self.has_changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::notify::cachestat;
    use freeboard_config::Workload;
    use rustix::fd::AsFd;
    use rustix::fs::{Advice, fadvise};
    use std::fs::{self, File};

    fn file(ino: u64) -> Identity {
        Identity { dev: 1, ino }
    }

    #[test]
    fn what_is_hot_is_forgotten_last_and_what_was_forgotten_is_not_dropped_at_once() {
        let at = |seconds| Duration::from_secs(1000 + seconds);
        let mut sweeper = Sweeper::new(&[], Rules::default(), Arc::default());
        let count = MOST_KNOWN as u64;
        for ino in 0..count {
            let mut known = Known::new(Stamp::default(), at(ino / 512), OLD);
            if ino < 512 {
                known.back_off(at(8));
            }
            sweeper.known.insert(file(ino), known);
        }
        assert!(!sweeper.may_go_at_once(file(count), at(8)), "all that is cached is known");
        sweeper.forget(at(8));
        let knows = |ino| sweeper.known.contains_key(&file(ino));
        assert!((0..512).all(knows), "hot");
        let later = 512 + FORGOTTEN_AT_ONCE as u64;
        assert!(!(512..later).any(knows), "the oldest");
        assert!((later..count).all(knows));
        assert!(sweeper.may_go_at_once(file(count), at(8)));
        assert!(!sweeper.may_go_at_once(file(512), at(67)), "forgotten a moment ago");
        // what was not cached for long is forgotten without more
        sweeper.forget(at(200));
        assert!(!sweeper.may_go_at_once(file(count), at(200)));
        assert!(sweeper.forgotten.is_empty());
    }

    #[test]
    fn heat_outlasts_a_rest() {
        let mut sweeper = Sweeper::new(&[], Rules::default(), Arc::default());
        let [cold, mut hot] = [(); 2].map(|()| Known::new(Stamp::default(), Duration::ZERO, OLD));
        hot.back_off(Duration::from_secs(10));
        sweeper.known.extend([(file(1), cold), (file(2), hot)]);
        sweeper.rest(KEEP_PLACE);
        assert_eq!(sweeper.known.len(), 2);
        sweeper.rest(KEEP_PLACE + Duration::from_secs(1));
        assert_eq!(sweeper.known.keys().collect::<Vec<_>>(), [&file(2)]);
        sweeper.rest(Duration::from_secs(14));
        assert!(sweeper.known.is_empty());
    }

    /// By a clock of its own, and what the kernel says is cached.
    #[test]
    fn what_was_read_goes_without_pressure_and_what_was_there_or_written_stays() {
        const BYTES: usize = 1 << 20;
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str| {
            fs::write(path(name), vec![1; BYTES]).unwrap();
            File::open(path(name)).unwrap().sync_all().unwrap();
        };
        let cached = |name: &str| cachestat(File::open(path(name)).unwrap().as_fd()).unwrap().cached * 4096;
        for name in ["read", "there", "excepted"] {
            write(name);
        }
        fadvise(File::open(path("read")).unwrap(), 0, None, Advice::DontNeed).unwrap();
        assert_eq!(cached("read"), 0);
        let workload = format!(
            "[[rule]]\npath = {:?}\nmode = \"auto\"\n[[rule]]\npath = {:?}\nreads = \"drop-behind\"\n[sweep]\npaths = [{:?}]",
            path("excepted"),
            path("*"),
            path("**")
        );
        let workload = Workload::parse(&workload, "text").unwrap();
        let mut sweeper = Sweeper::new(&workload.sweep.paths, Rules::of(&workload), Arc::default());
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let mut openers = Openers::default();
        let mut pass = |seconds| {
            openers.looked = Duration::from_secs(seconds);
            sweeper.pass(Duration::from_secs(seconds), Pressure::None, &openers, &stop);
        };
        std::thread::sleep(COARSE * 2);
        pass(100);
        fs::read(path("read")).unwrap();
        write("written");
        pass(200);
        assert_eq!(cached("read"), BYTES as u64, "it may be read still");
        pass(300);
        assert_eq!(cached("read"), 0);
        for name in ["there", "excepted", "written"] {
            assert_eq!(cached(name), BYTES as u64, "{name}");
        }
        // somebody needs it again and again
        fs::read(path("read")).unwrap();
        pass(400);
        assert_eq!(cached("read"), BYTES as u64);
        assert_eq!(sweeper.counted.back_offs.load(Relaxed), 1);
    }

    #[test]
    fn a_pass_ends_when_it_is_told_to() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        for n in 0..100 {
            fs::write(dir.path().join(n.to_string()), "x").unwrap();
        }
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let visited = |word: u64| {
            rustix::io::write(&stop, &word.to_ne_bytes()).unwrap();
            let mut sweeper = Sweeper::new(&[format!("{}/**", dir.path().display())], Rules::default(), Arc::default());
            sweeper.pass(now(), Pressure::Near, &Openers::default(), &stop);
            sweeper.known.len()
        };
        assert!((0..100).any(|_| visited(0) > 1), "its time is never up at once");
        assert!(visited(1) <= 1);
    }
}
