//! What can be known of a process that runs.

use super::command::is_deep;
use super::file::{Elf, Linkage, Use, name};
use super::{Region, Subject, limit_of, obstacle, page_size, status_word, uses};
use crate::library::LIBRARY;
use anyhow::{Context, Result, bail};
use rustix::fs::statfs;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Key of the auxiliary vector that says that the program got rights which who started it had not (getauxval(3)).
const AT_SECURE: u64 = 23;
/// `f_type` of tmpfs (`include/uapi/linux/magic.h`).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Looks at a process.
///
/// # Errors
/// There is none, or it may not be looked at.
pub fn look(pid: u32) -> Result<Subject> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let read = |file: &str| fs::read(proc.join(file)).with_context(|| cannot(pid, file));
    if let Err(error) = fs::metadata(&proc)
        && error.kind() == ErrorKind::NotFound
    {
        bail!("there is no process {pid}; mend: give the id that it has where this runs");
    }
    let exe = fs::read_link(proc.join("exe")).with_context(|| cannot(pid, "exe"))?;
    let elf = Elf::read(&proc.join("exe")).with_context(|| cannot(pid, "exe"))?;
    let environment = read("environ")?;
    let variable = |wanted: &str| {
        let value = |one: &[u8]| {
            one.strip_prefix(wanted.as_bytes())?.strip_prefix(b"=").map(|value| OsStr::from_bytes(value).to_owned())
        };
        environment.split(|&byte| byte == 0).find_map(value)
    };
    let maps = Maps::of(&String::from_utf8_lossy(&read("maps")?));
    let root = proc.join("root");
    let inside = |path: &PathBuf| root.join(path.strip_prefix("/").unwrap_or(path));
    let (ours, libraries): (Vec<_>, Vec<_>) =
        maps.files.iter().filter(|path| **path != exe).partition(|path| name(path) == LIBRARY);
    let libraries: Vec<PathBuf> = libraries.into_iter().filter(|path| name(path).contains(".so")).map(inside).collect();

    let place = format!("process {pid}");
    let library = match ours.first() {
        Some(_) if variable("FREEBOARD_DISABLED").is_some() => {
            Err(obstacle("the library is told to do nothing", "FREEBOARD_DISABLED is set", "start it without"))
        }
        Some(library) if status_word(&pid.to_string(), "Seccomp:")? == 1 => {
            let place = format!("{} is loaded, but the process is in seccomp's strict mode", library.display());
            Err(obstacle("the library leaves it alone", place, "none"))
        }
        Some(library) => page_size(rustix::param::page_size()).map_or(Ok((*library).clone()), Err),
        None if !matches!(elf.linkage, Linkage::Dynamic(_)) => {
            Err(obstacle("no library can be loaded", format!("{place} is static"), "start it under `freeboard run`"))
        }
        None if is_secure(&read("auxv")?) => Err(obstacle(
            "the library is not loaded",
            format!("{place} is setuid, setgid or has file capabilities, and the loader ignores LD_PRELOAD there"),
            "start it as the user whose rights it takes",
        )),
        None => {
            let named = variable("LD_PRELOAD").unwrap_or_default();
            let place = match String::from_utf8_lossy(named.as_bytes()).contains(LIBRARY) {
                true => format!("{place} has it in LD_PRELOAD, but the loader did not find it or could not load it"),
                false => format!("{place} was started without it"),
            };
            Err(obstacle("the library is not loaded", place, "start it under `freeboard run`, or with LD_PRELOAD"))
        }
    };
    let is_told_of = is_told_of(pid);
    let mut uses = uses(&exe, &elf, &libraries);
    for path in &maps.shared {
        let is_disk = statfs(inside(path)).is_ok_and(|fs| u64::try_from(fs.f_type) != Ok(TMPFS_MAGIC));
        if is_disk {
            uses.push((Use::Mapped, format!("it has {} mapped for writing", path.display())));
        }
    }
    if maps.has_aio {
        uses.push((Use::Aio, "it has an AIO context".into()));
    }
    let descriptors = fs::read_dir(proc.join("fd")).with_context(|| cannot(pid, "fd"))?;
    let kinds = descriptors.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    if kinds.into_iter().any(|kind| kind == Path::new("anon_inode:[io_uring]")) {
        uses.push((Use::IoUring, "it has a ring".into()));
    }
    let mut obstacles = Vec::new();
    if library.is_ok() && status_word(&pid.to_string(), "Seccomp:")? == 2 {
        obstacles.push(obstacle(
            "a seccomp filter is in force",
            format!(
                "{place}: what the filter forbids is done without, and a process that filters itself is left alone"
            ),
            "`asides` of `freeboard run --report` says whether it was (filtered)",
        ));
    }
    Ok(Subject {
        pid: Some(pid),
        program: exe,
        scripts: Vec::new(),
        uses,
        elf,
        libraries,
        library,
        notifier: if is_told_of { Ok(()) } else { Err(None) },
        is_deep: is_deep(variable("FREEBOARD_DEEP")),
        region: Region::look(variable("FREEBOARD_REGION"), variable("FREEBOARD_SOCKET"), &root),
        limit: limit_of(&pid.to_string()),
        obstacles,
    })
}

fn cannot(pid: u32, file: &str) -> String {
    format!("process {pid} cannot be looked at (/proc/{pid}/{file}); mend: ask as its user or as root, while it runs")
}

/// What a process has mapped.
#[derive(Default, Debug, PartialEq, Eq)]
struct Maps {
    files: Vec<PathBuf>,
    /// Of these, what it can write to in memory that it shares with the file.
    shared: Vec<PathBuf>,
    has_aio: bool,
}

impl Maps {
    fn of(text: &str) -> Maps {
        let mut maps = Maps::default();
        for line in text.lines() {
            // address permissions offset device inode path
            let mut words = line.splitn(6, ' ');
            let (permissions, inode) = (words.nth(1).unwrap_or_default(), words.nth(2).unwrap_or_default());
            let path = words.next().unwrap_or_default().trim_start();
            maps.has_aio |= path.starts_with("/[aio]");
            if inode == "0" || !path.starts_with('/') || path.starts_with("/memfd:") || path.starts_with("/[aio]") {
                continue;
            }
            let path = PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(path));
            if permissions.starts_with("rw")
                && permissions.ends_with('s')
                && !path.starts_with("/dev")
                && !maps.shared.contains(&path)
            {
                maps.shared.push(path.clone());
            }
            if !maps.files.contains(&path) {
                maps.files.push(path);
            }
        }
        maps
    }
}

/// What the kernel told the loader (`/proc/PID/auxv`: pairs of words).
fn is_secure(auxv: &[u8]) -> bool {
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
    auxv.chunks_exact(16).any(|pair| word(&pair[..8]) == AT_SECURE && word(&pair[8..]) != 0)
}

/// Whether an ancestor is a launcher that the kernel tells of writes.
fn is_told_of(pid: u32) -> bool {
    let mut at = pid.to_string();
    while let Ok(parent) = status_word(&at, "PPid:")
        && parent > 0
    {
        at = parent.to_string();
        let fds = fs::read_dir(format!("/proc/{at}/fd")).into_iter().flatten().flatten();
        let listens = |kind: PathBuf| kind == Path::new("anon_inode:seccomp notify");
        let is_launcher = fs::read_link(format!("/proc/{at}/exe")).is_ok_and(|exe| name(&exe).starts_with("freeboard"));
        if is_launcher && fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(listens) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        let text = "\
55d0-55d1 r-xp 00000000 fe:00 100                        /usr/bin/a program
7f00-7f01 rw-s 00000000 fe:00 101                        /data/file (deleted)
7f00-7f01 r--s 00000000 fe:00 102                        /data/read only
7f00-7f01 rw-p 00000000 fe:00 103                        /data/private
7f00-7f01 rw-s 00000000 00:01 104                        /memfd:freeboard-budget (deleted)
7f00-7f01 rw-s 00000000 00:05 105                        /dev/zero (deleted)
7f00-7f01 rw-s 00000000 00:0f 106                        /[aio] (deleted)
7f00-7f01 rw-p 00000000 00:00 0 
7ffc-7ffd rw-p 00000000 00:00 0                          [stack]
";
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        let want = Maps {
            files: paths(&["/usr/bin/a program", "/data/file", "/data/read only", "/data/private", "/dev/zero"]),
            shared: paths(&["/data/file"]),
            has_aio: true,
        };
        assert_eq!(Maps::of(text), want);
        assert_eq!(Maps::of("what"), Maps::default());
    }

    #[test]
    fn the_kernel_says_who_is_secure() {
        let auxv = |pairs: &[[u64; 2]]| pairs.iter().flatten().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        assert!(is_secure(&auxv(&[[6, 4096], [23, 1], [0, 0]])));
        assert!(!is_secure(&auxv(&[[6, 23], [23, 0], [0, 0]])));
        assert!(!is_secure(b"cut off"));
    }
}
