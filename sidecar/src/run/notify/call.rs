//! One call that the kernel tells of: by whom, onto which descriptor, how many bytes.

use super::file::{self, Identity};
use super::sys;
use libc::seccomp_notif;
use rustix::fs::FileType;

/// Calls with fewer bytes are not told of: each that is costs its program 5 µs, a filter alone 0.06.
pub const GATE_BYTES: u64 = 4096;

/// A call in which the kernel itself copies is one call for a whole file; from here on, a paced file is to be written
/// in pieces.
pub const LARGEST_COPY_BYTES: u64 = 1 << 20;

/// What a call does, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Writes what the program has.
    Write,
    /// Wants space on a disk, which deleted files take as long as they are open here.
    Allocate,
    /// Ends a mount, which no file on it may be open for.
    Unmount,
    /// Has the kernel copy, and gives this errno where it cannot: then programs read and write themselves. These
    /// are the answers that the manual pages give for that case.
    Copy {
        /// Its "not so, but by reading and writing".
        refusal: i32,
        /// `None`: no file, or one that cannot be looked at.
        source: Option<Source>,
    },
}

/// What a copy reads from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The file.
    pub file: Identity,
    /// Where in it the call begins, if that can be known.
    pub at: Option<u64>,
    /// What it can find there: programs ask for more than there is.
    pub left_bytes: u64,
}

impl Source {
    /// `offset`: where in the program's memory the offset lies; 0: the call begins where the descriptor stands.
    fn find(thread: u32, fd: i32, offset: u64) -> Option<Source> {
        let file = Identity::find(thread, fd).ok()?;
        let at = match offset {
            0 => file::info(thread, fd, "pos:").and_then(|text| text.parse().ok()),
            _ => sys::word(thread, offset),
        };
        let stat = rustix::fs::stat(file::place(thread, fd)).ok()?;
        // a device has no size
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let left_bytes = if is_file { (stat.st_size as u64).saturating_sub(at.unwrap_or(0)) } else { u64::MAX };
        Some(Source { file, at, left_bytes })
    }
}

/// A call that waits for its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// The thread that made it; 0: in a process namespace that cannot be seen.
    pub thread: u32,
    /// Where in the program it was made.
    pub at: u64,
    /// The descriptor that it writes to, if any.
    pub fd: i32,
    /// How many bytes it may write.
    pub bytes: u64,
    /// What it does.
    pub kind: Kind,
}

impl Call {
    /// Reads a notification.
    pub fn of(told: &seccomp_notif) -> Call {
        let args = told.data.args;
        let plain = |kind, fd: u64, bytes| Call {
            thread: told.pid,
            at: told.data.instruction_pointer,
            fd: fd as i32,
            bytes,
            kind,
        };
        let copy = |refusal, fd, from: u64, offset, bytes: u64| {
            let source = Source::find(told.pid, from as i32, offset);
            plain(Kind::Copy { refusal, source }, fd, source.map_or(bytes, |source| bytes.min(source.left_bytes)))
        };
        match told.data.nr.into() {
            libc::SYS_sendfile => copy(libc::EINVAL, args[0], args[1], args[2], args[3]),
            libc::SYS_copy_file_range => copy(libc::EXDEV, args[2], args[0], args[1], args[4]),
            libc::SYS_fallocate => plain(Kind::Allocate, args[0], args[3]),
            libc::SYS_umount2 => plain(Kind::Unmount, u64::MAX, 0),
            // from a pipe, and never more than is in it
            libc::SYS_splice => plain(Kind::Write, args[2], args[4].min(LARGEST_COPY_BYTES)),
            libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => {
                plain(Kind::Write, args[0], sys::vector_bytes(told.pid, args[1], args[2]))
            }
            _ => plain(Kind::Write, args[0], args[2]),
        }
    }
}
