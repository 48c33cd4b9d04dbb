//! The sweep: files on volumes that the sidecar mounts too are sent to the disk and taken out of the page cache while a
//! container is near its target. For programs that load no library, and for log files that a collector has read. What
//! is read of them goes at any time, where a rule says `reads = "drop-behind"`.
//!
//! | module | job |
//! | --- | --- |
//! | [`walk`] | which files there are, an entry at a time, and no way out of the volume |
//! | [`openers`] | which processes have them open: where they read, and which groups they are in |
//! | [`plan`] | what of a file may go |
//! | [`reads`] | what of it was read once, and lies behind its readers |
//! | [`known`] | what the last looks told of a file, and how long it is left alone |
//! | [`pages`] | a file's pages: counted, sent, given back |
//! | [`sweeper`] | one pass: files are visited until its time is up |
//!
//! It has a thread of its own, which may hang on somebody's filesystem: the heartbeat does not wait for it. Where no
//! path is configured there is none, and where no container is near its target it asks for that ten times a second,
//! looks now and then who has files open, and walks now and then where there is such a rule.

mod known;
mod openers;
mod pages;
mod plan;
mod reads;
mod sweeper;
mod walk;

use crate::cgroup::{Group, dir_of_process};
use crate::say;
use crate::service::now;
use crate::service::state::State;
use anyhow::{Context, Result};
use freeboard_config::Workload;
use openers::Openers;
use parking_lot::Mutex;
use reads::Rules;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::{retry_on_intr, write};
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::Builder;
use std::time::Duration;
use sweeper::Sweeper;

/// Least time between two passes; and as long as the last one took, and ten times as long as it kept a processor busy,
/// or twice where usage is over the target.
const PASS: Duration = Duration::from_millis(100);
/// Nobody is known whose memory could be short: said when it has been so for this long.
const NOBODY: Duration = Duration::from_secs(60);

/// How much a container wants page cache back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Pressure {
    /// There is room.
    #[default]
    None,
    /// What may still be written before the next look would not fit below the target.
    Near,
    /// Usage is over the target, or will soon be.
    Over,
}

/// What has been done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// Dirty pages that were sent to the disk.
    pub flushed_bytes: u64,
    /// Page cache that was given back.
    pub dropped_bytes: u64,
    /// Times that a file was left alone for longer.
    pub back_offs: u64,
}

/// The same, counted by the thread.
#[derive(Debug, Default)]
struct Counted {
    flushed_bytes: AtomicU64,
    dropped_bytes: AtomicU64,
    back_offs: AtomicU64,
}

/// The sweep of a service. Ends when dropped.
#[derive(Debug, Default)]
pub struct Sweep {
    paths: Vec<String>,
    rules: Rules,
    counted: Arc<Counted>,
    /// Readable once the thread is to end.
    stop: Option<Arc<OwnedFd>>,
}

impl Sweep {
    /// Sweeps the files that a workload file names from now on, and no others.
    ///
    /// # Errors
    /// No thread could be started; nothing is swept then.
    pub fn set(&mut self, workload: &Workload, state: &Arc<Mutex<State>>) -> Result<()> {
        let (paths, rules) = (&workload.sweep.paths, Rules::of(workload));
        if (&self.paths, &self.rules) == (paths, &rules) {
            return Ok(());
        }
        self.stop();
        self.paths.clear();
        if !paths.is_empty() {
            let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).context("cannot make an event descriptor")?);
            self.stop = Some(stop.clone());
            let (patterns, state) = (paths.clone(), state.clone());
            let sweeper = Sweeper::new(paths, rules.clone(), self.counted.clone());
            let thread = move || sweep(&patterns, sweeper, &state, &stop);
            // not waited for at the end: it may hang on somebody's filesystem
            Builder::new().name("sweep".into()).spawn(thread).context("cannot start a thread")?;
            (self.paths, self.rules) = (paths.clone(), rules);
        }
        Ok(())
    }

    /// What it has done so far.
    pub fn done(&self) -> Done {
        let Counted { flushed_bytes, dropped_bytes, back_offs } = &*self.counted;
        Done {
            flushed_bytes: flushed_bytes.load(Relaxed),
            dropped_bytes: dropped_bytes.load(Relaxed),
            back_offs: back_offs.load(Relaxed),
        }
    }

    fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // a bell that cannot take more is ringing
            let _ = write(&*stop, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits; `true`: until told to end.
fn is_told_to_end(stop: &OwnedFd, wait: Duration) -> bool {
    let wait = Timespec::try_from(wait).unwrap_or_default();
    let mut fds = [PollFd::new(stop, PollFlags::IN)];
    retry_on_intr(|| poll(&mut fds, Some(&wait))).is_err() || !fds[0].revents().is_empty()
}

fn sweep(patterns: &[String], mut sweeper: Sweeper, state: &Mutex<State>, stop: &OwnedFd) {
    let mut openers = Openers::default();
    let mut pause = PASS;
    let mut taken_in = BTreeSet::new();
    let mut nobody_since = Some(now());
    while !is_told_to_end(stop, pause) {
        let (started, busy) = (now(), processor_time());
        if openers.look(patterns, started) {
            let seen = openers.processes().into_iter();
            taken_in = seen.filter(|&pid| taken_in.contains(&pid) || take_in(pid, state)).collect();
        }
        // not asked for in the match: the lock would be held through the pass
        let pressure = state.lock().pressure();
        if pressure.is_some() {
            nobody_since = Some(started);
        } else if nobody_since.is_some_and(|since| started.saturating_sub(since) > NOBODY) {
            nobody_since = None;
            say(&format!(
                "[sweep]: nothing is swept for want of memory, for no process can be seen that has a file of {} open, and \
                 none has said hello; mend: share the pid namespace with the container (shareProcessNamespace: true) and \
                 run as its user",
                patterns.join(", ")
            ));
        }
        sweeper.pass(started, pressure.unwrap_or_default(), &openers, stop);
        let rest = if pressure == Some(Pressure::Over) { 2 } else { 10 };
        let [wall, busy] = [now().saturating_sub(started), processor_time().saturating_sub(busy)];
        pause = PASS.max(wall).max(busy * rest);
    }
}

/// What this thread has used.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Has the group of a process served, if it is not yet. Returns whether it is: one that cannot be seen is not.
fn take_in(pid: u32, state: &Mutex<State>) -> bool {
    let Ok(dir) = dir_of_process(pid) else { return false };
    let Some(id) = Group::id_of(&dir) else { return false };
    // not asked in one go with what follows: the lock would be held while the group is opened
    let is_served = state.lock().serves(id);
    is_served || Group::open(dir).is_ok_and(|group| state.lock().admit(group, now()).is_ok())
}
