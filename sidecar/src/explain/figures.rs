//! What a group's memory is made of, in bytes; from its files or from what the kernel printed of them.

use crate::cgroup::level::keyed;
use freeboard_budget::cgroup::stat;
use serde::Serialize;

/// What one group said. A number that was not said is `None`, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// All that is charged to it.
    pub usage: Option<u64>,
    /// Its limit; `None`: it has none.
    pub limit: Option<u64>,
    /// Times that it met it.
    pub limit_hits: Option<u64>,
    /// Heaps and stacks.
    pub anonymous: Option<u64>,
    /// Page cache, tmpfs and shared memory included.
    pub file: Option<u64>,
    /// tmpfs and shared memory.
    pub shmem: Option<u64>,
    /// Page cache that is to be written.
    pub dirty: Option<u64>,
    /// Page cache that is being written.
    pub writeback: Option<u64>,
    /// Page cache that was used once, or long ago.
    pub inactive_file: Option<u64>,
    /// The kernel's own: slab, stacks, page tables.
    pub kernel: Option<u64>,
    /// Of these, what the kernel can give back (cgroup v2).
    pub slab_reclaimable: Option<u64>,
}

/// What memory is, by what can be done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Heaps and stacks: only the program can give it back.
    Anonymous,
    /// Page cache that is not on the disk: given back as fast as the disk writes.
    Unwritten,
    /// Page cache that is on the disk: given back at once.
    CleanCache,
    /// The kernel's own memory, most of it slab: inodes, directory entries.
    Slab,
    /// Files in memory and shared memory: given back when they are deleted.
    Tmpfs,
}

/// Where the bytes of a kind are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Parts {
    /// [`Kind::Anonymous`].
    pub anonymous: u64,
    /// [`Kind::Unwritten`].
    pub unwritten: u64,
    /// [`Kind::CleanCache`].
    pub clean: u64,
    /// [`Kind::Slab`].
    pub kernel: u64,
    /// Of `kernel`, what can be given back.
    pub slab_reclaimable: u64,
    /// [`Kind::Tmpfs`].
    pub tmpfs: u64,
    /// Which of the page cache is unwritten was not said, and is inferred.
    pub is_inferred: bool,
}

impl Figures {
    /// Takes what the text of a `memory.stat` says, of either version.
    pub fn add_stat(&mut self, text: &str) {
        let said = stat(text.as_bytes());
        let key = |key: &str| keyed(text.as_bytes(), key);
        let sum = |keys: &[&str]| keys.iter().filter_map(|name| key(name)).reduce(|sum, more| sum.saturating_add(more));
        self.anonymous = said.anon.or(self.anonymous);
        self.file = said.file.or(self.file);
        self.shmem = said.shmem.or(self.shmem);
        self.dirty = said.dirty.or(self.dirty);
        self.writeback = said.writeback.or(self.writeback);
        self.inactive_file = said.inactive_file.or(self.inactive_file);
        self.slab_reclaimable = said.slab_reclaimable.or(self.slab_reclaimable);
        // before Linux 5.18 there is no sum
        let parts = ["kernel_stack", "pagetables", "sec_pagetables", "percpu", "vmalloc", "slab"];
        self.kernel = self.kernel.or(said.kernel).or_else(|| sum(&parts));
    }

    /// The share of each kind. `was_killed`: the kernel took back what it could before.
    pub fn parts(&self, was_killed: bool) -> Parts {
        let tmpfs = self.shmem.unwrap_or(0);
        let kernel = self.kernel.unwrap_or(0);
        let anonymous = self.anonymous.unwrap_or(0);
        let rest = || self.usage.unwrap_or(0).saturating_sub(anonymous.saturating_add(kernel));
        let cache = self.file.unwrap_or_else(rest).saturating_sub(tmpfs);
        let said = self.dirty.zip(self.writeback).map(|(dirty, writeback)| dirty.saturating_add(writeback));
        // clean pages are given back before anybody is killed
        let unwritten = said.unwrap_or(if was_killed { cache } else { 0 }).min(cache);
        Parts {
            anonymous,
            unwritten,
            clean: cache - unwritten,
            kernel,
            slab_reclaimable: self.slab_reclaimable.unwrap_or(0).min(kernel),
            tmpfs,
            is_inferred: said.is_none() || self.file.is_none(),
        }
    }

    /// What Kubernetes calls the working set.
    pub fn working_set(&self) -> Option<u64> {
        Some(self.usage?.saturating_sub(self.inactive_file?))
    }
}

impl Parts {
    /// All of them.
    pub fn all(&self) -> [(Kind, u64); 5] {
        [
            (Kind::Anonymous, self.anonymous),
            (Kind::Unwritten, self.unwritten),
            (Kind::CleanCache, self.clean),
            (Kind::Slab, self.kernel),
            (Kind::Tmpfs, self.tmpfs),
        ]
    }

    /// Those that no reclaim takes back, whatever the disk does.
    pub fn pinned(&self) -> [(Kind, u64); 3] {
        let kernel = self.kernel - self.slab_reclaimable;
        [(Kind::Anonymous, self.anonymous), (Kind::Slab, kernel), (Kind::Tmpfs, self.tmpfs)]
    }
}
