//! How a file's pages are sent to the disk, how their arrival is seen, and how they are given back, by filesystem.
//!
//! | | flush | arrival | drop |
//! | --- | --- | --- | --- |
//! | [`How::Unproven`] any that is not named below, until its first chunk is seen on its way ([`crate::probe`]) | sync_file_range(WRITE), 2 MiB a call | cachestat | DONTNEED |
//! | [`How::Ranges`] the same from then on, and block devices | the same | cachestat | DONTNEED |
//! | [`How::Synced`] the same where that has no effect: ext4 with data=journal | fdatasync in the helper | its end | DONTNEED, in the helper |
//! | [`How::Group`] the same without cachestat (Linux before 6.5, seccomp): not probed | sync_file_range(WRITE), 2 MiB a call | the group's unwritten | DONTNEED |
//! | [`How::Layered`] overlayfs, and whatever keeps its pages elsewhere: sync_file_range does nothing | DONTNEED starts it | the group's unwritten | a second DONTNEED |
//! | [`How::Unstable`] NFS: safe only after a COMMIT, with which its client ends each flush | sync_file_range(WRITE), a chunk a call | what DONTNEED leaves, by cachestat | the same |
//! | [`How::Remote`] NFS without cachestat or commits of its own, or written over; CIFS, CephFS, FUSE, 9p | the same | COMMIT or fdatasync in the helper | DONTNEED, in the helper |
//!
//! Nothing here waits, and no call carries a WAIT flag or is an fsync: each of those would consume a writeback error
//! that belongs to the application.

use crate::files::File;
use crate::{ledger, probe, sys};
use core::sync::atomic::Ordering::Relaxed;
use libc::c_int;

/// See the table above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum How {
    Ranges = 0,
    Group = 1,
    Layered = 2,
    Remote = 3,
    Unstable = 4,
    Unproven = 5,
    Synced = 6,
}

/// Bytes a sync_file_range call: more would hold the caller where the disk's queue is full.
const STEP: u64 = 2 << 20;
/// Calls for one range, at most.
const STEPS: u64 = 256;

pub mod magic {
    pub const OVERLAY: u32 = 0x794c_7630;
    pub const NFS: u32 = 0x6969;
    pub const CIFS: u32 = 0xff53_4d42;
    pub const SMB2: u32 = 0xfe53_4d42;
    pub const CEPH: u32 = 0x00c3_6400;
    pub const FUSE: u32 = 0x6573_5546;
    pub const NINEP: u32 = 0x0102_1997;
    /// Nothing behind the page cache: tmpfs (and devtmpfs), ramfs, hugetlbfs, proc, sysfs, cgroup, cgroup2, debugfs,
    /// tracefs, securityfs.
    pub const MEMORY: [u32; 10] = [
        0x0102_1994,
        0x8584_58f6,
        0x9584_58f6,
        0x9fa0,
        0x6265_6572,
        0x0027_e0eb,
        0x6367_7270,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
    ];
}

impl How {
    /// By the kind of filesystem, where that says it; `None` where there is nothing to flush to.
    pub fn of(fd: c_int, is_block_device: bool) -> Option<How> {
        let is_blind = sys::NO_CACHESTAT.load(Relaxed);
        if is_block_device {
            return Some(if is_blind { How::Group } else { How::Ranges });
        }
        Some(match sys::fs_magic(fd)? {
            magic::NFS if !is_blind => How::Unstable,
            magic::NFS | magic::CIFS | magic::SMB2 | magic::CEPH | magic::FUSE | magic::NINEP => How::Remote,
            known if magic::MEMORY.contains(&known) => return None,
            // its name says no more than the probe does
            _ if !is_blind => How::Unproven,
            magic::OVERLAY => How::Layered,
            _ => How::Group,
        })
    }

    pub const fn from_u32(word: u32) -> How {
        match word {
            0 => How::Ranges,
            2 => How::Layered,
            3 => How::Remote,
            4 => How::Unstable,
            5 => How::Unproven,
            6 => How::Synced,
            _ => How::Group,
        }
    }
}

/// Starts writeback of a range (`high` `u64::MAX`: to the end of the file).
pub fn start(file: &File, fd: c_int, low: u64, high: u64) {
    let length = if high == u64::MAX { 0 } else { high.saturating_sub(low) };
    match file.how() {
        How::Unproven => probe::start(file, fd, low, high),
        How::Layered => {
            sys::drop_cache(fd, low, length);
        }
        // each call ends with a COMMIT
        How::Remote | How::Unstable => {
            sys::start_writeback(fd, low, length);
        }
        How::Ranges | How::Group | How::Synced => start_ranges(fd, low, high),
    }
}

/// Starts it by sync_file_range, in steps.
pub fn start_ranges(fd: c_int, low: u64, high: u64) {
    if high == u64::MAX {
        sys::start_writeback(fd, low, 0);
        return;
    }
    // the range can be that of a few pages far apart in a sparse file
    let step = (high.saturating_sub(low) / STEPS).next_multiple_of(STEP).max(STEP);
    let mut at = low;
    while at < high {
        // pieces end where large folios do
        let end = (at / step).saturating_add(1).saturating_mul(step).min(high);
        sys::start_writeback(fd, at, end - at);
        at = end;
    }
}

/// What the kernel says of a range, where cachestat can see it. `None` changes the file's ways for good.
pub fn measure(file: &File, fd: c_int, low: u64, high: u64) -> Option<sys::CacheStat> {
    if !matches!(file.how(), How::Ranges | How::Unstable | How::Unproven) {
        return None;
    }
    // cachestat takes whole pages, and a length of 0 for "to the end"
    let start = low & !(ledger::PAGE - 1);
    match sys::cachestat(fd, start, if high == u64::MAX { 0 } else { high - start }) {
        Ok(stat) => Some(stat),
        Err(error) => {
            if error == libc::ENOSYS || error == libc::EPERM || error == libc::EACCES {
                if error == libc::EPERM {
                    sys::NO_CACHESTAT.store(true, Relaxed);
                }
                file.set_how(match file.how() {
                    How::Unstable => How::Remote,
                    _ if sys::fs_magic(fd) == Some(magic::OVERLAY) => How::Layered,
                    _ => How::Group,
                });
            }
            None
        }
    }
}

/// Drops what has arrived of a range of a [`How::Unstable`] file, and says what is left there. Where the server has a
/// page in its memory alone, it is clean here, and yet cannot be dropped.
pub fn drop_arrived(file: &File, fd: c_int, low: u64, high: u64) -> Option<sys::CacheStat> {
    // the chunk before can have left part of a large folio
    let low = (low & !(STEP - 1)).max(file.droppable_from());
    let before = measure(file, fd, low, high)?;
    if before.writeback > 0 {
        return Some(before);
    }
    sys::drop_cache(fd, low, if high == u64::MAX { 0 } else { high - low });
    let left = measure(file, fd, low, high)?;
    let dropped = before.cached.saturating_sub(left.cached).saturating_mul(ledger::PAGE);
    ledger::TOTALS.dropped_bytes.fetch_add(dropped, Relaxed);
    Some(left)
}

/// Gives back the clean pages of a range that has been written, and of what lies before it and was kept until now: what
/// we appended, or, where usage is over its target (`all`), anything.
pub fn drop_range(file: &File, fd: c_int, low: u64, high: u64, all: bool) {
    let floor = if all { 0 } else { file.old_end().next_multiple_of(ledger::PAGE) };
    // what is queued may be written after its chunk was looked at
    let start = if file.has_queued() { 0 } else { low.min(file.kept_from()) };
    // a large folio is dropped as a whole or not at all
    let start = (start & !(STEP - 1)).max(floor);
    // the tail page of a growing file stays
    let high = if high == u64::MAX { high } else { high & !(ledger::PAGE - 1) };
    if high <= start {
        return;
    }
    let before = measure(file, fd, start, high);
    sys::drop_cache(fd, start, if high == u64::MAX { 0 } else { high - start });
    if let (Some(before), Some(after)) = (before, measure(file, fd, start, high)) {
        let dropped = before.cached.saturating_sub(after.cached).saturating_mul(ledger::PAGE);
        ledger::TOTALS.dropped_bytes.fetch_add(dropped, Relaxed);
    }
    if high != u64::MAX {
        file.set_kept_from(high & !(STEP - 1));
    }
}
