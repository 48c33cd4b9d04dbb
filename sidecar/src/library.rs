//! `libfreeboard.so`: where it is, and putting it where applications find it.

use crate::fresh;
use anyhow::{Context, Result, anyhow, bail};
use std::fmt::Display;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The library's file name.
pub const LIBRARY: &str = "libfreeboard.so";
/// This program's, where it is installed beside it.
const PROGRAM: &str = "freeboard";
/// The variable that names another place for it.
pub const LIBRARY_VARIABLE: &str = "FREEBOARD_LIB";

/// The library's absolute path: what FREEBOARD_LIB names, else the file beside this program.
///
/// # Errors
/// It is not there, cannot be read, or is not a shared object: a loader that is given such a file warns of it in every
/// process, or starts none.
pub fn find() -> Result<PathBuf> {
    let (path, mend) = match std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()) {
        Some(path) => (PathBuf::from(path), format!("set {LIBRARY_VARIABLE} to the path of {LIBRARY}")),
        None => {
            let program = std::env::current_exe().context("cannot find this program's own path")?;
            let mend = format!("put {LIBRARY} beside {}, or set {LIBRARY_VARIABLE} to its path", program.display());
            (program.with_file_name(LIBRARY), mend)
        }
    };
    let unusable = |why: &dyn Display| anyhow!("the library {} cannot be used: {why}; mend: {mend}", path.display());
    let found = fs::canonicalize(&path).map_err(|error| unusable(&error))?;
    let mut start = [0u8; 4];
    let read = File::open(&found).and_then(|mut file| file.read_exact(&mut start));
    match read {
        Ok(()) if &start == b"\x7fELF" => Ok(found),
        Ok(()) => Err(unusable(&"it is not a shared object")),
        Err(error) => Err(unusable(&error)),
    }
}

/// Copies the library into a directory, whole or not at all: processes that have the old file mapped keep it.
///
/// # Errors
/// Where the library is missing or the directory cannot be written.
pub fn install(dir: &Path) -> Result<()> {
    copy(&find()?, LIBRARY, dir)
}

/// The same with this program beside it: `freeboard install`.
///
/// # Errors
/// As for [`install`].
pub fn install_with_program(dir: &Path) -> Result<()> {
    install(dir)?;
    let program = std::env::current_exe().context("cannot find this program's own path")?;
    copy(&program, PROGRAM, dir)
}

fn copy(from: &Path, name: &str, dir: &Path) -> Result<()> {
    let to = dir.join(name);
    let place = || format!("cannot install {} into {}", from.display(), dir.display());
    if to.is_dir() {
        bail!("{}: {} is a directory: remove it", place(), to.display());
    }
    let mut file = fresh::file_in(dir).with_context(|| format!("cannot install {}", from.display()))?;
    std::io::copy(&mut File::open(from).with_context(place)?, &mut file).with_context(place)?;
    file.as_file().set_permissions(Permissions::from_mode(0o755)).with_context(place)?;
    file.as_file().sync_all().with_context(place)?;
    file.persist(&to).map_err(|error| error.error).with_context(place)?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(place)
}
