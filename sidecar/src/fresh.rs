//! A fresh file in a directory that a person named; or why there can be none, with the mend.

use anyhow::{Error, Result, anyhow};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat, stat};
use rustix::io::Errno;
use std::io;
use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
use std::path::Path;
use tempfile::NamedTempFile;

/// Makes one, under a name of its own.
///
/// # Errors
/// [`unusable`].
pub fn file_in(dir: &Path) -> Result<NamedTempFile> {
    NamedTempFile::new_in(dir).map_err(|error| unusable(dir, &error))
}

/// What keeps anything from being made in a directory. Names the directory, and not the file, which nobody asked for.
pub fn unusable(dir: &Path, error: &io::Error) -> Error {
    let (what, mend) = match error.kind() {
        NotFound => ("there is no such directory", "make it"),
        NotADirectory => ("it is no directory", "name one"),
        PermissionDenied => ("this user may not write there", "let it, or name another"),
        ReadOnlyFilesystem => ("it is read-only", "name one that is not"),
        _ => return anyhow!("{}: {error}", dir.display()),
    };
    anyhow!("{}: {what}; mend: {mend}", dir.display())
}

/// Whose a directory is that one process makes, uses, and removes.
#[derive(Debug)]
pub enum Claim {
    /// This process's, as long as the descriptor is open. It cannot be kept from others' hands by its name or process
    /// id: those mean something else in another container.
    Ours(OwnedFd),
    /// Another living process's; or it is gone.
    Others,
    /// Its filesystem knows no locks.
    Unknown,
}

/// Claims a directory that was just made, or that may have been left by a process that was killed.
pub fn claim(dir: &Path) -> Claim {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(lock) = openat(CWD, dir, flags, Mode::empty()) else { return Claim::Others };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if is_at(&lock, dir) => Claim::Ours(lock),
        Ok(()) | Err(Errno::WOULDBLOCK) => Claim::Others,
        Err(_) => Claim::Unknown,
    }
}

fn is_at(file: &OwnedFd, path: &Path) -> bool {
    let (Ok(file), Ok(there)) = (fstat(file), stat(path)) else { return false };
    (file.st_dev, file.st_ino) == (there.st_dev, there.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_and_the_mend_are_named() {
        let error = file_in(Path::new("/no/such/place")).unwrap_err();
        assert_eq!(error.to_string(), "/no/such/place: there is no such directory; mend: make it");
        let error = file_in(Path::new("/proc/version")).unwrap_err();
        assert_eq!(error.to_string(), "/proc/version: it is no directory; mend: name one");
    }
}
