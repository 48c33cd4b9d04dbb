//! The atomics that both sides order their steps by. `tests/loom.rs` runs those steps on loom's, which try every
//! interleaving and every stale value that the memory model allows; all else gets the machine's.
//!
//! Each modelled word multiplies the number of interleavings. So of a row's counters only two are modelled, which is
//! enough to see one without the other; the rest are written and read in the same steps.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
