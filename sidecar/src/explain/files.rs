//! Which files hold the page cache: those that a group's processes have open or mapped, and what the kernel says of
//! each.

use crate::leases::Leases;
use crate::run::notify::{CacheStat, cachestat};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, stat, statvfs};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Pages of the page cache, as cachestat counts them.
const PAGE_BYTES: u64 = 4096;
/// `f_type` of tmpfs (`include/uapi/linux/magic.h`).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// One file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct File {
    /// Its path as the process sees it.
    pub path: String,
    /// A process that has it.
    pub pid: u32,
    /// What of it is cached, whichever group it is charged to.
    pub cached_bytes: u64,
    /// What of that is not on the disk.
    pub unwritten_bytes: u64,
    /// It lies in memory, and nowhere else.
    pub is_tmpfs: bool,
}

/// All files that could be found.
#[derive(Debug, Default)]
pub struct Files {
    /// Those that are cached, most first.
    pub files: Vec<File>,
    /// How many could not be looked at.
    pub refused: usize,
    /// The kernel has no cachestat: before Linux 6.5, or a filter forbids it.
    pub is_blind: bool,
    /// Processes whose files may not be listed.
    pub hidden_processes: usize,
}

/// A tmpfs that processes of the group have mounted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Tmpfs {
    /// Where it is mounted, as the process sees it.
    pub mount: String,
    /// A process that sees it.
    pub pid: u32,
    /// What lies in it, whichever group it is charged to.
    pub used_bytes: u64,
}

impl Files {
    /// Looks at the files of processes.
    pub fn of(processes: &[u32]) -> Files {
        let mut found = Files::default();
        let mut leases = Leases::default();
        let mut seen = BTreeSet::new();
        for &pid in processes {
            let fds = fs::read_dir(format!("/proc/{pid}/fd"));
            found.hidden_processes += usize::from(fds.is_err());
            let open = fds.into_iter().flatten().flatten().map(|entry| {
                let name = fs::read_link(entry.path()).unwrap_or_default();
                (entry.path(), name)
            });
            let root = PathBuf::from(format!("/proc/{pid}/root"));
            let mapped = mapped(pid).into_iter().map(|path| (root.join(path.strip_prefix("/").unwrap_or(&path)), path));
            for (at, name) in open.chain(mapped) {
                if found.is_blind {
                    return found;
                }
                found.look(pid, &at, &name, &mut leases, &mut seen);
            }
        }
        found.files.sort_by_key(|file| std::cmp::Reverse(file.cached_bytes));
        found
    }

    fn look(&mut self, pid: u32, at: &Path, name: &Path, leases: &mut Leases, seen: &mut BTreeSet<(u64, u64)>) {
        // asked before it is opened: to open a pipe or a terminal would be felt
        let Ok(meta) = stat(at) else { return };
        let has_cache = matches!(FileType::from_raw_mode(meta.st_mode), FileType::RegularFile | FileType::BlockDevice);
        if !has_cache || !seen.insert((meta.st_dev, meta.st_ino)) {
            return;
        }
        // to open it would break the lease (fcntl(2), F_SETLEASE)
        if !leases.may_open(meta.st_ino) {
            self.refused += 1;
            return;
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let cached = openat(CWD, at, flags, Mode::empty()).map_err(std::io::Error::from).and_then(|file| {
            // a name that was mapped may be another file's by now
            let is_it = fstat(&file).is_ok_and(|now| (now.st_dev, now.st_ino) == (meta.st_dev, meta.st_ino));
            let is_tmpfs = rustix::fs::fstatfs(&file).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(TMPFS_MAGIC));
            Ok((cachestat(file.as_fd())?, is_it, is_tmpfs))
        });
        match cached {
            Ok((CacheStat { cached, dirty, writeback, .. }, true, is_tmpfs)) if cached > 0 => self.files.push(File {
                path: name.display().to_string(),
                pid,
                cached_bytes: cached * PAGE_BYTES,
                // what lies in tmpfs is dirty for ever
                unwritten_bytes: if is_tmpfs { 0 } else { (dirty + writeback) * PAGE_BYTES },
                is_tmpfs,
            }),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => self.is_blind = true,
            Err(_) => self.refused += 1,
        }
    }
}

/// The files that a process has mapped.
fn mapped(pid: u32) -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let path = |line: &str| line.split_once('/').map(|(_, path)| PathBuf::from(format!("/{path}")));
    maps.lines().filter(|line| !line.ends_with(" (deleted)")).filter_map(path).collect()
}

/// The tmpfs that processes have mounted, fullest first; empty ones are left out.
pub fn tmpfs(processes: &[u32]) -> Vec<Tmpfs> {
    let mut mounts: BTreeMap<u64, Tmpfs> = BTreeMap::new();
    for &pid in processes {
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in table.lines().filter(|line| line.contains(" - tmpfs ")) {
            let Some(mount) = line.split(' ').nth(4) else { continue };
            let at = PathBuf::from(format!("/proc/{pid}/root")).join(mount.trim_start_matches('/'));
            let (Ok(meta), Ok(fs)) = (stat(&at), statvfs(&at)) else { continue };
            let used_bytes = fs.f_blocks.saturating_sub(fs.f_bfree).saturating_mul(fs.f_frsize);
            if used_bytes > 0 {
                mounts.entry(meta.st_dev).or_insert(Tmpfs { mount: mount.to_owned(), pid, used_bytes });
            }
        }
    }
    let mut mounts: Vec<Tmpfs> = mounts.into_values().collect();
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.used_bytes));
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_not_broken() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let paths = ["leased", "free"].map(|name| dir.path().join(name));
        paths.iter().for_each(|path| fs::write(path, [1u8; 8192]).unwrap());
        let [leased, _free] = paths.clone().map(|path| fs::File::open(path).unwrap());
        let lease = |command, kind| crate::leases::lease(&leased, command, kind);
        assert_eq!(lease(libc::F_SETLEASE, libc::F_WRLCK), 0);
        let files = Files::of(&[std::process::id()]);
        assert_eq!(lease(libc::F_GETLEASE, 0), libc::F_WRLCK);
        let is_seen = |path: &Path| files.files.iter().any(|file| Path::new(&file.path) == path);
        assert_eq!(paths.map(|path| is_seen(&path)), [false, true], "{files:?}");
        assert!(files.refused > 0);
        assert_eq!(lease(libc::F_SETLEASE, libc::F_UNLCK), 0);
    }
}
