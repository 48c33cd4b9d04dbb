//! Processes that only mount the region's directory: the budget is copied out for them, and what they count is read in.
//!
//! On a disk apart from the heartbeat: ext4 held a write of 64 KiB over what was there for 12.7 s, beside two writers at
//! 30 MiB/s.

use super::ledgers::Ledgers;
use super::state::State;
use crate::region::budget::Copy;
use crate::region::counters::Counters;
use anyhow::Result;
use parking_lot::Mutex;
use std::io;
use std::path::Path;

/// The region's two files.
#[derive(Debug)]
pub struct Mounted {
    budget: Copy,
    ledgers: Ledgers,
    told: bool,
}

impl Mounted {
    /// Makes them.
    ///
    /// # Errors
    /// What could not be made.
    pub fn create(dir: &Path, state: &State, generation: u64) -> Result<Mounted> {
        let budget = Copy::create(dir, state.budget())?;
        Ok(Mounted { budget, ledgers: Ledgers::new(Counters::in_region(dir, generation)?), told: false })
    }

    /// Whether the files lie in memory.
    pub fn are_in_memory(&self) -> bool {
        self.budget.is_in_memory()
    }

    /// As [`Mounted::exchange`]; says once that it failed.
    pub fn keep(&mut self, state: &Mutex<State>) {
        if let Err(error) = self.exchange(state)
            && !std::mem::replace(&mut self.told, true)
        {
            crate::say(&format!("the region's files cannot be kept up to date: {error}"));
        }
    }

    /// Brings the files and the state up to date. The state is not locked while a file is read or written.
    ///
    /// # Errors
    /// What reading or writing gave.
    pub fn exchange(&mut self, state: &Mutex<State>) -> io::Result<()> {
        let tick = {
            let state = state.lock();
            self.budget.take(state.budget());
            state.budget().tick()
        };
        self.budget.write()?;
        self.ledgers.harvest(tick)?;
        state.lock().set_mounted(self.ledgers.totals());
        Ok(())
    }
}
