//! One container's counters: what its processes say of themselves.

use super::map::Memory;
use super::{SLOTS, memfd, put, seal};
use anyhow::{Context, Result};
use freeboard_budget::layout::{COUNTERS_FILE, Header, Kind, Slot, Table, counters_layout};
use freeboard_budget::slots::{self, Others, Report};
use rustix::fs::SealFlags;
use rustix::io::pread;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

/// The rows, and where their processes write them.
#[derive(Debug)]
pub struct Counters {
    memory: Memory,
    place: Place,
    end: usize,
}

#[derive(Debug)]
enum Place {
    /// A sealed memfd, mapped: what is read is what the processes write.
    Memfd(File),
    /// The region's file, copied in before it is looked at.
    Copied(File),
}

impl Counters {
    /// The counters of a container that is served over the socket.
    ///
    /// # Errors
    /// What could not be made.
    pub fn sealed(generation: u64) -> Result<Counters> {
        let layout = counters_layout(SLOTS);
        let memfd = memfd("freeboard-counters", layout.file_bytes).context("cannot make shared memory (memfd)")?;
        let memory = Memory::shared(&memfd, layout, generation).context("cannot map the counters")?;
        seal(&memfd, SealFlags::empty()).context("cannot seal the counters")?;
        Ok(Counters { memory, place: Place::Memfd(memfd), end: 1 })
    }

    /// The counters file in the region's directory.
    ///
    /// # Errors
    /// What could not be made.
    pub fn in_region(dir: &Path, generation: u64) -> Result<Counters> {
        let memory = Memory::private(counters_layout(SLOTS), generation).context("cannot map memory")?;
        let file = put(dir, COUNTERS_FILE, &memory.to_vec(), 0o666)?;
        Ok(Counters { memory, place: Place::Copied(file), end: 1 })
    }

    /// The memfd, to be handed to the container's applications; `None` for the region's file.
    pub fn memfd(&self) -> Option<&File> {
        match &self.place {
            Place::Memfd(memfd) => Some(memfd),
            Place::Copied(_) => None,
        }
    }

    /// Brings the rows that were ever taken up to date.
    ///
    /// # Errors
    /// What reading the region's file gave.
    pub fn refresh(&mut self) -> io::Result<()> {
        if let Place::Copied(file) = &self.place {
            let mut highest = [0u8; 8];
            if pread(file, &mut highest, offset_of!(Header, tick) as u64)? == highest.len() {
                self.memory.tick().store(u64::from_ne_bytes(highest), Relaxed);
            }
            let rows = counters_layout(SLOTS).table(Kind::Slots);
            let end = |rows: Table| rows.offset as usize + slots::end(&self.memory) * rows.stride as usize;
            self.memory.copy_from(file, rows.map_or(0, end))?;
        }
        self.end = self.end.max(slots::end(&self.memory));
        Ok(())
    }

    /// One beyond the highest row that was ever taken; what its processes say of it later does not make it less.
    pub fn end_of_used(&self) -> usize {
        self.end
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.memory.count(Kind::Slots)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A row, or `None` beyond the end.
    pub fn slot(&self, index: usize) -> Option<&Slot> {
        self.memory.row::<Slot>(index)
    }

    /// Takes a row for a writer in this process; see [`slots::claim`].
    pub fn claim(&self, nonce: u64, pid_container: u64, tick: u64) -> Option<usize> {
        slots::claim(&self.memory, nonce, pid_container, tick)
    }

    /// As if a process had taken a row.
    #[cfg(test)]
    pub fn note_used(&self, index: usize) {
        self.memory.tick().fetch_max(index as u64, Relaxed);
    }

    /// Counts the writers but the one in row `mine`; see [`slots::others`].
    pub fn others(&self, mine: usize, tick: u64, ticks: u64) -> Others {
        slots::others(&self.memory, mine, tick, ticks)
    }

    /// Ends a row in place of its owner; see [`Slot::end`].
    pub fn end(&self, index: usize, nonce: u64) {
        let Some(slot) = self.slot(index) else { return };
        if slot.end(nonce) {
            self.hand_on(index, slot);
        }
    }

    /// The last word of a row's owner that has ended; the row is free after it.
    pub fn collect(&self, index: usize) -> Option<Report> {
        let slot = self.slot(index)?;
        let report = slot.collect()?;
        self.hand_on(index, slot);
        Some(report)
    }

    /// Writes a row's state to where its processes see it.
    fn hand_on(&self, index: usize, slot: &Slot) {
        let Place::Copied(file) = &self.place else { return };
        let Some(table) = counters_layout(SLOTS).table(Kind::Slots) else { return };
        let at = u64::from(table.offset) + u64::from(table.stride) * index as u64;
        // a row that cannot be written, in a file that was truncated, is nobody's
        let _ = file.write_all_at(&slot.state.load(Relaxed).to_ne_bytes(), at);
    }
}
