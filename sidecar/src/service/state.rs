//! All containers, and the tick that brings their rows up to date.

use super::Place;
use super::container::{Container, Observed, Summary};
use super::ledgers::{Ledgers, Totals, WRITER_TICKS};
use super::speed::{Flows, Speeds};
use crate::cgroup::{Crowd, Group, Lost};
use crate::region::budget::{Budget, Row};
use crate::region::counters::Counters;
use crate::sweep::{Done, Pressure};
use anyhow::Result;
use freeboard_budget::law::{Share, Target, share};
use freeboard_budget::layout::TICK_MS;
use freeboard_budget::slots::Report;
use freeboard_config::Workload;
use std::fs::File;
use std::time::Duration;

/// What an application gets for its hello.
#[derive(Debug)]
pub struct Admission {
    /// Its container's row.
    pub row: u32,
    /// The budget's memfd.
    pub budget: File,
    /// The memfd of its container's counters.
    pub counters: File,
}

/// Why an application was not admitted.
#[derive(Debug)]
pub enum Refused {
    /// All rows of the containers table are taken.
    Full,
    /// Shared memory could not be made.
    Failed(anyhow::Error),
}

/// What there is to tell of everything.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Time since the last beat.
    pub heartbeat_age: Duration,
    /// Whether the workload file is in force as it was last read.
    pub is_config_in_force: bool,
    /// What the sweep has done.
    pub sweep: Done,
    /// Those that are served now.
    pub containers: Vec<Watched>,
}

/// What there is to tell of one container.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// Inode number of its cgroup's directory; `None`: processes that only mount the region, of whatever group.
    pub id: Option<u64>,
    /// Whether all of its ancestors can be seen; where not, a limit of theirs may rule unseen.
    pub ancestors_seen: Option<bool>,
    /// What the kernel said at the last look, if it was to be had.
    pub row: Option<Row>,
    /// What its processes said.
    pub summary: Summary,
}

impl Watched {
    /// As it is called in what others read.
    pub fn name(&self) -> String {
        self.id.map_or_else(|| "unknown".to_owned(), |id| id.to_string())
    }
}

/// Everything that the service knows.
#[derive(Debug)]
pub struct State {
    budget: Budget,
    generation: u64,
    target: Target,
    /// The workload file's window; 0 is "auto".
    window_bytes: u64,
    /// What processes said that only mount the region. They judge their own group; the budget's row 0 is theirs and has
    /// no numbers.
    mounted: Totals,
    /// By row; row 0 stays empty.
    containers: Vec<Option<Box<Container>>>,
    /// The row after the one given away last: a row is used again as late as possible, for processes that were in a
    /// group that is gone may still look at it.
    next_row: usize,
    /// What containers that are gone counted.
    gone: Summary,
    speeds: Speeds,
    last: Option<Duration>,
    last_beat: Option<Duration>,
    told_unreadable: bool,
    is_config_in_force: bool,
}

impl State {
    /// Makes the budget and puts the workload in force.
    ///
    /// # Errors
    /// What could not be made, or what of the workload file does not fit.
    pub fn create(workload: &Workload, generation: u64) -> Result<State> {
        let budget = Budget::create(generation)?;
        budget.set_policy(workload)?;
        let containers = std::iter::repeat_with(|| None).take(budget.containers()).collect();
        Ok(State {
            budget,
            generation,
            target: workload.memory.target,
            window_bytes: workload.writes.window_bytes.unwrap_or(0),
            mounted: Totals::default(),
            containers,
            next_row: 1,
            gone: Summary::default(),
            speeds: Speeds::default(),
            last: None,
            last_beat: None,
            told_unreadable: false,
            is_config_in_force: true,
        })
    }

    /// Puts another workload in force, for all processes that are served, at once.
    ///
    /// # Errors
    /// What of it does not fit; the one in force stays.
    pub fn reload(&mut self, workload: &Workload) -> Result<()> {
        self.is_config_in_force = false;
        self.budget.set_policy(workload)?;
        self.target = workload.memory.target;
        self.window_bytes = workload.writes.window_bytes.unwrap_or(0);
        self.is_config_in_force = true;
        Ok(())
    }

    /// Notes that a workload file was refused.
    pub fn refuse_config(&mut self) {
        self.is_config_in_force = false;
    }

    /// Takes a process of a group in, and gives it a row that is already filled in. Processes of one group share one.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn admit(&mut self, group: Group, now: Duration) -> Result<Admission, Refused> {
        let row = match self.row_of(group.id) {
            Some(row) => row,
            None => {
                let rows = self.containers.len();
                let row = (0..rows - 1)
                    .map(|step| 1 + (self.next_row - 1 + step) % (rows - 1))
                    .find(|&row| self.containers[row].is_none())
                    .ok_or(Refused::Full)?;
                let counters = Counters::sealed(self.generation).map_err(Refused::Failed)?;
                self.containers[row] = Some(Box::new(Container::new(group, Ledgers::new(counters))));
                self.next_row = 1 + row % (rows - 1);
                self.tick_container(row, now, &mut Flows::new());
                row
            }
        };
        self.welcome(row)
    }

    /// The same for a group whose processes came before, by [`Group::id_of`]; `None`: it is new.
    pub fn admit_known(&mut self, id: u64) -> Option<Result<Admission, Refused>> {
        self.row_of(id).map(|row| self.welcome(row))
    }

    /// Whether a group is served, by [`Group::id_of`].
    pub fn serves(&self, id: u64) -> bool {
        self.row_of(id).is_some()
    }

    /// How much any container wants page cache back. `None`: there is none.
    pub fn pressure(&self) -> Option<Pressure> {
        let rows = self.containers.iter().flatten().filter_map(|container| container.observed());
        let pressure = rows.map(|Observed { last, .. }| {
            // a quarter of what page cache may take: what is dropped goes some looks later
            let room = last.target.saturating_sub(last.other);
            if last.usage > last.target || last.verdict.drop && last.usage > last.target - room / 4 {
                Pressure::Over
            } else if last.verdict.drop {
                Pressure::Near
            } else {
                Pressure::None
            }
        });
        pressure.max()
    }

    fn row_of(&self, id: u64) -> Option<usize> {
        self.containers.iter().position(|container| container.as_ref().is_some_and(|one| one.group.id == id))
    }

    fn welcome(&mut self, row: usize) -> Result<Admission, Refused> {
        let container = self.containers[row].as_mut();
        let counters = container.and_then(|container| {
            container.expect_writer();
            container.ledgers.counters().memfd()
        });
        let duplicate = |file: Option<&File>| match file {
            Some(file) => file.try_clone().map_err(|error| Refused::Failed(error.into())),
            None => Err(Refused::Failed(anyhow::anyhow!("the group is gone"))),
        };
        Ok(Admission { row: row as u32, budget: duplicate(Some(self.budget.memfd()))?, counters: duplicate(counters)? })
    }

    /// Looks, at `now` of any monotonic clock, at the containers in which somebody writes, or at `all`; and at
    /// everything where [`TICK_MS`] have passed since the last beat, and beats. Returns the least
    /// [`Container::headroom`] of those in which somebody writes, in bytes; `u64::MAX`: nobody does.
    pub fn tick(&mut self, now: Duration, all: bool) -> u64 {
        let elapsed = now.saturating_sub(self.last.replace(now).unwrap_or(now));
        let period = Duration::from_millis(TICK_MS);
        let since_beat = self.last_beat.map_or(period, |last| now.saturating_sub(last));
        let beat = since_beat >= period;
        let mut flows = Flows::new();
        for row in 1..self.containers.len() {
            if all || beat || self.is_busy(row) {
                self.tick_container(row, now, &mut flows);
            }
        }
        for (dev, flow) in flows {
            self.speeds.add(dev, flow, elapsed, now);
        }
        if beat {
            // one beat for each period, not for each late wake-up: readers count time in beats
            self.last_beat = self.last_beat.filter(|_| since_beat < 2 * period).map(|last| last + period).or(Some(now));
            self.speeds.forget_owed(now);
            self.budget.set_devices(self.speeds.devices());
            self.budget.beat();
        }
        let busy = self.containers.iter().flatten().filter(|container| container.is_busy());
        busy.map(|container| container.headroom()).min().unwrap_or(u64::MAX)
    }

    fn is_busy(&self, row: usize) -> bool {
        self.containers[row].as_ref().is_some_and(|container| container.is_busy())
    }

    fn tick_container(&mut self, row: usize, now: Duration, flows: &mut Flows) {
        let Some(mut container) = self.containers[row].take() else { return };
        let siblings = |ancestor: u64| {
            let within = self.containers.iter().flatten().filter(|other| other.group.is_within(ancestor));
            within.map(|other| other.writers()).fold(Crowd::default(), |sum, one| Crowd {
                writers: sum.writers + one.writers,
                owed_bytes: sum.owed_bytes.saturating_add(one.owed_bytes),
            })
        };
        match container.tick(self.budget.tick(), self.target, now, flows, siblings) {
            Ok(numbers) => self.budget.set_container(row, container.group.id, &numbers),
            Err(Lost::Gone) => {
                self.budget.free_container(row);
                self.gone = add(self.gone, container.summary());
                return;
            }
            Err(Lost::Unreadable(why)) => {
                // its processes go by what they can read themselves
                self.budget.silence_container(row);
                if !std::mem::replace(&mut self.told_unreadable, true) {
                    crate::say(&format!("a container's cgroup (inode {}) cannot be judged: {why}", container.group.id));
                }
            }
        }
        self.containers[row] = Some(container);
    }

    /// What the kernel said of the container in a row; `None` where there is none, or it could never be read.
    pub fn observed(&self, row: u32) -> Option<Observed> {
        self.containers.get(row as usize)?.as_ref()?.observed()
    }

    /// Takes a row of a container's counters for a writer in this process. `None`: there is no such container, or no
    /// row.
    pub fn claim(&self, row: u32, nonce: u64) -> Option<usize> {
        let counters = self.containers.get(row as usize)?.as_ref()?.ledgers.counters();
        counters.claim(nonce, u64::from(row) << 32 | u64::from(std::process::id()), self.budget.tick())
    }

    /// Publishes what such a writer counted, and gives the container's numbers and the writer's share; it wrote now if
    /// `writes`. `None`: the container is gone, or could not be judged yet.
    pub(super) fn consult(&self, place: &mut Place, report: &mut Report, writes: bool) -> Option<(Row, Share)> {
        let container = self.containers.get(place.row as usize)?.as_ref()?;
        let counters = container.ledgers.counters();
        let tick = self.budget.tick();
        if writes {
            report.last_tick = tick;
        }
        if !place.publish(counters, report) {
            // its row was taken back while it wrote nothing: another one says what came since
            place.added_up = place.reported;
            place.nonce = place.nonce.wrapping_add(2);
            place.slot = self.claim(place.row, place.nonce).unwrap_or(place.slot);
            place.publish(counters, report);
        }
        let row = container.observed()?.last;
        let others = counters.others(place.slot, tick, WRITER_TICKS);
        let configured = self.window_bytes;
        let share =
            share(row.verdict.allowed, row.unowned, others.writers + 1, others.owed_bytes, row.speed, configured);
        Some((row, share))
    }

    /// Ends such a writer's row: what it counted stays.
    pub(super) fn leave(&self, place: &Place) {
        let container = self.containers.get(place.row as usize).and_then(Option::as_ref);
        if let Some(slot) = container.and_then(|container| container.ledgers.counters().slot(place.slot)) {
            slot.end(place.nonce);
        }
    }

    /// The budget.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Takes in what processes said that only mount the region.
    pub fn set_mounted(&mut self, totals: Totals) {
        self.mounted = totals;
    }

    /// What there is to tell at `now`, with what the sweep has done.
    pub fn snapshot(&self, now: Duration, sweep: Done) -> Snapshot {
        let watched = |container: &Container| Watched {
            id: Some(container.group.id),
            ancestors_seen: Some(container.group.rooted),
            row: container.observed().map(|observed| observed.last),
            summary: container.summary(),
        };
        let mut containers: Vec<_> = self.containers.iter().flatten().map(|container| watched(container)).collect();
        if self.mounted.processes > 0 {
            let summary = Summary { totals: self.mounted, unseen_bytes: 0 };
            containers.push(Watched { id: None, ancestors_seen: None, row: None, summary });
        }
        let heartbeat_age = self.last_beat.map_or(Duration::MAX, |last| now.saturating_sub(last));
        Snapshot { heartbeat_age, is_config_in_force: self.is_config_in_force, sweep, containers }
    }

    /// Everything counted so far, over all containers.
    pub fn summary(&self) -> Summary {
        let mounted = Summary { totals: self.mounted, unseen_bytes: 0 };
        let containers = self.containers.iter().flatten().map(|container| container.summary());
        containers.chain([mounted]).fold(self.gone, add)
    }
}

/// Both histories; what is unseen in different groups at different times adds up to at most this.
fn add(one: Summary, more: Summary) -> Summary {
    let mut totals: Totals = one.totals;
    totals.add(&more.totals);
    Summary { totals, unseen_bytes: one.unseen_bytes.saturating_add(more.unseen_bytes) }
}
