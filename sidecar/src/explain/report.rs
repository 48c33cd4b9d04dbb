//! The answer, as a script reads it; [`super::text`] shows it to people.

use super::advice::{Help, Tool, help, next};
use super::figures::{Figures, Kind};
use super::files::{File, Tmpfs};
use super::oom_log::Task;
use super::verdict::{LINE_PERCENT, Standing, judge, line};
use crate::doctor::Runtime;
use serde::Serialize;

/// As many files, processes and mounts as are shown.
const SHOWN: usize = 8;

/// One answer. Bytes; what is not known is null.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The group.
    pub group: Option<String>,
    /// Its controller's version, where it was looked at.
    pub cgroup_version: Option<u8>,
    /// What fills it.
    pub verdict: Kind,
    /// It was not said, and follows from what was.
    pub verdict_is_inferred: bool,
    /// How things stand.
    pub standing: Standing,
    /// What is charged to it.
    pub usage_bytes: Option<u64>,
    /// Its limit.
    pub limit_bytes: Option<u64>,
    /// Times that it met it.
    pub limit_hits: Option<u64>,
    /// What it is made of.
    pub parts: Vec<Part>,
    /// What is to be written, and what is being written.
    pub dirty_bytes: Option<u64>,
    /// See there.
    pub writeback_bytes: Option<u64>,
    /// Which number who looks at.
    pub numbers: Vec<Number>,
    /// Processes that were killed.
    pub killed: Vec<Task>,
    /// The processes with most memory of their own.
    pub processes: Vec<Task>,
    /// The files with most page cache.
    pub files: Vec<File>,
    /// What all files that were found have cached.
    pub files_cached_bytes: Option<u64>,
    /// tmpfs that are mounted.
    pub tmpfs: Vec<Tmpfs>,
    /// The node, as `free` shows it.
    pub node: Option<Node>,
    /// What Freeboard can do.
    pub freeboard: Help,
    /// What to look with next.
    pub next: Vec<Tool>,
    /// What else is to be known of all this.
    pub notes: Vec<String>,
}

/// Memory of one kind.
#[derive(Debug, Serialize)]
pub struct Part {
    /// Which.
    pub kind: Kind,
    /// How much.
    pub bytes: u64,
    /// Of the limit.
    pub percent: Option<f64>,
}

/// A number that somebody looks at.
#[derive(Debug, Serialize)]
pub struct Number {
    /// Who.
    pub reader: &'static str,
    /// At what.
    pub looks_at: &'static str,
    /// What it is now.
    pub bytes: Option<u64>,
    /// Of the limit.
    pub percent: Option<f64>,
    /// It is at or over [`LINE_PERCENT`] of the limit.
    pub is_over_the_line: Option<bool>,
}

/// What /proc/meminfo says.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Node {
    /// MemTotal.
    pub total_bytes: u64,
    /// MemAvailable.
    pub available_bytes: u64,
}

/// What was looked at, beside the group's figures.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The group, as it is called.
    pub group: Option<String>,
    /// See [`Report`].
    pub cgroup_version: Option<u8>,
    /// See [`Report`].
    pub was_killed: bool,
    /// See [`Report`].
    pub killed: Vec<Task>,
    /// Most memory first.
    pub processes: Vec<Task>,
    /// What the first of them is written in.
    pub runtime: Option<Runtime>,
    /// Most page cache first; `None`: they cannot be looked at.
    pub files: Option<Vec<File>>,
    /// Fullest first.
    pub tmpfs: Vec<Tmpfs>,
    /// See [`Report`].
    pub node: Option<Node>,
    /// See [`Report`].
    pub notes: Vec<String>,
}

impl Report {
    /// Judges what is known.
    pub fn of(figures: &Figures, around: Surroundings) -> Report {
        let verdict = judge(figures, around.was_killed);
        let limit = figures.limit;
        let biggest = around.processes.first().map(|task| (task.pid, around.runtime));
        let mount = around.tmpfs.first().map(|mount| mount.mount.as_str());
        let number = |reader, looks_at, bytes: Option<u64>| Number {
            reader,
            looks_at,
            bytes,
            percent: bytes.and_then(|bytes| percent(bytes, limit)),
            is_over_the_line: bytes.zip(limit).map(|(bytes, limit)| bytes >= line(limit)),
        };
        let first = |mut list: Vec<Task>| {
            list.truncate(SHOWN);
            list
        };
        let files_cached = around.files.as_ref().map(|files| files.iter().map(|file| file.cached_bytes).sum());
        let parts = figures.parts(around.was_killed);
        Report {
            verdict: verdict.kind,
            verdict_is_inferred: verdict.is_inferred,
            standing: verdict.standing,
            usage_bytes: figures.usage,
            limit_bytes: limit,
            limit_hits: figures.limit_hits,
            parts: parts.all().map(|(kind, bytes)| Part { kind, bytes, percent: percent(bytes, limit) }).into(),
            dirty_bytes: figures.dirty,
            writeback_bytes: figures.writeback,
            numbers: vec![
                number("OOM killer", "usage against the limit, once reclaim gives nothing back", figures.usage),
                number("kubectl top", "working set: usage less inactive page cache", figures.working_set()),
                number("80 % alert", "the working set, as most alerts are written", figures.working_set()),
                number("ps, top", "resident size, without page cache: about what is anonymous", figures.anonymous),
            ],
            freeboard: help(verdict.kind),
            next: next(verdict.kind, biggest, mount, around.group.as_deref().filter(|_| !around.was_killed)),
            group: around.group,
            cgroup_version: around.cgroup_version,
            killed: first(around.killed),
            processes: first(around.processes),
            files: around.files.unwrap_or_default().into_iter().take(SHOWN).collect(),
            files_cached_bytes: files_cached,
            tmpfs: around.tmpfs.into_iter().take(SHOWN).collect(),
            node: around.node,
            notes: around.notes,
        }
    }
}

/// Per cent of a limit, to a thousandth.
fn percent(bytes: u64, limit: Option<u64>) -> Option<f64> {
    let limit = limit.filter(|&limit| limit > 0)?;
    Some((bytes as f64 / limit as f64 * 100_000.0).round() / 1000.0)
}

impl Standing {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Standing::Killed => "a process was killed at the limit",
            Standing::OverTheLine => "usage is over 80 % of the limit",
            Standing::UnderTheLine => "usage is under 80 % of the limit; this is its largest part",
            Standing::NoLimit => "there is no limit; this is the largest part",
        }
    }
}

const _: () = assert!(LINE_PERCENT == 80, "the words above say so");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_number_decides_whether_an_alert_fires() {
        // 3000 MiB limit, 2281 MiB of JVM heap, 707 MiB of log cache: which number an alert looks at decides it
        const MIB: u64 = 1 << 20;
        let figures = Figures {
            usage: Some(2988 * MIB),
            limit: Some(3000 * MIB),
            anonymous: Some(2281 * MIB),
            file: Some(707 * MIB),
            shmem: Some(0),
            dirty: Some(0),
            writeback: Some(0),
            inactive_file: Some(588 * MIB),
            ..Figures::default()
        };
        let report = Report::of(&figures, Surroundings::default());
        let by = |reader: &str| report.numbers.iter().find(|number| number.reader == reader).unwrap();
        assert_eq!((by("OOM killer").percent, by("OOM killer").is_over_the_line), (Some(99.6), Some(true)));
        assert_eq!((by("kubectl top").percent, by("80 % alert").is_over_the_line), (Some(80.0), Some(true)));
        assert_eq!((by("ps, top").percent, by("ps, top").is_over_the_line), (Some(76.033), Some(false)));
        assert_eq!((report.verdict, report.standing), (Kind::CleanCache, Standing::OverTheLine));
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        assert_eq!((json["verdict"].as_str(), json["standing"].as_str()), (Some("clean-cache"), Some("over-the-line")));
        assert_eq!(json["numbers"][1]["bytes"], 2400 * MIB);
    }
}
