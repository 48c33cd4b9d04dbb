//! What is hostile, made from a number: the same in every run.
#![allow(dead_code, reason = "each test binary uses its own part")]

use freeboard_budget::layout::Header;
use rustix::fd::OwnedFd;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Of each kind.
const CASES: u64 = 200;
/// More where `FREEBOARD_HOSTILE_CASES` says so.
pub fn cases() -> u64 {
    std::env::var("FREEBOARD_HOSTILE_CASES").map_or(CASES, |cases| cases.parse().unwrap())
}

/// Numbers that look random and are the same in every run (xorshift64).
pub struct Numbers(u64);

impl Numbers {
    pub fn of_case(case: u64) -> Numbers {
        Numbers(case.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Words as they go wrong: none, all, one bit, small, anything.
    pub fn word(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.next() % 4096,
            _ => self.next(),
        }
    }

    /// Overwrites some words; those of the header in one of four cases only, because with it all is refused.
    pub fn damage(&mut self, bytes: &mut [u8]) {
        let first = if self.below(4) == 0 { 0 } else { size_of::<Header>() };
        for _ in 0..1 << self.below(10) {
            let at = first + self.below((bytes.len() - first) / 8) * 8;
            bytes[at..at + 8].copy_from_slice(&self.word().to_ne_bytes());
        }
    }
}

/// All bytes of a shared memory.
pub fn contents(memory: &OwnedFd) -> Vec<u8> {
    let file = File::from(memory.try_clone().unwrap());
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}
