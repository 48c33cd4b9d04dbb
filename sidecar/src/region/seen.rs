//! The region's files as somebody else reads them who takes no part: copied, never mapped.

use super::map::Memory;
use freeboard_budget::layout::{Fixed, Header};
use freeboard_budget::shm::{Mapped, Row};
use rustix::io::pread;
use std::fs::File;
use std::mem::offset_of;

/// A copy of one file.
#[derive(Debug)]
pub struct Seen {
    memory: Memory,
    /// The header as this version writes it.
    header: Vec<u8>,
}

/// The words of a header that change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// See [`Header::tick`].
    pub tick: u64,
    /// See [`Header::generation`].
    pub generation: u64,
}

impl Seen {
    /// Memory for a file of that layout.
    ///
    /// # Errors
    /// There is none.
    pub fn new(layout: Fixed) -> std::io::Result<Seen> {
        let memory = Memory::private(layout, 0)?;
        let header = memory.to_vec().drain(..size_of::<Header>()).collect();
        Ok(Seen { memory, header })
    }

    /// Copies the file.
    ///
    /// # Errors
    /// It cannot be read, or is not of this version's layout.
    pub fn copy(&mut self, file: &File) -> Result<Pulse, String> {
        let mut header = vec![0u8; self.header.len()];
        let length = pread(file, &mut header[..], 0).map_err(|error| error.to_string())?;
        let word = |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().unwrap_or_default());
        let (tick, tables) = (offset_of!(Header, tick), offset_of!(Header, tables));
        let is_ours = header[..tick] == self.header[..tick] && header[tables..] == self.header[tables..];
        if length < header.len() || !is_ours {
            return Err("it is not of this version; mend: use the program that the sidecar was started from".into());
        }
        self.memory.copy_from(file, usize::MAX).map_err(|error| error.to_string())?;
        Ok(Pulse { tick: word(tick), generation: word(offset_of!(Header, generation)) })
    }

    /// The rows of a table.
    pub fn rows<'a, T: Row + 'a>(&'a self) -> impl Iterator<Item = &'a T> {
        let mapped: &Mapped = &self.memory;
        (0..mapped.count(T::KIND)).map_while(|index| mapped.row::<T>(index))
    }
}
