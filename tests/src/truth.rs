//! What is in a file, and what is in its page cache, as the kernel tells it.

use crate::sys;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes per page of the page cache.
const PAGE: u64 = 4096;

/// What the page cache holds of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// All of it.
    pub bytes: u64,
    /// What is dirty or under writeback.
    pub unwritten_bytes: u64,
}

/// Asks the kernel what it has cached of a file.
pub fn cached(path: &Path) -> Cached {
    cached_range(path, 0, 0)
}

/// The same of a range; of no length: to the file's end.
pub fn cached_range(path: &Path, offset: u64, bytes: u64) -> Cached {
    let stat = sys::cachestat(&open(path), offset, bytes);
    let stat = stat.unwrap_or_else(|error| panic!("cachestat of {}: {error}", path.display()));
    Cached { bytes: stat.cached * PAGE, unwritten_bytes: (stat.dirty + stat.writeback) * PAGE }
}

/// Takes a file out of the page cache, and makes sure of it. A test beside this one may be copying it just now.
pub fn make_cold(path: &Path) {
    let (file, deadline) = (open(path), Instant::now() + Duration::from_secs(10));
    loop {
        file.sync_all().and_then(|()| sys::drop_cache(&file)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if cached(path).bytes == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{} is still cached", path.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Reads a file into the page cache, from outside of any group of ours, and keeps it there: a machine that takes back
/// what lay idle would have a program read it again, for its own group.
#[must_use = "it is warm as long as this is kept"]
pub fn keep_warm(path: &Path) -> sys::Pinned {
    sys::Pinned::new(&open(path)).unwrap_or_else(|error| panic!("cannot keep {} cached: {error}", path.display()))
}

/// # Panics
/// Unless two files hold the same bytes.
pub fn assert_same(left: &Path, right: &Path) {
    let lengths = [left, right].map(|path| open(path).metadata().expect("cannot stat").len());
    assert_eq!(lengths[0], lengths[1], "{} and {} differ in length", left.display(), right.display());
    assert_starts_with(left, right);
}

/// # Panics
/// Unless the first file (a block device is larger than what was written to it) starts with the bytes of the second.
pub fn assert_starts_with(long: &Path, short: &Path) {
    let (mut left, mut right) = (BufReader::new(open(long)), BufReader::new(open(short)));
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let read = right.read(&mut theirs).expect("cannot read");
        if read == 0 {
            return;
        }
        left.read_exact(&mut ours[..read]).unwrap_or_else(|error| panic!("{}: {error}", long.display()));
        assert!(
            ours[..read] == theirs[..read],
            "{} and {} differ after byte {offset}",
            long.display(),
            short.display()
        );
        offset += read;
    }
}

/// # Panics
/// Unless two directories hold the same files with the same bytes.
pub fn assert_same_tree(left: &Path, right: &Path) {
    crate::lab::run("diff", &["--recursive", "--brief", &crate::lab::path_str(left), &crate::lab::path_str(right)]);
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}
