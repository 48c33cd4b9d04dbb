//! Which processes have the files open: where they read, and in whose memory the files' pages are. Only where they can
//! be seen: in this pid namespace, and of the same user.

use super::processor_time;
use super::walk::{DEEPEST, as_path, reach, root_of};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, fstat, makedev, statx};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Time between two looks: [`RARELY`] times as long as one kept a processor busy, within these.
const OFTEN: Duration = Duration::from_secs(1);
const AT_LEAST: Duration = Duration::from_secs(10);
pub const RARELY: u32 = 300;
/// Descriptors that one look takes in, and of one process.
const MOST_LOOKED_AT: usize = 20_000;
const MOST_OF_ONE: usize = 5_000;
/// Of these, open files of the volumes.
const MOST_KEPT: usize = 4096;

/// What tells one file from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// A descriptor of another process.
#[derive(Clone, Debug)]
struct Open {
    pid: u32,
    fd: u32,
}

/// All that were found, each process at the last look that came to it.
#[derive(Debug, Default)]
pub struct Openers {
    open: HashMap<Identity, Vec<Open>>,
    /// The process that the last look ended before, for it had seen enough: the next one begins there.
    first: u32,
    due: Duration,
    /// When the last look began.
    pub looked: Duration,
}

impl Openers {
    /// Looks for processes that have files below the patterns' directories open, if it is time to. Returns whether it
    /// was.
    pub fn look(&mut self, patterns: &[String], now: Duration) -> bool {
        if now < self.due {
            return false;
        }
        let busy = processor_time();
        let roots: Vec<_> = patterns.iter().filter_map(|pattern| Root::open(root_of(pattern))).collect();
        let before = std::mem::take(&mut self.open);
        let (mut left, mut kept) = (MOST_LOOKED_AT, 0);
        let mut waiting = processes();
        for pid in round(&waiting, std::mem::take(&mut self.first)) {
            if left == 0 || kept >= MOST_KEPT {
                self.first = pid;
                break;
            }
            waiting.remove(&pid);
            let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            for entry in entries.take(MOST_OF_ONE.min(left)) {
                left -= 1;
                let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                let Ok(name) = fs::read_link(entry.path()) else { continue };
                if kept < MOST_KEPT
                    && name.is_absolute()
                    && let Some(id) = identity(&entry.path())
                    && roots.iter().any(|root| root.holds(&name, id))
                {
                    kept += 1;
                    self.open.entry(id).or_default().push(Open { pid, fd });
                }
            }
        }
        // of processes that this look did not come to, what an earlier one found
        let before = before.into_iter().flat_map(|(id, open)| open.into_iter().map(move |open| (id, open)));
        for (id, open) in before.filter(|(_, open)| waiting.contains(&open.pid)).take(MOST_KEPT) {
            self.open.entry(id).or_default().push(open);
        }
        self.looked = now;
        self.due = now + (processor_time().saturating_sub(busy) * RARELY).clamp(OFTEN, AT_LEAST);
        true
    }

    /// The processes that have any open.
    pub fn processes(&self) -> BTreeSet<u32> {
        self.open.values().flatten().map(|open| open.pid).collect()
    }

    /// Where a file's readers are now.
    pub fn readers(&self, id: Identity) -> Vec<u64> {
        let open = self.open.get(&id).into_iter().flatten();
        open.filter_map(|open| {
            // the descriptor may be another file's by now
            let is_it = identity(Path::new(&format!("/proc/{}/fd/{}", open.pid, open.fd))) == Some(id);
            let text = fs::read_to_string(format!("/proc/{}/fdinfo/{}", open.pid, open.fd)).ok()?;
            offset(&text).filter(|_| is_it)
        })
        .collect()
    }
}

/// Where a descriptor reads, from the text of its fdinfo; `None`: it only writes.
fn offset(text: &str) -> Option<u64> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let flags = u32::from_str_radix(value("flags:")?, 8).ok()?;
    if flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32 { None } else { value("pos:")?.parse().ok() }
}

/// All processes of this pid namespace but this one.
fn processes() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| pid != std::process::id()).collect()
}

/// All of them once, from this one on.
fn round(processes: &BTreeSet<u32>, first: u32) -> Vec<u32> {
    processes.range(first..).chain(processes.range(..first)).copied().collect()
}

/// Of a regular file. No server is asked.
fn identity(path: &Path) -> Option<Identity> {
    let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE | StatxFlags::INO).ok()?;
    let is_file = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile;
    is_file.then(|| Identity { dev: makedev(stat.stx_dev_major, stat.stx_dev_minor), ino: stat.stx_ino })
}

/// A volume's directory.
#[derive(Debug)]
struct Root {
    dir: OwnedFd,
    dev: u64,
}

impl Root {
    fn open(path: &str) -> Option<Root> {
        let dir = reach(path.as_bytes()).ok()?;
        let dev = fstat(&dir).ok()?.st_dev;
        Some(Root { dir, dev })
    }

    /// Whether a file lies below this directory, by the name that another process has for it: some end of that name
    /// leads to it from here. The volume may be mounted elsewhere there.
    fn holds(&self, name: &Path, id: Identity) -> bool {
        let name = name.as_os_str().as_bytes();
        let slashes = name.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'/').take(DEEPEST);
        id.dev == self.dev
            && slashes.map(|(slash, _)| as_path(&name[slash + 1..])).any(|end| {
                let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
                let stat = statx(&self.dir, end, flags, StatxFlags::INO);
                stat.is_ok_and(|stat| {
                    stat.stx_ino == id.ino && makedev(stat.stx_dev_major, stat.stx_dev_minor) == id.dev
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn fdinfo() {
        assert_eq!(offset("pos:\t1234\nflags:\t0100000\nmnt_id:\t29\nino:\t7\n"), Some(1234));
        assert_eq!(offset("pos:\t5\nflags:\t0100002\n"), Some(5));
        assert_eq!(offset("pos:\t5\nflags:\t0102001\n"), None, "it appends");
        assert_eq!(offset("pos:\t5\n"), None);
    }

    #[test]
    fn a_look_begins_where_the_last_one_ended() {
        let processes = BTreeSet::from([1, 5, 9]);
        for (first, order) in [(0, [1, 5, 9]), (5, [5, 9, 1]), (6, [9, 1, 5]), (10, [1, 5, 9])] {
            assert_eq!(round(&processes, first), order);
        }
    }

    #[test]
    fn a_process_that_has_a_file_open_is_found_with_its_offset() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let [file, elsewhere] = ["a/file", "elsewhere"].map(|name| dir.path().join(name));
        fs::write(&file, "0123456789").unwrap();
        fs::write(&elsewhere, "").unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "exec 3<\"$1\" 4<\"$2\"; read -r word; dd bs=4 count=1 <&3 >/dev/null 2>&1; echo; read -r word",
            "sh",
        ]);
        let mut child =
            command.arg(&file).arg(&elsewhere).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut say, mut hear) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        say.write_all(b"\n").unwrap();
        hear.read_exact(&mut [0]).unwrap();
        let patterns = [format!("{}/a/**", dir.path().display())];
        let mut openers = Openers::default();
        assert!(openers.look(&patterns, Duration::ZERO));
        assert!(!openers.look(&patterns, Duration::from_millis(1)));
        assert!(openers.processes().contains(&child.id()));
        assert_eq!(openers.readers(identity(&file).unwrap()), [4]);
        assert_eq!(openers.readers(identity(&elsewhere).unwrap()), [0; 0]);
        drop(say);
        child.wait().unwrap();
        assert_eq!(openers.readers(identity(&file).unwrap()), [0; 0]);
    }
}
