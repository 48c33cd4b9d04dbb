//! The region, as its writer sees it: the budget, the counters, and where they live.
//!
//! Over the socket a container gets sealed memfds: nobody can shrink them, and the budget cannot be written by anybody
//! else. The two files in the region's directory are for containers that only mount it. Those files anybody with write
//! permission could truncate, and touching a truncated mapping kills; so the sidecar never maps them: it copies its
//! own budget out with `pwrite`, and the counters in with `pread`.

pub mod budget;
pub mod counters;
mod map;
pub mod seen;

use crate::fresh;
use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Processes that each container's counters have room for at a time; 256 bytes each.
pub const SLOTS: u32 = 1024;

/// A memfd of a size, which nobody can change once it is sealed.
fn memfd(name: &str, bytes: u64) -> Result<File, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux 6.3 wants to be told that the memory is not a program, and may be set to refuse others; 6.2 does not know.
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    ftruncate(&fd, bytes)?;
    Ok(File::from(fd))
}

/// Seals a memfd; `more` beside its size.
fn seal(memfd: &File, more: SealFlags) -> Result<(), Errno> {
    fcntl_add_seals(memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL | more)
}

/// Puts a file into the region's directory whole: what had that name before stays as it was for whoever mapped it.
fn put(dir: &Path, name: &str, content: &[u8], mode: u32) -> Result<File> {
    let place = || format!("region {}: cannot write {name}", dir.display());
    let mut file = fresh::file_in(dir).with_context(|| format!("cannot write {name} of the region"))?;
    std::io::Write::write_all(&mut file, content).with_context(place)?;
    file.as_file().set_permissions(Permissions::from_mode(mode)).with_context(place)?;
    file.persist(dir.join(name)).map_err(|error| error.error).with_context(place)
}
