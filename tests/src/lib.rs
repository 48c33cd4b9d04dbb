//! Real programs under the library, in real memory cgroups and on real slow disks.
//!
//! | module | job |
//! | --- | --- |
//! | [`lab`] | a test's turn on the machine, its scratch directory, and the clean-up of all it made |
//! | `turn` | who may run beside whom |
//! | [`slow_disk`] | a loop disk with a write limit, with or without a filesystem, overlayfs on top |
//! | [`cases`] | a program of ours, case by case, plainly and paced |
//! | [`cgroup`] | a memory cgroup with a limit: runs programs in it and says what the kernel counted |
//! | [`freeboard`] | the release build: a program under `freeboard run`, a sidecar of its own |
//! | [`coverage`] | programs of every kind, and which of their bytes are seen |
//! | [`curve`] | how a run went, second by second, beside a simulated one |
//! | [`differential`] | random operations, which must give the same with and without the library |
//! | [`elf`] | what the built files ask of a machine |
//! | [`docker`] | a Docker engine of its own, with base images made here |
//! | [`guest`] | a virtual machine with another kernel, and cgroup v2 |
//! | [`neighbour`] | what somebody else in a writer's cgroup waits for memory |
//! | [`pairs`] | benchmarks: medians of runs taken in turns |
//! | [`podman`] | a Podman of its own |
//! | [`programs`] | what the programs need: source data, our own small C and Java programs |
//! | [`truth`] | what is in a file and what is in its page cache |
//! | [`written`] | the kernel's own count of what is written to a disk |
//! | [`table`] | measured figures, printed side by side |
//! | [`sys`] | raw system calls |

pub mod cases;
pub mod cgroup;
pub mod coverage;
pub mod curve;
pub mod differential;
pub mod docker;
pub mod elf;
pub mod freeboard;
pub mod guest;
pub mod lab;
pub mod neighbour;
pub mod pairs;
pub mod podman;
pub mod programs;
pub mod slow_disk;
pub mod sys;
pub mod table;
pub mod truth;
mod turn;
pub mod written;

/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;

/// 10^6 bytes.
pub const MB: u64 = 1_000_000;
