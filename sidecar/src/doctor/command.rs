//! What can be known of a command before it starts.

use super::file::{Elf, Linkage, Use, name};
use super::{Obstacle, Region, Subject, limit_of, obstacle, page_size, status_word, uses};
use crate::library;
use crate::run::{linkage, notify};
use anyhow::{Context, Result, bail};
use rustix::fs::{StatVfsMountFlags, getxattr, statvfs};
use rustix::io::Errno;
use rustix::process::{getgid, getuid};
use std::env::var_os;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the library cannot do without, with a descriptor that there is not.
const NEEDED_CALLS: [(&str, libc::c_long); 2] =
    [("sync_file_range", libc::SYS_sync_file_range), ("fadvise64", libc::SYS_fadvise64)];
/// What it can: cachestat(2) has one number on every architecture.
const OTHER_CALLS: [(&str, libc::c_long); 1] = [("cachestat", 451)];

/// Looks at the program that a command would start under `freeboard run`.
///
/// # Errors
/// There is no such program, or the library is missing.
pub fn look(command: &OsStr) -> Result<Subject> {
    let path = var_os("PATH").unwrap_or_default();
    let Some(started) = linkage::follow(command, &path) else {
        bail!("there is no program {} to look at; mend: give its path, or set PATH", command.display())
    };
    let (program, scripts) = started.files.split_last().context("a command has a program")?;
    let elf = Elf::read(program).with_context(|| {
        format!(
            "{} cannot be looked at; mend: name a program, or a script whose first line names one",
            program.display()
        )
    })?;
    let library = library::find()?;
    let (libraries, refusal) = match &elf.linkage {
        Linkage::Dynamic(loader) => load(loader, program, &library)?,
        _ => (Vec::new(), None),
    };
    let (filtered, mut obstacles) = filter()?;
    let secure = (elf.linkage != Linkage::Static).then(|| secure(program)).transpose()?.flatten();

    // the first thing that keeps it away
    let library_seen = if !matches!(elf.linkage, Linkage::Dynamic(_)) && elf.is_native {
        Err(obstacle("no library can be loaded", program.display(), "run it under `freeboard run`"))
    } else if !elf.is_native {
        Err(obstacle(
            "it is for another kind of processor, or of 32 bits",
            program.display(),
            "none: it is as without us",
        ))
    } else if let Some(page_size) = page_size(rustix::param::page_size()) {
        Err(page_size)
    } else if let Some(secure) = secure {
        Err(secure)
    } else if let Some(refusal) = refusal {
        Err(refusal)
    } else if var_os("FREEBOARD_DISABLED").is_some() {
        Err(obstacle("the library is told to do nothing", "FREEBOARD_DISABLED is set", "unset it"))
    } else {
        filtered.map_or(Ok(library), Err)
    };
    let notifier = if started.is_unseen != Some(true) {
        Err(None)
    } else {
        notify::is_available().map_err(|error| {
            let mend = "run it outside of that profile or launcher, or on Linux 5.9 or later";
            Some(obstacle("the kernel does not tell of writes here", error, mend))
        })
    };
    if notifier.is_ok() && status_word("self", "CapEff:")? & 1 << 21 == 0 {
        obstacles.push(obstacle(
            "setuid programs do not get their rights under it",
            "without CAP_SYS_ADMIN the notifier asks for no_new_privs",
            "`freeboard run --notify never` where they must",
        ));
    }
    let region = Region::look(var_os("FREEBOARD_REGION"), var_os("FREEBOARD_SOCKET"), Path::new("/"));
    Ok(Subject {
        pid: None,
        program: program.clone(),
        scripts: scripts.to_vec(),
        uses: uses(program, &elf, &libraries),
        elf,
        libraries,
        library: library_seen,
        notifier,
        is_deep: is_deep(var_os("FREEBOARD_DEEP")),
        region,
        limit: limit_of("self"),
        obstacles,
    })
}

/// `FREEBOARD_DEEP` does not say no.
pub fn is_deep(value: Option<OsString>) -> bool {
    value.is_none_or(|value| value != "0")
}

/// What the program's own loader would load, our library included, and why it would not load that. Nothing of the
/// program runs.
fn load(loader: &Path, program: &Path, library: &Path) -> Result<(Vec<PathBuf>, Option<Obstacle>)> {
    // where a symbolic link to it lies is not where it looks for its libraries
    let program = &fs::canonicalize(program)?;
    let mut list = Command::new(loader);
    list.arg("--list").arg(program).env("LD_PRELOAD", library);
    let listed = list.output().with_context(|| {
        format!(
            "{} needs the loader {}, which cannot be started; mend: install its libc",
            program.display(),
            loader.display()
        )
    })?;
    let text = String::from_utf8_lossy(&listed.stdout);
    let mut libraries: Vec<PathBuf> = Vec::new();
    for line in text.lines() {
        // "name => /path (address)", or "/path (address)"
        let path = line.rsplit("=> ").next().unwrap_or(line).trim().split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            libraries.push(path.into());
        }
    }
    let is_loaded = libraries.iter().any(|path| path == library);
    libraries.retain(|path| path != library);
    let refusal = (!is_loaded).then(|| {
        let said = String::from_utf8_lossy(&listed.stderr);
        let said = said.lines().next().unwrap_or("it said nothing");
        obstacle("the loader does not load the library", said.trim(), "use the library that was built for this machine")
    });
    Ok((libraries, refusal))
}

/// Why the loader would ignore LD_PRELOAD: the program gets rights that who starts it has not (execve(2), AT_SECURE).
fn secure(program: &Path) -> Result<Option<Obstacle>> {
    let what = || format!("{} cannot be looked at", program.display());
    let (file, mount) = (fs::metadata(program).with_context(what)?, statvfs(program).with_context(what)?);
    if status_word("self", "NoNewPrivs:")? != 0 || mount.f_flag.contains(StatVfsMountFlags::NOSUID) {
        return Ok(None);
    }
    let (user, group) = (getuid(), getgid());
    let has_capabilities = match getxattr(program, "security.capability", &mut [0u8; 64][..]) {
        Ok(_) => true,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
        Err(error) => return Err(error).with_context(what),
    };
    let by = if file.mode() & libc::S_ISUID != 0 && file.uid() != user.as_raw() {
        "setuid"
    } else if file.mode() & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP
        && file.gid() != group.as_raw()
    {
        "setgid"
    } else if has_capabilities && !user.is_root() {
        "file capabilities"
    } else {
        return Ok(None);
    };
    let place = format!("{} has {by}, and the loader ignores LD_PRELOAD there", program.display());
    Ok(Some(obstacle(
        "the library is not loaded",
        place,
        "start it as the user whose rights it takes, or by a copy without them",
    )))
}

/// What a seccomp filter that is in force here, and so for the command, keeps the library from: what it cannot do
/// without, and the rest.
fn filter() -> Result<(Option<Obstacle>, Vec<Obstacle>)> {
    if status_word("self", "Seccomp:")? == 0 {
        return Ok((None, Vec::new()));
    }
    let kills = |&(_, number): &&(&str, libc::c_long)| {
        notify::try_call(*number).is_err_and(|error| error.kind() == ErrorKind::Interrupted)
    };
    let needed = NEEDED_CALLS.iter().find(kills).map(|(call, _)| {
        obstacle("the library stands aside", format!("a seccomp filter kills for {call}"), "allow it in the profile")
    });
    let is_denied = |&&(_, number): &&(&str, libc::c_long)| {
        notify::try_call(number).is_err_and(|error| error.raw_os_error() != Some(libc::EBADF))
    };
    let others = OTHER_CALLS.iter().chain(&NEEDED_CALLS).filter(is_denied).map(|(call, _)| {
        obstacle(
            format!("{call} is done without"),
            "a seccomp filter denies it",
            "allow it in the profile: waits are exact then",
        )
    });
    Ok((needed, others.collect()))
}

/// The files that a program's own bytes pass through on their way to write calls.
pub fn is_of_libc(path: &Path) -> bool {
    let name = name(path);
    ["libc.", "libc-", "ld-", "libpthread", "libm.", "libdl.", "librt.", "linux-vdso"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// The library's own name for a way to write.
pub fn library_of(path: &Path) -> Option<Use> {
    let name = name(path);
    if name.starts_with("liburing.so") {
        Some(Use::IoUring)
    } else if name.starts_with("libaio.so") {
        Some(Use::Aio)
    } else {
        None
    }
}
