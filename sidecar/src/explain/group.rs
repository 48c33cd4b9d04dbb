//! A group that lives: which one, what it says, and who is in it.

use super::figures::Figures;
use crate::cgroup::{Lost, directory_of, open_path};
use crate::explain::oom_log::Task;
use anyhow::{Context, Result, anyhow, bail};
use freeboard_budget::cgroup::{Version, below_root, mount_point};
use std::fs;
use std::path::{Path, PathBuf};

/// One group.
#[derive(Debug)]
pub struct Group {
    /// Its directory.
    pub directory: PathBuf,
    /// Which controller.
    pub version: Version,
    /// What it says.
    pub figures: Figures,
    /// The limit that was met, or will be first, is that of a group above the one that was asked for.
    pub is_above: bool,
    /// Groups above it cannot be seen; their limits may be met first.
    pub is_above_unseen: bool,
}

/// The directory of the group that is meant: of the process with that id, at that path, or this process's own.
///
/// # Errors
/// There is none.
pub fn directory(subject: Option<&str>) -> Result<PathBuf> {
    let Some(subject) = subject else { return Ok(directory_of("self").map_err(|error| anyhow!(error))?.1) };
    if let Ok(pid) = subject.parse::<u32>() {
        if !Path::new(&format!("/proc/{pid}")).exists() {
            bail!("there is no process {pid}; mend: give the id that it has where this runs, or the path of a cgroup");
        }
        return Ok(directory_of(&pid.to_string()).map_err(|error| anyhow!(error))?.1);
    }
    // also as /proc/PID/cgroup and the kernel's messages have it, with a leading slash
    let mounts = fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo cannot be read")?;
    let below = [Version::V1, Version::V2].into_iter().filter(|_| subject.starts_with('/'));
    let below = below.filter_map(|version| mount_point(&mounts, version, None));
    let below = below.map(|(root, point)| PathBuf::from(format!("{point}{}", below_root(subject, root))));
    let mut places = std::iter::once(PathBuf::from(subject)).chain(below);
    places.find(|path| path.join("memory.stat").exists()).with_context(|| {
        format!(
            "{subject} is neither a process nor a memory cgroup that can be seen here; mend: give a process id, or a \
                 directory below /sys/fs/cgroup"
        )
    })
}

impl Group {
    /// Reads the group in a directory, and those above: the one whose limit is nearest is what it is about.
    ///
    /// # Errors
    /// It is no memory cgroup's, or cannot be read.
    pub fn read(directory: &Path) -> Result<Group> {
        let own = Group::read_one(directory)?;
        let with_limit = |path: &Path| Group::read_one(path).ok().filter(|group| group.figures.limit.is_some());
        let above = directory.ancestors().skip(1).take_while(|path| path.join("memory.stat").exists());
        let fill = |group: &Group| match (group.figures.usage, group.figures.limit) {
            (Some(usage), Some(limit)) if limit > 0 => usage as f64 / limit as f64,
            _ => 0.0,
        };
        Ok(above.filter_map(with_limit).fold(own, |nearest, group| {
            let is_nearer = fill(&group) > fill(&nearest);
            if is_nearer { Group { is_above: true, ..group } } else { nearest }
        }))
    }

    fn read_one(directory: &Path) -> Result<Group> {
        let group = open_path(directory).map_err(|error| anyhow!(error))?;
        let reading = group.own().read().map_err(|lost| match lost {
            Lost::Gone => anyhow!("{}: the group was removed", directory.display()),
            Lost::Unreadable(why) => anyhow!("{}: {why}", directory.display()),
        })?;
        let text = |name: &str| fs::read_to_string(directory.join(name));
        let mut figures = Figures {
            usage: Some(reading.usage),
            limit: Some(reading.limit).filter(|&bytes| bytes != u64::MAX),
            limit_hits: Some(reading.limit_hits),
            // v1 counts it apart from memory.stat
            kernel: text("memory.kmem.usage_in_bytes").ok().and_then(|bytes| bytes.trim().parse().ok()),
            ..Figures::default()
        };
        figures.add_stat(&text("memory.stat").with_context(|| format!("{}: memory.stat", directory.display()))?);
        Ok(Group {
            directory: directory.to_owned(),
            version: group.version,
            figures,
            is_above: false,
            is_above_unseen: !group.rooted,
        })
    }
}

/// The processes in a group and in those below it.
pub fn processes(directory: &Path) -> Vec<u32> {
    crate::cgroup::made::processes(directory).iter().filter_map(|pid| pid.parse().ok()).collect()
}

/// What processes have of memory of their own, most first.
pub fn tasks(processes: &[u32]) -> Vec<Task> {
    let task = |&pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let word = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let bytes = |key: &str| word(key)?.strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024);
        let name = word("Name:")?.to_owned();
        Some(Task { pid, name, anonymous_bytes: bytes("RssAnon:"), shmem_bytes: bytes("RssShmem:") })
    };
    let mut tasks: Vec<Task> = processes.iter().filter_map(task).collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(task.anonymous_bytes));
    tasks
}
