//! The workload file: what a container's owner says about pacing, in TOML. Schema, defaults, validation.
//!
//! | key | values | default |
//! | --- | --- | --- |
//! | `memory.target` | `"1%"` to `"100%"` of the limit, or a size of at least 1 MiB | `"80%"` |
//! | `writes.mode` | `"auto"`, `"always"`, `"observe"`, `"off"` | `"auto"` |
//! | `writes.window` | `"auto"`, or a size of at least 1 MiB: most unflushed bytes per process | `"auto"` |
//! | `writes.max_stall` | a time from `"1ms"` to `"24h"` | `"10s"` |
//! | `[[rule]]` `path` | an absolute pattern with `?`, `*`, `**`; the first rule that matches a file wins | |
//! | `[[rule]]` `mode` | as `writes.mode`, for the files that match | as the process |
//! | `[[rule]]` `reads` | `"drop-behind"`: give back what was read | kept |
//! | `processes.exclude` | absolute patterns of programs to leave alone | none |
//! | `sweep.paths` | absolute patterns of files that the sidecar sends and drops, as it sees them | none |
//!
//! Sizes are Kubernetes quantities (see [`size`]), times are numbers with a unit (`"500ms"`, `"10s"`, `"2m"`).
//! Whatever is unknown, out of range or without effect is an error that names the place and the mend: a file that is
//! silently half understood would be found out by an OOM kill.
//!
//! | module | job |
//! | --- | --- |
//! | `read` | from the TOML tree to a [`Workload`] |
//! | `schema` | which keys there are, and which one was meant |
//! | `value` | the text of a target, mode, window, stall |
//! | `pattern` | the text of a path pattern, and when one makes another useless |
//! | `syntax` | what the TOML parser complains of, with a mend |
//! | [`size`] | sizes, as text and as bytes |
//! | `error` | problems and their places |

mod error;
mod pattern;
mod read;
mod schema;
pub mod size;
mod syntax;
mod value;

use std::path::Path;
use std::time::Duration;

use freeboard_budget::Mode;
use freeboard_budget::law::Target;

pub use error::Error;

/// A whole workload file. The default is what an empty file says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Workload {
    /// `[memory]`.
    pub memory: Memory,
    /// `[writes]`.
    pub writes: Writes,
    /// `[[rule]]`, in the file's order: the first that matches a file wins. At most as many as the region has rows.
    pub rules: Vec<Rule>,
    /// `[processes]`.
    pub processes: Processes,
    /// `[sweep]`.
    pub sweep: Sweep,
}

/// What the container's memory should stay under.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Memory {
    /// Ceiling for usage: 1 to 100 per cent of the limit, or at least 1 MiB. Default 80 per cent.
    pub target: Target,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory { target: Target::Percent(80) }
    }
}

/// How processes are paced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Writes {
    /// For every file that no rule says otherwise of. Default [`Mode::Auto`].
    pub mode: Mode,
    /// Most bytes that one process may owe the disk, at least 1 MiB; `None`: as the law says ("auto").
    pub window_bytes: Option<u64>,
    /// How long a call is held while the disk makes no progress at all: 1 ms to 24 h. Default 10 s.
    pub max_stall: Duration,
}

impl Default for Writes {
    fn default() -> Writes {
        Writes { mode: Mode::Auto, window_bytes: None, max_stall: Duration::from_secs(10) }
    }
}

/// What holds for the files that a pattern matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Pattern of [`freeboard_budget::glob`], absolute, at most [`freeboard_budget::layout::PATTERN_BYTES`] long.
    pub path: String,
    /// `None`: as [`Writes::mode`].
    pub mode: Option<Mode>,
    /// Give back the pages of what was read.
    pub reads_drop_behind: bool,
}

/// Which processes are meant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Processes {
    /// Patterns like [`Rule::path`], of programs to leave alone. At most as many as the region has rows.
    pub exclude: Vec<String>,
}

/// What the sidecar does by itself on volumes that it mounts too.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sweep {
    /// Patterns like [`Rule::path`], as the sidecar sees them, of files that are sent to the disk and taken out of the
    /// page cache while a container is near its target, and behind their readers where a rule says so. Each has a
    /// directory before its first wildcard.
    pub paths: Vec<String>,
}

impl Workload {
    /// Reads and checks a workload file.
    ///
    /// # Errors
    /// The file cannot be read, is larger than 64 KiB or not UTF-8, or [`Workload::parse`] finds problems.
    pub fn load(path: &Path) -> Result<Workload, Error> {
        let name = path.display().to_string();
        let text = read::file(path)?;
        Workload::parse(&text, &name)
    }

    /// Checks the text of a workload file; `name` is what messages call it.
    ///
    /// # Errors
    /// All problems of the text, in its order; or, where TOML itself is broken so that the rest cannot be judged, all
    /// breaks.
    pub fn parse(text: &str, name: &str) -> Result<Workload, Error> {
        read::text(text, name)
    }
}
