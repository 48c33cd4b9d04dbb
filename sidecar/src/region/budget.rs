//! Writing the budget: the policy, the containers' rows, the devices' rows, the heartbeat.

use super::map::Memory;
use super::{memfd, put, seal};
use anyhow::{Context, Result, bail};
use freeboard_budget::law::{Target, Verdict};
use freeboard_budget::layout::{
    BUDGET_FILE, CONTAINER_DROP, CONTAINER_DROP_CLOSED, CONTAINER_FLAG_BITS, CONTAINER_LIVE, CONTAINER_PRESSURE,
    CONTAINER_UNLIMITED, Container, DROP_BEHIND, Device, Kind, PATTERN_BYTES, Policy, Rule, budget_layout,
};
use freeboard_budget::policy::Bank;
use freeboard_config::Workload;
use rustix::fs::{SealFlags, fstatfs};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, Release};

/// [`Rule::mode`] of a rule that leaves the mode to the process's.
const MODE_AS_PROCESS: u32 = 255;

/// `f_type` of tmpfs (`include/uapi/linux/magic.h`).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// What is compared at once, in bytes: tables and rows begin at multiples of it.
const LINE: usize = 64;

/// The budget: a sealed memfd that this process alone can write.
#[derive(Debug)]
pub struct Budget {
    memory: Memory,
    memfd: File,
}

/// Its copy in the region's directory. Readers of it use the heartbeat, the policy and the devices; the kernel copies
/// in whole words, and a torn count is right the next time.
#[derive(Debug)]
pub struct Copy {
    file: File,
    /// What the file is to hold.
    bytes: Vec<u8>,
    /// What of that it may not hold yet: of the rules, and of all before them.
    changed: [Range<usize>; 2],
    /// The policy's word in `bytes`.
    word: u64,
    /// Bytes from the file's start to the first rule: what changes while the policy does not.
    ticking_bytes: usize,
}

impl Copy {
    /// Makes the file.
    ///
    /// # Errors
    /// What could not be made.
    pub fn create(dir: &Path, budget: &Budget) -> Result<Copy> {
        let layout = budget_layout();
        let bytes = budget.memory.to_vec();
        let file = put(dir, BUDGET_FILE, &bytes, 0o444)?;
        let ticking_bytes = layout.table(Kind::Rules).map_or(layout.file_bytes, |table| table.offset.into()) as usize;
        Ok(Copy { file, bytes, changed: [0..0, 0..0], word: budget.policy_word(), ticking_bytes })
    }

    /// Whether the file lies in memory.
    pub fn is_in_memory(&self) -> bool {
        fstatfs(&self.file).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(TMPFS_MAGIC))
    }

    /// Takes what the budget says now.
    pub fn take(&mut self, budget: &Budget) {
        let word = budget.policy_word();
        let end = if word == self.word { self.ticking_bytes } else { self.bytes.len() };
        self.word = word;
        let now = budget.memory.bytes();
        for (part, changed) in [self.ticking_bytes..end, 0..self.ticking_bytes].into_iter().zip(&mut self.changed) {
            let differs = |line: &usize| now[*line..][..LINE] != self.bytes[*line..][..LINE];
            let mut lines = part.step_by(LINE).filter(differs);
            let Some(first) = lines.next() else { continue };
            let end = lines.next_back().unwrap_or(first) + LINE;
            self.bytes[first..end].copy_from_slice(&now[first..end]);
            *changed = if (*changed).is_empty() { first..end } else { first.min(changed.start)..end.max(changed.end) };
        }
    }

    /// Writes it to the file, as far as it has changed.
    ///
    /// # Errors
    /// What writing gave.
    pub fn write(&mut self) -> io::Result<()> {
        // first the rules, then the word that puts them in force
        for changed in &mut self.changed {
            self.file.write_all_at(&self.bytes[changed.clone()], changed.start as u64)?;
            *changed = 0..0;
        }
        Ok(())
    }
}

/// The numbers of one container's row, in the units of [`Container`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// What the law says.
    pub verdict: Verdict,
    /// As [`Container::limit_bytes`].
    pub limit: u64,
    /// As [`Container::target_bytes`].
    pub target: u64,
    /// As [`Container::usage_bytes`].
    pub usage: u64,
    /// As [`Container::unwritten_bytes`].
    pub unwritten: u64,
    /// As [`Container::other_bytes`].
    pub other: u64,
    /// As [`Container::unowned_bytes`].
    pub unowned: u64,
    /// As [`Container::speed_bytes_per_s`].
    pub speed: Option<u64>,
    /// As [`Container::limit_hits`].
    pub limit_hits: u64,
    /// As [`Container::peak_unwritten_bytes`].
    pub peak_unwritten: u64,
    /// As [`Container::writeback_bytes`].
    pub writeback: u64,
}

/// A verdict as [`Container::word`].
pub fn word(verdict: &Verdict) -> u64 {
    let most = (1 << (64 - CONTAINER_FLAG_BITS)) - 1;
    let mut word = (verdict.allowed / 4096).min(most) << CONTAINER_FLAG_BITS | CONTAINER_LIVE;
    for (set, bit) in [
        (verdict.drop, CONTAINER_DROP),
        (verdict.drop_closed, CONTAINER_DROP_CLOSED),
        (verdict.allowed == u64::MAX, CONTAINER_UNLIMITED),
        (verdict.pressure, CONTAINER_PRESSURE),
    ] {
        if set {
            word |= bit;
        }
    }
    word
}

impl Budget {
    /// Makes the memfd.
    ///
    /// # Errors
    /// What could not be made; sealing wants Linux 5.1.
    pub fn create(generation: u64) -> Result<Budget> {
        let layout = budget_layout();
        let memfd = memfd("freeboard-budget", layout.file_bytes).context("cannot make shared memory (memfd)")?;
        let memory = Memory::shared(&memfd, layout, generation).context("cannot map the budget")?;
        seal(&memfd, SealFlags::FUTURE_WRITE).context("cannot seal the budget; this needs Linux 5.1 or later")?;
        Ok(Budget { memory, memfd })
    }

    /// The memfd, to be handed to applications.
    pub fn memfd(&self) -> &File {
        &self.memfd
    }

    /// [`Policy::word`].
    fn policy_word(&self) -> u64 {
        self.memory.row::<Policy>(0).map_or(0, |policy| policy.word.load(Relaxed))
    }

    /// Number of container rows.
    pub fn containers(&self) -> usize {
        self.memory.count(Kind::Containers)
    }

    /// Puts a workload file in force: fills the bank of rules that is not, then flips to it with one store.
    ///
    /// # Errors
    /// A pattern or a list that is too long for the region.
    pub fn set_policy(&self, workload: &Workload) -> Result<()> {
        let Some(policy) = self.memory.row::<Policy>(0) else { bail!("the budget has no policy row") };
        policy.change(workload.writes.mode, |bank| self.fill_policy(policy, bank, workload))
    }

    fn fill_policy(&self, policy: &Policy, bank: Bank, workload: &Workload) -> Result<()> {
        let rules = workload.rules.iter().map(|rule| {
            let mode = rule.mode.map_or(MODE_AS_PROCESS, |mode| mode as u32);
            (rule.path.as_str(), mode, if rule.reads_drop_behind { DROP_BEHIND } else { 0 })
        });
        let excludes = workload.processes.exclude.iter().map(|path| (path.as_str(), MODE_AS_PROCESS, 0));
        let rules = self.fill(Kind::Rules, bank, "rules", rules)?;
        let excludes = self.fill(Kind::Excludes, bank, "processes to exclude", excludes)?;

        let (percent, bytes) = match workload.memory.target {
            Target::Percent(percent) => (percent, 0),
            Target::Bytes(bytes) => (0, bytes),
        };
        policy.target_percent.store(percent, Relaxed);
        policy.target_bytes.store(bytes, Relaxed);
        policy.window_bytes.store(workload.writes.window_bytes.unwrap_or(0), Relaxed);
        let max_stall_ms = u64::try_from(workload.writes.max_stall.as_millis()).unwrap_or(u64::MAX);
        policy.max_stall_ms.store(max_stall_ms, Relaxed);
        bank.rules(policy).store(rules, Relaxed);
        bank.excludes(policy).store(excludes, Relaxed);
        Ok(())
    }

    /// Writes one bank of a table of patterns; returns the number of its rows.
    fn fill<'a>(
        &self,
        kind: Kind,
        bank: Bank,
        what: &str,
        rows: impl ExactSizeIterator<Item = (&'a str, u32, u32)>,
    ) -> Result<u32> {
        let rows_of_both = self.memory.count(kind);
        let room = rows_of_both / 2;
        let count = rows.len();
        if count > room {
            bail!("the workload file has {count} {what}, and there is room for {room}: join some with * or **");
        }
        for (index, (pattern, mode, reads)) in rows.enumerate() {
            if pattern.len() > PATTERN_BYTES {
                bail!(
                    "the path {pattern:?} is {} bytes long, and the most is {PATTERN_BYTES}: shorten it with **",
                    pattern.len()
                );
            }
            if let Some(row) = self.memory.rule(kind, bank.first_row(rows_of_both) + index) {
                write_rule(row, pattern.as_bytes(), mode, reads);
            }
        }
        Ok(count as u32)
    }

    /// Writes a container's row; `word` last, so that whoever sees it sees numbers at least as new.
    pub fn set_container(&self, index: usize, id: u64, numbers: &Row) {
        let Some(row) = self.memory.row::<Container>(index) else { return };
        row.cgroup_id.store(id, Relaxed);
        row.limit_bytes.store(numbers.limit, Relaxed);
        row.target_bytes.store(numbers.target, Relaxed);
        row.usage_bytes.store(numbers.usage, Relaxed);
        row.unwritten_bytes.store(numbers.unwritten, Relaxed);
        row.other_bytes.store(numbers.other, Relaxed);
        row.unowned_bytes.store(numbers.unowned, Relaxed);
        row.speed_bytes_per_s.store(numbers.speed.unwrap_or(0), Relaxed);
        row.limit_hits.store(numbers.limit_hits, Relaxed);
        row.peak_unwritten_bytes.store(numbers.peak_unwritten, Relaxed);
        row.writeback_bytes.store(numbers.writeback, Relaxed);
        row.word.store(word(&numbers.verdict), Release);
    }

    /// Says that a container's numbers are not to be used; the row stays its own.
    pub fn silence_container(&self, index: usize) {
        if let Some(row) = self.memory.row::<Container>(index) {
            row.word.store(0, Release);
        }
    }

    /// Gives a container's row free.
    pub fn free_container(&self, index: usize) {
        self.silence_container(index);
        if let Some(row) = self.memory.row::<Container>(index) {
            row.cgroup_id.store(0, Relaxed);
        }
    }

    /// Writes the devices' rows: (st_dev, speed, owed bytes), as many as there is room for; the others are freed.
    pub fn set_devices(&self, devices: impl Iterator<Item = (u64, Option<u64>, u64)>) {
        let mut devices = devices.fuse();
        for index in 0..self.memory.count(Kind::Devices) {
            let Some(row) = self.memory.row::<Device>(index) else { return };
            let (dev, speed, owed) = devices.next().unwrap_or((0, None, 0));
            if row.dev.load(Relaxed) != dev {
                // a reader that comes between sees a disk whose speed is not known, never another's speed
                row.speed_bytes_per_s.store(0, Relaxed);
                row.dev.store(dev, Release);
            }
            row.outstanding_bytes.store(owed, Relaxed);
            row.speed_bytes_per_s.store(speed.unwrap_or(0), Release);
        }
    }

    /// The heartbeat's count.
    pub fn tick(&self) -> u64 {
        self.memory.tick().load(Relaxed)
    }

    /// Beats.
    pub fn beat(&self) {
        self.memory.tick().fetch_add(1, Release);
    }
}

fn write_rule(row: &Rule, pattern: &[u8], mode: u32, reads: u32) {
    for (word, bytes) in row.pattern.iter().zip(pattern.chunks(8)) {
        let mut padded = [0u8; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_le_bytes(padded), Relaxed);
    }
    row.mode.store(mode, Relaxed);
    row.reads.store(reads, Relaxed);
    row.len.store(pattern.len() as u32, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Row = Row {
        verdict: Verdict::UNLIMITED,
        limit: 1,
        target: 2,
        usage: 3,
        unwritten: 4,
        other: 5,
        unowned: 6,
        speed: Some(7),
        limit_hits: 8,
        peak_unwritten: 9,
        writeback: 10,
    };

    #[test]
    fn the_file_holds_what_the_budget_says_and_only_that_is_written_which_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(BUDGET_FILE);
        let budget = Budget::create(1).unwrap();
        let mut copy = Copy::create(dir.path(), &budget).unwrap();
        let rule =
            |path: &str| Workload::parse(&format!("[[rule]]\npath = {path:?}\nmode = \"always\""), "text").unwrap();
        let changes: [&dyn Fn(); 6] = [
            &|| budget.beat(),
            &|| budget.set_container(3, 33, &ROW),
            &|| budget.set_policy(&rule("/a/**")).unwrap(),
            &|| budget.set_devices([(8, Some(1), 2)].into_iter()),
            &|| (budget.beat(), budget.set_policy(&rule("/b/**")).unwrap()).1,
            &|| budget.free_container(3),
        ];
        for (number, change) in changes.iter().enumerate() {
            change();
            copy.take(&budget);
            if number % 2 == 0 {
                // a busy disk: the next ones come before it is written
                continue;
            }
            copy.write().unwrap();
            assert!(std::fs::read(&path).unwrap() == budget.memory.bytes(), "after change {number}");
        }
        let rows = budget_layout().table(Kind::Containers).unwrap();
        let elsewhere = rows.offset as usize + 5 * rows.stride as usize;
        File::options().write(true).open(&path).unwrap().write_all_at(b"x", elsewhere as u64).unwrap();
        budget.beat();
        copy.take(&budget);
        copy.write().unwrap();
        let mut file = std::fs::read(&path).unwrap();
        assert_eq!(file[elsewhere], b'x');
        file[elsewhere] = 0;
        assert!(file == budget.memory.bytes());
    }
}
