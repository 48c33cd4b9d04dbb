//! The demonstration runs in a process of its own, in a process group of its own. So nothing that happens to it (a
//! signal, a panic, a closed pipe) can leave behind what it made: the process that watches it removes that afterwards.

use super::bound;
use super::plan::{Plan, V2};
use anyhow::Context;
use freeboard_budget::cgroup::Version;
use freeboard_tests::lab;
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs the demonstration with the build in `built`, and cleans up after it. From here on signals do not end this
/// process, as they do while `is_unwatched`.
///
/// # Errors
/// It could not be started or watched.
pub fn perform(plan: &Plan, built: &Path, is_unwatched: &AtomicBool) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGTERM]).context("cannot watch for signals")?;
    is_unwatched.store(false, Ordering::Relaxed);
    let _handed_on = matches!(plan, Plan::SlowDisk(Version::V2)).then(HandedOn::new).transpose()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["demo", "--perform"])
        .env("FREEBOARD_BIN_DIR", built)
        .process_group(0)
        .spawn()
        .context("cannot start the demonstration")?;
    for signal in signals.forever() {
        let status = if signal == SIGCHLD {
            let Some(status) = child.try_wait()? else { continue };
            status
        } else {
            eprintln!("\nremoving what was made");
            // it is not reaped yet, so the number is still its own
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            child.wait()?
        };
        if !status.success() {
            lab::sweep_dead();
        }
        bound::remove(built);
        return Ok(match (signal, status.code()) {
            (SIGCHLD, Some(0)) => ExitCode::SUCCESS,
            (SIGCHLD, _) => ExitCode::FAILURE,
            // as a shell says that a signal ended a program
            (signal, _) => ExitCode::from(128 + signal as u8),
        });
    }
    unreachable!("the iterator over signals has no end")
}

/// Controllers that the root cgroup hands on to its children (v2), for as long as this lives.
struct HandedOn(Vec<&'static str>);

impl HandedOn {
    fn new() -> anyhow::Result<HandedOn> {
        let already = fs::read_to_string(list())?;
        let mut handed_on = HandedOn(Vec::new());
        for name in ["memory", "io"] {
            if !already.split_whitespace().any(|one| one == name) {
                fs::write(list(), format!("+{name}")).with_context(|| format!("cannot hand on {name}"))?;
                handed_on.0.push(name);
            }
        }
        Ok(handed_on)
    }
}

impl Drop for HandedOn {
    fn drop(&mut self) {
        for name in &self.0 {
            if let Err(error) = fs::write(list(), format!("-{name}")) {
                eprintln!("the root cgroup still hands on {name}: {error}");
            }
        }
    }
}

fn list() -> PathBuf {
    Path::new(V2).join("cgroup.subtree_control")
}
