//! Leases (fcntl(2), F_SETLEASE): whoever opens such a file breaks the lease, and its holder is told.

use std::collections::BTreeSet;

/// Inode numbers of files on which somebody has a lease, as far as this pid namespace is told. Without their devices,
/// which btrfs numbers otherwise in stat(2).
pub fn inodes() -> BTreeSet<u64> {
    listed(&std::fs::read_to_string("/proc/locks").unwrap_or_default())
}

/// From the text of `/proc/locks`: `1: LEASE ACTIVE WRITE 77 fe:00:1234 0 EOF`.
fn listed(locks: &str) -> BTreeSet<u64> {
    let inode = |line: &str| line.split_whitespace().find_map(|word| word.splitn(3, ':').nth(2)?.parse().ok());
    locks.lines().filter(|line| line.contains(" LEASE ")).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn leases_among_locks() {
        let locks = "1: LEASE  ACTIVE    WRITE 77 fe:00:1234 0 EOF\n2: POSIX  ADVISORY  WRITE 9 fe:00:5 0 EOF\n\
                     3: LEASE  BREAKING  READ  78 00:2b:99 0 EOF\nbroken LEASE line\n";
        assert_eq!(listed(locks).into_iter().collect::<Vec<_>>(), [99, 1234]);
    }
}
