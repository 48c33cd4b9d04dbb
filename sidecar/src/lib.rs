//! The program `freeboard`: the sidecar that tells the library how much room is left, and the commands for people.
//!
//! | module | job |
//! | --- | --- |
//! | [`cli`] | the commands and their flags |
//! | [`cgroup`] | reading memory cgroups through descriptors, v1 and v2; making one for `run --limit` |
//! | [`region`] | writing the budget, reading the counters |
//! | [`service`] | the tick: groups and counters in, rows out; the socket |
//! | [`run`] | `freeboard run`: the service inside a launcher |
//! | [`sidecar`] | `freeboard sidecar`, and its workload file when that changes |
//! | [`metrics`] | what Prometheus reads of it |
//! | [`check`] | `freeboard check` |
//! | [`doctor`] | `freeboard doctor` |
//! | [`explain`] | `freeboard explain` |
//! | [`top`] | `freeboard top` |
//! | [`inject`] | `freeboard inject` and `uninject`: the crate `freeboard-inject` around files |
//! | [`sweep`] | files on shared volumes: sent and given back while a container is near its target |
//! | [`leases`] | files that may not be opened |
//! | [`fresh`] | a new file where a person said, or why not |
//! | [`library`] | finding `libfreeboard.so`, and installing it: `freeboard install` |
//! | [`signals`] | signals as a descriptor, and dying of one |
//!
//! `unsafe` stands in `region::map`, `signals` and `run::notify::sys`, and nowhere else.

pub mod cgroup;
pub mod check;
pub mod cli;
pub mod doctor;
pub mod explain;
pub mod fresh;
pub mod inject;
pub mod leases;
pub mod library;
pub mod metrics;
pub mod region;
pub mod run;
pub mod service;
pub mod sidecar;
pub mod signals;
pub mod sweep;
pub mod top;

use std::io::Write;

/// Says something to the person who started the program, on stderr. Unlike `eprintln!` it does not panic where stderr
/// is closed.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "freeboard: {line}");
}
