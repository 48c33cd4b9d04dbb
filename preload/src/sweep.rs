//! What no hook sees: stores to mappings, io_uring, AIO, and the system calls that Go makes by itself.
//!
//! A process that does one of these has its files looked at by the [`helper`]'s thread, which has a descriptor table of
//! its own: where the group has more unwritten than all ledgers explain, the files that are open for writing or mapped
//! so are opened once more, and kept open while something is found in them. What is dirty of them, and not owed by a
//! ledger already, is owed by the process from then on, and is sent on its way early: stores to a mapping cannot be
//! held back, and Go's calls only by the launcher (`freeboard run`). What is submitted to a queue is held back until
//! the disk has taken enough of it.
//!
//! Nothing starts in a process that does none of these, or that has no limit; where there is one later, it starts with
//! the next call that looks. It ends with the last mapping where there are only mappings. Where the thread had to leave
//! (setuid, unshare), it is made anew after that call. A child of fork has none until it gives a reason by itself.
//!
//! No call here carries a WAIT flag or is a sync: the errors of writeback stay the application's.

use crate::flush::magic;
use crate::ledger::{self, PAGE, TOTALS};
use crate::{apart, files, group, helper, pace, process, region, seccomp, sys};
use core::ffi::CStr;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use freeboard_budget::Mode;
use freeboard_budget::law::COUNTER_LAG;
use libc::c_int;

/// Less that is mapped, one after another or at once, is not worth a thread.
const MAPPING_BYTES: u64 = 1 << 20;
/// Shortest time between two looks, and the longest where nothing was found for long.
const BUSY_NS: u64 = 5_000_000;
const IDLE_NS: u64 = 1_000_000_000;
/// Least time between two walks while something is found.
const WALK_NS: u64 = 200_000_000;
/// Walks take at most one part in this many of the time.
const WALKS_SHARE: u64 = 16;
/// Time between two times that pages are given back: what cannot be makes every processor empty its list of new pages.
const GIVING_BACK_NS: u64 = 20_000_000;
/// Files that one walk looks at; the next one goes on behind them.
const FILES: usize = 64;
/// Longest wait for a thread that is leaving.
const LEAVING_MS: u32 = 20;
/// Files that are kept open.
const KEPT: usize = 16;

/// What the process does unseen: bits of [`REASONS`].
const MAPS: u8 = 1;
const CALLS: u8 = 2;

static REASONS: AtomicU8 = AtomicU8::new(0);
/// Bytes of files that were mapped so that stores reach them.
static MAPPED: AtomicU64 = AtomicU64::new(0);
/// Such mappings were made that may not be stored to yet.
static MAY_BE_OPENED: AtomicBool = AtomicBool::new(false);
/// The thread looks after them.
static IS_SWEPT: AtomicBool = AtomicBool::new(false);
/// The program was compiled by Go.
static IS_GO: AtomicBool = AtomicBool::new(false);
/// It cannot be done in this process.
static UNAVAILABLE: AtomicBool = AtomicBool::new(false);
/// What the last look found: unwritten and in no other account of the ledger.
static FOUND: AtomicU64 = AtomicU64::new(0);
static FOUND_AT: AtomicU64 = AtomicU64::new(0);
/// What was sent by these looks, and was still on its way after the last one.
static SENT: AtomicU64 = AtomicU64::new(0);
/// What of [`FOUND`] is not waited for any more.
static FORGIVEN: AtomicU64 = AtomicU64::new(0);
static LOOKED_AT: AtomicU64 = AtomicU64::new(0);
/// Somebody submits, and the last look was a while ago.
static IS_ASKED: AtomicBool = AtomicBool::new(false);

/// A child of fork has no reason yet, and owes nothing.
pub fn reset() {
    REASONS.store(0, Relaxed);
    IS_SWEPT.store(false, Relaxed);
    MAY_BE_OPENED.store(false, Relaxed);
    for word in [&FOUND, &SENT, &FORGIVEN, &MAPPED] {
        word.store(0, Relaxed);
    }
}

/// The disk makes no progress: what was found is not waited for any more.
pub fn forget() {
    let found = FOUND.swap(0, AcqRel);
    FORGIVEN.fetch_add(found, Relaxed);
    ledger::credit(found);
}

/// A filter forbids what it takes.
pub fn give_up() {
    UNAVAILABLE.store(true, Relaxed);
}

/// The program was compiled by Go. From the constructor.
pub fn set_go() {
    IS_GO.store(true, Relaxed);
}

/// Was it?
pub fn is_go() -> bool {
    IS_GO.load(Relaxed)
}

/// The process has mapped so many bytes of a file, to be written to or not. Go's runtime takes memory by calls that are
/// seen here, once it has begun: the first is its sign of life. (Before, its C side may want to be the only thread.)
#[inline(always)]
pub fn mapped(bytes: usize, protection: c_int, flags: c_int, fd: c_int) {
    if flags & libc::MAP_SHARED != 0 && fd >= 0 {
        mapped_shared(bytes, protection, fd);
    } else if IS_GO.load(Relaxed) {
        begin(CALLS);
    }
}

#[cold]
#[inline(never)]
fn mapped_shared(bytes: usize, protection: c_int, fd: c_int) {
    if !process::is_ours() || sys::status_flags(fd) & libc::O_ACCMODE != libc::O_RDWR || !is_on_disk(fd) {
        return;
    }
    if protection & libc::PROT_WRITE != 0 {
        count(bytes);
    } else {
        MAY_BE_OPENED.store(true, Relaxed);
    }
}

/// A mapping of whatever has grown by so much.
#[inline(always)]
pub fn grown(bytes: usize) {
    if MAPPED.load(Relaxed) > 0 && process::is_ours() {
        count(bytes);
    }
}

/// So much of whatever is mapped may be stored to from now on, or not.
#[inline(always)]
pub fn protected(bytes: usize, protection: c_int) {
    if MAY_BE_OPENED.load(Relaxed) && protection & libc::PROT_WRITE != 0 && process::is_ours() {
        count(bytes);
    }
}

#[cold]
#[inline(never)]
fn count(bytes: usize) {
    let mapped = MAPPED.fetch_add(bytes as u64, Relaxed).saturating_add(bytes as u64);
    if mapped < MAPPING_BYTES {
        return;
    }
    if REASONS.load(Relaxed) & MAPS == 0 {
        begin(MAPS);
    } else if is_left_alone() {
        region::refresh();
    }
}

/// Has the process looked after, if it has a limit, or as soon as it has one.
#[cold]
fn begin(reason: u8) {
    if REASONS.load(Relaxed) & reason != 0 || UNAVAILABLE.load(Relaxed) || !process::is_ours() {
        return;
    }
    if seccomp::forbids() != Some(seccomp::Forbidden::Nothing) || UNAVAILABLE.load(Relaxed) {
        return;
    }
    FOUND_AT.store(sys::now_ns(), Relaxed);
    REASONS.fetch_or(reason, SeqCst);
    helper::ring();
    region::refresh();
    again();
}

/// There is a reason, and no thread.
pub fn is_left_alone() -> bool {
    REASONS.load(SeqCst) != 0 && !IS_SWEPT.load(SeqCst)
}

/// Has the process looked after for the reasons that it has given, if it has a limit and nobody does it. `false`: not
/// before the thread that is leaving has gone.
pub fn go_on() -> bool {
    if !is_left_alone() || region::allowed() == u64::MAX || !process::is_ours() {
        return true;
    }
    FOUND_AT.store(sys::now_ns(), Relaxed);
    // first, so that a thread which leaves meanwhile takes it back
    IS_SWEPT.store(true, SeqCst);
    if helper::sweep() {
        helper::ring();
        return true;
    }
    IS_SWEPT.store(false, SeqCst);
    !helper::is_leaving()
}

/// The same, and waits for that.
pub fn again() {
    for _ in 0..LEAVING_MS {
        if go_on() {
            break;
        }
        sys::sleep_ns(1_000_000);
    }
}

/// A regular file or a block device, on a filesystem with something behind the page cache.
fn is_on_disk(fd: c_int) -> bool {
    match sys::fstat(fd) {
        Some(stat) if stat.is_block_device() => true,
        Some(stat) if stat.mode & libc::S_IFMT == libc::S_IFREG => {
            sys::fs_magic(fd).is_some_and(|magic| !magic::MEMORY.contains(&magic))
        }
        _ => false,
    }
}

/// The process has made a queue, and may submit to it where no hook is.
pub fn queued() {
    begin(CALLS);
}

/// A submission to a queue of which is not known what it brings: held back while the process owes more than its window,
/// and some of that was found here.
pub fn admit() {
    if REASONS.load(Relaxed) & CALLS == 0 {
        begin(CALLS);
        return;
    }
    if sys::now_ns().wrapping_sub(LOOKED_AT.load(Relaxed)) > BUSY_NS && !IS_ASKED.swap(true, AcqRel) {
        helper::ring();
    }
    if FOUND.load(Relaxed) > 0 && ledger::owed() > ledger::window() {
        pace::hold_for(None, || FOUND.load(Relaxed) == 0 || ledger::owed() <= ledger::window());
    }
}

/// The thread ends: what it found stays on nobody's account. The reasons stay, for the next one.
pub fn end() {
    IS_SWEPT.store(false, SeqCst);
    ledger::credit(FOUND.swap(0, Relaxed));
}

/// A file in which something was found: kept open, because where the group is at its limit every open waits for memory.
#[derive(Clone, Copy)]
struct Kept {
    /// Negative: none.
    fd: c_int,
    key: u64,
    dev: u64,
    /// The last walk came by it.
    is_met: bool,
}

/// What the helper's thread keeps between two looks.
pub struct Sweeper {
    kept: [Kept; KEPT],
    /// Places that the last walks have come by: mappings, then descriptors. The next one begins behind them.
    passed: u32,
    given_back_at: u64,
    /// Least time until the next attempt: longer after one that gave nothing back. What is mapped cannot be.
    giving_back_ns: u64,
    walked_at: u64,
    walk_took: u64,
    /// Of what the last walk found, what the ledgers of others account for.
    others_bytes: u64,
}

/// What one look found.
#[derive(Default)]
struct Found {
    /// Is what is dirty to be sent?
    is_sent: bool,
    /// Are clean pages to be given back?
    gives_back: bool,
    /// What of them was.
    given_back: u64,
    unwritten: u64,
    /// Of it, what is on its way.
    writeback: u64,
    /// What was sent by this look.
    started: u64,
    dev: u64,
}

impl Sweeper {
    pub const fn new() -> Sweeper {
        Sweeper {
            kept: [Kept { fd: -1, key: 0, dev: 0, is_met: false }; KEPT],
            passed: 0,
            given_back_at: 0,
            giving_back_ns: GIVING_BACK_NS,
            walked_at: 0,
            walk_took: 0,
            others_bytes: 0,
        }
    }

    /// Looks, if it is time. How long until the next look, in nanoseconds; `None`: there is nothing to look at.
    pub fn look(&mut self) -> Option<u64> {
        let reasons = REASONS.load(Relaxed);
        if reasons == 0 || !process::is_ours() {
            return None;
        }
        let now = sys::now_ns();
        let looked_ns = now.wrapping_sub(LOOKED_AT.load(Relaxed));
        let idle_ns = now.wrapping_sub(FOUND_AT.load(Relaxed));
        let is_asked = IS_ASKED.swap(false, AcqRel);
        let pause = if is_asked { BUSY_NS } else { (idle_ns / 16).clamp(BUSY_NS, IDLE_NS) };
        if looked_ns < pause {
            IS_ASKED.fetch_or(is_asked, AcqRel);
            return Some(pause - looked_ns);
        }
        LOOKED_AT.store(now, Relaxed);
        region::refresh();
        let before = FOUND.load(Relaxed);
        let mut found = self.look_at_kept(before, now);
        let is_due = now.wrapping_sub(self.walked_at) >= WALK_NS.max(self.walk_took.saturating_mul(WALKS_SHARE));
        if is_due || before == 0 {
            self.walk(before, &mut found, now);
        }
        found.unwritten = found.unwritten.saturating_sub(self.others_bytes);
        settle(&found);
        if found.gives_back {
            self.given_back_at = now;
            let is_worth_it = found.given_back > 0;
            self.giving_back_ns =
                if is_worth_it { GIVING_BACK_NS } else { self.giving_back_ns.saturating_mul(2).min(IDLE_NS) };
        }
        if found.unwritten > 0 {
            FOUND_AT.store(now, Relaxed);
        } else if reasons == MAPS && idle_ns > IDLE_NS && !has_maps() {
            MAPPED.store(1, Relaxed); // what there is may grow
            REASONS.fetch_and(!MAPS, AcqRel);
            if has_maps() {
                REASONS.fetch_or(MAPS, AcqRel); // one that was made just now
            }
        }
        Some(BUSY_NS)
    }

    fn look_at_kept(&mut self, before: u64, now: u64) -> Found {
        let gives_back = region::is_over_target() && now.wrapping_sub(self.given_back_at) > self.giving_back_ns;
        let unwritten = before.max(region::unwritten());
        let is_sent = unwritten >= region::allowed() / 4 || is_in_the_way();
        let mut found = Found { is_sent, gives_back, ..Found::default() };
        for kept in self.kept.iter_mut().filter(|kept| kept.fd >= 0) {
            if found.look_at(kept.fd, kept.key, kept.dev) == Some(0) {
                kept.close();
            }
        }
        found
    }

    /// Looks for files in which there is something, where the group has more unwritten than is explained.
    fn walk(&mut self, before: u64, found: &mut Found, now: u64) {
        self.walked_at = now;
        // the sidecar looks less often while nobody tells of writes
        let unwritten = apart::alone(group::unwritten).flatten();
        let explained = ledger::owed().saturating_sub(before).saturating_add(region::owed_by_others());
        let unexplained = match unwritten {
            _ if region::allowed() == u64::MAX => 0,
            Some(unwritten) => unwritten.saturating_sub(explained),
            None => u64::MAX,
        };
        // as far as the kernel's counters lag there may be nothing
        if unexplained <= COUNTER_LAG {
            self.kept.iter_mut().for_each(Kept::close);
            *found = Found::default();
            self.others_bytes = 0;
            return;
        }
        found.is_sent |= unwritten.is_none_or(|unwritten| unwritten >= region::allowed() / 4) || is_in_the_way();
        if self.passed == 0 {
            self.kept.iter_mut().for_each(|kept| kept.is_met = false);
        }
        let mut walk = Walk { keys: [0; FILES], files: 0, place: 0, first: self.passed, end: None };
        each_line(MAPS_FILE, |line| {
            if let Some(map) = Map::read(line)
                && walk.comes_by()
            {
                // only an administrator may follow the first
                let _ = [&[b"/proc/self/map_files/", map.addresses][..], &[map.path]]
                    .into_iter()
                    .filter_map(Name::new)
                    .any(|path| self.meet(&mut walk, path.get(), found));
            }
        });
        each_descriptor(|thread, number| {
            let named = |what: &[u8]| Name::new(&[TASKS.to_bytes(), b"/", thread, what, number]);
            if walk.comes_by()
                && named(b"/fdinfo/").is_some_and(|info| is_written_through(info.get()))
                && let Some(path) = named(b"/fd/")
            {
                self.meet(&mut walk, path.get(), found);
            }
        });
        self.passed = walk.end.unwrap_or(0);
        if self.passed == 0 {
            self.kept.iter_mut().filter(|kept| !kept.is_met).for_each(Kept::close);
        }
        // a file that is open here is written by others, too, who have booked what they wrote
        self.others_bytes = found.unwritten.saturating_sub(unexplained.saturating_add(COUNTER_LAG));
        self.walk_took = sys::now_ns().wrapping_sub(now);
    }

    /// Opens a file that a walk has come by, and looks at it. `false`: it is not there.
    fn meet(&mut self, walk: &mut Walk, path: &CStr, found: &mut Found) -> bool {
        helper::take_posted(); // whoever closes a file meanwhile is not to wait for the whole walk
        // without opening what is behind the name: that would tell a pipe's or a device's other side
        let name = sys::open(path, libc::O_PATH);
        if name < 0 {
            return false;
        }
        let stat = sys::fstat(name)
            .filter(|_| is_on_disk(name) && !matches!(region::mode_of_file(name), Mode::Off | Mode::Observe));
        sys::close(name);
        let Some(stat) = stat.filter(|stat| walk.is_new(files::key(stat))) else { return true };
        let (key, dev) = (files::key(&stat), stat.dev);
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.fd >= 0 && kept.key == key) {
            kept.is_met = true;
            return true;
        }
        let fd = sys::open(path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY);
        if fd < 0 {
            return true;
        }
        if sys::fstat(fd).is_none_or(|stat| files::key(&stat) != key) {
            sys::close(fd); // the name is another file's by now
            return true;
        }
        match (found.look_at(fd, key, dev), self.kept.iter_mut().find(|kept| kept.fd < 0)) {
            (Some(1..), Some(place)) => *place = Kept { fd, key, dev, is_met: true },
            _ => {
                sys::close(fd);
            }
        }
        true
    }
}

impl Kept {
    fn close(&mut self) {
        if self.fd >= 0 {
            sys::close(self.fd);
            self.fd = -1;
        }
    }
}

impl Found {
    /// Looks at an open file. What is unwritten there and in no account of the ledger; `None`: that cannot be seen.
    fn look_at(&mut self, fd: c_int, key: u64, dev: u64) -> Option<u64> {
        let explained: u64 =
            files::all().filter(|file| file.is_open() && file.key() == key).map(files::File::owed).sum();
        match sys::cachestat(fd, 0, 0) {
            Ok(stat) if stat.cached > 0 => {
                // a page that was made dirty again on its way is both
                let unwritten = stat.dirty.saturating_add(stat.writeback).min(stat.cached).saturating_mul(PAGE);
                let unseen = unwritten.saturating_sub(explained);
                if unseen > 0 {
                    self.dev = dev;
                    self.unwritten = self.unwritten.saturating_add(unseen);
                    self.writeback = self.writeback.saturating_add(stat.writeback.saturating_mul(PAGE));
                    self.send(fd, &stat, unseen);
                    self.give_back(fd, stat.cached);
                }
                Some(unseen)
            }
            Ok(_) if sys::fs_magic(fd) != Some(magic::OVERLAY) => Some(0),
            // its pages are a file's below, or it may not be asked
            _ => {
                if self.is_sent {
                    sys::start_writeback(fd, 0, 0);
                }
                if self.is_sent || self.gives_back {
                    sys::drop_cache(fd, 0, 0);
                }
                None
            }
        }
    }

    /// Starts writeback of what is dirty, of which so much was seen by nobody else. Where it may be stored to, not
    /// while the disk has enough to do: a page that is stored to again on its way is written twice, and with it all of
    /// its folio.
    fn send(&mut self, fd: c_int, stat: &sys::CacheStat, unseen: u64) {
        let may_go = REASONS.load(Relaxed) & MAPS == 0 || stat.writeback.saturating_mul(PAGE) < ledger::chunk();
        if self.is_sent && stat.dirty > 0 && may_go {
            sys::start_writeback(fd, 0, 0);
            let left = sys::cachestat(fd, 0, 0).unwrap_or_default().dirty;
            let started = stat.dirty.saturating_sub(left).saturating_mul(PAGE).min(unseen);
            self.started = self.started.saturating_add(started);
            TOTALS.swept_bytes.fetch_add(started, Relaxed);
            TOTALS.flushed_bytes.fetch_add(started, Relaxed);
        }
    }

    fn give_back(&mut self, fd: c_int, cached: u64) {
        if self.gives_back {
            sys::drop_cache(fd, 0, 0);
            let left = sys::cachestat(fd, 0, 0).unwrap_or_default().cached;
            let dropped = cached.saturating_sub(left).saturating_mul(PAGE);
            self.given_back = self.given_back.saturating_add(dropped);
            TOTALS.dropped_bytes.fetch_add(dropped, Relaxed);
        }
    }
}

/// Calls that are held back wait for what was found, too.
fn is_in_the_way() -> bool {
    ledger::owed() > ledger::window()
}

/// Puts what was found on the ledger's account, in place of what was found before.
fn settle(found: &Found) {
    // what was sent from here, and is not on its way any more, has arrived; the oldest first, which is not waited for
    let sent = SENT.load(Relaxed);
    let left = sent.min(found.writeback);
    SENT.store(left.saturating_add(found.started), Relaxed);
    TOTALS.confirmed_bytes.fetch_add(sent - left, Relaxed);
    let forgiven = FORGIVEN.load(Relaxed).saturating_sub(sent - left).min(found.unwritten);
    FORGIVEN.store(forgiven, Relaxed);
    let owed = found.unwritten - forgiven;
    let before = FOUND.swap(owed, AcqRel);
    if owed > before {
        ledger::reserve_anyway(owed - before);
    } else {
        ledger::credit(before - owed);
    }
    if owed == 0 && before == 0 {
        return;
    }
    if found.dev != 0 {
        TOTALS.dev.store(found.dev, Relaxed);
    }
    if let pace::Turn::Mine(mine) = pace::take() {
        region::publish(ledger::owed(), pace::is_holding());
        pace::give(mine);
    }
}

/// The files that a walk has come by.
struct Walk {
    keys: [u64; FILES],
    files: usize,
    /// Places so far, and how many of them the walks before this one have been at.
    place: u32,
    first: u32,
    /// The place at which it had as many files as it can tell apart.
    end: Option<u32>,
}

impl Walk {
    /// Steps to the next place; `false`: not to be looked at by this walk.
    fn comes_by(&mut self) -> bool {
        let place = self.place;
        self.place = place.wrapping_add(1);
        if self.files == FILES {
            self.end = self.end.or(Some(place));
        }
        place >= self.first && self.end.is_none()
    }

    fn is_new(&mut self, key: u64) -> bool {
        if self.keys.iter().take(self.files).any(|&met| met == key) {
            return false;
        }
        let Some(place) = self.keys.get_mut(self.files) else { return false };
        *place = key;
        self.files += 1;
        true
    }
}

/// By the thread that asks: the process's own entries are its first thread's, and empty when that has ended.
const MAPS_FILE: &CStr = c"/proc/thread-self/maps";
const TASKS: &CStr = c"/proc/self/task";

/// A line of [`MAPS_FILE`]: a file that is mapped shared and may be written to.
struct Map<'line> {
    addresses: &'line [u8],
    path: &'line [u8],
}

impl<'line> Map<'line> {
    fn bytes(&self) -> u64 {
        let mut ends = self.addresses.split(|&byte| byte == b'-').map(|end| {
            end.iter().fold(0u64, |sum, &digit| {
                let digit = char::from(digit).to_digit(16).unwrap_or(0);
                sum.wrapping_mul(16).wrapping_add(digit.into())
            })
        });
        let (start, end) = (ends.next().unwrap_or(0), ends.next().unwrap_or(0));
        end.saturating_sub(start)
    }

    fn read(line: &'line [u8]) -> Option<Map<'line>> {
        let mut words = line.splitn(6, |&byte| byte == b' ');
        let (addresses, access) = (words.next()?, words.next()?);
        let path = words.nth(3)?.trim_ascii_start();
        let is_wanted = access.get(1) == Some(&b'w') && access.get(3) == Some(&b's');
        (is_wanted && path.first() == Some(&b'/')).then_some(Map { addresses, path })
    }
}

/// Are there enough such mappings?
fn has_maps() -> bool {
    let mut bytes = 0u64;
    each_line(MAPS_FILE, |line| bytes = bytes.saturating_add(Map::read(line).map_or(0, |map| map.bytes())));
    bytes >= MAPPING_BYTES
}

/// Was the descriptor opened to write through the page cache? Not where opening the file again would break a lease.
fn is_written_through(info: &CStr) -> bool {
    let mut flags = None;
    let mut has_lease = false;
    each_line(info, |line| {
        if let Some(octal) = line.strip_prefix(b"flags:") {
            let digits = octal.trim_ascii().iter();
            flags = Some(digits.fold(0, |sum: c_int, &digit| sum.wrapping_mul(8).wrapping_add(c_int::from(digit & 7))));
        }
        has_lease |= line.starts_with(b"lock:") && line.windows(5).any(|word| word == b"LEASE");
    });
    let is_wanted = |flags: c_int| {
        flags & libc::O_ACCMODE != libc::O_RDONLY && flags & (libc::O_DIRECT | libc::O_DSYNC | libc::O_PATH) == 0
    };
    flags.is_some_and(is_wanted) && !has_lease
}

/// A path, put together.
struct Name {
    bytes: [u8; 512],
}

impl Name {
    fn new(parts: &[&[u8]]) -> Option<Name> {
        let mut name = Name { bytes: [0; 512] };
        let mut end = 0;
        for &byte in parts.iter().copied().flatten() {
            *name.bytes.get_mut(end)? = byte;
            end += 1;
        }
        (end < name.bytes.len()).then_some(name)
    }

    fn get(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

/// Reads a file line by line; one that does not fit is passed over.
fn each_line(path: &CStr, mut act: impl FnMut(&[u8])) {
    let fd = sys::open(path, libc::O_RDONLY);
    if fd < 0 {
        return;
    }
    let mut buffer = [0u8; 4096];
    let mut kept = 0;
    loop {
        let got = buffer.get_mut(kept..).and_then(|rest| sys::read(fd, rest)).unwrap_or(0);
        if got == 0 {
            break;
        }
        let Some(text) = buffer.get(..kept + got) else { break };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        if let Some(lines) = text.get(..whole) {
            lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).for_each(&mut act);
        }
        let filled = text.len();
        kept = if whole == 0 && filled == buffer.len() { 0 } else { filled - whole };
        for at in 0..kept {
            // byte by byte: copy_within can panic
            let byte = buffer.get(whole + at).copied().unwrap_or(0);
            if let Some(slot) = buffer.get_mut(at) {
                *slot = byte;
            }
        }
    }
    sys::close(fd);
}

/// The process's descriptors: a thread that has them, and their numbers. Not by way of this thread, which has its own.
fn each_descriptor(mut act: impl FnMut(&[u8], &[u8])) {
    let own = sys::gettid();
    let mut has_met_one = false;
    each_number(TASKS, |thread| {
        let id = thread.iter().fold(0, |id: i32, &digit| id.wrapping_mul(10).wrapping_add(i32::from(digit & 15)));
        if id != own
            && !has_met_one
            && let Some(directory) = Name::new(&[TASKS.to_bytes(), b"/", thread, b"/fd"])
        {
            each_number(directory.get(), |number| {
                has_met_one = true;
                act(thread, number);
            });
        }
    });
}

/// The numbers by which a directory's entries are named.
fn each_number(path: &CStr, mut act: impl FnMut(&[u8])) {
    let directory = sys::open(path, libc::O_RDONLY | libc::O_DIRECTORY);
    if directory < 0 {
        return;
    }
    let mut buffer = [0u8; 2048];
    while let Some(got) = sys::read_directory(directory, &mut buffer).filter(|&got| got > 0) {
        let mut entries = buffer.get(..got).unwrap_or(&[]);
        // getdents64(2): the length of the entry stands at 16, its name from 19 on
        while let Some(&[low, high]) = entries.get(16..18) {
            let length = usize::from(u16::from_ne_bytes([low, high]));
            let name = entries.get(19..length).and_then(|name| name.split(|&byte| byte == 0).next());
            if let Some(number) = name.filter(|name| name.first().is_some_and(u8::is_ascii_digit)) {
                act(number);
            }
            entries = entries.get(length.max(19)..).unwrap_or(&[]);
        }
    }
    sys::close(directory);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn shared_mappings_that_may_be_written_are_told_from_others() {
        let read = |line: &'static str| Map::read(line.as_bytes()).map(|map| (map.addresses, map.path));
        assert_eq!(
            read("7f1-7f2 rw-s 00001000 fe:00 1835045                    /srv/a file"),
            Some((&b"7f1-7f2"[..], &b"/srv/a file"[..]))
        );
        for line in [
            "7f1-7f2 rw-p 00001000 fe:00 1835045                    /srv/a file",
            "7f1-7f2 r--s 00001000 fe:00 1835045                    /srv/a file",
            "7f1-7f2 rw-s 00000000 00:0e 12                         anon_inode:[io_uring]",
            "7f1-7f2 rw-s 00000000 00:00 0 ",
            "",
        ] {
            assert_eq!(read(line), None, "{line:?}");
        }
    }

    #[test]
    fn descriptors_are_listed_and_told_apart() {
        let path = std::env::temp_dir().join(format!("freeboard-sweep-{}", std::process::id()));
        let written = File::create(&path).unwrap();
        let read = File::open(&path).unwrap();
        let is_wanted = |file: &File| {
            is_written_through(
                Name::new(&[b"/proc/self/fdinfo/", file.as_raw_fd().to_string().as_bytes()]).unwrap().get(),
            )
        };
        assert!(is_wanted(&written) && !is_wanted(&read));
        // as the helper's thread does it: by the table of another
        let listed = std::thread::spawn(|| {
            let mut numbers = Vec::new();
            each_descriptor(|_, number| numbers.push(str::from_utf8(number).unwrap().parse().unwrap()));
            numbers
        });
        let numbers: Vec<c_int> = listed.join().unwrap();
        assert!(numbers.contains(&written.as_raw_fd()) && numbers.contains(&read.as_raw_fd()), "{numbers:?}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn long_files_are_read_line_by_line() {
        let path = std::env::temp_dir().join(format!("freeboard-lines-{}", std::process::id()));
        let lines: Vec<String> = (1..2000).map(|n| format!("{n} {}", "x".repeat(n * 7919 % 300))).collect();
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        let mut read = Vec::new();
        let name = Name::new(&[path.as_os_str().as_encoded_bytes()]).unwrap();
        each_line(name.get(), |line| read.push(String::from_utf8(line.to_vec()).unwrap()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read, lines);
    }
}
