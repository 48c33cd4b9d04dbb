//! Which files there are below the configured directories, an entry at a time. A volume is the application's, which may
//! change it meanwhile: no symbolic link is followed, no pipe or device opened, and no other filesystem entered.

use crate::say;
use freeboard_budget::glob;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, openat};
use rustix::io::{self, Errno};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Directories below directories are walked to this depth.
pub const DEEPEST: usize = 64;
/// `f_type` of overlayfs, whose files keep none of their pages in their own page cache.
const OVERLAY: u64 = 0x794c_7630;
const MEMORY: &str = "it lies in memory, where nothing can be dropped";
const FELT: &str = "on FUSE and ecryptfs to open a file may empty its page cache, and to close it takes the error that its \
                    program is to hear of";
/// `f_type` of filesystems where the sweep would help nobody or be felt: tmpfs, ramfs, FUSE and ecryptfs.
const REFUSED: [(u64, &str); 4] = [(0x0102_1994, MEMORY), (0x8584_58f6, MEMORY), (0x6573_5546, FELT), (0xf15f, FELT)];

/// A place in the tree: neither opened nor read.
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A file that matches.
#[derive(Debug)]
pub struct Found {
    /// Where it is (O_PATH).
    pub place: OwnedFd,
    /// What it is.
    pub stat: Stat,
    /// By what path.
    pub path: Vec<u8>,
    /// The volume that it lies on.
    pub volume: Volume,
}

/// A filesystem that is swept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Volume {
    dev: u64,
    /// Its files' pages cannot be counted.
    pub is_layered: bool,
}

impl Volume {
    /// Whether a file lies on it, and not on another filesystem that is mounted there. On overlayfs, files may have a
    /// number of a device of their own.
    pub fn holds(self, place: &OwnedFd, stat: &Stat) -> bool {
        kind(stat) == FileType::RegularFile
            && (stat.st_dev == self.dev || self.is_layered && filesystem(place) == OVERLAY)
    }
}

/// What one step came to.
#[derive(Debug)]
pub enum Step {
    /// A file.
    File(Found),
    /// Something else.
    Other,
    /// The end of the last directory; the next step begins anew.
    End,
}

/// A walk through all directories, which goes on where it stopped.
#[derive(Debug)]
pub struct Walk {
    patterns: Vec<String>,
    /// The pattern that comes after the one walked now.
    next: usize,
    stack: Vec<Level>,
    volume: Volume,
    /// The patterns of which it was said that they are not swept.
    told: BTreeSet<usize>,
    has_told_denied: bool,
}

#[derive(Debug)]
struct Level {
    dir: Dir,
    path: Vec<u8>,
}

/// The directory that a pattern's walk begins in.
pub fn root_of(pattern: &str) -> &str {
    let fixed = pattern.find(['*', '?']).map_or(pattern, |wildcard| &pattern[..wildcard]);
    fixed.rfind('/').map_or("", |slash| &fixed[..slash])
}

/// Where a path leads without any symbolic link.
///
/// # Errors
/// ENOTDIR at a link, or what is missing.
pub fn reach(path: &[u8]) -> io::Result<OwnedFd> {
    let root = openat(CWD, "/", PLACE | OFlags::DIRECTORY, Mode::empty())?;
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
        .try_fold(root, |at, name| openat(&at, name, PLACE, Mode::empty()))
}

/// Opens a directory to read it.
fn open_dir(at: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

impl Walk {
    /// A walk that begins with its first step.
    pub fn new(patterns: &[String]) -> Walk {
        Walk {
            patterns: patterns.to_vec(),
            next: 0,
            stack: Vec::new(),
            volume: Volume { dev: 0, is_layered: false },
            told: BTreeSet::new(),
            has_told_denied: false,
        }
    }

    /// Closes all directories; the next step begins anew.
    pub fn reset(&mut self) {
        self.stack.clear();
        self.next = 0;
    }

    /// One entry of one directory.
    pub fn step(&mut self) -> Step {
        let Some(level) = self.stack.last_mut() else { return self.begin() };
        let Some(Ok(entry)) = level.dir.read() else {
            self.stack.pop();
            return Step::Other;
        };
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            return Step::Other;
        }
        let path = [&level.path[..], name].join(&b'/');
        let Ok(dir) = level.dir.fd() else { return Step::Other };
        // on some filesystems an entry does not say what it is
        let place = match entry.file_type() {
            FileType::RegularFile | FileType::Directory | FileType::Unknown => openat(dir, name, PLACE, Mode::empty()),
            _ => return Step::Other,
        };
        let place = match place {
            Ok(place) => place,
            Err(error) => {
                self.failed(error, &path);
                return Step::Other;
            }
        };
        let Ok(stat) = fstat(&place) else { return Step::Other };
        match kind(&stat) {
            FileType::Directory if self.stack.len() < DEEPEST && stat.st_dev == self.volume.dev => {
                match open_dir(&place, b".").and_then(Dir::new) {
                    Ok(dir) => self.stack.push(Level { dir, path }),
                    Err(error) => self.failed(error, &path),
                }
                Step::Other
            }
            FileType::RegularFile if self.volume.holds(&place, &stat) => self.file(place, stat, path),
            _ => Step::Other,
        }
    }

    /// Says what this user may not open, the first time.
    pub fn failed(&mut self, error: Errno, path: &[u8]) {
        if error == Errno::ACCESS && !std::mem::replace(&mut self.has_told_denied, true) {
            say(&format!(
                "[sweep]: {:?}, and whatever else is as it is, is not swept: {error}; mend: run as a user who may read it",
                as_path(path)
            ));
        }
    }

    fn file(&self, place: OwnedFd, stat: Stat, path: Vec<u8>) -> Step {
        let pattern = self.next.checked_sub(1).and_then(|now| self.patterns.get(now));
        if pattern.is_some_and(|pattern| glob::matches(pattern.as_bytes(), &path)) {
            Step::File(Found { place, stat, path, volume: self.volume })
        } else {
            Step::Other
        }
    }

    fn begin(&mut self) -> Step {
        let Some(pattern) = self.patterns.get(self.next) else {
            self.next = 0;
            return Step::End;
        };
        self.next += 1;
        let root = root_of(pattern);
        match open_root(root) {
            Ok((dir, volume)) => {
                self.stack.push(Level { dir, path: root.as_bytes().to_vec() });
                self.volume = volume;
                self.told.remove(&self.next);
            }
            Err(why) => {
                if self.told.insert(self.next) {
                    say(&format!("[sweep]: {root} is not swept: {why}"));
                }
            }
        }
        Step::Other
    }
}

/// What kind of filesystem something lies on (`f_type`).
fn filesystem(fd: impl AsFd) -> u64 {
    fstatfs(fd).map_or(0, |fs| u64::try_from(fs.f_type).unwrap_or(0))
}

fn open_root(root: &str) -> Result<(Dir, Volume), String> {
    let opened = reach(root.as_bytes()).and_then(|place| open_dir(&place, b"."));
    let dir = opened.map_err(|error| match error {
        Errno::NOTDIR | Errno::LOOP => {
            "a symbolic link, or no directory; mend: write the path that it leads to".to_owned()
        }
        Errno::NOENT => "there is none; mend: mount the container's volume there".to_owned(),
        error => format!("{error}; mend: let this user read it"),
    })?;
    let fs = filesystem(&dir);
    if let Some(why) = refused(fs) {
        return Err(format!("{why}; mend: remove it from paths"));
    }
    let dev = fstat(&dir).map_err(|error| error.to_string())?.st_dev;
    let dir = Dir::new(dir).map_err(|error| error.to_string())?;
    Ok((dir, Volume { dev, is_layered: fs == OVERLAY }))
}

/// Why a filesystem is not swept.
fn refused(fs: u64) -> Option<&'static str> {
    REFUSED.iter().find(|(refused, _)| *refused == fs).map(|(_, why)| *why)
}

/// A path as the filesystem takes it.
pub fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{mkfifoat, symlink};
    use std::fs;

    /// One whole walk: the files' paths below the directory, and the number of steps.
    fn walked(walk: &mut Walk, root: &Path) -> (Vec<String>, usize) {
        let (mut files, mut steps) = (Vec::new(), 0);
        loop {
            steps += 1;
            match walk.step() {
                Step::File(found) => {
                    let path = as_path(&found.path).strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                    files.push(path);
                }
                Step::Other => {}
                Step::End => break,
            }
        }
        files.sort();
        (files, steps)
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::create_dir_all(dir.path().join("volume/a/b")).unwrap();
        for name in ["volume/1.log", "volume/a/2.log", "volume/a/b/3.log", "volume/a/b/4.txt", "outside"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        dir
    }

    #[test]
    fn files_that_match_are_found_and_links_pipes_and_sockets_are_not() {
        let dir = tree();
        let volume = dir.path().join("volume");
        symlink("../outside", volume.join("link.log")).unwrap();
        symlink("..", volume.join("directory")).unwrap();
        mkfifoat(CWD, volume.join("pipe.log"), Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(volume.join("socket.log")).unwrap();
        let root = volume.to_str().unwrap();
        let all = format!("{root}/**/*.log");
        assert_eq!(walked(&mut Walk::new(&[all]), &volume).0, ["1.log", "a/2.log", "a/b/3.log"]);
        let one = format!("{root}/a/2.log");
        assert_eq!(walked(&mut Walk::new(&[one, format!("{root}/*/b/*.txt")]), &volume).0, ["a/2.log", "a/b/4.txt"]);
    }

    #[test]
    fn a_link_on_the_way_to_the_volume_is_not_followed() {
        let dir = tree();
        symlink("volume", dir.path().join("other")).unwrap();
        let mut walk = Walk::new(&[format!("{}/other/**", dir.path().display())]);
        assert_eq!(walked(&mut walk, dir.path()).0, [""; 0]);
        assert!(reach(dir.path().join("other/1.log").as_os_str().as_bytes()).is_err());
        assert!(reach(dir.path().join("volume/1.log").as_os_str().as_bytes()).is_ok());
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_leads_nowhere_else() {
        let dir = tree();
        let volume = dir.path().join("volume");
        let mut walk = Walk::new(&[format!("{}/**", volume.display())]);
        // into a/b
        while walk.stack.len() < 3 {
            assert!(!matches!(walk.step(), Step::End));
        }
        fs::rename(volume.join("a"), dir.path().join("moved")).unwrap();
        symlink("/", volume.join("a")).unwrap();
        let (files, _) = walked(&mut walk, &volume);
        assert!(files.iter().all(|file| file.starts_with("a/") || file == "1.log"), "{files:?}");
        assert_eq!(walked(&mut walk, &volume).0, ["1.log"]);
    }

    #[test]
    fn one_step_is_one_entry_and_the_next_walk_begins_anew() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        for n in 0..1000 {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        let mut walk = Walk::new(&[format!("{}/**", dir.path().display())]);
        for _ in 0..2 {
            let (files, steps) = walked(&mut walk, dir.path());
            assert_eq!(files.len(), 1000);
            assert!(steps <= 1010, "{steps}");
        }
        assert!(walk.stack.is_empty());
    }

    #[test]
    fn what_lies_in_memory_or_would_feel_an_open_is_refused() {
        let refusal = |root: &str| open_root(root).err().unwrap_or_default();
        assert!(refusal("/dev/shm").contains("in memory"), "{}", refusal("/dev/shm"));
        assert_eq!(refusal("/var/tmp"), "");
        for magic in [libc::FUSE_SUPER_MAGIC, libc::ECRYPTFS_SUPER_MAGIC] {
            assert_eq!(refused(magic as u64), Some(FELT));
        }
    }

    #[test]
    fn each_pattern_is_told_of_once_until_it_opens_again() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let patterns = ["a", "b"].map(|name| format!("{}/{name}/**", dir.path().display()));
        let mut walk = Walk::new(&patterns);
        walked(&mut walk, dir.path());
        assert_eq!(walk.told.len(), 2);
        fs::create_dir(dir.path().join("a")).unwrap();
        walked(&mut walk, dir.path());
        assert_eq!(walk.told.len(), 1);
    }

    #[test]
    fn a_file_that_lies_on_another_filesystem_is_none_of_the_volume() {
        let dir = tree();
        let volume = open_root(dir.path().to_str().unwrap()).unwrap().1;
        let holds = |path: &str| {
            let place = reach(path.as_bytes()).unwrap();
            volume.holds(&place, &fstat(&place).unwrap())
        };
        assert!(holds(&format!("{}/outside", dir.path().display())));
        assert!(!holds("/proc/version"));
        assert!(!holds(&format!("{}/volume", dir.path().display())), "a directory");
    }

    #[test]
    fn where_a_walk_begins() {
        for (pattern, root) in [("/logs/**", "/logs"), ("/a/b*/c", "/a"), ("/a/b/c.log", "/a/b"), ("/a/b/?/c", "/a/b")]
        {
            assert_eq!(root_of(pattern), root);
        }
    }
}
