//! Where samples come from: a sidecar's region, or this process's own group.

use super::model::{Container, Counted, Sample, Sidecar};
use super::water::Water;
use super::writers::Writers;
use crate::cgroup::{Crowd, Group, Lost, judge, open_path, own_directory};
use crate::region::seen::Seen;
use anyhow::{Context, Result, anyhow};
use freeboard_budget::layout::Container as Row;
use freeboard_budget::layout::{BUDGET_FILE, CONTAINER_LIVE, STALE_MS, budget_layout};
use freeboard_config::Workload;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

/// Something that can be looked at again and again.
#[derive(Debug)]
pub enum Source {
    /// What a sidecar says.
    Region(Box<Region>),
    /// What the kernel says of this process's group.
    Own(Group, String),
}

/// A region's directory, and when its heart was last seen to beat.
#[derive(Debug)]
pub struct Region {
    dir: PathBuf,
    budget: Seen,
    writers: Writers,
    beat: Option<(u64, Duration)>,
}

impl Source {
    /// Opens a region, or this process's own group.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn open(region: Option<&Path>) -> Result<Source> {
        let Some(dir) = region else {
            let path = own_directory().map_err(|error| anyhow!(error))?.1;
            let group = open_path(&path).map_err(|error| anyhow!(error))?;
            return Ok(Source::Own(group, path.display().to_string()));
        };
        open_file(&dir.join(BUDGET_FILE)).map_err(|error| {
            let mend = "give the directory of `freeboard sidecar --region`";
            anyhow!("there is no region in {}: {error:#}; mend: {mend}", dir.display())
        })?;
        let budget = Seen::new(budget_layout()).context("no memory")?;
        let writers = Writers::new().context("no memory")?;
        Ok(Source::Region(Box::new(Region { dir: dir.to_owned(), budget, writers, beat: None })))
    }

    /// Looks, at `now` of any monotonic clock.
    ///
    /// # Errors
    /// What is looked at is gone, or cannot be read.
    pub fn look(&mut self, now: Duration) -> Result<Sample> {
        match self {
            Source::Region(region) => region.look(now),
            Source::Own(group, name) => {
                let missing = "none is named (--region, FREEBOARD_REGION): this is the group that this runs in, and nobody \
                               counts its writers";
                let container = own(group, name)?;
                Ok(Sample { sidecar: Sidecar::Missing(missing.into()), containers: vec![container] })
            }
        }
    }
}

fn own(group: &Group, name: &str) -> Result<Container> {
    let readings = group.read().map_err(|lost| match lost {
        Lost::Gone => anyhow!("{name}: the group was removed"),
        Lost::Unreadable(why) => anyhow!("{name}: {why}"),
    })?;
    let ruling = judge(&readings, Workload::default().memory.target, None, Crowd::default(), |_| Crowd::default());
    let ruling = ruling.with_context(|| format!("{name}: memory.stat does not count dirty and writeback"))?.ruling;
    let writeback = readings[0].stat.writeback.unwrap_or(0);
    let water = Water {
        limit: limit(ruling.limit),
        target: limit(ruling.target),
        usage: ruling.usage,
        anonymous: ruling.other,
        dirty: ruling.unwritten.saturating_sub(writeback),
        writeback,
    };
    Ok(Container { id: group.id, name: name.to_owned(), water, writers: Vec::new() })
}

/// A file of a region, whose directory is whoever's may write there: not what would have the terminal wait.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
}

fn limit(bytes: u64) -> Option<u64> {
    Some(bytes).filter(|&bytes| bytes != u64::MAX)
}

impl Region {
    fn look(&mut self, now: Duration) -> Result<Sample> {
        let place = self.dir.join(BUDGET_FILE);
        let budget = open_file(&place).with_context(|| format!("{} is gone", place.display()))?;
        let pulse = self.budget.copy(&budget).map_err(|error| anyhow!("{}: {error}", place.display()))?;
        if self.beat.is_none_or(|(tick, _)| tick != pulse.tick) {
            self.beat = Some((pulse.tick, now));
        }
        let still = self.beat.map_or(Duration::ZERO, |(_, then)| now.saturating_sub(then));
        let seen = self.writers.look(&self.dir, &budget, pulse.generation, now);
        let sidecar = match &seen {
            _ if still > Duration::from_millis(STALE_MS) => Sidecar::Missing(format!(
                "it is gone: its heart has not beaten for {} s, and what is shown is as old; mend: start `freeboard sidecar` again",
                still.as_secs()
            )),
            Ok(_) => Sidecar::Alive,
            Err(why) => Sidecar::Missing(why.clone()),
        };
        let writers = seen.unwrap_or_default();
        let of = |row: u64| -> Vec<Counted> {
            writers.iter().filter(|(of, _)| u64::from(*of) == row).map(|(_, counted)| counted.clone()).collect()
        };
        let rows = (0..).zip(self.budget.rows::<Row>());
        let mut containers: Vec<Container> = rows
            .filter(|(_, row)| row.word.load(Acquire) & CONTAINER_LIVE != 0)
            .map(|(index, row)| container(row, of(index)))
            .collect();
        for container in &mut containers {
            self.writers.name(container);
        }
        // they judge their own group, and nobody says here which that is
        let mounted = of(0);
        if !mounted.is_empty() {
            let name = "processes that only mount the region".to_owned();
            containers.push(Container { id: 0, name, water: Water::default(), writers: mounted });
        }
        Ok(Sample { sidecar, containers })
    }
}

fn container(row: &Row, writers: Vec<Counted>) -> Container {
    let id = row.cgroup_id.load(Relaxed);
    let unwritten = row.unwritten_bytes.load(Relaxed);
    let writeback = row.writeback_bytes.load(Relaxed).min(unwritten);
    let water = Water {
        limit: limit(row.limit_bytes.load(Relaxed)),
        target: limit(row.target_bytes.load(Relaxed)),
        usage: row.usage_bytes.load(Relaxed),
        anonymous: row.other_bytes.load(Relaxed),
        dirty: unwritten - writeback,
        writeback,
    };
    Container { id, name: format!("cgroup {id}"), water, writers }
}
