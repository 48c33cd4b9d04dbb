//! A file's pages: counted, sent, given back. By a descriptor that may only read, and that no error is reported on:
//! only sync_file_range without a wait and fadvise, so that the program's own fsync hears of whatever the disk refused.

use crate::run::notify::{CacheStat, cachestat_of, start_writeback};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Advice, CWD, Mode, OFlags, fadvise, openat};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;

const MIB: u64 = 1 << 20;
/// Least size of a piece. Of a large file there are [`MOST_PIECES`].
const PIECE: u64 = 16 * MIB;
const MOST_PIECES: u64 = 1024;

/// A file with a page cache.
#[derive(Debug)]
pub struct Pages {
    file: OwnedFd,
}

/// Part of a file of which something is cached.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where it is.
    pub range: Range<u64>,
    /// What the kernel counts of it, in pages.
    pub stat: CacheStat,
}

impl Pages {
    /// Opens the file behind a descriptor that says only where it is (O_PATH).
    ///
    /// # Errors
    /// This user may not read it.
    pub fn open(place: &OwnedFd) -> rustix::io::Result<Pages> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(Pages { file: openat(CWD, format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty())? })
    }

    /// What is cached of a range.
    ///
    /// # Errors
    /// Before Linux 6.5, and where the file is neither this user's nor his to write.
    pub fn stat(&self, range: &Range<u64>) -> io::Result<CacheStat> {
        cachestat_of(self.file.as_fd(), range.start, range.end - range.start)
    }

    /// The pieces of a file of so many bytes of which something is cached.
    ///
    /// # Errors
    /// As [`Pages::stat`].
    pub fn pieces(&self, bytes: u64) -> io::Result<Vec<Piece>> {
        let size = (bytes / MOST_PIECES).next_multiple_of(PIECE).max(PIECE);
        let mut pieces = Vec::new();
        if self.stat(&(0..bytes))?.cached == 0 {
            return Ok(pieces);
        }
        let mut start = 0;
        while start < bytes {
            let range = start..start.saturating_add(size);
            start = range.end;
            let stat = self.stat(&range)?;
            if stat.cached > 0 {
                pieces.push(Piece { range, stat });
            }
        }
        Ok(pieces)
    }

    /// Starts writeback of a range's dirty pages.
    pub fn send(&self, range: &Range<u64>) {
        start_writeback(self.file.as_fd(), range.start, range.end - range.start);
    }

    /// Gives a range's clean pages back.
    pub fn give_back(&self, range: &Range<u64>) {
        let _ = fadvise(&self.file, range.start, NonZeroU64::new(range.end - range.start), Advice::DontNeed);
    }
}
