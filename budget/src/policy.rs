//! The rules and exclusions in force. There are two banks of them: the sidecar fills the one that is not in force, and
//! puts it in force by one store to [`Policy::word`]. A reader that is so slow that the policy changes twice meanwhile
//! would find its bank being filled again; it sees that the word changed, and reads once more.

use crate::Mode;
use crate::layout::Policy;
use crate::modelled::{AtomicU32, fence};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Bit of [`Policy::word`]: the second bank is in force.
const SECOND_BANK: u64 = 1 << 8;
/// Times that a bank is read, at most.
const READS: u32 = 8;

/// One of the two banks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bank {
    is_second: bool,
}

impl Bank {
    const fn in_force(word: u64) -> Bank {
        Bank { is_second: word & SECOND_BANK != 0 }
    }

    /// The bank's first row in a table of `rows` rows.
    pub const fn first_row(self, rows: usize) -> usize {
        if self.is_second { rows / 2 } else { 0 }
    }

    /// The bank's element of [`Policy::rules`].
    pub const fn rules(self, policy: &Policy) -> &AtomicU32 {
        let [first, second] = &policy.rules;
        if self.is_second { second } else { first }
    }

    /// The bank's element of [`Policy::excludes`].
    pub const fn excludes(self, policy: &Policy) -> &core::sync::atomic::AtomicU32 {
        let [first, second] = &policy.excludes;
        if self.is_second { second } else { first }
    }
}

impl Policy {
    /// What `read` makes of the bank in force; all that it reads from the bank belongs to one policy. It is called
    /// again where the policy changed meanwhile, which takes a person who edits the workload file, and at most
    /// [`READS`] times: a sidecar that never stops changing it keeps nobody.
    pub fn read<T>(&self, mut read: impl FnMut(Bank) -> T) -> T {
        let mut word = self.word.load(Acquire);
        let mut reads = 1;
        loop {
            let value = read(Bank::in_force(word));
            // who read a word of a bank that is being filled again sees the store that took it out of force
            fence(Acquire);
            let now = self.word.load(Acquire);
            if now == word || reads == READS {
                return value;
            }
            word = now;
            reads += 1;
        }
    }

    /// Changes the policy: `fill` writes the bank that is not in force, which then is, together with `mode`. There is
    /// one writer, the sidecar.
    ///
    /// # Errors
    /// What `fill` gave; the policy in force stays.
    pub fn change<E>(&self, mode: Mode, fill: impl FnOnce(Bank) -> Result<(), E>) -> Result<(), E> {
        let now = self.word.load(Relaxed);
        let bank = now & SECOND_BANK ^ SECOND_BANK;
        // pairs with the fence in `read`: the bank's new words are not seen before the store that took it out of force
        fence(Release);
        fill(Bank::in_force(bank))?;
        let changes = (now >> 32).wrapping_add(1) << 32;
        self.word.store(changes | bank | mode as u64, Release);
        Ok(())
    }
}
