//! What each descriptor is, in one word a descriptor: not yet looked at, to be left alone, or the index of its file.
//!
//! The table is a hint. Descriptors can be closed and opened without our seeing it (inside libc, by raw system calls),
//! so the slow path asks the kernel again before it acts on one.

use crate::files::{self, File};
use crate::flush::How;
use crate::seccomp::{self, Forbidden};
use crate::sys::{self, Stat};
use crate::{ledger, process, region};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};
use freeboard_budget::Mode;
use freeboard_budget::layout::Aside;
use libc::c_int;

/// Descriptors from here on are left alone.
const DESCRIPTORS: usize = 1 << 20;

static TABLE: [AtomicU32; DESCRIPTORS] = [const { AtomicU32::new(0) }; DESCRIPTORS];
static HIGHEST: AtomicU32 = AtomicU32::new(0);

/// The filesystem that was looked at last: its device, its way, and when, in 32, 4 and 28 bits.
static LAST_HOW: AtomicU64 = AtomicU64::new(0);
const SINCE_BITS: u32 = 28;
const SINCE_MASK: u64 = (1 << SINCE_BITS) - 1;
/// Nobody unmounts a filesystem and mounts another one under its device number in so short a time.
const SAME_MS: u64 = 100;

const UNKNOWN: u32 = 0;
const FIRST_FILE: u32 = 16;

/// One word of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry(u32);

impl Entry {
    const fn aside(reason: Aside) -> Entry {
        Entry(1 + reason as u32)
    }

    /// To be left alone.
    #[inline(always)]
    pub const fn is_aside(self) -> bool {
        self.0.wrapping_sub(1) < FIRST_FILE - 1
    }

    /// Not yet looked at.
    #[inline(always)]
    pub const fn is_unknown(self) -> bool {
        self.0 == UNKNOWN
    }

    /// The file that it stands for.
    #[inline(always)]
    pub fn file(self) -> Option<&'static File> {
        files::get(self.0.wrapping_sub(FIRST_FILE) as usize)
    }
}

/// The word of a descriptor as it stands.
#[inline(always)]
pub fn get(fd: c_int) -> Entry {
    match TABLE.get(fd as usize) {
        Some(word) => Entry(word.load(Relaxed)),
        None => Entry::aside(Aside::Full),
    }
}

/// The word of a descriptor, looked at now if it was not known.
pub fn look(fd: c_int) -> Entry {
    let entry = get(fd);
    if !entry.is_unknown() || !process::is_ours() {
        return entry;
    }
    let Some(entry) = classify(fd) else { return entry };
    if entry == Entry::aside(Aside::Full) {
        return entry; // looked at again with its next call: some file may have been closed
    }
    if let Some(word) = TABLE.get(fd as usize) {
        if word.compare_exchange(UNKNOWN, entry.0, Relaxed, Relaxed).is_err()
            && let Some(file) = entry.file()
        {
            file.release(); // another thread was first
        }
        raise_highest(fd);
    }
    entry
}

fn raise_highest(fd: c_int) {
    if fd as u32 > HIGHEST.load(Relaxed) {
        HIGHEST.fetch_max(fd as u32, Relaxed);
    }
}

/// Is the descriptor open on this very file?
pub fn is_on(fd: c_int, file: &File) -> bool {
    sys::fstat(fd).is_some_and(|stat| files::key(&stat) == file.key())
}

/// Some descriptor that is open on this file.
pub fn find(file: &File) -> Option<c_int> {
    let last = file.last_fd();
    if last >= 0 && is_on(last, file) {
        return Some(last);
    }
    let highest = HIGHEST.load(Relaxed).min(4096);
    (0..=highest as c_int)
        .find(|&fd| get(fd).file().is_some_and(|other| core::ptr::eq(other, file)) && is_on(fd, file))
        .inspect(|&fd| file.set_last_fd(fd))
}

/// `None`: the descriptor is not open, and the call itself will say so; or it is too early to tell.
fn classify(fd: c_int) -> Option<Entry> {
    let forbidden = seccomp::forbids()?;
    let stat = sys::fstat(fd)?;
    let aside = |reason| {
        ledger::aside(reason);
        Some(Entry::aside(reason))
    };
    if !stat.is_file() && !stat.is_block_device() {
        return aside(Aside::NotAFile);
    }
    match forbidden {
        Forbidden::Nothing => {}
        Forbidden::Flushing => {
            region::refresh(); // so that the sidecar hears of it
            return aside(Aside::Filtered);
        }
        Forbidden::All => {
            process::end();
            return None;
        }
    }
    let flags = sys::status_flags(fd);
    if flags < 0 || flags & (libc::O_DIRECT | libc::O_DSYNC | libc::O_SYNC) != 0 {
        return aside(Aside::Direct);
    }
    let now = region::refresh();
    let Some(how) = how(fd, &stat, now) else {
        return aside(Aside::Memory);
    };
    let mode = region::mode_of_file(fd);
    if mode == Mode::Off {
        return aside(Aside::Policy);
    }
    match files::open(&stat, fd, how, mode, flags & libc::O_APPEND != 0) {
        Some(index) => Some(Entry(FIRST_FILE + index as u32)),
        None => aside(Aside::Full),
    }
}

/// The way of a file's filesystem. Many small files are written one after the other to the same one, so the last answer
/// serves for [`SAME_MS`].
fn how(fd: c_int, stat: &Stat, now: u64) -> Option<How> {
    if stat.is_block_device() {
        return How::of(fd, true);
    }
    let dev = u64::from(libc::major(stat.dev)) << 20 | u64::from(libc::minor(stat.dev));
    let now_ms = (now / 1_000_000) & SINCE_MASK;
    let last = LAST_HOW.load(Relaxed);
    let since_ms = now_ms.wrapping_sub(last & SINCE_MASK) & SINCE_MASK;
    if last != 0 && last >> 32 == dev && since_ms < SAME_MS {
        return Some(How::from_u32((last >> SINCE_BITS) as u32 & 0xf));
    }
    let how = How::of(fd, false)?;
    LAST_HOW.store(dev << 32 | u64::from(how as u32) << SINCE_BITS | now_ms, Relaxed);
    Some(how)
}

/// Forgets a descriptor, before it is closed or when what it is may have changed. What its file owes stays owed.
pub fn forget(fd: c_int) {
    if let Some(word) = TABLE.get(fd as usize)
        && let Some(file) = Entry(word.swap(UNKNOWN, Relaxed)).file()
    {
        file.release();
    }
}

/// The descriptor is being closed. With the last one the file goes too, and what it owes is the closed files' debt.
pub fn close(fd: c_int) {
    let file = get(fd).file();
    forget(fd);
    if let Some(file) = file.filter(|file| !file.is_open()) {
        file.close();
    }
}

/// Makes `to` stand for what `from` stands for: the kernel has just made them the same.
pub fn copy(from: c_int, to: c_int) {
    let entry = get(from);
    if let Some(word) = TABLE.get(to as usize) {
        if let Some(file) = entry.file() {
            file.retain();
        }
        raise_highest(to);
        if let Some(old) = Entry(word.swap(entry.0, Relaxed)).file() {
            old.release();
        }
    }
}

/// All known descriptors of a range.
pub fn known(first: u32, last: u32) -> impl Iterator<Item = c_int> {
    let last = last.min(HIGHEST.load(Relaxed));
    (first..=last).map(|fd| fd as c_int).filter(|&fd| !get(fd).is_unknown())
}

/// Everything is looked at anew: the policy has changed.
pub fn forget_policy() {
    for fd in known(0, u32::MAX) {
        let entry = get(fd);
        if entry == Entry::aside(Aside::Policy) || entry.file().is_some() {
            forget(fd);
        }
    }
}
