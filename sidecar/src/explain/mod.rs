//! `freeboard explain`: what fills a group's memory, who sees which number of it, and what helps.
//!
//! | module | job |
//! | --- | --- |
//! | [`figures`] | what a group's memory is made of |
//! | [`verdict`] | from figures to one verdict |
//! | [`group`] | figures of a group that lives |
//! | [`files`] | which files hold its page cache |
//! | [`oom_log`] | figures of a message of the kernel's |
//! | [`advice`] | what helps against each verdict |
//! | [`report`], [`text`] | the answer, for scripts and for people |

mod advice;
mod figures;
mod files;
mod group;
mod oom_log;
mod report;
mod text;
mod verdict;

use crate::cli::Explain;
use crate::doctor::{self, Runtime};
use anyhow::{Context, Result, bail};
use files::Files;
use freeboard_budget::cgroup::Version;
use report::{Node, Report, Surroundings};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Explains a group that lives, or the last message of a log.
///
/// # Errors
/// There is nothing to explain, it cannot be read, or stdout cannot be written.
pub fn explain(flags: &Explain) -> Result<()> {
    let report = match &flags.oom_log {
        Some(file) => of_log(file)?,
        None => of_group(flags.subject.as_deref())?,
    };
    let text = if flags.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.text() };
    std::io::stdout().write_all(text.as_bytes()).context("stdout cannot be written")
}

fn of_group(subject: Option<&str>) -> Result<Report> {
    let group = group::Group::read(&group::directory(subject)?)?;
    let mut pids = group::processes(&group.directory);
    // this process is no part of the answer
    pids.retain(|&pid| pid != std::process::id());
    let processes = group::tasks(&pids);
    let files = Files::of(&pids);
    let parts = group.figures.parts(false);
    let found: u64 = files.files.iter().filter(|file| !file.is_tmpfs).map(|file| file.cached_bytes).sum();
    let closed = (parts.unwritten + parts.clean).saturating_sub(found);

    let mut notes = Vec::new();
    if group.is_above {
        notes.push("this is the group above the one that was asked for: its limit is nearer".to_owned());
    }
    if group.is_above_unseen {
        notes.push(
            "groups above it cannot be seen from here, and their limits may be met first; mend: ask on the node".into(),
        );
    }
    if files.is_blind {
        notes.push("which files hold the page cache cannot be told: the kernel has no cachestat (Linux 6.5), or a filter forbids it".into());
    } else if closed > 0 {
        notes.push(format!(
            "at least {} of the page cache are of files that no process of the group has open or mapped; what a file has cached \
             counts whole, whichever group it is charged to",
            freeboard_config::size::show(closed)
        ));
    }
    if files.refused + files.hidden_processes > 0 {
        notes.push(format!(
            "{} files and those of {} processes could not be looked at; mend: ask as their user, or as root",
            files.refused, files.hidden_processes
        ));
    }
    let around = Surroundings {
        group: Some(group.directory.display().to_string()),
        cgroup_version: Some(match group.version {
            Version::V1 => 1,
            Version::V2 => 2,
        }),
        runtime: processes.first().and_then(|task| doctor::runtime(task.pid)),
        processes,
        files: (!files.is_blind).then_some(files.files),
        tmpfs: files::tmpfs(&pids),
        node: node(),
        notes,
        ..Surroundings::default()
    };
    Ok(Report::of(&group.figures, around))
}

fn of_log(file: &Path) -> Result<Report> {
    let log = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let messages = oom_log::messages(&String::from_utf8_lossy(&log));
    let all = messages.len();
    let (of_groups, of_the_node): (Vec<_>, Vec<_>) = messages.into_iter().partition(|message| message.is_of_group);
    let count = of_groups.len();
    let Some(message) = of_groups.into_iter().next_back() else {
        let place = file.display();
        match of_the_node.last().and_then(|message| message.killed.first()) {
            Some(task) => bail!(
                "{place}: the node itself was out of memory when {} (process {}) was killed; no group met its limit; mend: look at \
                 what else runs there, and set requests and limits",
                task.name,
                task.pid
            ),
            None => bail!(
                "{place}: there is no message of the OOM killer's in it; mend: save all of `dmesg` or `journalctl -k`"
            ),
        }
    };
    let mut notes = Vec::new();
    if all > 1 {
        notes.push(format!(
            "there are {all} messages in it, {count} of them of groups at their limit; this is the last of those"
        ));
    }
    let killed = message.killed.first();
    let runtime = killed.and_then(|task| named(&task.name));
    let mut processes = message.tasks;
    processes.sort_by_key(|task| std::cmp::Reverse(task.anonymous_bytes));
    let around = Surroundings {
        group: message.group,
        was_killed: true,
        processes: if processes.is_empty() { message.killed.clone() } else { processes },
        killed: message.killed,
        runtime,
        notes,
        ..Surroundings::default()
    };
    Ok(Report::of(&message.figures, around))
}

/// What a program is written in, where its name tells.
fn named(program: &str) -> Option<Runtime> {
    let names =
        [("java", Runtime::Java), ("node", Runtime::Node), ("python", Runtime::Python), ("perl", Runtime::Perl)];
    names.into_iter().find(|(name, _)| program.starts_with(name)).map(|(_, runtime)| runtime)
}

fn node() -> Option<Node> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Node { total_bytes: bytes("MemTotal:")?, available_bytes: bytes("MemAvailable:")? })
}
