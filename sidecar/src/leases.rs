//! Leases (fcntl(2), F_SETLEASE): whoever opens such a file breaks the lease, and its holder is told, by SIGIO unless
//! he asked for another signal: it ends a process that does not expect it.
//!
//! This is one of the crate's modules that may say `unsafe`, for tests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A lease may be taken at any moment: an older look is not trusted.
const FRESH: Duration = Duration::from_millis(1);

/// On which files somebody has a lease, as far as this pid namespace is told.
#[derive(Debug, Default)]
pub struct Leases {
    looked: Option<Instant>,
    /// Inode numbers, without their devices, which btrfs numbers otherwise in stat(2). `None`: nobody says.
    inodes: Option<BTreeSet<u64>>,
}

impl Leases {
    /// Whether nobody would notice if a file were opened at once. Where nobody says who has leases, somebody might.
    pub fn may_open(&mut self, ino: u64) -> bool {
        if self.looked.is_none_or(|looked| looked.elapsed() > FRESH) {
            self.inodes = std::fs::read_to_string("/proc/locks").ok().map(|locks| listed(&locks));
            self.looked = Some(Instant::now());
        }
        self.inodes.as_ref().is_some_and(|inodes| !inodes.contains(&ino))
    }
}

/// From the text of `/proc/locks`: `1: LEASE ACTIVE WRITE 77 fe:00:1234 0 EOF`. A server of NFS has delegations, which
/// are leases by another name.
fn listed(locks: &str) -> BTreeSet<u64> {
    let inode = |line: &str| line.split_whitespace().find_map(|word| word.splitn(3, ':').nth(2)?.parse().ok());
    locks.lines().filter(|line| line.contains(" LEASE ") || line.contains(" DELEG ")).filter_map(inode).collect()
}

/// fcntl(2) with F_SETLEASE or F_GETLEASE.
#[cfg(test)]
pub fn lease(file: &std::fs::File, command: i32, kind: i32) -> i32 {
    // SAFETY: fcntl takes numbers only.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(file), command, kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn leases_among_locks() {
        let locks = "1: LEASE  ACTIVE    WRITE 77 fe:00:1234 0 EOF\n2: POSIX  ADVISORY  WRITE 9 fe:00:5 0 EOF\n\
                     3: LEASE  BREAKING  READ  78 00:2b:99 0 EOF\n4: DELEG  ACTIVE    READ  78 fe:00:77 0 EOF\n\
                     broken LEASE line\n";
        assert_eq!(listed(locks).into_iter().collect::<Vec<_>>(), [77, 99, 1234]);
    }

    #[test]
    fn where_nobody_says_who_has_leases_no_file_may_be_opened() {
        let in_an_hour = Instant::now() + Duration::from_secs(3600);
        assert!(!Leases { looked: Some(in_an_hour), inodes: None }.may_open(1));
        assert!(Leases { looked: Some(in_an_hour), inodes: Some(BTreeSet::new()) }.may_open(1));
    }

    #[test]
    fn a_lease_that_is_taken_after_the_first_look_is_seen() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        let ino = file.metadata().unwrap().ino();
        let mut leases = Leases::default();
        assert!(leases.may_open(ino));
        assert_eq!(lease(&file, libc::F_SETLEASE, libc::F_WRLCK), 0);
        std::thread::sleep(FRESH * 2);
        assert!(!leases.may_open(ino));
    }
}
