//! A memory cgroup made for one command and removed at the end. It lies below the launcher's own, so that every limit
//! that held for the launcher holds for the command.
//!
//! On v2 a group that hands its memory controller on to children may hold no processes itself. Where the launcher is
//! alone in its group, it moves into a leaf beside the command's for the time. Where others are there, the command's
//! group is made beside the launcher's, if no limit is evaded by that; else it says why not.

use super::{level::keyed, own_directory};
use crate::fresh;
use anyhow::{Context, Result, anyhow, bail};
use freeboard_budget::cgroup::{Version, limit, number};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, write};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a group that is still in use is tried again before it is left.
const REMOVE_TRIES: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// What a person can do where no group can be made.
pub const MEND: &str = "start it where groups may be made (as root on the host), or without --limit inside a group \
                        that has the limit (systemd-run --scope -p MemoryMax=..., docker run -m ...)";

/// A directory that this process made; removed when dropped, if no process is left in it or below.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    _claim: Option<OwnedFd>,
}

impl Directory {
    /// Makes a directory below `parent`, with a name that nothing has. Empty ones that a killed launcher has left there
    /// go.
    fn make(parent: &Path, name: &str) -> Result<Directory> {
        for left in children(parent).into_iter().filter(|path| is_made_for(path, name)) {
            if let fresh::Claim::Ours(_lock) = fresh::claim(&left)
                && processes(&left).is_empty()
            {
                let _ = remove_tree(&left);
            }
        }
        for attempt in 0..100 {
            let path = parent.join(format!("{name}-{}-{attempt}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => match fresh::claim(&path) {
                    fresh::Claim::Ours(lock) => return Ok(Directory { path, _claim: Some(lock) }),
                    fresh::Claim::Others => {}
                    fresh::Claim::Unknown => return Ok(Directory { path, _claim: None }),
                },
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot make a cgroup in {}", parent.display()));
                }
            }
        }
        bail!("cannot make a cgroup in {}: too many of that name are left there", parent.display())
    }

    /// Removes it with the groups that were made in it, trying again while the kernel still counts a process that is
    /// just ending. All or nothing: a process that lives on may still want the groups that are empty.
    fn remove(&self) -> io::Result<()> {
        let mut tries = 0;
        loop {
            let is_empty = processes(&self.path).is_empty();
            let removed = if is_empty { remove_tree(&self.path) } else { Err(Errno::BUSY.into()) };
            match removed {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVE_TRIES => {
                    tries += 1;
                    std::thread::sleep(REMOVE_PAUSE);
                }
                other => return other,
            }
        }
    }
}

/// Whether a directory's name is one that a launcher gives: the name, a process id and a number.
fn is_made_for(path: &Path, name: &str) -> bool {
    let rest = path.file_name().and_then(|file| file.to_str()?.strip_prefix(name)?.strip_prefix('-'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    rest.and_then(|rest| rest.split_once('-')).is_some_and(|(pid, attempt)| is_number(pid) && is_number(attempt))
}

/// Removes a group and those below it.
fn remove_tree(group: &Path) -> io::Result<()> {
    for child in children(group) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The processes in a group and in those below it.
pub fn processes(group: &Path) -> Vec<String> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let below = children(group).into_iter().flat_map(|child| processes(&child));
    own.lines().map(str::to_owned).chain(below).collect()
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// The launcher's stay in a leaf of its own (v2); ends when dropped.
#[derive(Debug)]
struct Leaf {
    parent: PathBuf,
    directory: Directory,
}

impl Leaf {
    /// Moves this process into a new leaf below `parent`, and hands the memory controller on to `parent`'s children.
    fn enter(parent: &Path) -> Result<Leaf> {
        let directory = Directory::make(parent, "freeboard-launcher")?;
        put(&directory.path.join("cgroup.procs"), "0")?;
        let leaf = Leaf { parent: parent.to_owned(), directory };
        put(&parent.join("cgroup.subtree_control"), "+memory")?;
        Ok(leaf)
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // in this order: processes may only come back once the controller is not handed on
        let _ = fs::write(self.parent.join("cgroup.subtree_control"), "-memory");
        let _ = fs::write(self.parent.join("cgroup.procs"), "0");
    }
}

/// The command's group. Dropped, it is removed if nobody is left in it.
#[derive(Debug)]
pub struct Made {
    // before the leaf, which can only be left once this group is gone
    directory: Directory,
    leaf: Option<Leaf>,
    version: Version,
}

/// What the kernel counted over the group's whole life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// Largest usage in bytes; v2 before Linux 5.19 does not say.
    pub peak_usage_bytes: Option<u64>,
    /// Processes that the kernel killed for memory.
    pub oom_kills: Option<u64>,
}

impl Made {
    /// Makes a group below this process's own with a hard limit.
    ///
    /// # Errors
    /// Why it is not allowed here, and what to do instead. Nothing is left behind.
    pub fn with_limit(limit_bytes: u64) -> Result<Made> {
        let made = own_directory()
            .map_err(|error| anyhow!(error))
            .and_then(|(version, own)| Made::below(version, &own, limit_bytes));
        made.map_err(|error| anyhow!("--limit: {error:#}; mend: {MEND}"))
    }

    fn below(version: Version, own: &Path, limit_bytes: u64) -> Result<Made> {
        let (parent, leaf) = match version {
            Version::V1 => (own.to_owned(), None),
            Version::V2 => place(own)?,
        };
        let directory = Directory::make(&parent, "freeboard")?;
        let file = directory.path.join(version.limit_file());
        put(&file, &limit_bytes.to_string())?;
        let taken = fs::read(&file).with_context(|| file.display().to_string())?;
        // the kernel counts whole pages
        if limit(&taken).is_none_or(|taken| taken > limit_bytes || limit_bytes - taken >= 1 << 16) {
            bail!("{}: the kernel made {} of {limit_bytes}", file.display(), String::from_utf8_lossy(&taken).trim());
        }
        Ok(Made { directory, leaf, version })
    }

    /// The group's directory.
    pub fn path(&self) -> &Path {
        &self.directory.path
    }

    /// A door into the group: whoever calls [`Door::enter`] is in it.
    ///
    /// # Errors
    /// The group's list of processes could not be opened.
    pub fn door(&self) -> Result<Door> {
        let path = self.path().join("cgroup.procs");
        let fd = path
            .to_str()
            .ok_or(Errno::ILSEQ)
            .and_then(|path| openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()));
        Ok(Door(fd.with_context(|| path.display().to_string())?))
    }

    /// What the kernel counted so far.
    pub fn record(&self) -> Record {
        let read = |name: &str| fs::read(self.path().join(name)).ok();
        let (peak, events) = match self.version {
            Version::V1 => ("memory.max_usage_in_bytes", "memory.oom_control"),
            Version::V2 => ("memory.peak", "memory.events"),
        };
        Record {
            peak_usage_bytes: read(peak).and_then(|text| number(text.trim_ascii())),
            oom_kills: read(events).and_then(|text| keyed(&text, "oom_kill")),
        }
    }

    /// Removes the group. Processes of the command that live on keep it: they are not ours to end.
    ///
    /// # Errors
    /// What stays, why, and how to remove it later.
    pub fn remove(self) -> Result<()> {
        let path = self.path().to_owned();
        let Err(error) = self.directory.remove() else { return Ok(()) };
        let pids = processes(&path).join(", ");
        let leaf =
            self.leaf.as_ref().map_or(String::new(), |leaf| format!(", and {} with it", leaf.directory.path.display()));
        bail!(
            "the cgroup {} stays{leaf}: {error}, the command left processes in it ({pids}); mend: rmdir it, and first the groups in it, when they have ended",
            path.display()
        )
    }
}

/// An open list of a group's processes.
#[derive(Debug)]
pub struct Door(OwnedFd);

impl Door {
    /// Moves the calling process into the group. One system call: for the child between fork and exec.
    ///
    /// # Errors
    /// What the kernel gave.
    pub fn enter(&self) -> io::Result<()> {
        write(&self.0, b"0")?;
        Ok(())
    }
}

/// Writes a cgroup's file; the error names it.
fn put(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

/// The group below which a limited one can be made, for a process in the v2 group `own`; and the leaf, if the process
/// had to move there.
fn place(own: &Path) -> Result<(PathBuf, Option<Leaf>)> {
    if !lists_memory(own, "cgroup.controllers")? {
        bail!("the cgroup {} was not given the memory controller by its parent", own.display());
    }
    if lists_memory(own, "cgroup.subtree_control")? {
        return Ok((own.to_owned(), None));
    }
    if is_root(own) {
        put(&own.join("cgroup.subtree_control"), "+memory")?;
        return Ok((own.to_owned(), None));
    }
    let me = std::process::id().to_string();
    let others = text(&own.join("cgroup.procs"))?.lines().filter(|&pid| pid != me).count();
    if others == 0 {
        return Ok((own.to_owned(), Some(Leaf::enter(own)?)));
    }
    let why = format!(
        "cgroup v2 limits no group below one that holds processes, and {} holds {others} beside this one",
        own.display()
    );
    let mut at = own;
    loop {
        for name in ["memory.max", "memory.high"] {
            if text(&at.join(name)).is_ok_and(|value| limit(value.as_bytes()) != Some(u64::MAX)) {
                bail!("{why}; a group beside it would evade the limit of {}", at.display());
            }
        }
        match at.parent().filter(|parent| !is_root(at) && parent.join("cgroup.controllers").exists()) {
            Some(parent) if lists_memory(parent, "cgroup.subtree_control")? => return Ok((parent.to_owned(), None)),
            Some(parent) => at = parent,
            None => bail!("{why}; no group above it can be seen"),
        }
    }
}

fn is_root(group: &Path) -> bool {
    !group.join("cgroup.type").exists()
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Whether the memory controller stands in a v2 group's list of controllers.
fn lists_memory(group: &Path, list: &str) -> Result<bool> {
    Ok(text(&group.join(list))?.split_whitespace().any(|one| one == "memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a v2 group into a directory.
    fn group(path: &Path, handed_on: &str, processes: &str, max: &str) {
        fs::create_dir_all(path).unwrap();
        for (name, content) in [
            ("cgroup.controllers", "cpu memory pids"),
            ("cgroup.subtree_control", handed_on),
            ("cgroup.procs", processes),
            ("cgroup.type", "domain"),
            ("memory.max", max),
            ("memory.high", "max"),
        ] {
            fs::write(path.join(name), format!("{content}\n")).unwrap();
        }
    }

    #[test]
    fn where_a_limited_group_goes() {
        let top = tempfile::tempdir().unwrap();
        let [slice, user, scope] = ["slice", "slice/user", "slice/user/scope"].map(|path| top.path().join(path));
        group(&slice, "cpu memory", "", "max");
        group(&user, "cpu", "", "max");
        group(&scope, "", "1\n2", "max");
        assert_eq!(place(&scope).unwrap().0, slice, "beside others: the nearest that hands memory on");
        group(&scope, "memory", "", "max");
        assert_eq!(place(&scope).unwrap().0, scope);

        group(&scope, "", "1\n2", "1000000");
        let error = place(&scope).unwrap_err().to_string();
        assert!(error.contains("holds 2 beside this one") && error.contains("evade the limit"), "{error}");
        group(&scope, "", "1\n2", "max");
        group(&user, "", "", "1000000");
        assert!(place(&scope).unwrap_err().to_string().contains("evade the limit"));

        group(&user, "", "", "max");
        fs::remove_file(slice.join("cgroup.controllers")).unwrap();
        assert!(place(&scope).unwrap_err().to_string().contains("no group above it can be seen"));
        fs::write(scope.join("cgroup.controllers"), "cpu\n").unwrap();
        assert!(place(&scope).unwrap_err().to_string().contains("not given the memory controller"));
    }

    #[test]
    fn what_a_killed_launcher_has_left_goes() {
        let parent = tempfile::tempdir().unwrap();
        let [left, foreign] = ["freeboard-1-0", "freeboard-launcher-1-0"].map(|name| parent.path().join(name));
        fs::create_dir(&left).unwrap();
        fs::create_dir(&foreign).unwrap();
        let first = Directory::make(parent.path(), "freeboard").unwrap();
        assert!(!left.exists() && foreign.exists());
        let _second = Directory::make(parent.path(), "freeboard").unwrap();
        assert!(first.path.exists(), "a living one's is removed");
        // as the kernel leaves it when the launcher is killed
        let path = parent.path().join("freeboard-1-1");
        fs::create_dir(&path).unwrap();
        let _third = Directory::make(parent.path(), "freeboard").unwrap();
        assert!(!path.exists());
    }
}
