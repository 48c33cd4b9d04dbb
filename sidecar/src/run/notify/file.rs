//! One file that is written to: how its pages are sent to the disk, how many are not there yet, and giving them back.
//! By the kind of filesystem, as the library does it (ARCHITECTURE.md has the table).
//!
//! Everything goes through a descriptor of this process's own: nothing is done to the program's, and no call waits.

use super::sys;
use freeboard_budget::layout::Aside;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, CWD, FileType, Mode, OFlags, Stat, fadvise, fdatasync, fstat, openat, stat, statfs};
use std::num::NonZeroU64;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PAGE_BYTES: u64 = 4096;
/// sync_file_range has no effect on a file where it had none for so long.
const NO_EFFECT: Duration = Duration::from_millis(250);

/// `f_type`s (`include/uapi/linux/magic.h`).
const OVERLAY: u32 = 0x794c_7630;
/// NFS, CIFS, SMB2, CephFS, FUSE, 9p.
const REMOTE: [u32; 6] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x6573_5546, 0x0102_1997];
/// tmpfs, ramfs, hugetlbfs, proc, sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs.
const MEMORY: [u32; 10] = [
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

/// How a file's pages get to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// sync_file_range.
    Ranges,
    /// overlayfs, where that does nothing: fadvise starts writeback.
    Layered,
    /// On the server only after a commit.
    Remote,
    /// sync_file_range has no effect (ext4 with data=journal): written by a sync.
    Synced,
}

/// Where a program's descriptor is found. Looking there needs neither its leave nor a right to trace it.
pub fn place(thread: u32, fd: i32) -> String {
    format!("/proc/{thread}/fd/{fd}")
}

/// What tells one file from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl Identity {
    fn of(stat: &Stat) -> Identity {
        Identity { dev: stat.st_dev, ino: stat.st_ino }
    }

    /// Of the file behind a program's descriptor.
    ///
    /// # Errors
    /// It has no page cache, or is not there any more.
    pub fn find(thread: u32, fd: i32) -> Result<Identity, Aside> {
        let stat = stat(place(thread, fd)).map_err(|_| Aside::Outside)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => Ok(Identity::of(&stat)),
            _ => Err(Aside::NotAFile),
        }
    }
}

/// A file under the notifier.
#[derive(Debug)]
pub struct File {
    own: OwnedFd,
    how: How,
    /// `st_dev` of the file, or `st_rdev` of a block device.
    pub dev: u64,
    /// Where it ended when it was first seen: what lies before may be somebody else's cache.
    old_end: u64,
    /// Let go since its writeback was last started, in bytes.
    pub unstarted_bytes: u64,
    /// Let go since it was last looked at, in bytes.
    fresh_bytes: u64,
    /// What was not on the disk at the last look, in bytes.
    unwritten_bytes: u64,
    /// Of it, what is not waited for any more: the disk made no progress.
    forgiven_bytes: u64,
    cached_bytes: u64,
    /// cachestat says nothing of it: the group's numbers have to serve.
    blind: bool,
    commit: Option<JoinHandle<()>>,
    /// Since when sync_file_range has had no effect.
    stuck_since: Option<Instant>,
    /// When pages of it were last given back.
    pub given_back: Duration,
    /// The program has closed it.
    pub is_closed: bool,
}

impl File {
    /// Opens the file behind a program's descriptor a second time.
    ///
    /// # Errors
    /// Why it is to be left alone.
    pub fn open(thread: u32, fd: i32, identity: Identity) -> Result<File, Aside> {
        if waits_by_itself(thread, fd) {
            return Err(Aside::Direct);
        }
        // opening it would break the lease (fcntl(2), F_SETLEASE)
        if has_lease(thread, fd) {
            return Err(Aside::Outside);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let own = openat(CWD, place(thread, fd), flags, Mode::empty()).map_err(|_| Aside::Outside)?;
        let stat = fstat(&own).map_err(|_| Aside::Outside)?;
        if Identity::of(&stat) != identity {
            return Err(Aside::Outside);
        }
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        let how = match statfs(place(thread, fd)).map_err(|_| Aside::Unknown)?.f_type as u32 {
            _ if is_device => How::Ranges,
            OVERLAY => How::Layered,
            remote if REMOTE.contains(&remote) => How::Remote,
            memory if MEMORY.contains(&memory) => return Err(Aside::Memory),
            _ => How::Ranges,
        };
        Ok(File {
            own,
            how,
            dev: if is_device { stat.st_rdev } else { stat.st_dev },
            old_end: if is_device { u64::MAX } else { stat.st_size as u64 },
            unstarted_bytes: 0,
            fresh_bytes: 0,
            unwritten_bytes: 0,
            forgiven_bytes: 0,
            cached_bytes: 0,
            blind: how != How::Ranges,
            commit: None,
            stuck_since: None,
            given_back: Duration::ZERO,
            is_closed: false,
        })
    }

    /// Whether no name is left of it: it is gone once nobody has it open.
    pub fn is_deleted(&self) -> bool {
        fstat(&self.own).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Says that a call with so many bytes goes.
    pub fn let_go(&mut self, bytes: u64) {
        self.unstarted_bytes = self.unstarted_bytes.saturating_add(bytes);
        self.fresh_bytes = self.fresh_bytes.saturating_add(bytes);
    }

    /// What is not on the disk, as far as is known.
    pub fn unwritten_bytes(&self) -> u64 {
        self.unwritten_bytes.saturating_add(self.fresh_bytes)
    }

    /// What of it is waited for.
    pub fn owed_bytes(&self) -> u64 {
        self.unwritten_bytes().saturating_sub(self.forgiven_bytes)
    }

    /// The disk makes no progress: what is owed is not waited for any more.
    pub fn forgive(&mut self) {
        self.forgiven_bytes = self.unwritten_bytes();
    }

    /// Looks at the page cache. Where that cannot be seen nothing has arrived but what the group's own number says:
    /// `group_bytes` are unwritten in all.
    pub fn look(&mut self, group_bytes: u64) {
        let before = self.unwritten_bytes();
        let stat = if self.blind { None } else { sys::cachestat(self.own.as_fd()).ok() };
        self.unwritten_bytes = match stat {
            Some(stat) => {
                self.cached_bytes = stat.cached * PAGE_BYTES;
                // what was written again, or what the kernel has started by itself, needs no start
                self.unstarted_bytes = stat.dirty * PAGE_BYTES;
                (stat.dirty + stat.writeback) * PAGE_BYTES
            }
            None => {
                self.blind = true;
                self.unwritten_bytes().min(group_bytes)
            }
        };
        // the oldest arrives first, and that is what was forgiven
        let arrived = before.saturating_sub(self.unwritten_bytes);
        self.forgiven_bytes = self.forgiven_bytes.saturating_sub(arrived).min(self.unwritten_bytes);
        self.fresh_bytes = 0;
    }

    /// Starts writeback of what is not on the disk.
    pub fn start(&mut self) {
        match self.how {
            How::Ranges => self.start_ranges(),
            How::Layered => drop_cache(&self.own),
            How::Remote | How::Synced => {
                if self.commit.as_ref().is_some_and(|commit| !commit.is_finished()) {
                    return;
                }
                // a server that hangs is not to hold up those who write elsewhere
                let drops = self.how == How::Remote;
                self.commit = self.own.try_clone().ok().and_then(|own| {
                    let commit = move || {
                        let _ = fdatasync(&own);
                        if drops {
                            drop_cache(&own);
                        }
                    };
                    std::thread::Builder::new().name("commit".into()).spawn(commit).ok()
                });
            }
        }
        self.unstarted_bytes = 0;
    }

    /// By sync_file_range, as long as that has an effect.
    fn start_ranges(&mut self) {
        let before = sys::cachestat(self.own.as_fd());
        sys::start_writeback(self.own.as_fd(), 0, 0);
        let (Ok(before), Ok(after)) = (before, sys::cachestat(self.own.as_fd())) else { return };
        if before.dirty == 0 || after.dirty < before.dirty || after.writeback > before.writeback {
            self.stuck_since = None;
        } else if self.stuck_since.get_or_insert_with(Instant::now).elapsed() > NO_EFFECT {
            self.how = How::Synced;
        }
    }

    /// Gives pages back that are on the disk: what was appended, or `all`. Returns how many bytes that were.
    pub fn give_back(&mut self, all: bool) -> u64 {
        let from = if all { 0 } else { self.old_end };
        // a device has no end, and the last page of a file that may still grow stays
        let end = fstat(&self.own).map_or(0, |stat| stat.st_size as u64);
        let end = if self.is_closed { end.next_multiple_of(PAGE_BYTES) } else { end & !(PAGE_BYTES - 1) };
        let bytes = if self.old_end == u64::MAX { u64::MAX } else { end.saturating_sub(from) };
        if self.how == How::Remote || bytes == 0 || self.cached_bytes == 0 && !self.blind {
            return 0;
        }
        let _ = fadvise(&self.own, from, NonZeroU64::new(bytes.min(i64::MAX as u64 - from)), Advice::DontNeed);
        let before = self.cached_bytes;
        if let Ok(stat) = sys::cachestat(self.own.as_fd()) {
            self.cached_bytes = stat.cached * PAGE_BYTES;
        }
        before.saturating_sub(self.cached_bytes)
    }
}

fn drop_cache(file: &OwnedFd) {
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

/// What the kernel says of a program's descriptor under a key such as `pos:`.
pub fn info(thread: u32, fd: i32, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{thread}/fdinfo/{fd}")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()))
}

/// The process that a thread belongs to.
pub fn process_of(thread: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

/// O_DIRECT, O_SYNC or O_DSYNC. What cannot be read is not so.
fn waits_by_itself(thread: u32, fd: i32) -> bool {
    let flags = info(thread, fd, "flags:").and_then(|flags| u32::from_str_radix(&flags, 8).ok()).unwrap_or(0);
    flags & (libc::O_DIRECT | libc::O_DSYNC) as u32 != 0
}

/// Somebody has a lease on the file, through this descriptor or one that is like it.
fn has_lease(thread: u32, fd: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{thread}/fdinfo/{fd}")).unwrap_or_default();
    text.lines().any(|line| line.starts_with("lock:") && line.contains("LEASE"))
}

/// This thread's id.
#[cfg(test)]
pub fn own_thread() -> u32 {
    let place = std::fs::read_link("/proc/thread-self").unwrap();
    place.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    /// Opens it as the notifier does for a program's: this one's own.
    fn found(fd: &impl AsRawFd) -> Result<File, Aside> {
        let (thread, fd) = (std::process::id(), fd.as_raw_fd());
        File::open(thread, fd, Identity::find(thread, fd)?)
    }

    #[test]
    fn what_is_left_alone() {
        let (read, _write) = std::io::pipe().unwrap();
        assert_eq!(found(&read).unwrap_err(), Aside::NotAFile);
        assert_eq!(found(&std::fs::File::open("/dev/null").unwrap()).unwrap_err(), Aside::NotAFile);
        assert_eq!(found(&std::fs::File::open("/proc/self/stat").unwrap()).unwrap_err(), Aside::Memory);
        assert_eq!(Identity::find(std::process::id(), 1 << 20), Err(Aside::Outside));
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut options = std::fs::OpenOptions::new();
        let synced = std::os::unix::fs::OpenOptionsExt::custom_flags(options.create(true).write(true), libc::O_SYNC);
        assert_eq!(found(&synced.open(dir.path().join("synced")).unwrap()).unwrap_err(), Aside::Direct);
    }

    #[test]
    fn a_lease_is_not_broken() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let program = std::fs::File::create(dir.path().join("leased")).unwrap();
        let lease = |command, kind| crate::leases::lease(&program, command, kind);
        assert_eq!(lease(libc::F_SETLEASE, libc::F_WRLCK), 0);
        assert_eq!(found(&program).unwrap_err(), Aside::Outside);
        assert_eq!(lease(libc::F_GETLEASE, 0), libc::F_WRLCK);
        assert_eq!(lease(libc::F_SETLEASE, libc::F_UNLCK), 0);
        assert!(found(&program).is_ok());
    }

    #[test]
    fn what_is_forgiven_is_owed_once_it_is_written_again() {
        let mut program = tempfile::tempfile_in("/var/tmp").unwrap();
        let mut file = found(&program).unwrap();
        file.let_go(1 << 20);
        program.write_all(&vec![1; 1 << 20]).unwrap();
        file.look(u64::MAX);
        file.forgive();
        assert_eq!(file.owed_bytes(), 0);
        file.look(u64::MAX);
        assert_eq!(file.owed_bytes(), 0, "{file:?}");
        file.let_go(4096);
        assert_eq!(file.owed_bytes(), 4096);
        program.sync_all().unwrap();
        file.look(u64::MAX);
        if !file.blind {
            assert_eq!((file.owed_bytes(), file.forgiven_bytes), (0, 0));
        }
    }

    #[test]
    fn what_is_owed_is_what_the_page_cache_says() {
        let mut program = tempfile::tempfile_in("/var/tmp").unwrap();
        let mut file = found(&program).unwrap();
        file.let_go(8 << 20);
        assert_eq!(file.owed_bytes(), 8 << 20);
        program.write_all(&vec![1; 1 << 20]).unwrap();
        file.look(u64::MAX);
        assert!(file.owed_bytes() <= 1 << 20, "{file:?}");
        program.sync_all().unwrap();
        file.look(u64::MAX);
        if !file.blind {
            assert_eq!((file.owed_bytes(), file.unstarted_bytes), (0, 0));
            assert_eq!(file.give_back(false), 1 << 20);
        }
    }
}
