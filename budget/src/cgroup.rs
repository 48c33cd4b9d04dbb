//! The text of a memory cgroup's files. A key that is missing is `None`, never zero.
//!
//! Sources: Linux `Documentation/admin-guide/cgroup-v1/memory.rst`, `Documentation/admin-guide/cgroup-v2.rst` and
//! `mm/memcontrol*.c` of 6.1 to 6.18.

use core::str;

/// Which memory controller a group belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// `memory.usage_in_bytes`, `memory.limit_in_bytes`, `total_*` keys.
    V1,
    /// `memory.current`, `memory.max`, no `total_*` keys: every key counts the hierarchy.
    V2,
}

impl Version {
    /// The file that holds usage in bytes.
    pub const fn usage_file(self) -> &'static str {
        match self {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }
    }

    /// The file that holds the group's own hard limit.
    pub const fn limit_file(self) -> &'static str {
        match self {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        }
    }
}

/// What `memory.stat` says, in bytes. On v1 the `total_*` keys where they are, so that children count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    /// Anonymous memory (v1: rss).
    pub anon: Option<u64>,
    /// Page cache, shmem included.
    pub file: Option<u64>,
    /// tmpfs and shared memory: page cache that cannot be written anywhere.
    pub shmem: Option<u64>,
    /// Dirty page cache.
    pub dirty: Option<u64>,
    /// Page cache under writeback.
    pub writeback: Option<u64>,
    /// Inactive page cache; Kubernetes' working set is usage less this.
    pub inactive_file: Option<u64>,
    /// Kernel memory, slab included (v2 only).
    pub kernel: Option<u64>,
    /// Slab that reclaim can give back (v2 only).
    pub slab_reclaimable: Option<u64>,
    /// The smallest hard limit of the group and its ancestors (v1 only).
    pub hierarchical_limit: Option<u64>,
    /// The smallest limit of memory and swap together, of the group and its ancestors (v1 with swap accounting only).
    pub hierarchical_memsw_limit: Option<u64>,
    /// What lies in swap (v1 with swap accounting only).
    pub swap: Option<u64>,
}

/// Reads decimal digits; `None` on anything else or where it does not fit.
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, &byte| {
        let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// A file with one number, or `max` for no limit (`u64::MAX`). v1 says no limit with a number near `i64::MAX`
/// (PAGE_COUNTER_MAX), which comes back as `u64::MAX` too.
pub fn limit(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    if text == b"max" {
        return Some(u64::MAX);
    }
    number(text).map(limited)
}

fn limited(bytes: u64) -> u64 {
    if bytes >= 1 << 60 { u64::MAX } else { bytes }
}

/// Reads `memory.stat`. A `total_` key (v1) wins over its plain twin.
pub fn stat(text: &[u8]) -> Stat {
    let mut stat = Stat::default();
    for line in text.split(|&byte| byte == b'\n') {
        let Some(space) = line.iter().position(|&byte| byte == b' ') else { continue };
        let (Some(key), Some(value)) = (line.get(..space), line.get(space + 1..).and_then(number)) else { continue };
        let (key, total) = match key.strip_prefix(b"total_") {
            Some(key) => (key, true),
            None => (key, false),
        };
        let field = match key {
            b"rss" | b"anon" => &mut stat.anon,
            b"cache" | b"file" => &mut stat.file,
            b"shmem" => &mut stat.shmem,
            b"dirty" | b"file_dirty" => &mut stat.dirty,
            b"writeback" | b"file_writeback" => &mut stat.writeback,
            b"inactive_file" => &mut stat.inactive_file,
            b"kernel" => &mut stat.kernel,
            b"slab_reclaimable" => &mut stat.slab_reclaimable,
            b"swap" => &mut stat.swap,
            b"hierarchical_memory_limit" => {
                stat.hierarchical_limit = Some(limited(value));
                continue;
            }
            b"hierarchical_memsw_limit" => {
                stat.hierarchical_memsw_limit = Some(limited(value));
                continue;
            }
            _ => continue,
        };
        if total || field.is_none() {
            *field = Some(value);
        }
    }
    stat
}

impl Stat {
    /// The limit for memory under one for memory and swap together: what lies in swap already counts there, so that
    /// memory may hold that much less. v2 limits swap by itself, and its limit for memory is the whole truth.
    pub fn limit_beside_swap(&self, limit_bytes: u64) -> u64 {
        match self.hierarchical_memsw_limit {
            Some(together) if together != u64::MAX => limit_bytes.min(together.saturating_sub(self.swap.unwrap_or(0))),
            _ => limit_bytes,
        }
    }

    /// Dirty plus writeback; `None` where the kernel does not say (v1 before Linux 4.2: then nothing can be paced by
    /// it).
    pub fn unwritten(&self) -> Option<u64> {
        Some(self.dirty?.saturating_add(self.writeback?))
    }

    /// Usage that reclaim cannot give back, less the unwritten: all that is not page cache or reclaimable slab.
    ///
    /// Computed from usage, so that what has no key of its own (sockets, page tables, percpu) counts. v1 does not split
    /// its kernel memory; it stands in `usage` and so counts as fixed, but for at most an eighth of the limit
    /// (`limit_bytes`), because a million cached inodes are reclaimable and must not shrink the window to nothing.
    pub fn other(&self, version: Version, usage_bytes: u64, limit_bytes: u64) -> Option<u64> {
        let cache = self.file?.saturating_sub(self.shmem.unwrap_or(0));
        let rest = usage_bytes.saturating_sub(cache);
        Some(match version {
            Version::V2 => rest.saturating_sub(self.slab_reclaimable.unwrap_or(0)),
            Version::V1 => {
                let known = self.anon.unwrap_or(0).saturating_add(self.shmem.unwrap_or(0));
                rest.min(known.saturating_add(limit_bytes / 8))
            }
        })
    }
}

/// The path of a process's memory cgroup from `/proc/self/cgroup`: the line of the v1 memory controller where there is
/// one, else the v2 line.
pub fn own_path(text: &[u8]) -> Option<(Version, &str)> {
    let mut unified = None;
    for line in text.split(|&byte| byte == b'\n') {
        let mut parts = line.splitn(3, |&byte| byte == b':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let Ok(path) = str::from_utf8(path) else { continue };
        if controllers.split(|&byte| byte == b',').any(|name| name == b"memory") {
            return Some((Version::V1, path));
        }
        if id == b"0" && controllers.is_empty() {
            unified = Some((Version::V2, path));
        }
    }
    unified
}

/// Where the memory controller of that version is mounted, from `/proc/self/mountinfo`: (root within the hierarchy,
/// mount point). Only a mount that shows the group at `path`, where one is given: a container may have the host's
/// hierarchy mounted beside its own. Paths with escaped bytes (`\040`) are passed over.
pub fn mount_point<'a>(text: &'a [u8], version: Version, path: Option<&str>) -> Option<(&'a str, &'a str)> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        // id parent major:minor ROOT POINT options [tags] - TYPE source OPTIONS, proc_pid_mountinfo(5)
        let mut fields = line.split(|&byte| byte == b' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        fields.find(|&field| field == b"-")?;
        let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
        let wanted = match version {
            Version::V1 => kind == b"cgroup" && options.split(|&byte| byte == b',').any(|option| option == b"memory"),
            Version::V2 => kind == b"cgroup2",
        };
        let is_plain = |path: &[u8]| !path.contains(&b'\\');
        if !wanted || !is_plain(root) || !is_plain(point) {
            return None;
        }
        let (root, point) = (str::from_utf8(root).ok()?, str::from_utf8(point).ok()?);
        path.is_none_or(|path| rest_below(path, root).is_some()).then_some((root, point))
    })
}

/// The part of a cgroup's path below a mount's root: what to append to the mount point. A path outside the root (a
/// container that joined another's cgroup namespace) gives the root itself.
pub fn below_root<'a>(path: &'a str, root: &str) -> &'a str {
    rest_below(path, root).unwrap_or("")
}

fn rest_below<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(root.strip_suffix('/').unwrap_or(root))?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rest.strip_suffix('/').unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_totals_win_and_missing_keys_are_none() {
        let text = b"cache 100\nrss 5\ndirty 7\nhierarchical_memory_limit 9223372036854771712\ntotal_cache 300\ntotal_rss 50\ntotal_dirty 70\ntotal_writeback 30\n";
        let stat = stat(text);
        assert_eq!((stat.file, stat.anon, stat.unwritten()), (Some(300), Some(50), Some(100)));
        assert_eq!((stat.shmem, stat.kernel), (None, None));
        assert_eq!(stat.hierarchical_limit, Some(u64::MAX));
        assert_eq!(super::stat(b"total_cache 3\ncache 1\n").file, Some(3));
        assert_eq!(super::stat(b"cache x\ncache\n\n").file, None);
    }

    #[test]
    fn v2_counts_reclaimable_slab_as_reclaimable() {
        let stat =
            stat(b"anon 100\nfile 500\nshmem 20\nfile_dirty 60\nfile_writeback 40\nslab_reclaimable 50\nkernel 80\n");
        assert_eq!(stat.unwritten(), Some(100));
        // usage 700 = 500 file + 100 anon + 80 kernel + 20 of something: shmem is in file and is not reclaimable
        assert_eq!(stat.other(Version::V2, 700, 1000), Some(700 - 480 - 50));
    }

    #[test]
    fn v1_kernel_memory_counts_up_to_an_eighth_of_the_limit() {
        let stat = stat(b"total_cache 100\ntotal_rss 50\ntotal_shmem 0\n");
        assert_eq!(stat.other(Version::V1, 170, 800), Some(70));
        assert_eq!(stat.other(Version::V1, 700, 800), Some(150));
    }

    #[test]
    fn what_lies_in_swap_takes_from_a_limit_of_both() {
        let both = stat(b"swap 1\nhierarchical_memory_limit 1000\nhierarchical_memsw_limit 1200\ntotal_swap 300\n");
        assert_eq!(both.limit_beside_swap(1000), 900);
        assert_eq!(stat(b"hierarchical_memsw_limit 1200\ntotal_swap 0\n").limit_beside_swap(1000), 1000);
        assert_eq!(stat(b"hierarchical_memsw_limit 9223372036854771712\ntotal_swap 300\n").limit_beside_swap(9), 9);
        assert_eq!(stat(b"anon 5\n").limit_beside_swap(u64::MAX), u64::MAX);
    }

    #[test]
    fn limits() {
        assert_eq!(limit(b"max\n"), Some(u64::MAX));
        assert_eq!(limit(b"9223372036854771712\n"), Some(u64::MAX));
        assert_eq!(limit(b"200000000\n"), Some(200_000_000));
        assert_eq!(limit(b"\n"), None);
        assert_eq!(number(b"99999999999999999999"), None);
    }

    #[test]
    fn where_the_group_is() {
        let hybrid = b"4:memory:/docker/abc\n1:name=systemd:/x\n0::/y\n";
        assert_eq!(own_path(hybrid), Some((Version::V1, "/docker/abc")));
        assert_eq!(own_path(b"0::/kubepods/pod1/c1\n"), Some((Version::V2, "/kubepods/pod1/c1")));
        assert_eq!(own_path(b"4:cpu:/x\n"), None);
        let mounts = b"30 24 0:26 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts, Version::V1, None), Some(("/docker/abc", "/sys/fs/cgroup/memory")));
        assert_eq!(mount_point(mounts, Version::V1, Some("/docker/abc/x")), mount_point(mounts, Version::V1, None));
        assert_eq!(mount_point(mounts, Version::V1, Some("/docker/abcd")), None);
        assert_eq!(mount_point(mounts, Version::V2, None), Some(("/", "/sys/fs/cgroup/unified")));
        assert_eq!(below_root("/docker/abc", "/docker/abc"), "");
        assert_eq!(below_root("/docker/abc/child", "/docker/abc"), "/child");
        assert_eq!(below_root("/a/b", "/"), "/a/b");
        assert_eq!(below_root("/", "/"), "");
        assert_eq!(below_root("/other", "/docker/abc"), "");
        assert_eq!(below_root("/docker/abcdef", "/docker/abc"), "");
    }
}
