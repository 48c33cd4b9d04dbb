//! What writers count. A container's counters are a memfd that the sidecar hands to its processes alone, so they are
//! read where the sidecar has it, in `/proc/PID/fd`: by its own user, in its own container, or by root on the node.

use super::model::{Container, Counted};
use super::source::open_file;
use crate::cgroup::directory_of;
use crate::region::SLOTS;
use crate::region::seen::Seen;
use freeboard_budget::layout::{COUNTERS_FILE, Slot, counters_layout};
use freeboard_budget::slots::Phase;
use rustix::fs::{fstat, stat};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the link to such a descriptor reads (`mm/memfd.c`).
const LINK: &str = "/memfd:freeboard-counters";
/// A sidecar that was not found is looked for again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the counters are.
#[derive(Debug)]
pub struct Writers {
    counters: Seen,
    /// The sidecar of that generation: its `/proc/PID/fd`.
    sidecar: Option<(u64, PathBuf)>,
    looked: Option<Duration>,
    /// Of processes in whose group they write; `None`: it is another's process that has the id here.
    names: BTreeMap<(u64, u32), Option<String>>,
}

impl Writers {
    /// Memory to read counters into.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> std::io::Result<Writers> {
        let counters = Seen::new(counters_layout(SLOTS))?;
        Ok(Writers { counters, sidecar: None, looked: None, names: BTreeMap::new() })
    }

    /// All writers, with the rows of their containers. `budget`: the region's file, as the sidecar has it open.
    ///
    /// # Errors
    /// Why they cannot be seen.
    pub fn look(
        &mut self,
        dir: &Path,
        budget: &File,
        generation: u64,
        now: Duration,
    ) -> Result<Vec<(u32, Counted)>, String> {
        let is_known = self.sidecar.as_ref().is_some_and(|(of, fds)| *of == generation && fds.exists());
        if !is_known && self.looked.is_none_or(|then| now.saturating_sub(then) >= AGAIN) {
            self.looked = Some(now);
            self.sidecar = holder(budget).map(|fds| (generation, fds));
        }
        let mut all = Vec::new();
        if let Ok(file) = open_file(&dir.join(COUNTERS_FILE)) {
            self.read(&file, &mut all);
        }
        let Some((_, fds)) = self.sidecar.clone() else {
            return Err(
                "it cannot be seen from here, and with it who writes; mend: start this in the sidecar's container, as \
                        its user or as root"
                    .into(),
            );
        };
        for entry in fs::read_dir(fds).into_iter().flatten().flatten() {
            let link = fs::read_link(entry.path()).unwrap_or_default();
            if link.as_os_str().as_encoded_bytes().starts_with(LINK.as_bytes())
                && let Ok(file) = File::open(entry.path())
            {
                self.read(&file, &mut all);
            }
        }
        Ok(all)
    }

    fn read(&mut self, file: &File, all: &mut Vec<(u32, Counted)>) {
        // one of a sidecar of another version is not read, and its writers are not shown
        let (Ok(_), Ok(place)) = (self.counters.copy(file), fstat(file)) else { return };
        for (index, slot) in (0u64..).zip(self.counters.rows::<Slot>()) {
            let owned = slot.owned().filter(|owned| owned.phase == Phase::Live);
            let report = slot.report();
            // row 0 is shared by those for whom no other was left
            let (nonce, is_used) = match owned {
                Some(owned) => (owned.nonce, report.calls > 0),
                None => (0, index == 0 && report.calls > 0),
            };
            if !is_used {
                continue;
            }
            let pid_container = slot.pid_container.load(std::sync::atomic::Ordering::Relaxed);
            let counted = Counted {
                id: nonce ^ (place.st_ino << 12 | index),
                pid: pid_container as u32,
                name: (index == 0).then(|| "those without a row".to_owned()),
                written: report.written_bytes,
                owed: report.owed_bytes,
                held_back: Duration::from_nanos(report.held_back_ns),
                is_held: report.holding != 0,
            };
            all.push(((pid_container >> 32) as u32, counted));
        }
    }

    /// Names a container's writers that can be seen here under the ids that they have there.
    pub fn name(&mut self, container: &mut Container) {
        for writer in container.writers.iter_mut().filter(|writer| writer.name.is_none()) {
            let name = || {
                let (_, path) = directory_of(&writer.pid.to_string()).ok()?;
                let is_there = fs::metadata(path).is_ok_and(|meta| meta.ino() == container.id);
                let comm = fs::read_to_string(format!("/proc/{}/comm", writer.pid)).ok().filter(|_| is_there)?;
                Some(comm.trim_end().to_owned())
            };
            writer.name = self.names.entry((writer.id, writer.pid)).or_insert_with(name).clone();
        }
    }
}

/// The `/proc/PID/fd` of the process that writes the region's budget.
fn holder(budget: &File) -> Option<PathBuf> {
    let wanted = fstat(budget).ok()?;
    let is_it = |fd: &Path| {
        let is_writable = fs::symlink_metadata(fd).is_ok_and(|link| link.mode() & 0o200 != 0);
        is_writable && stat(fd).is_ok_and(|file| (file.st_dev, file.st_ino) == (wanted.st_dev, wanted.st_ino))
    };
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(Path::new("/proc")).map(|process| process.join("fd")).find(|fds| entries(fds).any(|fd| is_it(&fd)))
}
