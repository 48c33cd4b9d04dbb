//! The files of one cgroup, opened once and read with `pread`.

use super::Lost;
use freeboard_budget::cgroup::{Stat, Version, limit, number, stat};
use freeboard_budget::law::{self, Target};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::io::{Errno, pread};
use std::mem::MaybeUninit;

/// Larger than any `memory.stat` (about 4 KiB at most).
const STAT_BYTES: usize = 16 << 10;
/// Larger than any of the other files.
const SMALL_BYTES: usize = 1 << 10;

/// Opens a file of a cgroup for reading.
fn open(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// One kept file of a cgroup.
#[derive(Debug)]
struct Text {
    name: &'static str,
    file: OwnedFd,
}

impl Text {
    /// A file that some kernels or a hierarchy's root do not have.
    fn optional(dir: &OwnedFd, name: &'static str) -> Option<Text> {
        open(dir, name).ok().map(|file| Text { name, file })
    }

    /// Reads a small file from its start and takes what `parse` finds in it.
    fn parse<T>(&self, parse: impl Fn(&[u8]) -> Option<T>) -> Result<T, Lost> {
        self.parse_within::<T, SMALL_BYTES>(parse)
    }

    /// The same of a file of up to `N` bytes.
    fn parse_within<T, const N: usize>(&self, parse: impl Fn(&[u8]) -> Option<T>) -> Result<T, Lost> {
        // not cleared: only what the kernel has written is looked at
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; N];
        match pread(&self.file, &mut buffer[..], 0) {
            Ok((text, _)) => {
                parse(text).ok_or_else(|| Lost::Unreadable(format!("{} does not hold what was expected", self.name)))
            }
            Err(Errno::NODEV | Errno::NOENT) => Err(Lost::Gone),
            Err(error) => Err(Lost::Unreadable(format!("{}: {error}", self.name))),
        }
    }
}

/// One key of a file of `key value` lines.
pub fn keyed(text: &[u8], key: &str) -> Option<u64> {
    text.split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(key.as_bytes())?.strip_prefix(b" ").and_then(number))
}

/// Whether a v1 group does not count what is below it, so that neither its limit nor its ancestors' hold there.
pub fn counts_alone(dir: &OwnedFd) -> bool {
    let hierarchy = Text::optional(dir, "memory.use_hierarchy");
    hierarchy.is_some_and(|file| file.parse(|text| number(text.trim_ascii())).is_ok_and(|on| on == 0))
}

/// One cgroup's files.
#[derive(Debug)]
pub struct Level {
    /// Inode number of its directory.
    pub(super) id: u64,
    version: Version,
    /// Limits of ancestors that cannot be seen apply to this level.
    below_unseen: bool,
    stat: Text,
    usage: Option<Text>,
    limit: Option<Text>,
    high: Option<Text>,
    hits: Option<Text>,
}

/// What one level said, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Inode number of the level's directory.
    pub(super) id: u64,
    version: Version,
    /// The limit in force on this level; `u64::MAX`: none.
    pub limit: u64,
    /// Usage; 0 for a v2 root, which does not say.
    pub usage: u64,
    /// `memory.stat`.
    pub stat: Stat,
    /// Times so far that usage met the limit; on v2 `memory.high`, too.
    pub limit_hits: u64,
}

impl Level {
    /// Opens the files of the cgroup whose directory is `dir`.
    ///
    /// # Errors
    /// What opening `memory.stat` gave. The others may be missing, as they are in a v2 root.
    pub fn open(dir: &OwnedFd, version: Version) -> Result<Level, Errno> {
        let stat = Text { name: "memory.stat", file: open(dir, "memory.stat")? };
        let (high, hits) = match version {
            Version::V1 => (None, "memory.failcnt"),
            Version::V2 => (Text::optional(dir, "memory.high"), "memory.events"),
        };
        Ok(Level {
            id: fstat(dir)?.st_ino,
            version,
            below_unseen: false,
            stat,
            usage: Text::optional(dir, version.usage_file()),
            limit: Text::optional(dir, version.limit_file()),
            high,
            hits: Text::optional(dir, hits),
        })
    }

    /// Says that ancestors of this level exist that cannot be seen.
    pub(super) fn below_unseen(&mut self) {
        self.below_unseen = true;
    }

    /// The smaller of the level's own limits now; `u64::MAX`: none.
    fn own_limit(&self) -> Result<u64, Lost> {
        let files = [&self.limit, &self.high];
        files.into_iter().flatten().try_fold(u64::MAX, |least, file| Ok(least.min(file.parse(limit)?)))
    }

    /// Whether the level can have a limit at all now. Cheap: does not read `memory.stat` where it has none.
    pub(super) fn may_limit(&self) -> Result<bool, Lost> {
        Ok((self.below_unseen && self.version == Version::V1) || self.own_limit()? != u64::MAX)
    }

    /// `memory.stat` alone: 6 to 7 µs.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn stat(&self) -> Result<Stat, Lost> {
        self.stat.parse_within::<_, STAT_BYTES>(|text| Some(stat(text)))
    }

    /// Usage in bytes; 0 where the level does not say.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn usage(&self) -> Result<u64, Lost> {
        self.usage.as_ref().map_or(Ok(0), |file| file.parse(|text| number(text.trim_ascii())))
    }

    /// Reads the level.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn read(&self) -> Result<Reading, Lost> {
        let stat = self.stat()?;
        let mut limit = self.own_limit()?;
        if self.below_unseen {
            limit = limit.min(stat.hierarchical_limit.unwrap_or(u64::MAX));
        }
        limit = stat.limit_beside_swap(limit);
        let limit_hits = match (&self.hits, self.version) {
            (None, _) => 0,
            (Some(file), Version::V1) => file.parse(|text| number(text.trim_ascii()))?,
            (Some(file), Version::V2) => file.parse(|text| Some(keyed(text, "max")? + keyed(text, "high")?))?,
        };
        Ok(Reading { id: self.id, version: self.version, limit, usage: self.usage()?, stat, limit_hits })
    }
}

impl Reading {
    /// What the law needs to know; `None` where `memory.stat` lacks a key.
    pub fn level(&self, target: Target) -> Option<law::Level> {
        Some(law::Level {
            limit: self.limit,
            target: target.bytes(self.limit),
            usage: self.usage,
            other: self.stat.other(self.version, self.usage, self.limit)?,
            unwritten: self.stat.unwritten()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::keyed;

    #[test]
    fn keys_are_whole_words() {
        let events = b"low 0\nhigh 3\nmax 12\noom 1\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(
            (keyed(events, "max"), keyed(events, "oom"), keyed(events, "oom_kill")),
            (Some(12), Some(1), Some(2))
        );
        assert_eq!(keyed(events, "oom_"), None);
        assert_eq!(keyed(b"max x\n", "max"), None);
    }
}
