//! Typed access to a mapped file of the region. Another process writes this memory at any time, so there are no
//! references to plain data in it: rows are reached by raw pointer, and every field that changes is an atomic.
//!
//! This is one of the crate's modules that may say `unsafe`.

use crate::layout::{
    BUDGET_MAGIC, COUNTERS_MAGIC, Container, Device, Fixed, Header, Kind, Policy, Refusal, Rule, Slot, TABLES, Table,
};
use core::sync::atomic::AtomicU64;

/// A mapped file that passed its check. Copyable: it is an address and the header's fixed part.
#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    base: *const u8,
    fixed: Fixed,
}

// SAFETY: a `Mapped` is an address whose memory stays mapped for the life of every copy (see `attach`), and all access
// through it is atomic.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

/// A type that is the row of one kind of table.
pub trait Row {
    /// The kind of the table that it is a row of.
    const KIND: Kind;
}

macro_rules! rows {
    ($($row:ty => $kind:ident),* $(,)?) => { $(impl Row for $row { const KIND: Kind = Kind::$kind; })* };
}
rows!(Policy => Policy, Container => Containers, Device => Devices, Slot => Slots);

impl Mapped {
    /// Takes a mapped `budget` file.
    ///
    /// # Errors
    /// The [`Refusal`] that [`Fixed::check`] gives.
    ///
    /// # Safety
    /// As for [`Mapped::attach`].
    pub unsafe fn budget(base: *const u8, mapped_bytes: usize) -> Result<Mapped, Refusal> {
        // SAFETY: the caller's.
        unsafe { Mapped::attach(base, mapped_bytes, BUDGET_MAGIC) }
    }

    /// Takes a mapped `counters` file.
    ///
    /// # Errors
    /// The [`Refusal`] that [`Fixed::check`] gives.
    ///
    /// # Safety
    /// As for [`Mapped::attach`].
    pub unsafe fn counters(base: *const u8, mapped_bytes: usize) -> Result<Mapped, Refusal> {
        // SAFETY: the caller's.
        unsafe { Mapped::attach(base, mapped_bytes, COUNTERS_MAGIC) }
    }

    /// Takes a mapping, if its header is what it should be. The fixed part of the header is copied before it is
    /// checked, so that a hostile writer cannot change it between the check and its use.
    ///
    /// # Errors
    /// The [`Refusal`] that [`Fixed::check`] gives, or [`Refusal::Size`] for a mapping smaller than a header.
    ///
    /// # Safety
    /// `base` is 64-byte aligned and `mapped_bytes` from it on are mapped readable for as long as any copy of the
    /// result is used. For a `counters` file, or the writer's own `budget`, they are mapped writable.
    pub unsafe fn attach(base: *const u8, mapped_bytes: usize, magic: u64) -> Result<Mapped, Refusal> {
        if mapped_bytes < size_of::<Header>() {
            return Err(Refusal::Size);
        }
        let header = base.cast::<Header>();
        let mut tables = [Table::default(); TABLES];
        // SAFETY: the mapping is at least a header long and aligned for it; every field is a plain integer, read by
        // value and volatile, because another process may write it meanwhile.
        let fixed = unsafe {
            for (index, table) in tables.iter_mut().enumerate() {
                *table = (&raw const (*header).tables[index]).read_volatile();
            }
            Fixed {
                magic: (&raw const (*header).magic).read_volatile(),
                major: (&raw const (*header).major).read_volatile(),
                header_bytes: (&raw const (*header).header_bytes).read_volatile(),
                file_bytes: (&raw const (*header).file_bytes).read_volatile(),
                tables,
            }
        };
        fixed.check(magic, mapped_bytes)?;
        Ok(Mapped { base, fixed })
    }

    /// Writes a header to fresh memory and takes it.
    ///
    /// # Safety
    /// `base` is 64-byte aligned, `fixed.file_bytes` from it on are mapped writable and zero, nobody else has the
    /// mapping yet, and it stays for as long as any copy of the result is used.
    pub unsafe fn create(base: *mut u8, fixed: Fixed, generation: u64) -> Mapped {
        let header = base.cast::<Header>();
        // SAFETY: the caller's: exclusive, writable, aligned and large enough.
        unsafe {
            (&raw mut (*header).major).write(fixed.major);
            (&raw mut (*header).minor).write(crate::layout::MINOR);
            (&raw mut (*header).header_bytes).write(fixed.header_bytes);
            (&raw mut (*header).file_bytes).write(fixed.file_bytes);
            (&raw mut (*header).tables).write(fixed.tables);
            (&raw mut (*header).generation).write(AtomicU64::new(generation));
            (&raw mut (*header).magic).write(fixed.magic);
        }
        Mapped { base, fixed }
    }

    /// Where the mapping starts.
    pub fn address(&self) -> *const u8 {
        self.base
    }

    /// The heartbeat.
    pub fn tick(&self) -> &AtomicU64 {
        // SAFETY: inside the header, which the mapping holds for the life of `self`; an atomic may be shared.
        unsafe { &(*self.base.cast::<Header>()).tick }
    }

    /// The sidecar's start number.
    pub fn generation(&self) -> &AtomicU64 {
        // SAFETY: as for `tick`.
        unsafe { &(*self.base.cast::<Header>()).generation }
    }

    /// Number of rows of a kind; 0 where the file has no such table.
    pub fn count(&self, kind: Kind) -> usize {
        self.fixed.table(kind).map_or(0, |table| table.count as usize)
    }

    /// A row, or `None` beyond the table's end.
    pub fn row<R: Row>(&self, index: usize) -> Option<&R> {
        self.at::<R>(R::KIND, index)
    }

    /// A row of the rules or the excludes table: one type for two tables, so it has no [`Row::KIND`] of its own.
    pub fn rule(&self, kind: Kind, index: usize) -> Option<&Rule> {
        if !matches!(kind, Kind::Rules | Kind::Excludes) {
            return None;
        }
        self.at::<Rule>(kind, index)
    }

    fn at<R>(&self, kind: Kind, index: usize) -> Option<&R> {
        let table = self.fixed.table(kind)?;
        if index >= table.count as usize {
            return None;
        }
        let offset = table.offset as usize + index * table.stride as usize;
        // SAFETY: the check at attaching put the whole table inside the mapping, with 64-byte alignment and a stride of
        // at least the row's size; rows are made of atomics (and of reserved words that nobody reads), so shared
        // references to memory that others write are sound.
        Some(unsafe { &*self.base.add(offset).cast::<R>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{budget_layout, counters_layout};
    use core::sync::atomic::Ordering::Relaxed;
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    struct Memory(*mut u8, Layout);
    impl Memory {
        fn new(bytes: u64) -> Memory {
            let layout = Layout::from_size_align(bytes as usize, 4096).unwrap();
            // SAFETY: the layout is not empty.
            Memory(unsafe { alloc_zeroed(layout) }, layout)
        }
    }
    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.0, self.1) }
        }
    }

    #[test]
    fn what_is_created_is_attached_and_seen_by_both() {
        let fixed = counters_layout(16);
        let memory = Memory::new(fixed.file_bytes);
        // SAFETY: fresh, zeroed, aligned, and alive until the end of the test.
        let ours = unsafe { Mapped::create(memory.0, fixed, 7) };
        // SAFETY: as above.
        let theirs = unsafe { Mapped::counters(memory.0, memory.1.size()) }.unwrap();
        assert_eq!(theirs.generation().load(Relaxed), 7);
        assert_eq!(theirs.count(Kind::Slots), 16);
        theirs.row::<Slot>(15).unwrap().calls.store(9, Relaxed);
        assert_eq!(ours.row::<Slot>(15).unwrap().calls.load(Relaxed), 9);
        assert!(ours.row::<Slot>(16).is_none());
        assert!(ours.row::<Container>(0).is_none());
    }

    #[test]
    fn threads_that_race_for_slots_each_get_their_own() {
        let fixed = counters_layout(64);
        let memory = Memory::new(fixed.file_bytes);
        // SAFETY: fresh, zeroed, aligned, and alive until the end of the test.
        let mapped = unsafe { Mapped::create(memory.0, fixed, 1) };
        let won: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4u64)
                .map(|thread| {
                    scope.spawn(move || {
                        (0..8)
                            .filter_map(|n| crate::slots::claim(&mapped, thread * 8 + n + 1, 0, 0))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let mut unique = won.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!((won.len(), unique.len()), (32, 32));
        assert!(!unique.contains(&0), "row 0 is the shared one");
    }

    #[test]
    fn a_mapping_smaller_than_a_header_is_refused() {
        let fixed = budget_layout();
        let memory = Memory::new(fixed.file_bytes);
        // SAFETY: 64 of the mapped bytes.
        assert_eq!(unsafe { Mapped::budget(memory.0, 64) }.unwrap_err(), Refusal::Size);
        // SAFETY: all of them; they are zero.
        assert_eq!(unsafe { Mapped::budget(memory.0, memory.1.size()) }.unwrap_err(), Refusal::Magic);
    }
}
