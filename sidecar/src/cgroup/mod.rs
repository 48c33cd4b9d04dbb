//! Memory cgroups, read through a descriptor of their directory: the application's own, passed over the socket.
//!
//! A sidecar cannot see another container's groups by path. It can walk up from the directory it was handed, as far as
//! that mount goes, and read every level's files; `pread` on kept descriptors gives live values in any namespace.

pub mod level;
pub mod made;

use freeboard_budget::cgroup::{Version, below_root, mount_point, own_path};
use freeboard_budget::law::{self, Target, Verdict};
use level::{Level, Reading};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, fstatfs, openat, statat};
use rustix::io::Errno;
use std::path::PathBuf;

/// `f_type` of a cgroup v1 hierarchy (`include/uapi/linux/magic.h`).
const CGROUP_SUPER_MAGIC: u64 = 0x27_e0eb;
/// `f_type` of the cgroup v2 hierarchy.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// More levels than any real hierarchy has; a walk ends here.
const MAX_LEVELS: usize = 32;

/// A memory cgroup and those of its ancestors that its mount shows.
#[derive(Debug)]
pub struct Group {
    /// Inode number of the group's directory.
    pub id: u64,
    /// Which controller.
    pub version: Version,
    /// Whether the walk reached the root of the hierarchy. Where it did not, an ancestor's limit may rule unseen; on
    /// v1 `hierarchical_memory_limit` still tells how large it is.
    pub rooted: bool,
    /// The group itself, then its ancestors.
    levels: Vec<Level>,
}

/// Why a group gave no reading.
#[derive(Debug)]
pub enum Lost {
    /// The group was removed.
    Gone,
    /// It is there, but a file of it could not be read or lacks what is needed.
    Unreadable(String),
}

/// Opens a directory for reading, below `dir`.
fn open_dir(dir: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    openat(dir, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Which controller's filesystem a directory lies on, by the kernel's word; `None`: not a cgroup's.
fn version_of(dir: &OwnedFd) -> Option<Version> {
    match u64::try_from(fstatfs(dir).ok()?.f_type).ok()? {
        CGROUP_SUPER_MAGIC => Some(Version::V1),
        CGROUP2_SUPER_MAGIC => Some(Version::V2),
        _ => None,
    }
}

impl Group {
    /// The inode number of a group's directory; `None`: it is none.
    pub fn id_of(dir: &OwnedFd) -> Option<u64> {
        version_of(dir)?;
        Some(fstat(dir).ok()?.st_ino)
    }

    /// Takes the directory of a group.
    ///
    /// On v2 a group whose memory controller is not enabled is accounted to the nearest ancestor that has it; reading
    /// starts there, and `id` stays the directory's own.
    ///
    /// # Errors
    /// What is wrong with the descriptor: it is not a directory on cgroup or cgroup2, or no memory controller is there.
    pub fn open(dir: OwnedFd) -> Result<Group, String> {
        Group::walk(dir, version_of)
    }

    /// `version` tells a cgroup's directory from others; the walk up ends at the first that is none.
    fn walk(dir: OwnedFd, version_of: impl Fn(&OwnedFd) -> Option<Version>) -> Result<Group, String> {
        let version = version_of(&dir).ok_or("it is not a directory of a cgroup filesystem")?;
        let id = fstat(&dir).map_err(|error| format!("its inode cannot be read: {error}"))?.st_ino;
        let mut levels = Vec::new();
        let mut at = dir;
        let rooted = loop {
            match Level::open(&at, version) {
                Ok(level) => levels.push(level),
                Err(Errno::NOENT) if levels.is_empty() && version == Version::V2 => {}
                Err(Errno::NOENT) if !levels.is_empty() => {}
                Err(error) => return Err(format!("memory.stat: {error}")),
            }
            if is_root(&at, version) {
                break true;
            }
            if levels.len() == MAX_LEVELS {
                break false;
            }
            match open_dir(&at, "..") {
                // only of a cgroup: what else a client hands over may hold anything.
                // Before Linux 5.11 a v1 group can be told not to count what is below it.
                Ok(parent) if version_of(&parent) == Some(version) => {
                    if level::counts_alone(&parent) {
                        break true;
                    }
                    at = parent;
                }
                _ => break false,
            }
        };
        if levels.is_empty() {
            return Err("no memory controller is enabled for it or an ancestor that can be seen".into());
        }
        if !rooted && let Some(top) = levels.last_mut() {
            top.below_unseen();
        }
        Ok(Group { id, version, rooted, levels })
    }

    /// The group itself.
    pub fn own(&self) -> &Level {
        &self.levels[0]
    }

    /// Whether it is accounted to the group whose directory has this inode number.
    pub fn is_within(&self, id: u64) -> bool {
        self.levels.iter().any(|level| level.id == id)
    }

    /// Reads the group, and every ancestor that has a limit now.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn read(&self) -> Result<Vec<Reading>, Lost> {
        let mut readings = vec![self.own().read()?];
        for ancestor in &self.levels[1..] {
            // An ancestor without a limit says nothing, and its memory.stat may cost much: the kernel adds up a whole
            // tree for it.
            if ancestor.may_limit()? {
                readings.push(ancestor.read()?);
            }
        }
        Ok(readings)
    }
}

/// A hierarchy's root: v1 shows `release_agent` only there, v2 shows `cgroup.type` everywhere else.
fn is_root(dir: &OwnedFd, version: Version) -> bool {
    let there = |name| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    match version {
        Version::V1 => there("release_agent"),
        Version::V2 => !there("cgroup.type"),
    }
}

/// What the law says of a group with its ancestors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// The strictest of all levels' verdicts.
    pub verdict: Verdict,
    /// The level that rules: the one that allows least.
    pub ruling: law::Level,
    /// Of its unwritten bytes, the container's part of those that no writer answers for.
    pub unowned: u64,
}

/// Who writes under one level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Crowd {
    /// Processes that wrote within the last second.
    pub writers: u64,
    /// What they owe, in bytes.
    pub owed_bytes: u64,
}

/// Judges every level with its own usage; the smallest `allowed` rules. `None`: the group's own files lack what is
/// needed.
///
/// What an ancestor allows is for all that write under it: `mine` are the container's own writers, and `siblings` says
/// who writes in the other containers under the ancestor whose directory has that inode number.
///
/// A target in bytes is the container's; an ancestor, which others share, is kept under the same share of its limit
/// that is the default.
pub fn judge(
    readings: &[Reading],
    target: Target,
    speed: Option<u64>,
    mine: Crowd,
    siblings: impl Fn(u64) -> Crowd,
) -> Option<Judgement> {
    let (own, ancestors) = readings.split_first()?;
    let shared = match target {
        Target::Percent(_) => target,
        Target::Bytes(_) => freeboard_config::Workload::default().memory.target,
    };
    let judged = |level: law::Level, others: Crowd| {
        let mut verdict = law::judge(&level, speed);
        let mut unowned = level.unwritten.saturating_sub(mine.owed_bytes).saturating_sub(others.owed_bytes);
        if others.writers > 0 && verdict.allowed != u64::MAX {
            verdict.allowed = law::part(verdict.allowed, mine.writers, others.writers, others.owed_bytes);
            unowned /= mine.writers.max(1) + others.writers;
            unowned *= mine.writers.max(1);
        }
        Judgement { verdict, ruling: level, unowned }
    };
    let first = judged(own.level(target)?, Crowd::default());
    let above = ancestors.iter().filter_map(|one| Some(judged(one.level(shared)?, siblings(one.id))));
    Some(above.fold(first, |so_far, one| {
        let stricter = if one.verdict.allowed < so_far.verdict.allowed { one } else { so_far };
        Judgement { verdict: so_far.verdict.stricter(one.verdict), ..stricter }
    }))
}

/// Where this process's own memory cgroup is in the file tree.
///
/// # Errors
/// What is missing: no memory controller is mounted, or `/proc` cannot be read.
pub fn own_directory() -> Result<(Version, PathBuf), String> {
    directory_of("self")
}

/// The same of the process that `/proc` has under this name, in the file tree of this one.
///
/// # Errors
/// As [`own_directory`].
pub fn directory_of(process: &str) -> Result<(Version, PathBuf), String> {
    let read = |path: &str| std::fs::read(path).map_err(|error| format!("{path}: {error}"));
    let file = format!("/proc/{process}/cgroup");
    locate(&read(&file)?, &read("/proc/self/mountinfo")?).map_err(|error| format!("{file}: {error}"))
}

/// The directory of another process's memory cgroup, as that process sees it: its container may have a tree and a
/// cgroup namespace of its own. Takes the right to look into the process: the same user and its pid namespace, or root.
///
/// # Errors
/// What cannot be read or opened.
pub fn dir_of_process(pid: u32) -> Result<OwnedFd, String> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read(&path).map_err(|error| format!("{path}: {error}"))
    };
    let (_, path) = locate(&read("cgroup")?, &read("mountinfo")?)?;
    let path = format!("/proc/{pid}/root{}", path.display());
    open_dir(CWD, &path).map_err(|error| format!("{path}: {error}"))
}

/// The same from the text of a process's `cgroup` and of `mountinfo`.
fn locate(memberships: &[u8], mounts: &[u8]) -> Result<(Version, PathBuf), &'static str> {
    let (version, path) = own_path(memberships).ok_or("it names no memory cgroup")?;
    let mount = mount_point(mounts, version, Some(path)).or_else(|| mount_point(mounts, version, None));
    let (root, point) = mount.ok_or("no cgroup filesystem with memory control is mounted")?;
    Ok((version, PathBuf::from(format!("{point}{}", below_root(path, root)))))
}

/// Opens a group's directory by path.
///
/// # Errors
/// The path and why it was not taken.
pub fn open_path(path: &std::path::Path) -> Result<Group, String> {
    let dir = path.to_str().ok_or(Errno::ILSEQ).and_then(|path| open_dir(CWD, path));
    dir.map_err(|error| error.to_string()).and_then(Group::open).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod layouts;
