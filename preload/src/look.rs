//! A look at what the process owes: what a chunk's worth of writes has really left dirty, what is to be sent on its
//! way, and what has arrived on the disk. The caller has the pace.

use crate::calls::PIECE_MIN;
use crate::files::{self, Chunk, File};
use crate::flush::{self, How};
use crate::ledger::{self, TOTALS};
use crate::{apart, descriptors, group, helper, pace, probe, process, region, speed, sys};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use freeboard_budget::Mode;
use freeboard_budget::law::COUNTER_LAG;
use libc::c_int;

/// Pages left dirty in a chunk whose writeback has ended: the ones that the next chunk has touched again.
pub const EDGE_PAGES: u64 = 2;
/// Chunks of one file that one look sends: more could fill the disk's queue, and the caller would wait there.
const PIECES_PER_LOOK: usize = 2;
/// The largest folio of the page cache (2 MiB).
const LARGE_FOLIO: u64 = 2 << 20;
/// Bytes on a remote filesystem that are written to the server before a commit is asked for, at most.
const COMMIT_BYTES: u64 = 16 << 20;
/// Least time after an attempt to drop what has not arrived: it makes every processor empty its list of new pages.
const ATTEMPT_NS: u64 = 20_000_000;
/// An NFS client that has not committed for so long what it has sent does not do so by itself.
const COMMIT_LATE_NS: u64 = 1_000_000_000;
/// The group's unwritten as last read, where files of ours are measured by it; `u64::MAX`: they are not.
static GROUP_UNWRITTEN: AtomicU64 = AtomicU64::new(u64::MAX);
/// What such files owe, and closed ones.
static OWED_BY_GROUP: AtomicU64 = AtomicU64::new(0);

/// Every file that owes: sends what is not on its way, takes off what has arrived. The caller has the pace.
pub fn look_at_all(caller: Option<(&'static File, c_int)>) {
    region::refresh();
    let mut started = 0;
    let mut by_group = 0;
    let mut known = 0;
    for file in files::all() {
        file.harvest();
        if file.owed() == 0 {
            continue;
        }
        let fd = match caller {
            Some((at, fd)) if core::ptr::eq(at, file) && descriptors::is_on(fd, file) => Some(fd),
            _ if file.is_open() => descriptors::find(file),
            _ => None,
        };
        let Some(fd) = fd else {
            file.drain(); // closed: its debt is seen in the group's unwritten
            continue;
        };
        advance(file, fd);
        confirm(file, fd);
        started += file.started();
        if matches!(file.how(), How::Group | How::Layered) {
            by_group += file.owed();
        } else {
            known += file.owed();
        }
    }
    let closed = files::closed().load(Relaxed);
    OWED_BY_GROUP.store(closed + by_group, Relaxed);
    if closed + by_group > 0 {
        settle_by_group(known);
    } else {
        GROUP_UNWRITTEN.store(u64::MAX, Relaxed);
    }
    if started == 0 {
        // nothing is on its way, so nothing would ever arrive: send all that is there
        for file in files::all() {
            if file.owed() > 0
                && let Some(fd) = descriptors::find(file)
                && !is_coming(file, fd)
            {
                send(file, fd);
            }
        }
    }
    speed::measure();
    region::publish(ledger::owed(), pace::is_holding());
}

/// A file whose chunks are sent as soon as they are full: where that is asked for, where a server or a sync takes its
/// time, and where a longer wait would make one range of the whole file.
pub fn is_prompt(file: &File) -> bool {
    let is_slow = matches!(file.how(), How::Remote | How::Unstable | How::Synced);
    is_slow || file.mode() == Mode::Always || file.is_scattered()
}

/// A file's current charge: what of it is really dirty is sent, a chunk at a time, when the window is nearly full.
pub fn advance(file: &'static File, fd: c_int) {
    if file.mode() == Mode::Observe {
        ledger::credit(file.forgive(u64::MAX));
        return;
    }
    let (is_filling, is_prompt) = (ledger::is_filling(), is_prompt(file));
    let current = file.current();
    // also what is less than a chunk goes where nothing else of the file is on its way
    let is_due = current >= ledger::chunk() || (is_filling && current >= PIECE_MIN && file.started() == 0);
    let is_sent = is_filling || is_prompt;
    if !is_due || !(is_sent || file.is_to_be_measured()) {
        return;
    }
    if file.how() == How::Ranges {
        // pages that were written again, and pages that the kernel has written already, are taken off; of several
        // threads some are in a call, and their charge is not dirty yet
        let (low, high) = file.current_range(sys::position(fd));
        if let Some(stat) = flush::measure(file, fd, low, high) {
            let unwritten = (stat.dirty + stat.writeback).saturating_mul(ledger::PAGE);
            let in_calls = match (file.has_queued(), process::has_one_thread()) {
                (true, _) => current,
                (false, true) => 0,
                (false, false) => current / 2,
            };
            if unwritten.saturating_add(in_calls) < current {
                ledger::credit(file.forgive(current.saturating_sub(unwritten)));
            }
        }
        file.set_measured();
    }
    if !(ledger::is_filling() || is_prompt) {
        return;
    }
    for _ in 0..PIECES_PER_LOOK {
        send_piece(file, fd);
        if file.current() < ledger::chunk() {
            break;
        }
    }
}

/// Starts writeback of about a chunk of the current charge, at its low end.
fn send_piece(file: &'static File, fd: c_int) {
    let (low, high) = file.current_range(sys::position(fd));
    let current = file.current();
    let pieces = current / ledger::chunk();
    let is_whole = matches!(file.how(), How::Remote | How::Synced);
    if pieces < 2
        && let Some(stat) = flush::measure(file, fd, low, high)
        && has_not_come(file, stat.dirty.saturating_add(stat.writeback).saturating_mul(ledger::PAGE), current)
    {
        return;
    }
    if pieces < 2 || high == u64::MAX || is_whole {
        send(file, fd);
        return;
    }
    // a large folio is written as a whole
    let grain = if ledger::chunk() >= LARGE_FOLIO { LARGE_FOLIO } else { ledger::PAGE };
    let length = high.saturating_sub(low) / pieces;
    let end = low.saturating_add(length).saturating_add(grain) & !(grain - 1);
    if end >= high {
        send(file, fd);
        return;
    }
    let charge = match flush::measure(file, fd, low, end) {
        Some(stat) => stat.dirty.saturating_add(stat.writeback).saturating_mul(ledger::PAGE),
        None => current / pieces,
    };
    if has_not_come(file, charge, current / pieces) {
        return;
    }
    let charge = file.cut_front(low, end, charge);
    if charge > 0 {
        flush::start(file, fd, low, end);
    }
    TOTALS.flushed_bytes.fetch_add(charge, Relaxed);
}

/// Writes that were queued are booked, and the kernel has not made all of them yet. What is sent meanwhile would be
/// dirty again when its turn comes. (Where nothing else is on its way, and no more comes, it is sent all the same.)
fn has_not_come(file: &File, unwritten: u64, booked: u64) -> bool {
    file.has_queued() && unwritten.saturating_add(EDGE_PAGES * ledger::PAGE) < booked
}

/// The kernel is at the writes that were queued: what is sent before they are made would be taken for all of it.
fn is_coming(file: &'static File, fd: c_int) -> bool {
    let (low, high) = file.current_range(sys::position(fd));
    file.has_queued()
        && flush::measure(file, fd, low, high).is_some_and(|stat| {
            let come = stat.dirty.saturating_add(stat.writeback).saturating_mul(ledger::PAGE);
            has_not_come(file, come, file.current()) && file.is_coming(come)
        })
}

/// Starts writeback of all that the file's current charge stands for.
pub fn send(file: &'static File, fd: c_int) {
    if file.current() > 0 {
        let (charge, low, high) = file.cut(|| sys::position(fd));
        flush::start(file, fd, low, high);
        TOTALS.flushed_bytes.fetch_add(charge, Relaxed);
    }
    if matches!(file.how(), How::Remote | How::Synced) {
        commit(file, fd);
    }
}

/// Where only a commit tells, as on a remote filesystem: asks the helper for one of all that was sent, one at a time.
fn commit(file: &'static File, fd: c_int) {
    if file.syncing.load(Relaxed) == 0 {
        let is_crowded = ledger::owed() >= ledger::window() / 4 * 3; // perhaps by many files of which none has much
        let enough = if is_crowded { 1 } else { COMMIT_BYTES.min(ledger::window() / 3) };
        if file.started() < enough {
            return;
        }
        while file.oldest().is_some() {
            file.syncing.fetch_add(file.pop(), Relaxed);
        }
    }
    if !helper::commit(file, fd) {
        file.measure_by_group();
    }
}

/// Takes off what has arrived, oldest chunk first, and drops it where that is wanted.
pub fn confirm(file: &'static File, fd: c_int) {
    sweep(file, fd);
    while let Some(chunk) = file.oldest() {
        let (low, high) = (chunk.low.load(Relaxed), chunk.high.load(Relaxed));
        let charge = chunk.charge.load(Relaxed);
        match file.how() {
            How::Ranges => {
                let Some(stat) = flush::measure(file, fd, low, high) else { return };
                if stat.writeback > 0 || stat.dirty > EDGE_PAGES {
                    arrived(chunk.keep((stat.dirty + stat.writeback).saturating_mul(ledger::PAGE)));
                    if stat.writeback > 0 {
                        confirm_younger(file, fd);
                        return;
                    }
                    // written, and dirty again: by the application, whose later charge stands for it; or never sent
                    if !chunk.again.swap(true, Relaxed) {
                        probe::again(file, fd, low, high);
                        return;
                    }
                }
            }
            How::Unproven => {
                let Some(stat) = flush::measure(file, fd, low, high) else { return };
                if stat.dirty + stat.writeback > EDGE_PAGES {
                    probe::look(file, fd, low, high, stat);
                    if file.how() == How::Unproven {
                        return;
                    }
                    continue;
                }
                file.late_since_ns.store(0, Relaxed);
            }
            How::Unstable => {
                if !confirm_by_dropping(file, fd, chunk) {
                    return;
                }
                arrived(file.pop());
                continue;
            }
            How::Group | How::Layered if charge > 0 => return,
            How::Remote | How::Synced => break,
            _ => {}
        }
        arrived(file.pop());
        let always = file.mode() == Mode::Always || region::wants_drop();
        if always {
            flush::drop_range(file, fd, low, high, region::is_over_target());
        }
    }
    if matches!(file.how(), How::Remote | How::Synced) {
        commit(file, fd);
    }
}

/// Gives back what is clean of a file below the first byte that it owes, at once, where usage is over its target: the
/// next chunk may be long in coming.
fn sweep(file: &'static File, fd: c_int) {
    let can_be = matches!(file.how(), How::Ranges | How::Group) && file.mode() != Mode::Observe;
    if can_be && region::is_over_target() && file.set_swept() {
        let (low, _) = file.current_range(sys::position(fd));
        let low = file.chunks().map(|chunk| chunk.low.load(Relaxed)).fold(low, u64::min);
        flush::drop_range(file, fd, 0, low, true);
    }
}

/// The disk may take chunks in another order than they were sent: takes off what has arrived of those behind the
/// oldest, as far as they have pages of their own. Not of the youngest: calls may still be writing what it is charged
/// for.
fn confirm_younger(file: &'static File, fd: c_int) {
    let Some(taken_to) = file.oldest().map(|oldest| oldest.high.load(Relaxed)) else { return };
    let older = file.chunks().count().saturating_sub(1);
    for chunk in file.chunks().take(older).skip(1) {
        let (low, high) = (chunk.low.load(Relaxed), chunk.high.load(Relaxed));
        if low >= taken_to && chunk.charge.load(Relaxed) > 0 {
            let Some(stat) = flush::measure(file, fd, low, high) else { return };
            arrived(chunk.keep((stat.dirty + stat.writeback).saturating_mul(ledger::PAGE)));
        }
    }
}

/// The oldest chunk of a file on NFS: drops what has arrived of it. `false`: some has not.
fn confirm_by_dropping(file: &'static File, fd: c_int, chunk: &Chunk) -> bool {
    let now = sys::now_ns();
    if now.wrapping_sub(file.attempted_ns.load(Relaxed)) < ATTEMPT_NS {
        return false;
    }
    let (low, high) = (chunk.low.load(Relaxed), chunk.high.load(Relaxed));
    if low.saturating_add(ledger::PAGE) <= file.droppable_from() {
        file.set_how(How::Remote); // what was there before stays cached
        return false;
    }
    let Some(left) = flush::drop_arrived(file, fd, low, high) else { return false };
    let left_bytes = left.cached.saturating_mul(ledger::PAGE);
    let before = chunk.charge.fetch_min(left_bytes, Relaxed);
    arrived(before.saturating_sub(left_bytes));
    if left.cached <= EDGE_PAGES {
        file.late_since_ns.store(0, Relaxed);
        return true;
    }
    if left.writeback == 0 {
        file.attempted_ns.store(now, Relaxed);
    }
    if left.dirty + left.writeback > 0 || left_bytes < before || file.late_since_ns.load(Relaxed) == 0 {
        file.late_since_ns.store(now, Relaxed);
    } else if now.wrapping_sub(file.late_since_ns.load(Relaxed)) > COMMIT_LATE_NS {
        file.set_how(How::Remote);
    }
    false
}

fn arrived(bytes: u64) {
    ledger::credit(bytes);
    TOTALS.confirmed_bytes.fetch_add(bytes, Relaxed);
}

/// Closed files, and files that cachestat cannot see: together they owe no more than the group has unwritten, less what
/// is known to be owed otherwise. `known`: what open files owe by cachestat.
fn settle_by_group(known: u64) {
    let Some(unwritten) = apart::run(group::unwritten) else { return };
    let Some(unwritten) = unwritten else {
        GROUP_UNWRITTEN.store(u64::MAX, Relaxed);
        fall_back();
        return;
    };
    GROUP_UNWRITTEN.store(unwritten, Relaxed);
    let mut left = unwritten.saturating_sub(known).saturating_sub(COUNTER_LAG);
    // the youngest debts are the ones that can still be unwritten
    for file in files::all().filter(|file| matches!(file.how(), How::Group | How::Layered)) {
        left = left.saturating_sub(file.current());
    }
    let closed = files::closed();
    let mut owed = closed.load(Relaxed);
    for file in files::all().filter(|file| matches!(file.how(), How::Group | How::Layered)) {
        owed = owed.saturating_add(file.started());
    }
    let mut excess = owed.saturating_sub(left);
    let before = closed.load(Relaxed);
    let taken = excess.min(before);
    let _ = closed.fetch_update(Relaxed, Relaxed, |debt| Some(debt.saturating_sub(taken)));
    arrived(taken);
    excess -= taken;
    for file in files::all().filter(|file| matches!(file.how(), How::Group | How::Layered)) {
        while excess > 0 {
            let Some(chunk) = file.oldest() else { break };
            let charge = chunk.charge.load(Relaxed);
            let taken = charge.min(excess);
            arrived(chunk.keep(charge - taken));
            excess -= taken;
            if charge > taken {
                break;
            }
            match descriptors::find(file) {
                Some(fd) => confirm(file, fd),
                None => {
                    file.pop();
                }
            }
        }
    }
}

/// Neither cachestat nor the cgroup can be read: only a wait in the helper tells.
fn fall_back() {
    let debt = files::closed().swap(0, Relaxed);
    arrived(debt);
    for file in files::all().filter(|file| file.how() == How::Group) {
        file.set_how(How::Remote);
    }
}

/// Where files of ours are measured by the group alone, our own share of what is unwritten is not known: it is enough
/// that the group is within what it may owe; and where somebody asked for a window, that what is known to be ours fits
/// it.
pub fn group_has_room(charge: u64) -> bool {
    let unwritten = GROUP_UNWRITTEN.load(Relaxed);
    let known = ledger::owed().saturating_sub(OWED_BY_GROUP.load(Relaxed));
    unwritten != u64::MAX
        && unwritten.saturating_add(charge).saturating_add(COUNTER_LAG) <= region::allowed()
        && (!region::has_a_window_set() || known.saturating_add(charge) <= ledger::window())
}
