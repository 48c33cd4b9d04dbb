//! What the command finds in its environment: the library, and where the region and the socket are.

use crate::fresh;
use crate::fresh::Claim;
use anyhow::{Result, anyhow, bail};
use freeboard_budget::layout::{BUDGET_FILE, COUNTERS_FILE};
use rustix::fd::OwnedFd;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What the directories of runs are named.
const PREFIX: &str = "freeboard-run-";
/// The socket in it.
pub const SOCKET_FILE: &str = "socket";

/// Names the directory of the region's files.
const REGION_VARIABLE: &str = "FREEBOARD_REGION";
/// Names the socket.
const SOCKET_VARIABLE: &str = "FREEBOARD_SOCKET";

/// The directory of one run.
#[derive(Debug)]
pub struct Private {
    directory: TempDir,
    _claim: Option<OwnedFd>,
}

impl Private {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Makes the directory for one run, for this user alone; removed when dropped, or by a later run.
///
/// # Errors
/// The directory that is asked for cannot be written; where none is, neither XDG_RUNTIME_DIR nor the one for temporary
/// files can.
pub fn private_directory(asked: Option<&Path>) -> Result<Private> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(parent) = asked {
        return make(parent).map_err(|error| fresh::unusable(parent, &error).context("--region"));
    }
    // a runtime directory of another user, inherited through su, is no reason to give up
    if let Some(directory) = runtime.and_then(|parent| make(&parent).ok()) {
        return Ok(directory);
    }
    let parent = std::env::temp_dir();
    make(&parent).map_err(|error| anyhow!("cannot make a directory in {}: {error}; mend: set TMPDIR", parent.display()))
}

fn make(parent: &Path) -> io::Result<Private> {
    remove_left(parent);
    loop {
        let only_ours = std::fs::Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new().prefix(PREFIX).permissions(only_ours).tempdir_in(parent)?;
        match fresh::claim(directory.path()) {
            Claim::Ours(lock) => return Ok(Private { directory, _claim: Some(lock) }),
            Claim::Unknown => return Ok(Private { directory, _claim: None }),
            // taken for one that was left
            Claim::Others => {}
        }
    }
}

/// Removes what launchers of this user have left that were killed: nothing but the files that they make.
fn remove_left(parent: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
            || !entry.metadata().is_ok_and(|directory| directory.is_dir() && directory.uid() == own)
        {
            continue;
        }
        if let Claim::Ours(_lock) = fresh::claim(&path) {
            for name in [SOCKET_FILE, BUDGET_FILE, COUNTERS_FILE] {
                let _ = std::fs::remove_file(path.join(name));
            }
            let _ = std::fs::remove_dir(&path);
        }
    }
}

/// Adds the library and the places to a command's environment.
///
/// # Errors
/// The library's path cannot stand in LD_PRELOAD.
pub fn prepare(command: &mut Command, library: &Path, region: &Path, socket: &Path) -> Result<()> {
    let existing = std::env::var_os("LD_PRELOAD").unwrap_or_default();
    command.env("LD_PRELOAD", merge(library.as_os_str(), &existing)?);
    command.env(REGION_VARIABLE, region).env(SOCKET_VARIABLE, socket);
    Ok(())
}

/// LD_PRELOAD with the library first and what was there behind it, in the separator that was used there. Loaders take
/// both spaces and colons (ld.so(8)), and know no way to quote one.
fn merge(library: &OsStr, existing: &OsStr) -> Result<OsString> {
    let separator = |byte: &u8| matches!(byte, b' ' | b':');
    if library.as_bytes().iter().any(separator) {
        bail!(
            "LD_PRELOAD cannot name {}: the path has a space or a colon in it; mend: move the library, or link to it from a path without",
            library.display()
        );
    }
    let mut others = existing.as_bytes().split(|byte| separator(byte)).filter(|one| !one.is_empty()).peekable();
    if others.peek().is_none() {
        return Ok(library.to_owned());
    }
    if others.any(|one| one == library.as_bytes()) {
        return Ok(existing.to_owned());
    }
    let between = if existing.as_bytes().contains(&b':') { b':' } else { b' ' };
    let between = if existing.as_bytes().iter().any(separator) { between } else { b':' };
    Ok(OsString::from_vec([library.as_bytes(), &[between], existing.as_bytes()].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_launcher_has_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let [left, full, foreign] = ["freeboard-run-left", "freeboard-run-full", "freeboard"].map(|name| {
            let path = parent.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join(BUDGET_FILE), "").unwrap();
            path
        });
        std::fs::write(full.join("precious"), "").unwrap();
        let first = make(parent.path()).unwrap();
        assert!(!left.exists() && full.join("precious").exists() && foreign.join(BUDGET_FILE).exists());
        let _second = make(parent.path()).unwrap();
        assert!(first.path().exists(), "a living one's is removed");
        // as the kernel leaves it when the launcher is killed
        let Private { directory, _claim } = first;
        drop(_claim);
        let path = directory.keep();
        // a child that another test has forked may hold the claim until it executes
        let start = std::time::Instant::now();
        while path.exists() {
            assert!(start.elapsed().as_secs() < 10, "it stays");
            make(parent.path()).unwrap();
        }
    }

    #[test]
    fn what_was_there_is_kept() {
        let cases = [
            ("", "/l.so"),
            (" ", "/l.so"),
            ("/a.so", "/l.so:/a.so"),
            ("/a.so:/b.so", "/l.so:/a.so:/b.so"),
            ("/a.so /b.so", "/l.so /a.so /b.so"),
            ("/a.so:/l.so", "/a.so:/l.so"),
            ("/l.so", "/l.so"),
            ("/other/l.so", "/l.so:/other/l.so"),
        ];
        for (existing, want) in cases {
            assert_eq!(merge("/l.so".as_ref(), existing.as_ref()).unwrap(), *want, "{existing:?}");
        }
        for path in ["/a b/l.so", "/a:b/l.so"] {
            assert!(merge(path.as_ref(), "".as_ref()).unwrap_err().to_string().contains(path));
        }
    }
}
