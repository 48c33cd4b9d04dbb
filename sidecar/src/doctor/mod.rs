//! `freeboard doctor`: what a program is, the way each of its writes will be seen, and what stands in the way.
//!
//! | module | job |
//! | --- | --- |
//! | [`file`] | what a program's file says of it |
//! | [`command`] | a command that has not started |
//! | [`process`] | a process that runs |
//! | [`ways`] | how its writes are seen, given all that |
//! | [`report`] | the answer, for people and for scripts |

mod command;
mod file;
mod process;
mod report;
mod ways;

use crate::cgroup::{Crowd, directory_of, judge, open_path};
use crate::cli::Doctor;
use crate::run::Ending;
use anyhow::{Context, Result};
pub use file::Runtime;
use file::{Elf, Use};
use freeboard_budget::layout::{BUDGET_FILE, BUDGET_MAGIC, Header, MAJOR, STALE_MS};
use freeboard_config::Workload;
use serde::Serialize;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::mem::offset_of;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Answers for a process or a command. Ends with 0 where all of its writes are seen, with 1 where some are not.
///
/// # Errors
/// It cannot be looked at, or stdout cannot be written.
pub fn doctor(flags: &Doctor) -> Result<Ending> {
    let subject = match (flags.pid, flags.command.first()) {
        (Some(pid), _) => process::look(pid)?,
        (None, Some(command)) => command::look(command)?,
        (None, None) => anyhow::bail!("there is nothing to look at; mend: give a process id, or -- and a command"),
    };
    let report = report::Report::of(subject);
    let text = if flags.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.text() };
    std::io::stdout().write_all(text.as_bytes()).context("stdout cannot be written")?;
    Ok(Ending::Code(if report.all_seen { 0 } else { 1 }))
}

/// What the program of a process is written in; `None`: it cannot be looked at.
pub fn runtime(pid: u32) -> Option<Runtime> {
    let subject = process::look(pid).ok()?;
    let libc = subject.elf.libc(&subject.libraries);
    Some(subject.elf.runtime(&subject.libraries, &libc))
}

/// Something that keeps writes from being seen or paced as well as they could be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Obstacle {
    what: String,
    place: String,
    mend: String,
}

fn obstacle(what: impl Display, place: impl Display, mend: impl Display) -> Obstacle {
    Obstacle { what: what.to_string(), place: place.to_string(), mend: mend.to_string() }
}

/// The library counts in pages of 4 KiB, and stands aside where the kernel has others. `bytes`: a page of the kernel's.
fn page_size(bytes: usize) -> Option<Obstacle> {
    let place = format!("the kernel's pages have {} KiB, and it counts in pages of 4 KiB", bytes >> 10);
    (bytes != 4096).then(|| obstacle("the library stands aside", place, "boot a kernel with pages of 4 KiB"))
}

/// All that is known of a program.
#[derive(Debug)]
struct Subject {
    /// `None`: it has not started.
    pid: Option<u32>,
    program: PathBuf,
    /// The scripts that lead to it, the command's own file first.
    scripts: Vec<PathBuf>,
    elf: Elf,
    libraries: Vec<PathBuf>,
    /// How it writes beside write calls, and how that is known.
    uses: Vec<(Use, String)>,
    /// Where the library is that it has or will have, or why it has none.
    library: Result<PathBuf, Obstacle>,
    /// Whether the kernel tells of its writes; `Err(None)`: nobody asks it to.
    notifier: Result<(), Option<Obstacle>>,
    /// The library may change glibc's tables.
    is_deep: bool,
    region: Region,
    limit: Result<Limit, String>,
    /// What else stands in the way.
    obstacles: Vec<Obstacle>,
}

/// The limit that rules a process's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Limit {
    /// `None`: there is none, or none that can be seen.
    bytes: Option<u64>,
    /// Whether all levels above its group can be seen.
    ancestors_seen: bool,
}

/// What a program's file and its libraries' say of how it writes: the first that says so, of each way.
fn uses(program: &Path, elf: &Elf, libraries: &[PathBuf]) -> Vec<(Use, String)> {
    let import =
        |path: &Path, &(way, function): &(Use, &str)| (way, format!("{} imports {function}", file::name(path)));
    let mut uses: Vec<(Use, String)> = elf.imports.iter().map(|one| import(program, one)).collect();
    for path in libraries.iter().filter(|path| !command::is_of_libc(path)) {
        match command::library_of(path) {
            Some(way) => uses.push((way, format!("it has {}", file::name(path)))),
            // one that cannot be read says nothing
            None => uses.extend(Elf::read(path).iter().flat_map(|elf| &elf.imports).map(|one| import(path, one))),
        }
    }
    // stable: of each way the first stays, the program's own before its libraries'
    uses.sort_by_key(|&(way, _)| way);
    uses.dedup_by_key(|&mut (way, _)| way);
    uses
}

/// What the environment names of a sidecar, and whether it is there.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Region {
    /// Nothing is named.
    None,
    Live(PathBuf),
    /// It is named, but of no use.
    Useless(Obstacle),
}

impl Region {
    /// `root`: what the paths are relative to.
    fn look(region: Option<OsString>, socket: Option<OsString>, root: &Path) -> Region {
        let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let named = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
        let useless = |what: &str, place: String| {
            Region::Useless(obstacle(
                what,
                place,
                "start `freeboard sidecar` there; until then each process goes by its own cgroup",
            ))
        };
        match (named(region), named(socket)) {
            (Some(dir), _) => match beats(&inside(&dir)) {
                Ok(true) => Region::Live(dir),
                Ok(false) => {
                    useless("the sidecar's heartbeat stands still", format!("FREEBOARD_REGION={}", dir.display()))
                }
                Err(error) => useless("there is no region", format!("FREEBOARD_REGION={}: {error}", dir.display())),
            },
            (None, Some(socket)) => match UnixStream::connect(inside(&socket)) {
                Ok(_) => Region::Live(socket),
                Err(error) => useless("no sidecar listens", format!("FREEBOARD_SOCKET={}: {error}", socket.display())),
            },
            (None, None) => Region::None,
        }
    }
}

/// Whether somebody keeps the region in a directory up to date.
fn beats(dir: &Path) -> Result<bool, String> {
    let tick = || {
        let budget = fs::read(dir.join(BUDGET_FILE)).map_err(|error| format!("{BUDGET_FILE}: {error}"))?;
        let word = |at: usize| Some(u64::from_ne_bytes(budget.get(at..at + 8)?.try_into().ok()?));
        let major = budget.get(offset_of!(Header, major)..).and_then(|rest| rest.first_chunk()).copied();
        if word(offset_of!(Header, magic)) != Some(BUDGET_MAGIC) || major.map(u16::from_ne_bytes) != Some(MAJOR) {
            return Err(format!("{BUDGET_FILE} is not this version's"));
        }
        word(offset_of!(Header, tick)).ok_or(format!("{BUDGET_FILE} is cut off"))
    };
    let first = tick()?;
    std::thread::sleep(Duration::from_millis(STALE_MS));
    Ok(tick()? != first)
}

/// The limit that rules a process. What the kernel keeps from us is said.
fn limit_of(process: &str) -> Result<Limit, String> {
    let group = open_path(&directory_of(process)?.1)?;
    let readings = group.read().map_err(|_| "its memory cgroup cannot be read")?;
    let target = Workload::default().memory.target;
    let judged = judge(&readings, target, None, Crowd::default(), |_| Crowd::default());
    let judged = judged.ok_or("its memory.stat does not count dirty and writeback, as it does from Linux 4.2 on")?;
    let bytes = Some(judged.ruling.limit).filter(|&limit| limit != u64::MAX);
    Ok(Limit { bytes, ancestors_seen: group.rooted })
}

/// A number in `/proc/PROCESS/status`, as it stands there (capabilities: hexadecimal).
fn status_word(process: &str, key: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("{path} has no {key}"))?;
    let radix = if key.starts_with("Cap") { 16 } else { 10 };
    u64::from_str_radix(value.trim(), radix).with_context(|| format!("{path}: {key} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_pages_are_said() {
        assert_eq!(page_size(4096), None);
        let said = page_size(65536).unwrap();
        assert!(said.place.contains("64 KiB"), "{said:?}");
    }
}
