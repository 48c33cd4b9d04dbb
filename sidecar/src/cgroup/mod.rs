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
                Ok(parent) if version_of(&parent) == Some(version) => at = parent,
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
}

/// Judges every level with its own usage; the smallest `allowed` rules. `None`: the group's own files lack what is
/// needed.
///
/// A target in bytes is the container's; an ancestor, which others share, is kept under the same share of its limit
/// that is the default.
pub fn judge(readings: &[Reading], target: Target, speed: Option<u64>) -> Option<Judgement> {
    let own = readings.first()?.level(target)?;
    let first = Judgement { verdict: law::judge(&own, speed), ruling: own };
    let shared = match target {
        Target::Percent(_) => target,
        Target::Bytes(_) => freeboard_config::Workload::default().memory.target,
    };
    Some(readings[1..].iter().filter_map(|reading| reading.level(shared)).fold(first, |so_far, level| {
        let verdict = law::judge(&level, speed);
        let ruling = if verdict.allowed < so_far.verdict.allowed { level } else { so_far.ruling };
        Judgement { verdict: so_far.verdict.stricter(verdict), ruling }
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
    let (memberships, mounts) = (read(&file)?, read("/proc/self/mountinfo")?);
    let (version, path) = own_path(&memberships).ok_or(format!("{file} names no memory cgroup"))?;
    let (root, point) = mount_point(&mounts, version).ok_or("no cgroup filesystem with memory control is mounted")?;
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
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::path::Path;

    const MIB: u64 = 1 << 20;

    /// Writes one v1 level into a directory.
    fn v1(dir: &Path, limit: &str, usage: u64, dirty: u64, hierarchical: &str) {
        create_dir_all(dir).unwrap();
        write(dir.join("memory.limit_in_bytes"), format!("{limit}\n")).unwrap();
        write(dir.join("memory.usage_in_bytes"), format!("{usage}\n")).unwrap();
        write(dir.join("memory.failcnt"), "7\n").unwrap();
        let stat = format!(
            "cache 1\ntotal_cache {dirty}\ntotal_rss {}\ntotal_shmem 0\ntotal_dirty {dirty}\ntotal_writeback 0\nhierarchical_memory_limit {hierarchical}\n",
            usage - dirty
        );
        write(dir.join("memory.stat"), stat).unwrap();
    }

    fn v2(dir: &Path, max: &str, high: &str, usage: u64, dirty: u64) {
        create_dir_all(dir).unwrap();
        write(dir.join("cgroup.type"), "domain\n").unwrap();
        write(dir.join("memory.max"), format!("{max}\n")).unwrap();
        write(dir.join("memory.high"), format!("{high}\n")).unwrap();
        write(dir.join("memory.current"), format!("{usage}\n")).unwrap();
        write(dir.join("memory.events"), "low 0\nhigh 3\nmax 9\noom 0\noom_kill 0\n").unwrap();
        let stat = format!(
            "anon {}\nfile {dirty}\nshmem 0\nfile_dirty {dirty}\nfile_writeback 0\nslab_reclaimable 0\n",
            usage - dirty
        );
        write(dir.join("memory.stat"), stat).unwrap();
    }

    /// A directory below `top` counts as a cgroup's; `top` itself and what is above does not.
    fn open(top: &Path, path: &str, version: Version) -> Result<Group, String> {
        let dir = open_dir(CWD, top.join(path).to_str().unwrap()).unwrap();
        let outside = fstat(open_dir(CWD, top.to_str().unwrap()).unwrap()).unwrap().st_ino;
        Group::walk(dir, |dir| (fstat(dir).unwrap().st_ino != outside).then_some(version))
    }

    const NONE: &str = "9223372036854771712";

    #[test]
    fn an_ordinary_directory_is_not_a_cgroup() {
        let top = tempfile::tempdir().unwrap();
        v1(top.path(), "1000", 10, 0, "1000");
        let error = open_path(top.path()).unwrap_err();
        assert!(error.contains("not a directory of a cgroup filesystem"), "{error}");
        let file = std::fs::File::open(top.path().join("memory.stat")).unwrap();
        assert!(Group::open(file.into()).is_err());
    }

    #[test]
    fn every_level_counts_with_its_own_usage() {
        let top = tempfile::tempdir().unwrap();
        let pod = top.path().join("root/pod");
        v1(&top.path().join("root"), NONE, 900 * MIB, 0, NONE);
        v1(&pod, &(300 * MIB).to_string(), 230 * MIB, 10 * MIB, &(300 * MIB).to_string());
        v1(&pod.join("c"), &(200 * MIB).to_string(), 30 * MIB, 10 * MIB, &(200 * MIB).to_string());
        write(top.path().join("root/release_agent"), "").unwrap();
        let group = open(top.path(), "root/pod/c", Version::V1).unwrap();
        assert!(group.rooted);
        let readings = group.read().unwrap();
        assert_eq!(readings.len(), 2, "the root has no limit and is not read");
        assert_eq!(readings[0].limit_hits, 7);
        let judgement = judge(&readings, Target::Percent(80), None).unwrap();
        // alone, the container would be allowed 20 MiB; the pod has 240 - 220 of room, less the counters' lag
        assert_eq!(judgement.ruling.limit, 300 * MIB);
        assert_eq!(judgement.verdict.allowed, 20 * MIB - law::COUNTER_LAG);

        // an in-place resize is seen at the next reading
        write(pod.join("memory.limit_in_bytes"), "1073741824\n").unwrap();
        let judgement = judge(&group.read().unwrap(), Target::Percent(80), None).unwrap();
        assert_eq!((judgement.ruling.limit, judgement.verdict.allowed), (200 * MIB, 20 * MIB));
    }

    #[test]
    fn a_target_in_bytes_is_the_containers_and_not_its_ancestors() {
        let top = tempfile::tempdir().unwrap();
        v1(&top.path().join("pod"), "1000000000", 600_000_000, 0, "1000000000");
        v1(&top.path().join("pod/c"), "500000000", 20_000_000, 0, "500000000");
        let readings = open(top.path(), "pod/c", Version::V1).unwrap().read().unwrap();
        let judgement = judge(&readings, Target::Bytes(100_000_000), None).unwrap();
        assert_eq!((judgement.ruling.target, judgement.verdict.allowed), (100_000_000, 20_000_000));
    }

    #[test]
    fn an_unseen_ancestors_limit_is_taken_from_the_hierarchy() {
        let top = tempfile::tempdir().unwrap();
        v1(&top.path().join("c"), NONE, 30 * MIB, 0, &(100 * MIB).to_string());
        let group = open(top.path(), "c", Version::V1).unwrap();
        assert!(!group.rooted);
        assert_eq!(group.read().unwrap()[0].limit, 100 * MIB);
    }

    #[test]
    fn on_v2_the_smaller_of_max_and_high_is_the_limit() {
        let top = tempfile::tempdir().unwrap();
        let cases = [("max", "max", u64::MAX), ("200", "max", 200), ("max", "150", 150), ("200", "300", 200)];
        for (max, high, want) in cases {
            v2(&top.path().join("c"), max, high, 100, 10);
            let reading = &open(top.path(), "c", Version::V2).unwrap().read().unwrap()[0];
            assert_eq!((reading.limit, reading.limit_hits), (want, 9), "max {max}, high {high}");
        }
    }

    #[test]
    fn on_v2_a_group_without_the_controller_is_its_ancestors() {
        let top = tempfile::tempdir().unwrap();
        v2(&top.path().join("a"), "1000000", "max", 5000, 0);
        create_dir_all(top.path().join("a/b")).unwrap();
        write(top.path().join("a/b/cgroup.type"), "domain\n").unwrap();
        let group = open(top.path(), "a/b", Version::V2).unwrap();
        assert_eq!(group.read().unwrap()[0].limit, 1_000_000);
        assert_eq!(group.id, std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(top.path().join("a/b")).unwrap()));
        std::fs::remove_file(top.path().join("a/memory.stat")).unwrap();
        assert!(open(top.path(), "a/b", Version::V2).is_err());
    }

    #[test]
    fn missing_keys_are_said_and_not_taken_for_zero() {
        let top = tempfile::tempdir().unwrap();
        v1(&top.path().join("c"), "1000000", 5000, 0, NONE);
        let group = open(top.path(), "c", Version::V1).unwrap();
        write(top.path().join("c/memory.stat"), "total_cache 5\ntotal_rss 5\n").unwrap();
        assert_eq!(judge(&group.read().unwrap(), Target::Percent(80), None), None);
        write(top.path().join("c/memory.usage_in_bytes"), "what\n").unwrap();
        assert!(matches!(group.read(), Err(Lost::Unreadable(_))));
    }
}
