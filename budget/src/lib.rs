//! What the library and the sidecar share: the layout of the region's two files, the messages on the socket, and the
//! pure decisions of the law. No I/O, no allocation, no panic on any input; `no_std`, because one of its two users
//! lives inside other people's processes.
//!
//! | module | job |
//! | --- | --- |
//! | [`layout`] | the two mapped files: header, tables, rows; what is refused |
//! | [`shm`] | typed access to a mapped file: raw pointers and atomics only |
//! | [`protocol`] | the hello and the welcome on the Unix socket |
//! | [`cgroup`] | the text of `memory.stat` and its neighbours, v1 and v2 |
//! | [`law`] | room, allowed, window, chunk |
//! | [`slots`] | a row of counters from claim to claim; counting the other writers |
//! | [`policy`] | the bank of rules in force, and changing it |
//! | [`modelled`] | the atomics that the model checker looks at |
//! | [`glob`] | does a path match a rule |
//!
//! Sizes are bytes, times are milliseconds or nanoseconds as the name says.
#![cfg_attr(not(test), no_std)]

pub mod cgroup;
pub mod glob;
pub mod law;
pub mod layout;
pub mod modelled;
pub mod policy;
pub mod protocol;
pub mod shm;
pub mod slots;

/// How the library treats a file or a whole process: the workload file's `mode`, as it stands in the region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mode {
    /// Pace by the law, drop when usage is near the target.
    Auto = 0,
    /// Behave as if the program wrote directsync: a bounded window, and what is flushed is dropped.
    Always = 1,
    /// Count, and hold nothing back.
    Observe = 2,
    /// Stand aside.
    Off = 3,
}

impl Mode {
    /// The mode that a byte of the region names; anything unknown (a later minor version's) is [`Mode::Observe`].
    pub const fn from_u8(byte: u8) -> Mode {
        match byte {
            0 => Mode::Auto,
            1 => Mode::Always,
            3 => Mode::Off,
            _ => Mode::Observe,
        }
    }
}
