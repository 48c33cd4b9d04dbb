//! The layout of the region: two files, `budget` and `counters`, each a [`Header`] followed by tables of rows.
//!
//! `budget` is written by the sidecar alone and mapped read-only by applications. `counters` is written by
//! applications and trusted by nobody. Both only ever grow by new tables and by fields at the end of a row: a reader
//! takes every offset, stride and count from the header, refuses an unknown major version, and passes over tables it
//! does not know. Nothing is re-laid out in place: another layout is another file.
//!
//! Every field that changes after the header was written is one atomic, so no reader can see half of it.

use crate::modelled;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// First eight bytes of the `budget` file.
pub const BUDGET_MAGIC: u64 = u64::from_le_bytes(*b"FRBDBUDG");
/// First eight bytes of the `counters` file.
pub const COUNTERS_MAGIC: u64 = u64::from_le_bytes(*b"FRBDCNTR");
/// A reader refuses any other major version.
pub const MAJOR: u16 = 1;
/// A reader accepts any minor version; a later one only adds.
pub const MINOR: u16 = 0;

/// Name of the budget file in the region's directory.
pub const BUDGET_FILE: &str = "budget";
/// Name of the counters file in the region's directory.
pub const COUNTERS_FILE: &str = "counters";

/// Milliseconds between two ticks of the heartbeat. A reader takes the sidecar for gone when the tick stood still for
/// [`STALE_MS`].
pub const TICK_MS: u64 = 100;
/// See [`TICK_MS`]: three ticks missed. Short, because what a stale budget allows is what a disk writes meanwhile.
pub const STALE_MS: u64 = 300;

/// What a table holds. A reader looks a table up by its kind and takes the first that matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// [`Policy`], one row.
    Policy = 1,
    /// [`Container`] rows.
    Containers = 2,
    /// [`Device`] rows.
    Devices = 3,
    /// [`Rule`] rows, two banks of `count / 2`.
    Rules = 4,
    /// [`Rule`] rows whose pattern names programs to leave alone, two banks of `count / 2`.
    Excludes = 5,
    /// [`Slot`] rows; row 0 is the one that processes share when all others are taken.
    Slots = 6,
}

/// Number of table entries in a header.
pub const TABLES: usize = 16;

/// Where a table lies in its file. All zero: no table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Table {
    /// A [`Kind`], or a later version's.
    pub kind: u32,
    /// Bytes from the start of the file to the first row; a multiple of 64.
    pub offset: u32,
    /// Bytes from one row to the next; a multiple of 64, at least the row's size in this version.
    pub stride: u32,
    /// Number of rows.
    pub count: u32,
}

/// The start of both files.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Header {
    /// [`BUDGET_MAGIC`] or [`COUNTERS_MAGIC`].
    pub magic: u64,
    /// [`MAJOR`].
    pub major: u16,
    /// [`MINOR`].
    pub minor: u16,
    /// Size of this header in bytes.
    pub header_bytes: u32,
    /// Bits that name optional features; none is defined in this version.
    pub features: u64,
    /// Size of the whole file in bytes; a file of another size is refused.
    pub file_bytes: u64,
    /// The heartbeat: grows by one every [`TICK_MS`]. In `counters`: the highest slot that was ever taken.
    pub tick: AtomicU64,
    /// Differs for every start of a sidecar.
    pub generation: AtomicU64,
    /// Unused, zero.
    pub reserved: [u64; 2],
    /// The tables of this file.
    pub tables: [Table; TABLES],
}

/// What the workload file says for a whole process. Rules and exclusions are read and changed by [`crate::policy`].
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Policy {
    /// Bits 0-7: [`crate::Mode`]; bit 8: the bank of rules and excludes in force; bits 32-63: how often the policy
    /// changed. One word, so that a reader never mixes two policies' mode and bank.
    pub word: modelled::AtomicU64,
    /// `writes.window`: most bytes that a process may owe; 0 is "auto".
    pub window_bytes: AtomicU64,
    /// `writes.max_stall`: how long a call is held while the disk makes no progress at all.
    pub max_stall_ms: AtomicU64,
    /// Rows in use in each bank of the rules table.
    pub rules: [modelled::AtomicU32; 2],
    /// Rows in use in each bank of the excludes table.
    pub excludes: [AtomicU32; 2],
    /// `memory.target`: per cent of the limit (1 to 100), or 0 where `target_bytes` says it.
    pub target_percent: AtomicU64,
    /// `memory.target` in bytes, or 0 where `target_percent` says it.
    pub target_bytes: AtomicU64,
    /// Unused, zero.
    pub reserved: u64,
}

/// Bit of [`Container::word`]: the row is in use and its numbers are those of the last tick.
pub const CONTAINER_LIVE: u64 = 1;
/// Bit of [`Container::word`]: drop what has been flushed; usage is near or over its target.
pub const CONTAINER_DROP: u64 = 2;
/// Bit of [`Container::word`]: no limit is in force; nothing is to be paced.
pub const CONTAINER_UNLIMITED: u64 = 4;
/// Bit of [`Container::word`]: the group owes half of `allowed` or more; closing and ending processes start writeback.
pub const CONTAINER_PRESSURE: u64 = 8;
/// Bit of [`Container::word`]: what is closed is kept by the library until it is written, and dropped.
pub const CONTAINER_DROP_CLOSED: u64 = 16;
/// Bits of [`Container::word`] below `allowed`, which is counted in units of 4 KiB above them.
pub const CONTAINER_FLAG_BITS: u32 = 16;

/// One memory cgroup under the law.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Container {
    /// Inode number of the cgroup's directory; 0: the row is free.
    pub cgroup_id: AtomicU64,
    /// `allowed` in 4 KiB units shifted by [`CONTAINER_FLAG_BITS`], and the `CONTAINER_*` bits.
    pub word: AtomicU64,
    /// The limit that rules, in bytes; `u64::MAX`: none.
    pub limit_bytes: AtomicU64,
    /// The ceiling for usage, in bytes.
    pub target_bytes: AtomicU64,
    /// Usage at the last tick, in bytes.
    pub usage_bytes: AtomicU64,
    /// Dirty and under writeback at the last tick, in bytes.
    pub unwritten_bytes: AtomicU64,
    /// Usage that reclaim cannot give back, less the unwritten, in bytes.
    pub other_bytes: AtomicU64,
    /// Unwritten bytes that no living ledger owes.
    pub unowned_bytes: AtomicU64,
    /// The disk's speed as held writers measured it, in bytes per second; 0: not yet known.
    pub speed_bytes_per_s: AtomicU64,
    /// Limit hits since the sidecar first saw the group.
    pub limit_hits: AtomicU64,
    /// Largest `unwritten_bytes` of any tick.
    pub peak_unwritten_bytes: AtomicU64,
    /// Of `unwritten_bytes`, what is under writeback.
    pub writeback_bytes: AtomicU64,
    /// Unused, zero.
    pub reserved: [u64; 4],
}

/// One disk.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Device {
    /// `st_dev` of its files, or `st_rdev` of the block device itself; 0: the row is free.
    pub dev: AtomicU64,
    /// As [`Container::speed_bytes_per_s`], of this disk alone.
    pub speed_bytes_per_s: AtomicU64,
    /// What all writers together owe it, in bytes.
    pub outstanding_bytes: AtomicU64,
    /// Unused, zero.
    pub reserved: [u64; 5],
}

/// Longest pattern of a rule, in bytes.
pub const PATTERN_BYTES: usize = 240;

/// [`Rule::reads`] of `reads = "drop-behind"`.
pub const DROP_BEHIND: u32 = 1;

/// One path rule; bytes, compiled by the sidecar, written only while its bank is not in force.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Rule {
    /// Length of the pattern in bytes, at most [`PATTERN_BYTES`]; a longer one makes the row void.
    pub len: AtomicU32,
    /// [`crate::Mode`] for the files it matches, or 255: as the process.
    pub mode: modelled::AtomicU32,
    /// [`DROP_BEHIND`] or 0.
    pub reads: AtomicU32,
    /// Unused, zero.
    pub reserved: u32,
    /// The pattern, absolute, with `*`, `?` and `**`; eight bytes a word, little endian.
    pub pattern: [AtomicU64; PATTERN_BYTES / 8],
}

/// Why the library stood aside; the index into [`Slot::aside`]. The first five are counted once a descriptor, the rest
/// once a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Aside {
    /// A pipe, socket, terminal or other file without page cache.
    NotAFile = 0,
    /// O_DIRECT, O_SYNC or O_DSYNC: it waits for the disk by itself.
    Direct = 1,
    /// tmpfs, ramfs, hugetlbfs, proc: nothing to flush to.
    Memory = 2,
    /// The kernel did not say on what filesystem it lies.
    Unknown = 3,
    /// A rule, an exclusion or the mode says so.
    Policy = 4,
    /// The call came in a signal handler on top of our own slow path.
    Nested = 5,
    /// The disk made no progress for `max_stall`.
    Stalled = 6,
    /// No limit is known.
    Unlimited = 7,
    /// A table of the library was full.
    Full = 8,
    /// The process was a vfork child, or not yet or no longer set up.
    Outside = 9,
    /// A seccomp filter forbids what the library cannot do without.
    Filtered = 10,
}

/// Number of reasons that a slot has room for.
pub const ASIDES: usize = 12;

/// What one process says of itself; [`crate::slots`] has every step that either side takes on it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Slot {
    /// 0: free. Else bits 0-1: a [`crate::slots::Phase`]; bits 2-63: the owner's nonce. One word, so that nobody can
    /// end or take back a row that has another owner by now.
    pub state: modelled::AtomicU64,
    /// The budget's tick when the process last wrote. A slot whose tick stands still is not a writer.
    pub last_tick: modelled::AtomicU64,
    /// Process id in the writer's own namespace, in the lower half; the container's row in the upper.
    pub pid_container: AtomicU64,
    /// Bytes that the process wrote and has not seen reach the disk.
    pub owed_bytes: AtomicU64,
    /// Bytes written through hooks to files that can be paced.
    pub written_bytes: modelled::AtomicU64,
    /// Bytes for which this library started writeback.
    pub flushed_bytes: AtomicU64,
    /// Bytes that it saw reach the disk.
    pub confirmed_bytes: modelled::AtomicU64,
    /// Bytes of page cache that it gave back.
    pub dropped_bytes: AtomicU64,
    /// Time that calls waited because of us, in nanoseconds.
    pub held_back_ns: AtomicU64,
    /// The longest single wait, in nanoseconds.
    pub longest_held_back_ns: AtomicU64,
    /// 1 while some thread of the process is held back.
    pub holding: AtomicU64,
    /// Write calls seen.
    pub calls: AtomicU64,
    /// Write calls held back.
    pub held_calls: AtomicU64,
    /// The disk that the process last waited for (`st_dev`).
    pub dev: AtomicU64,
    /// How often the library stood aside, by [`Aside`].
    pub aside: [AtomicU64; ASIDES],
    /// Bytes that no hook saw written, and for which this library started writeback: a part of `flushed_bytes`.
    pub swept_bytes: AtomicU64,
    /// Unused, zero.
    pub reserved: [u64; 5],
}

// The two sides are compiled apart and must agree; these are the layout's promise. (Loom's atomics are larger.)
#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Header>() == 320);
    assert!(core::mem::offset_of!(Header, tick) == 32);
    assert!(core::mem::offset_of!(Header, tables) == 64);
    assert!(size_of::<Policy>() == 64);
    assert!(size_of::<Container>() == 128);
    assert!(size_of::<Device>() == 64);
    assert!(size_of::<Rule>() == 256);
    assert!(size_of::<Slot>() == 256);
    assert!(core::mem::offset_of!(Slot, aside) == 112);
    assert!(align_of::<Header>() == 64 && align_of::<Slot>() == 64);
};

/// The size that a row must at least have in this version, by kind; `None` for a kind that this version does not know.
pub const fn row_bytes(kind: u32) -> Option<usize> {
    Some(match kind {
        1 => size_of::<Policy>(),
        2 => size_of::<Container>(),
        3 => size_of::<Device>(),
        4 | 5 => size_of::<Rule>(),
        6 => size_of::<Slot>(),
        _ => return None,
    })
}

/// Why a mapped file was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Smaller than a header, or not the size that its header names.
    Size,
    /// Not one of our files.
    Magic,
    /// Another major version.
    Major,
    /// A table reaches beyond the file, overlaps the header, or is not aligned.
    Table,
}

/// The header's words that never change after it was written, copied out of the mapping once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fixed {
    /// [`Header::magic`].
    pub magic: u64,
    /// [`Header::major`].
    pub major: u16,
    /// [`Header::header_bytes`].
    pub header_bytes: u32,
    /// [`Header::file_bytes`].
    pub file_bytes: u64,
    /// [`Header::tables`].
    pub tables: [Table; TABLES],
}

impl Fixed {
    /// Checks a header against the magic that is wanted and the size of the mapping.
    ///
    /// # Errors
    /// The first [`Refusal`] that applies. A table of unknown kind is not looked at.
    pub fn check(&self, magic: u64, mapped_bytes: usize) -> Result<(), Refusal> {
        if self.magic != magic {
            return Err(Refusal::Magic);
        }
        if self.major != MAJOR {
            return Err(Refusal::Major);
        }
        if self.file_bytes != mapped_bytes as u64 || (self.header_bytes as usize) < size_of::<Header>() {
            return Err(Refusal::Size);
        }
        for table in &self.tables {
            let Some(row) = row_bytes(table.kind) else { continue };
            let end = u64::from(table.offset) + u64::from(table.stride) * u64::from(table.count);
            let aligned = table.offset % 64 == 0 && table.stride % 64 == 0;
            if !aligned || table.offset < self.header_bytes || (table.stride as usize) < row || end > self.file_bytes {
                return Err(Refusal::Table);
            }
        }
        Ok(())
    }

    /// The first table of a kind.
    pub fn table(&self, kind: Kind) -> Option<Table> {
        self.tables.iter().copied().find(|table| table.kind == kind as u32)
    }
}

/// Lays tables of this version's rows one after the other behind a header.
///
/// Returns the header's fixed part, with `file_bytes` rounded up to whole pages of 4 KiB.
pub fn lay_out(magic: u64, rows: &[(Kind, u32)]) -> Fixed {
    let mut tables = [Table::default(); TABLES];
    let mut offset = size_of::<Header>() as u32;
    for (entry, &(kind, count)) in tables.iter_mut().zip(rows) {
        let stride = row_bytes(kind as u32).unwrap_or(64) as u32;
        *entry = Table { kind: kind as u32, offset, stride, count };
        offset += stride * count;
    }
    let file_bytes = u64::from(offset).next_multiple_of(4096);
    Fixed { magic, major: MAJOR, header_bytes: size_of::<Header>() as u32, file_bytes, tables }
}

/// The `budget` file as this version makes it: a policy, 64 containers, 64 devices, two banks of 64 rules and of 32
/// exclusions.
pub fn budget_layout() -> Fixed {
    lay_out(
        BUDGET_MAGIC,
        &[(Kind::Policy, 1), (Kind::Containers, 64), (Kind::Devices, 64), (Kind::Rules, 128), (Kind::Excludes, 64)],
    )
}

/// The `counters` file as this version makes it: `slots` processes at a time, and the shared row 0.
pub fn counters_layout(slots: u32) -> Fixed {
    lay_out(COUNTERS_MAGIC, &[(Kind::Slots, slots)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_layouts_pass_their_check() {
        let budget = budget_layout();
        assert_eq!(budget.check(BUDGET_MAGIC, budget.file_bytes as usize), Ok(()));
        let counters = counters_layout(1024);
        assert_eq!(counters.check(COUNTERS_MAGIC, counters.file_bytes as usize), Ok(()));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let good = budget_layout();
        let bytes = good.file_bytes as usize;
        type Spoil = fn(&mut Fixed);
        let cases: [(&str, Spoil, Refusal); 7] = [
            ("magic", |f| f.magic ^= 1, Refusal::Magic),
            ("major", |f| f.major += 1, Refusal::Major),
            ("size", |f| f.file_bytes += 1, Refusal::Size),
            ("header", |f| f.header_bytes = 8, Refusal::Size),
            ("table beyond the end", |f| f.tables[1].count = u32::MAX, Refusal::Table),
            ("table over the header", |f| f.tables[1].offset = 0, Refusal::Table),
            ("rows too small", |f| f.tables[1].stride = 64, Refusal::Table),
        ];
        for (name, spoil, want) in cases {
            let mut header = good;
            spoil(&mut header);
            assert_eq!(header.check(BUDGET_MAGIC, bytes), Err(want), "{name}");
        }
        assert_eq!(good.check(COUNTERS_MAGIC, bytes), Err(Refusal::Magic));
        assert_eq!(good.check(BUDGET_MAGIC, bytes - 4096), Err(Refusal::Size));
    }

    #[test]
    fn a_later_minor_versions_table_is_passed_over() {
        let mut header = budget_layout();
        header.tables[7] = Table { kind: 99, offset: 3, stride: 1, count: u32::MAX };
        assert_eq!(header.check(BUDGET_MAGIC, header.file_bytes as usize), Ok(()));
        assert_eq!(header.table(Kind::Slots), None);
        // a longer row is read by its stride
        let mut longer = counters_layout(4);
        longer.tables[0].stride = 320;
        assert_eq!(longer.check(COUNTERS_MAGIC, longer.file_bytes as usize), Ok(()));
    }
}
