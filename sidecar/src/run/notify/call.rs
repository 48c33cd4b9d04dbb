//! One call that the kernel tells of: by whom, onto which descriptor, how many bytes.

use super::{file, sys};
use libc::seccomp_notif;

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
    /// Has the kernel copy, and gives this errno where it cannot: then programs read and write themselves. These
    /// are the answers that the manual pages give for that case.
    Copy {
        /// Its "not so, but by reading and writing".
        refusal: i32,
    },
}

/// A call that waits for its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// The thread that made it; 0: in a process namespace that cannot be seen.
    pub thread: u32,
    /// Where in the program it was made.
    pub at: u64,
    /// The descriptor that it writes to.
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
        match told.data.nr.into() {
            libc::SYS_sendfile => {
                let bytes = args[3].min(left_to_read(told.pid, args[1] as i32));
                plain(Kind::Copy { refusal: libc::EINVAL }, args[0], bytes)
            }
            libc::SYS_copy_file_range => {
                let bytes = args[4].min(left_to_read(told.pid, args[0] as i32));
                plain(Kind::Copy { refusal: libc::EXDEV }, args[2], bytes)
            }
            // from a pipe, and never more than is in it
            libc::SYS_splice => plain(Kind::Write, args[2], args[4].min(LARGEST_COPY_BYTES)),
            libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => {
                plain(Kind::Write, args[0], sys::vector_bytes(told.pid, args[1], args[2]))
            }
            _ => plain(Kind::Write, args[0], args[2]),
        }
    }
}

/// How much a copy can find in its source, from where the source's descriptor stands: programs ask for more than there
/// is. Where the call names another place to read from, this says too little or too much.
fn left_to_read(thread: u32, fd: i32) -> u64 {
    let size = rustix::fs::stat(file::place(thread, fd)).map_or(u64::MAX, |stat| stat.st_size as u64);
    let at = file::info(thread, fd, "pos:").and_then(|text| text.parse().ok()).unwrap_or(0);
    size.saturating_sub(at)
}
