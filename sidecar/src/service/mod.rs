//! The sidecar's work, wherever it runs: alone in its container, or inside the launcher.
//!
//! Three threads share one state under a lock: one ticks, one answers the socket, one keeps the region's files. What an
//! application hands over may be slow to look at (a descriptor of a FUSE directory whose daemon hangs), and so may the
//! files' disk be, so both are dealt with without the lock: the heartbeat never waits for a client or a disk. Where the
//! files lie in memory the first keeps them, too: to wake a thread ten times a second costs more than what it does.

#[cfg(test)]
mod churn;
mod container;
mod ledgers;
mod mounted;
mod server;
#[cfg(test)]
mod simulated;
mod speed;
pub(crate) mod state;

pub use container::{Observed, Peak, Summary};
pub use ledgers::Totals;
pub use server::check_is_served;
pub use state::{Snapshot, Watched};

use crate::cgroup::Group;
use crate::region::budget::Row;
use crate::region::counters::Counters;
use crate::sweep::Sweep;
use anyhow::{Context, Result};
use freeboard_budget::law::Share;
use freeboard_budget::layout::TICK_MS;
use freeboard_budget::slots::Report;
use freeboard_config::Workload;
use mounted::Mounted;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::{read, retry_on_intr, write};
use rustix::time::{ClockId, Timespec, clock_gettime};
use server::Vacant;
use state::State;
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Least time between two looks while somebody writes: a fast disk takes 15 MB in it, of which a small container may
/// have to be relieved before it is full. A look costs the machine 0.1 to 0.2 ms.
pub const BUSY: Duration = Duration::from_millis(10);
/// No container's writers fill memory faster, in bytes a second: several processors' worth of copying.
const FASTEST: u64 = 8_000_000_000;
/// Time between two looks while nobody does: the heartbeat's.
pub const IDLE: Duration = Duration::from_millis(TICK_MS);

/// Longest wait, at the end, for an exchange of the region's files that is under way.
const LAST_EXCHANGE: Duration = Duration::from_secs(1);

/// The monotonic clock.
pub fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

/// A running service; ends when dropped.
#[derive(Debug)]
pub struct Service {
    state: Arc<Mutex<State>>,
    mounted: Arc<Mutex<Mounted>>,
    bells: Arc<Bells>,
    sweep: Mutex<Sweep>,
    ticker: Option<JoinHandle<()>>,
    _name: server::Name,
}

/// What wakes the threads.
#[derive(Debug)]
struct Bells {
    /// Readable once the service is to end.
    stop: OwnedFd,
    /// Readable when a process was let in, which is about to write.
    newcomer: OwnedFd,
}

impl Bells {
    fn new() -> rustix::io::Result<Bells> {
        let bell = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Bells { stop: bell()?, newcomer: bell()? })
    }

    fn ring(bell: &OwnedFd) {
        // a bell that cannot take more is ringing
        let _ = write(bell, &1u64.to_ne_bytes());
    }
}

impl Service {
    /// Makes the region in `region`, listens on `socket`, and starts. While somebody writes in a group, looks at it
    /// before half of what it has left could be full, [`BUSY`] after the last look or later; and every `idle`, at most
    /// [`IDLE`], in any case.
    ///
    /// # Errors
    /// What could not be made; where another sidecar answers on the socket, that.
    pub fn start(region: &Path, socket: &Path, workload: &Workload, idle: Duration) -> Result<Service> {
        let vacant = Vacant::check(socket)?;
        let generation = clock_gettime(ClockId::Realtime);
        let generation = generation.tv_sec as u64 * 1_000_000_000 + generation.tv_nsec as u64;
        let state = State::create(workload, generation)?;
        let mounted = Arc::new(Mutex::new(Mounted::create(region, &state, generation)?));
        let state = Arc::new(Mutex::new(state));
        let bells = Arc::new(Bells::new().context("cannot make an event descriptor")?);
        // the region is whole before a client can ask for it
        let (server, name) = vacant.listen()?;
        let idle = idle.min(IDLE);
        let mut service = Service { state, mounted, bells, sweep: Mutex::default(), ticker: None, _name: name };
        let shared = || (service.state.clone(), service.bells.clone(), service.mounted.clone());
        let thread = |name: &str| Builder::new().name(name.into());
        let are_in_memory = service.mounted.lock().are_in_memory();
        let (state, bells, mounted) = shared();
        let ticker = thread("ticker").spawn(move || tick(&state, are_in_memory.then_some(&*mounted), &bells, idle));
        // the other two are not waited for at the end: one may hang on a client's descriptor, and one on a disk
        let (state, bells, _) = shared();
        let server = thread("server").spawn(move || server.serve(&state, &bells));
        let (state, bells, mounted) = shared();
        let files = (!are_in_memory).then(|| thread("files").spawn(move || keep_files(&mounted, &state, &bells)));
        service.ticker = Some(ticker.context("cannot start a thread")?);
        server.and(files.transpose()).context("cannot start a thread")?;
        Ok(service)
    }

    /// Sweeps the files that a workload file names from now on, and no others.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn sweep(&self, workload: &Workload) -> Result<()> {
        self.sweep.lock().set(workload, &self.state)
    }

    /// Takes a group in before any of its processes says hello. Returns its row.
    ///
    /// # Errors
    /// Shared memory could not be made.
    pub fn watch(&self, group: Group) -> Result<u32> {
        match self.state.lock().admit(group, now()) {
            Ok(admission) => Ok(admission.row),
            Err(state::Refused::Full) => anyhow::bail!("the containers table is full"),
            Err(state::Refused::Failed(error)) => Err(error),
        }
    }

    /// A seat among the writers of the group in `row`, for one in this process. `None`: all are taken.
    pub fn seat(&self, row: u32) -> Option<Seat> {
        let state = self.state.clone();
        let nonce = now().as_nanos() as u64 | 1;
        let slot = state.lock().claim(row, nonce)?;
        let place = Place { row, slot, nonce, reported: Report::default(), added_up: Report::default() };
        Some(Seat { state, place })
    }

    /// Puts a workload file in force that was read again; one that cannot be is an error, and the one in force stays.
    ///
    /// # Errors
    /// As given, or what of it does not fit.
    pub fn reload(&self, workload: Result<Workload>) -> Result<()> {
        let mut state = self.state.lock();
        match workload {
            Ok(workload) => {
                state.reload(&workload)?;
                drop(state);
                self.sweep(&workload)
            }
            Err(error) => {
                state.refuse_config();
                Err(error)
            }
        }
    }

    /// What there is to tell of all containers now.
    pub fn snapshot(&self) -> Snapshot {
        let sweep = self.sweep.lock().done();
        self.state.lock().snapshot(now(), sweep)
    }

    /// Looks once more, and says what all processes counted and what the kernel said of the group in `row`.
    pub fn finish(&self, row: Option<u32>) -> (Summary, Option<Observed>) {
        self.state.lock().tick(now(), true);
        if let Some(mut mounted) = self.mounted.try_lock_for(LAST_EXCHANGE) {
            // a file of the region that cannot be written keeps nobody from being counted
            let _ = mounted.exchange(&self.state);
        }
        let state = self.state.lock();
        (state.summary(), row.and_then(|row| state.observed(row)))
    }
}

/// The place of a writer in this process.
#[derive(Debug)]
struct Place {
    /// Its container.
    row: u32,
    /// Its row of the container's counters.
    slot: usize,
    nonce: u64,
    /// The totals when a row of its own last took a report.
    reported: Report,
    /// The totals that rows said which were taken back.
    added_up: Report,
}

impl Place {
    /// `false`: the row is another's by now.
    fn publish(&mut self, counters: &Counters, totals: &Report) -> bool {
        let report = totals.since(&self.added_up);
        let is_said = counters.slot(self.slot).is_some_and(|slot| slot.publish(self.nonce, &report));
        if is_said {
            self.reported = *totals;
        }
        is_said
    }
}

/// A writer in this process, beside those that come over the socket: counted as they are, and with a share as theirs.
#[derive(Debug)]
pub struct Seat {
    state: Arc<Mutex<State>>,
    place: Place,
}

impl Seat {
    /// Publishes what the writer counted (it wrote since the last time if `writes`), and gives the numbers of its
    /// container and its share. `None`: the container is gone, or could not be judged yet.
    pub fn consult(&mut self, report: &mut Report, writes: bool) -> Option<(Row, Share)> {
        self.state.lock().consult(&mut self.place, report, writes)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.state.lock().leave(&self.place);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        Bells::ring(&self.bells.stop);
        if let Some(ticker) = self.ticker.take() {
            let _ = ticker.join();
        }
    }
}

/// The time to the next look, where writers have so many bytes of headroom.
fn until_half_full(headroom: u64) -> Duration {
    Duration::from_secs_f64(headroom as f64 / 2.0 / FASTEST as f64).clamp(BUSY, IDLE)
}

/// Ticks until told to stop; with each beat it brings the region's files up to date, where it is given them.
fn tick(state: &Mutex<State>, mounted: Option<&Mutex<Mounted>>, bells: &Bells, idle: Duration) {
    let mut due = now();
    let mut last_beat = 0;
    loop {
        let wait = Timespec::try_from(due.saturating_sub(now())).unwrap_or_default();
        let mut fds = [PollFd::new(&bells.stop, PollFlags::IN), PollFd::new(&bells.newcomer, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut fds, Some(&wait))).is_err() || !fds[0].revents().is_empty() {
            return;
        }
        let newcomer = !fds[1].revents().is_empty() && read(&bells.newcomer, &mut [0u8; 8]).is_ok();
        let started = now();
        let (headroom, beat) = {
            let mut state = state.lock();
            (state.tick(started, idle < IDLE), state.budget().tick())
        };
        if let Some(mounted) = mounted.filter(|_| beat != last_beat) {
            mounted.lock().keep(state);
            last_beat = beat;
        }
        let period = if newcomer { BUSY } else { until_half_full(headroom) }.min(idle);
        // from when it was due, so that lateness does not add up; from now where it came early, or is far behind
        due = (due.min(started) + period).max(started);
    }
}

/// Keeps the region's files up to date until told to stop.
fn keep_files(mounted: &Mutex<Mounted>, state: &Mutex<State>, bells: &Bells) {
    let wait = Timespec::try_from(IDLE).unwrap_or_default();
    while retry_on_intr(|| poll(&mut [PollFd::new(&bells.stop, PollFlags::IN)], Some(&wait))) == Ok(0) {
        mounted.lock().keep(state);
    }
}
