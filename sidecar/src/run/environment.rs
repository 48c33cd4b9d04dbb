//! What the command finds in its environment: the library, and where the region and the socket are.

use crate::fresh;
use anyhow::{Result, anyhow, bail};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Names the directory of the region's files.
const REGION_VARIABLE: &str = "FREEBOARD_REGION";
/// Names the socket.
const SOCKET_VARIABLE: &str = "FREEBOARD_SOCKET";

/// Makes the directory for one run, for this user alone; removed when dropped.
///
/// # Errors
/// The directory that is asked for cannot be written; where none is, neither XDG_RUNTIME_DIR nor the one for temporary
/// files can.
pub fn private_directory(asked: Option<&Path>) -> Result<TempDir> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let make = |parent: &Path| {
        tempfile::Builder::new()
            .prefix("freeboard-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)
    };
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
    use super::merge;

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
