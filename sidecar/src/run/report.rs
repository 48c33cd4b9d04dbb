//! What a run counted: one line for people, and JSON for scripts.

use super::{Ending, Watched};
use crate::cgroup::made::Record;
use crate::service::{BUSY, Observed, Summary};
use anyhow::{Context, Result, anyhow};
use freeboard_budget::slots::Report as Counted;
use freeboard_config::size::show;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The reasons of [`freeboard_budget::layout::Aside`], in its order.
const ASIDES: [&str; 11] = [
    "not_a_file",
    "direct",
    "memory",
    "unknown_filesystem",
    "policy",
    "nested",
    "stalled",
    "unlimited",
    "table_full",
    "outside",
    "filtered",
];

/// A run in numbers. Bytes and seconds; what is not known is null.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The command and its arguments.
    command: Vec<String>,
    /// Its exit code; null where a signal ended it.
    exit_code: Option<u8>,
    /// The signal that ended it.
    signal: Option<i32>,
    /// From start to end.
    wall_s: f64,
    /// Directory of the memory cgroup that it started in.
    cgroup: Option<PathBuf>,
    /// Whether the group was made for it alone. If not, all that the group's numbers say is of its other processes too.
    cgroup_is_its_own: bool,
    /// Whether limits of ancestors could be looked for up to the hierarchy's root.
    ancestors_seen: Option<bool>,
    /// The limit that ruled; null: none, or none that can be seen.
    limit_bytes: Option<u64>,
    /// The ceiling for usage.
    target_bytes: Option<u64>,
    /// Largest usage: the kernel's own peak for a group made for the command, else the largest sample.
    peak_usage_bytes: Option<u64>,
    /// Largest page cache of all samples.
    peak_cache_bytes: Option<u64>,
    /// Largest dirty plus writeback of all samples.
    peak_unwritten_bytes: Option<u64>,
    /// Time between two samples.
    sample_ms: u64,
    /// Times that the group hit its limit.
    limit_hits: Option<u64>,
    /// Processes that the kernel killed for memory, in a group made for the command.
    oom_kills: Option<u64>,
    /// Processes that reported to the launcher.
    processes: u64,
    /// Bytes written to files that can be paced.
    written_bytes: u64,
    /// Of these, what the kernel told of: writes that no library sees.
    notified_bytes: u64,
    /// Calls that the kernel told of.
    notified_calls: u64,
    /// Bytes that no hook saw written, such as stores to a mapping, and for which the library started writeback.
    swept_bytes: u64,
    /// Bytes whose writeback the library started, the swept ones included.
    flushed_bytes: u64,
    /// Bytes that it saw reach the disk.
    confirmed_bytes: u64,
    /// Bytes of page cache that it gave back.
    dropped_bytes: u64,
    /// Time that calls waited because of the library, over all threads.
    held_back_s: f64,
    /// The longest single wait.
    longest_held_back_s: f64,
    /// Write calls seen.
    calls: u64,
    /// Write calls held back.
    held_calls: u64,
    /// How often the library stood aside, by reason.
    asides: BTreeMap<&'static str, u64>,
    /// The largest part of the unwritten bytes that no process reported, beyond the lag of the kernel's own count; in a
    /// group that others write in, theirs too.
    unseen_bytes: u64,
}

impl Report {
    /// Puts a run's numbers together.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        command: &[OsString],
        ending: Ending,
        wall: Duration,
        watched: Option<Watched>,
        observed: Option<Observed>,
        record: Record,
        summary: &Summary,
        notified: Option<&Counted>,
    ) -> Report {
        let (exit_code, signal) = match ending {
            Ending::Code(code) => (Some(code), None),
            Ending::Signal(signal) => (None, Some(signal)),
        };
        let last = observed.map(|observed| observed.last);
        let limited = last.filter(|row| row.limit != u64::MAX);
        let peak = observed.map(|observed| observed.peak);
        let totals = &summary.totals;
        Report {
            command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            exit_code,
            signal,
            wall_s: wall.as_secs_f64(),
            cgroup_is_its_own: watched.as_ref().is_some_and(|watched| watched.made),
            ancestors_seen: watched.as_ref().map(|watched| watched.rooted),
            cgroup: watched.map(|watched| watched.path),
            limit_bytes: limited.map(|row| row.limit),
            target_bytes: limited.map(|row| row.target),
            peak_usage_bytes: record.peak_usage_bytes.or(peak.map(|peak| peak.usage)),
            peak_cache_bytes: peak.map(|peak| peak.cache),
            peak_unwritten_bytes: peak.map(|peak| peak.unwritten),
            sample_ms: BUSY.as_millis() as u64,
            limit_hits: last.map(|row| row.limit_hits),
            oom_kills: record.oom_kills,
            // the launcher counts what the kernel tells it as one more process would
            processes: totals.processes.saturating_sub(notified.is_some().into()),
            written_bytes: totals.written_bytes,
            notified_bytes: notified.map_or(0, |notified| notified.written_bytes),
            notified_calls: notified.map_or(0, |notified| notified.calls),
            swept_bytes: totals.swept_bytes,
            flushed_bytes: totals.flushed_bytes,
            confirmed_bytes: totals.confirmed_bytes,
            dropped_bytes: totals.dropped_bytes,
            held_back_s: seconds(totals.held_back_ns),
            longest_held_back_s: seconds(totals.longest_held_back_ns),
            calls: totals.calls,
            held_calls: totals.held_calls,
            asides: ASIDES.into_iter().zip(totals.aside).filter(|&(_, count)| count > 0).collect(),
            unseen_bytes: summary.unseen_bytes,
        }
    }

    /// The line for people.
    pub fn line(&self) -> String {
        let unwritten = match (self.peak_unwritten_bytes, self.limit_bytes) {
            (Some(peak), Some(limit)) => format!("peak unwritten {} of {} limit", show(peak), show(limit)),
            (Some(peak), None) => format!("peak unwritten {}, no limit", show(peak)),
            (None, _) => "no memory cgroup to look at".into(),
        };
        let hits = match self.limit_hits {
            Some(1) => ", 1 limit hit".into(),
            Some(hits) => format!(", {hits} limit hits"),
            None => String::new(),
        };
        let kills = match self.oom_kills {
            Some(kills @ 1..) => format!(", {kills} killed for memory"),
            _ => String::new(),
        };
        let notified = match self.notified_bytes {
            0 => String::new(),
            bytes => format!(" ({} notified)", show(bytes)),
        };
        let swept = match self.swept_bytes {
            0 => String::new(),
            bytes => format!(", {} swept", show(bytes)),
        };
        let uncounted = if self.is_mostly_uncounted() {
            ", most of what met the limit was not counted: memory, reads, or writes that nobody saw"
        } else {
            ""
        };
        format!(
            "{} written{notified}{swept}, {unwritten}{hits}{kills}, held back {:.1} s, unseen {}{uncounted}",
            show(self.written_bytes),
            self.held_back_s,
            show(self.unseen_bytes)
        )
    }

    /// Whether the limit was met by something else than what was counted: then nothing unseen says nothing, because
    /// the kernel may have written it before it was missed.
    fn is_mostly_uncounted(&self) -> bool {
        let counted = self.written_bytes.saturating_add(self.swept_bytes).saturating_add(self.unseen_bytes);
        self.limit_hits.is_some_and(|hits| hits > 0) && self.peak_usage_bytes.is_some_and(|peak| counted < peak / 2)
    }
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}

/// The file that the report will be written to. Until then one that was there keeps what it had, and one that was not
/// is removed again where there is no report.
#[derive(Debug)]
pub struct File {
    file: std::fs::File,
    path: PathBuf,
    is_new: bool,
}

impl File {
    /// Opens it before the command starts, so that a wrong path costs nobody a run.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(path: &Path) -> Result<File> {
        let mut options = std::fs::File::options();
        let file = match options.write(true).create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                options.create_new(false).open(path).map(|file| (file, false))
            }
            made => made.map(|file| (file, true)),
        };
        let (file, is_new) = file.map_err(|error| {
            let mend = "name a file in a directory that can be written";
            anyhow!("--report: cannot write {}: {error}; mend: {mend}", path.display())
        })?;
        Ok(File { file, path: path.to_owned(), is_new })
    }

    /// Writes the report.
    ///
    /// # Errors
    /// It could not be written.
    pub fn write(mut self, report: &Report) -> Result<()> {
        let text = serde_json::to_string_pretty(report)? + "\n";
        self.is_new = false;
        // a pipe or a terminal has no length
        let emptied = if self.file.metadata()?.is_file() { self.file.set_len(0) } else { Ok(()) };
        emptied
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .with_context(|| format!("the report {} could not be written", self.path.display()))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.is_new {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
