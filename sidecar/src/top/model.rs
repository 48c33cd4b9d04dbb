//! From samples to what is shown. Pure.

use super::water::Water;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// As much of the past as is kept, and shown.
pub const SPAN: Duration = Duration::from_secs(120);
/// Rates are over this long.
const RATE_OVER: Duration = Duration::from_secs(1);

/// One container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    /// Stays as long as it does.
    pub id: u64,
    /// As people call it.
    pub name: String,
    /// Its memory.
    pub water: Water,
    /// What its writers counted.
    pub writers: Vec<Counted>,
}

/// What one writer counted so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counted {
    /// Stays as long as the writer does, and is nobody else's.
    pub id: u64,
    /// In its own namespace.
    pub pid: u32,
    /// Its name, where it can be told.
    pub name: Option<String>,
    /// Bytes.
    pub written: u64,
    /// Bytes that are not on the disk.
    pub owed: u64,
    /// How long its calls were held back.
    pub held_back: Duration,
    /// One of its calls is.
    pub is_held: bool,
}

/// How it stands with the sidecar.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sidecar {
    /// It looks, and counts.
    Alive,
    /// There is none, or it is gone, or its writers cannot be seen: why.
    Missing(String),
}

/// What was seen at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    /// How it stands.
    pub sidecar: Sidecar,
    /// Those that there are.
    pub containers: Vec<Container>,
}

/// A line of the table.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// See [`Counted`].
    pub counted: Counted,
    /// What it writes, in bytes a second.
    pub rate: u64,
    /// How much of the last second it was held back, in per cent.
    pub held_percent: u64,
}

/// What a writer had counted, at two moments at least [`RATE_OVER`] apart.
#[derive(Clone, Debug)]
struct Pace {
    since: Duration,
    at: Counted,
    rate: u64,
    held_percent: u64,
}

/// All that was seen.
#[derive(Debug)]
pub struct Model {
    /// By container.
    past: BTreeMap<u64, VecDeque<(Duration, Water)>>,
    paces: BTreeMap<u64, Pace>,
    now: Duration,
    last: Sample,
    /// The container that is shown; another is, once it is gone.
    chosen: Option<u64>,
}

impl Model {
    /// Begins.
    pub fn new(now: Duration, sample: Sample) -> Model {
        let mut model =
            Model { past: BTreeMap::new(), paces: BTreeMap::new(), now, last: sample.clone(), chosen: None };
        model.add(now, sample);
        model
    }

    /// Adds what was seen at `now` of any monotonic clock.
    pub fn add(&mut self, now: Duration, sample: Sample) {
        for container in &sample.containers {
            let past = self.past.entry(container.id).or_default();
            past.push_back((now, container.water));
            while past.front().is_some_and(|(then, _)| now.saturating_sub(*then) > SPAN) {
                past.pop_front();
            }
        }
        let writers = || sample.containers.iter().flat_map(|container| &container.writers);
        for writer in writers() {
            let begun = Pace { since: now, at: writer.clone(), rate: 0, held_percent: 0 };
            let pace = self.paces.entry(writer.id).or_insert(begun);
            let elapsed = now.saturating_sub(pace.since);
            if elapsed >= RATE_OVER {
                let each_second = |much: u128| (much * 1000 / elapsed.as_millis()).try_into().unwrap_or(u64::MAX);
                let held = writer.held_back.saturating_sub(pace.at.held_back);
                let (rate, held_percent) = (
                    each_second(writer.written.saturating_sub(pace.at.written).into()),
                    each_second(held.as_millis()) / 10,
                );
                *pace = Pace { since: now, at: writer.clone(), rate, held_percent };
            }
        }
        let is_there = |id: &u64| sample.containers.iter().any(|container| container.id == *id);
        self.past.retain(|id, _| is_there(id));
        self.paces.retain(|id, _| writers().any(|writer| writer.id == *id));
        self.chosen = self.chosen.filter(is_there).or_else(|| fullest(&sample.containers));
        (self.now, self.last) = (now, sample);
    }

    /// How it stands with the sidecar.
    pub fn sidecar(&self) -> &Sidecar {
        &self.last.sidecar
    }

    /// The container that is shown, and which of how many it is.
    pub fn chosen(&self) -> Option<(&Container, usize, usize)> {
        let all = &self.last.containers;
        let index = all.iter().position(|container| Some(container.id) == self.chosen)?;
        Some((&all[index], index + 1, all.len()))
    }

    /// Shows the next one.
    pub fn choose_next(&mut self) {
        let all = &self.last.containers;
        let next = self.chosen().and_then(|(_, number, _)| all.get(number % all.len()));
        self.chosen = next.map(|container| container.id);
    }

    /// Its waterline: how long ago, and what it was then; oldest first.
    pub fn waterline(&self) -> impl DoubleEndedIterator<Item = (Duration, Water)> {
        let past = self.chosen.and_then(|id| self.past.get(&id));
        past.into_iter().flatten().map(|(then, water)| (self.now.saturating_sub(*then), *water))
    }

    /// Its writers: those that were held back longest first, then those that wrote most.
    pub fn rows(&self) -> Vec<Row> {
        let writers = self.chosen().into_iter().flat_map(|(container, ..)| &container.writers);
        let mut rows: Vec<Row> = writers
            .map(|counted| {
                let pace = self.paces.get(&counted.id);
                let (rate, held_percent) = pace.map_or((0, 0), |pace| (pace.rate, pace.held_percent));
                // two threads that are held at a time count twice
                Row { counted: counted.clone(), rate, held_percent: held_percent.min(999) }
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse((row.counted.held_back, row.counted.written)));
        rows
    }
}

/// The container whose limit is nearest.
fn fullest(containers: &[Container]) -> Option<u64> {
    let fill = |one: &&Container| one.water.limit.map_or(0.0, |limit| one.water.usage as f64 / limit.max(1) as f64);
    containers.iter().max_by(|one, other| fill(one).total_cmp(&fill(other))).map(|container| container.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn water(usage: u64, anonymous: u64, dirty: u64, writeback: u64) -> Water {
        Water { limit: Some(200 * MIB), target: Some(160 * MIB), usage, anonymous, dirty, writeback }
    }

    fn writer(id: u64, written: u64, held_ms: u64) -> Counted {
        Counted { id, pid: id as u32, written, held_back: Duration::from_millis(held_ms), ..Counted::default() }
    }

    fn container(id: u64, water: Water, writers: Vec<Counted>) -> Container {
        Container { id, name: id.to_string(), water, writers }
    }

    fn sample(containers: Vec<Container>) -> Sample {
        Sample { sidecar: Sidecar::Alive, containers }
    }

    fn second(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn writers_are_sorted_by_what_they_were_held_back() {
        let writers = |more: u64| {
            vec![writer(1, 900 * MIB, 0), writer(2, (10 + more) * MIB, 400 * more), writer(3, 0, 1), writer(4, MIB, 0)]
        };
        let at = |more| sample(vec![container(7, water(100, 0, 0, 0), writers(more))]);
        let mut model = Model::new(second(5), at(0));
        model.add(second(6), at(1));
        model.add(second(8), at(5));
        let rows = model.rows();
        assert_eq!(rows.iter().map(|row| row.counted.pid).collect::<Vec<_>>(), [2, 3, 1, 4]);
        // 4 MiB and 1.6 s in 2 s
        assert_eq!((rows[0].rate, rows[0].held_percent), (2 * MIB, 80));
        assert_eq!((rows[2].rate, rows[2].held_percent), (0, 0));
        // a writer that is gone, and one that came
        model.add(second(9), sample(vec![container(7, water(100, 0, 0, 0), vec![writer(9, MIB, 0)])]));
        assert_eq!(model.rows().iter().map(|row| (row.counted.pid, row.rate)).collect::<Vec<_>>(), [(9, 0)]);
        assert_eq!(model.paces.len(), 1);
    }

    #[test]
    fn the_fullest_container_is_shown_until_another_is_chosen() {
        let both = || sample(vec![container(1, water(20, 0, 0, 0), vec![]), container(2, water(180, 0, 0, 0), vec![])]);
        let shown = |model: &Model| model.chosen().map(|(container, number, of)| (container.id, number, of));
        let mut model = Model::new(second(0), both());
        assert_eq!(shown(&model), Some((2, 2, 2)));
        model.choose_next();
        model.add(second(1), both());
        assert_eq!(shown(&model), Some((1, 1, 2)));
        assert_eq!(
            model.waterline().map(|(ago, water)| (ago.as_secs(), water.usage)).collect::<Vec<_>>(),
            [(1, 20), (0, 20)]
        );
        model.add(second(2), sample(vec![container(2, water(180, 0, 0, 0), vec![])]));
        assert_eq!(shown(&model), Some((2, 1, 1)));
        model.add(second(3), sample(vec![]));
        assert_eq!((shown(&model), model.past.len()), (None, 0));
        model.choose_next();
        assert_eq!(model.rows(), []);
    }

    #[test]
    fn the_past_is_as_long_as_it_is_shown() {
        let one = || sample(vec![container(1, water(20, 0, 0, 0), vec![])]);
        let mut model = Model::new(second(0), one());
        for at in 1..500 {
            model.add(second(at), one());
        }
        assert_eq!(model.waterline().count() as u64, SPAN.as_secs() + 1);
    }
}
