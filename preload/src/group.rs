//! The process's own memory cgroup, read from inside: what the law needs where no sidecar does it, and the group's
//! unwritten where cachestat is blind.
//!
//! Its files are opened on an errand ([`crate::apart`]), never in the application's table. The buffers are static: one
//! thread at a time comes here, and it may be on a signal stack of 8 KiB, half of which the kernel's frame takes.
//!
//! This is one of the modules that may say `unsafe`.

use crate::apart::Apart;
use crate::sys;
use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use freeboard_budget::cgroup::{self, Version};
use freeboard_budget::law::{self, Level, Target, Verdict};

const PATH: usize = 512;
/// Levels above the process's own group that are asked for a limit of their own.
const LEVELS: usize = 8;

struct Buffers {
    /// The group's directory, from its mount point on.
    directory: [u8; PATH],
    directory_len: usize,
    mount_len: usize,
    version: Option<Version>,
    text: [u8; 8192],
    /// What /proc/self/cgroup says.
    own: [u8; 2048],
    /// Root and mount point of the group's hierarchy.
    root: [u8; PATH],
    point: [u8; PATH],
    /// The path of a file.
    name: [u8; PATH + 64],
}

struct Alone(UnsafeCell<Buffers>);
// SAFETY: used only through `with`, whose callers are on an errand: one at a time.
unsafe impl Sync for Alone {}

static BUFFERS: Alone = Alone(UnsafeCell::new(Buffers {
    directory: [0; PATH],
    directory_len: 0,
    mount_len: 0,
    version: None,
    text: [0; 8192],
    own: [0; 2048],
    root: [0; PATH],
    point: [0; PATH],
    name: [0; PATH + 64],
}));
static IS_LOCATED: AtomicBool = AtomicBool::new(false);

fn with<T>(_: &Apart, act: impl FnOnce(&mut Buffers) -> Option<T>) -> Option<T> {
    // SAFETY: there is one `Apart` at a time, and no call here holds on to this reference or makes another.
    let buffers = unsafe { &mut *BUFFERS.0.get() };
    if !IS_LOCATED.swap(true, Relaxed) {
        buffers.locate();
    }
    act(buffers)
}

/// A child of fork looks again.
pub fn reset() {
    IS_LOCATED.store(false, Relaxed);
}

impl Buffers {
    /// Finds the group's directory: /proc/self/cgroup gives the path, /proc/self/mountinfo where its hierarchy is.
    fn locate(&mut self) {
        self.version = None;
        self.locate_by(c"/proc/self/cgroup", c"/proc/self/mountinfo");
        if self.version.is_none() {
            // the process's own are its first thread's, and say nothing once that has ended
            self.locate_by(c"/proc/thread-self/cgroup", c"/proc/thread-self/mountinfo");
        }
    }

    fn locate_by(&mut self, groups: &CStr, mounts: &CStr) {
        let Some(text) = sys::read_file(groups, &mut self.own) else { return };
        let Some((version, path)) = cgroup::own_path(text) else { return };
        let found = find_mount(mounts, &mut self.text, version, path, &mut self.root, &mut self.point);
        let Some((root, point)) = found else { return };
        let below = cgroup::below_root(path, root);
        let mut end = 0;
        for &byte in point.as_bytes().iter().chain(below.as_bytes()) {
            let Some(slot) = self.directory.get_mut(end) else { return };
            *slot = byte;
            end += 1;
        }
        self.directory_len = end;
        self.mount_len = point.len();
        self.version = Some(version);
    }

    /// Reads a file of the group's directory, or of the one that `len` bytes of its path name.
    fn read(&mut self, len: usize, file: &str) -> Option<&[u8]> {
        let bytes = self.directory.get(..len)?.iter().chain(b"/").chain(file.as_bytes()).chain(b"\0");
        let mut end = 0;
        for (slot, &byte) in self.name.iter_mut().zip(bytes) {
            *slot = byte;
            end += 1;
        }
        let path = CStr::from_bytes_with_nul(self.name.get(..end)?).ok()?;
        sys::read_file(path, &mut self.text)
    }

    fn number(&mut self, len: usize, file: &str) -> Option<u64> {
        self.read(len, file).and_then(cgroup::limit)
    }

    fn level(&mut self, len: usize, version: Version, target: Target) -> Option<Level> {
        let mut limit = self.number(len, version.limit_file())?;
        if version == Version::V2 {
            limit = limit.min(self.number(len, "memory.high").unwrap_or(u64::MAX));
        }
        if limit == u64::MAX && target.bytes(limit) == u64::MAX {
            return None;
        }
        let usage = self.number(len, version.usage_file())?;
        let stat = cgroup::stat(self.read(len, "memory.stat")?);
        let limit = stat.limit_beside_swap(limit);
        Some(Level {
            limit,
            target: target.bytes(limit),
            usage,
            other: stat.other(version, usage, limit)?,
            unwritten: stat.unwritten()?,
        })
    }

    /// The length of the parent's path, or `None` above the mount point.
    fn parent(&self, len: usize) -> Option<usize> {
        let slash = self.directory.get(..len)?.iter().rposition(|&byte| byte == b'/')?;
        (slash >= self.mount_len).then_some(slash)
    }
}

/// The mount that shows the group at `path`, else the first of its hierarchy.
fn find_mount<'a>(
    mounts: &CStr,
    buffer: &mut [u8; 8192],
    version: Version,
    path: &str,
    root: &'a mut [u8; PATH],
    point: &'a mut [u8; PATH],
) -> Option<(&'a str, &'a str)> {
    let found = scan_mounts(mounts, buffer, version, Some(path), root, point);
    let (root_len, point_len) = found.or_else(|| scan_mounts(mounts, buffer, version, None, root, point))?;
    let text = |bytes: &'a [u8; PATH], len: usize| core::str::from_utf8(bytes.get(..len)?).ok();
    Some((text(root, root_len)?, text(point, point_len)?))
}

/// Reads mountinfo piece by piece, whole lines at a time; the lengths of what it found.
fn scan_mounts(
    mounts: &CStr,
    buffer: &mut [u8; 8192],
    version: Version,
    path: Option<&str>,
    root: &mut [u8; PATH],
    point: &mut [u8; PATH],
) -> Option<(usize, usize)> {
    let fd = sys::open(mounts, libc::O_RDONLY);
    if fd < 0 {
        return None;
    }
    let mut kept = 0;
    let found = loop {
        let got = buffer.get_mut(kept..).and_then(|rest| sys::read(fd, rest)).unwrap_or(0);
        let filled = kept + got;
        let Some(text) = buffer.get(..filled) else { break None };
        if let Some((at_root, at_point)) = cgroup::mount_point(text, version, path) {
            break copy(at_root, root).zip(copy(at_point, point));
        }
        if got == 0 {
            break None;
        }
        let line = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        kept = filled.saturating_sub(line);
        for at in 0..kept {
            // byte by byte: copy_within can panic
            let byte = buffer.get(line + at).copied().unwrap_or(0);
            if let Some(slot) = buffer.get_mut(at) {
                *slot = byte;
            }
        }
    };
    sys::close(fd);
    found
}

fn copy(from: &str, to: &mut [u8; PATH]) -> Option<usize> {
    to.get_mut(..from.len())?.copy_from_slice(from.as_bytes());
    Some(from.len())
}

/// The law, applied to every level of the group that can be seen. `None`: the group cannot be read.
pub fn judge(apart: &Apart, target: Target, speed: Option<u64>) -> Option<Verdict> {
    with(apart, |buffers| {
        let version = buffers.version?;
        let mut verdict = None;
        let mut len = Some(buffers.directory_len);
        for _ in 0..LEVELS {
            let Some(here) = len else { break };
            if let Some(level) = buffers.level(here, version, target) {
                let judged = law::judge(&level, speed);
                verdict = Some(verdict.map_or(judged, |other: Verdict| other.stricter(judged)));
            }
            len = buffers.parent(here);
        }
        // no level has a limit, but the group could be read: nothing limits
        verdict.or_else(|| buffers.read(buffers.directory_len, "memory.stat").map(|_| Verdict::UNLIMITED))
    })
}

/// The group's dirty and writeback in bytes, now; `None` where it cannot be read. Exact within the kernel's charge
/// batches ([`law::COUNTER_LAG`]).
pub fn unwritten(apart: &Apart) -> Option<u64> {
    with(apart, |buffers| {
        buffers.version?;
        cgroup::stat(buffers.read(buffers.directory_len, "memory.stat")?).unwritten()
    })
}

/// Opens the group's directory, for the sidecar; the caller closes it. Negative where there is none.
pub fn open_directory(apart: &Apart) -> i32 {
    with(apart, |buffers| {
        buffers.version?;
        let mut path = [0u8; PATH + 1];
        let name = buffers.directory.get(..buffers.directory_len)?;
        path.get_mut(..name.len())?.copy_from_slice(name);
        let path = CStr::from_bytes_until_nul(&path).ok()?;
        Some(sys::open(path, libc::O_RDONLY | libc::O_DIRECTORY))
    })
    .unwrap_or(-1)
}
