//! What somebody else in a writer's memory cgroup notices of it.

use crate::MIB;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long memory took to get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stall {
    /// All of it.
    pub all: Duration,
    /// The worst MiB of it.
    pub worst_mib: Duration,
}

/// Takes anonymous memory, a MiB at a time, and gives it back.
pub fn take(bytes: u64) -> Stall {
    // zeroed memory costs nothing until it is written
    let mut memory = vec![0u8; bytes as usize];
    let mut worst_mib = Duration::ZERO;
    let start = Instant::now();
    for mib in memory.chunks_mut(MIB as usize) {
        let before = Instant::now();
        mib.fill(1);
        worst_mib = worst_mib.max(before.elapsed());
    }
    std::hint::black_box(&memory);
    Stall { all: start.elapsed(), worst_mib }
}

/// In microseconds: all of it, the worst MiB.
impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.all.as_micros(), self.worst_mib.as_micros())
    }
}

impl FromStr for Stall {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Stall> {
        let parse = |word: &str| word.parse().ok().map(Duration::from_micros);
        match text.split_whitespace().map(parse).collect::<Option<Vec<_>>>().as_deref() {
            Some(&[all, worst_mib]) => Ok(Stall { all, worst_mib }),
            _ => anyhow::bail!("the neighbour printed {text:?}"),
        }
    }
}
