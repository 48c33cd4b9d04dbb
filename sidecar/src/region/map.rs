//! Memory that holds one of the region's files. This is one of the crate's modules that may say `unsafe`.

use freeboard_budget::layout::{Fixed, Header};
use freeboard_budget::shm::Mapped;
use memmap2::{MmapOptions, MmapRaw};
use rustix::io::pread;
use std::fs::File;
use std::io;
use std::ops::Deref;

/// A mapping that this process made and laid out.
#[derive(Debug)]
pub struct Memory {
    raw: MmapRaw,
    mapped: Mapped,
}

impl Deref for Memory {
    type Target = Mapped;
    fn deref(&self) -> &Mapped {
        &self.mapped
    }
}

impl Memory {
    /// Maps a fresh memfd of the layout's size and writes the header. Nobody else may have it yet, and it must be
    /// sealed against shrinking before somebody does.
    pub fn shared(memfd: &File, fixed: Fixed, generation: u64) -> io::Result<Memory> {
        let raw = MmapOptions::new().len(fixed.file_bytes as usize).map_raw(memfd)?;
        Ok(Memory::lay_out(raw, fixed, generation))
    }

    /// Private memory, to copy a file into.
    pub fn private(fixed: Fixed, generation: u64) -> io::Result<Memory> {
        let raw = MmapOptions::new().len(fixed.file_bytes as usize).map_anon()?.into();
        Ok(Memory::lay_out(raw, fixed, generation))
    }

    fn lay_out(raw: MmapRaw, fixed: Fixed, generation: u64) -> Memory {
        // SAFETY: a mapping starts at a page; it is `file_bytes` long, writable, zero and as yet ours alone; it stays
        // mapped as long as `raw`, which is dropped together with `mapped`, and `Mapped` copies that leave this
        // struct are not made (`Deref` lends it).
        let mapped = unsafe { Mapped::create(raw.as_mut_ptr(), fixed, generation) };
        Memory { raw, mapped }
    }

    /// A copy of all the memory.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes().to_vec()
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the whole mapping is readable. Only the budget is read so, whose one writer is the thread that calls
        // this (it holds the lock on the state that owns the memory), and fresh memory that nobody else has.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr(), self.raw.len()) }
    }

    /// Copies a file's content up to `end` over private memory, all but the header; what a shortened file lacks stays
    /// as it was.
    pub fn copy_from(&mut self, file: &File, end: usize) -> io::Result<()> {
        let header = size_of::<Header>();
        let length = end.min(self.raw.len()).saturating_sub(header);
        // SAFETY: the mapping is writable and longer than a header; `&mut self` says that nobody reads it meanwhile.
        let rows = unsafe { std::slice::from_raw_parts_mut(self.raw.as_mut_ptr().add(header), length) };
        pread(file, rows, header as u64)?;
        Ok(())
    }
}
