//! What a filesystem's name does not say is found out by its effect: a file's first chunks are sent with a look at its
//! page cache before and after. ext4 is one that is written by sync_file_range, and with data=journal one that is not.

use crate::files::{self, File};
use crate::flush::{self, How, magic};
use crate::look::EDGE_PAGES;
use crate::sys::{self, CacheStat};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use libc::c_int;

/// A filesystem on which nothing has been sent after so long is not one on which pages are prepared for it by another
/// thread (btrfs compresses them first).
const LATE_NS: u64 = 250_000_000;
/// The same where it is known that only a sync writes: so many closed files as come in that time are committed at once.
const TOGETHER_NS: u64 = 25_000_000;
/// For so long a device is known to need a sync.
const KNOWN_NS: u64 = 10_000_000_000;

/// The device on which a sync was needed last, and when.
static SYNCED_DEV: AtomicU64 = AtomicU64::new(0);
static SYNCED_NS: AtomicU64 = AtomicU64::new(0);

/// A flush had no effect on this device, and a sync had.
pub fn needs_sync(dev: u64) {
    SYNCED_DEV.store(dev, Relaxed);
    SYNCED_NS.store(sys::now_ns(), Relaxed);
}

/// Nothing that was sent there is on its way after so long: it needs a sync.
pub fn late_ns(dev: u64) -> u64 {
    let is_known = SYNCED_DEV.load(Relaxed) == dev && sys::now_ns().wrapping_sub(SYNCED_NS.load(Relaxed)) < KNOWN_NS;
    if is_known { TOGETHER_NS } else { LATE_NS }
}

/// Starts writeback of a range of a file of which it is not known how that is to be done, and learns from what becomes
/// of it.
pub fn start(file: &File, fd: c_int, low: u64, high: u64) {
    let before = flush::measure(file, fd, low, high);
    let is_there = || sys::fstat(fd).is_some_and(|stat| stat.size > low);
    // what was queued may still come, into space that the file has had all along
    let has_come = || !file.has_queued() || sys::fs_magic(fd) == Some(magic::OVERLAY);
    if before.is_some_and(|stat| stat.cached + stat.evicted == 0) && is_there() && has_come() {
        // it was written, and is not here: there is a file below, or nothing to flush to; the group's count tells
        file.set_how(How::Layered);
        flush::start(file, fd, low, high);
        return;
    }
    flush::start_ranges(fd, low, high);
    let Some(before) = before.filter(|stat| stat.dirty > 0) else { return };
    let Some(after) = flush::measure(file, fd, low, high) else { return };
    if after.dirty < before.dirty || after.writeback > before.writeback {
        file.set_how(How::Ranges);
        return;
    }
    let now = sys::now_ns();
    match file.late_since_ns.load(Relaxed) {
        0 => file.late_since_ns.store(now, Relaxed),
        since if after.writeback == 0 && now.wrapping_sub(since) > late_ns(file.dev()) => {
            // and its neighbours: a sync of this one commits their pages too, and then a flush of theirs has an effect
            let is_like =
                |other: &&File| other.dev() == file.dev() && matches!(other.how(), How::Unproven | How::Ranges);
            files::all().filter(is_like).for_each(|other| other.set_how(How::Synced));
        }
        _ => {}
    }
}

/// A chunk of a file whose flushes had an effect is dirty, and nothing of it is on its way: has this one?
pub fn again(file: &File, fd: c_int, low: u64, high: u64) {
    file.late_since_ns.store(0, Relaxed);
    file.set_how(How::Unproven);
    start(file, fd, low, high);
}

/// Some of a chunk that was sent is not there yet: it is on its way, or is sent once more.
pub fn look(file: &File, fd: c_int, low: u64, high: u64, stat: CacheStat) {
    if stat.writeback > 0 {
        file.set_how(How::Ranges);
    } else {
        start(file, fd, low, high);
    }
}

/// Writeback of this file, which has been sent, has not begun: what is dirty stays so until the kernel writes it by
/// itself.
pub fn is_stuck(file: &File, fd: c_int) -> bool {
    match file.how() {
        How::Synced => true,
        How::Unproven => {
            flush::measure(file, fd, 0, u64::MAX).is_some_and(|stat| stat.dirty > EDGE_PAGES && stat.writeback == 0)
        }
        _ => false,
    }
}
