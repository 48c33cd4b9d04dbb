//! What can be shown on this machine, and what that changes on it.

use freeboard_budget::cgroup::Version;
use rustix::fs::{Access, access};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Where memory cgroups are made.
pub const V1_MEMORY: &str = "/sys/fs/cgroup/memory";
/// The only hierarchy of cgroup v2.
pub const V2: &str = "/sys/fs/cgroup";
const V1_BLKIO: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device";

/// What is shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Both runs, in a memory cgroup of this version and on a slow disk.
    SlowDisk(Version),
    /// One run on the disk that is there, and why not more.
    BoundOnly(&'static str),
}

impl Plan {
    /// Looks at what this process may do.
    pub fn for_this_machine() -> Plan {
        let is_there = |path: &str| Path::new(path).exists();
        let is_writable = |path: &str| access(path, Access::WRITE_OK).is_ok();
        if !rustix::process::geteuid().is_root() {
            return Plan::BoundOnly("only root may make disks and memory cgroups");
        }
        if !may_mount() {
            return Plan::BoundOnly("this process may not mount; it lacks CAP_SYS_ADMIN, as in most containers");
        }
        if !is_writable("/dev/loop-control") {
            return Plan::BoundOnly("there are no loop devices here");
        }
        let controllers = fs::read_to_string(Path::new(V2).join("cgroup.controllers")).unwrap_or_default();
        let has_v2 = ["memory", "io"].iter().all(|name| controllers.split_whitespace().any(|one| one == *name));
        // what tells the root of a hierarchy from another group of it
        let (version, is_root) = match is_there(V1_MEMORY) && is_there(V1_BLKIO) {
            true => (Version::V1, is_there("/sys/fs/cgroup/blkio/release_agent")),
            false if has_v2 => (Version::V2, !is_there("/sys/fs/cgroup/cgroup.type")),
            false => return Plan::BoundOnly("no hierarchy of cgroups here limits both memory and disks"),
        };
        if !is_root {
            return Plan::BoundOnly("of the hierarchy of cgroups only a part can be seen, as in most containers");
        }
        match version {
            Version::V1 if is_writable(V1_MEMORY) && is_writable(V1_BLKIO) => Plan::SlowDisk(version),
            Version::V2 if is_writable(V2) => Plan::SlowDisk(version),
            _ => Plan::BoundOnly("cgroups cannot be made here: they are mounted read-only"),
        }
    }

    /// The programs that are started.
    pub fn programs(&self) -> &'static [&'static str] {
        match self {
            Plan::SlowDisk(_) => &["qemu-img", "mkfs.xfs", "losetup"],
            Plan::BoundOnly(_) => &[],
        }
    }

    /// What will be changed on this machine, for people. `packages` are installed first; `builds`: then Freeboard is
    /// built.
    pub fn describe(&self, packages: &[&str], builds: bool) -> String {
        let mut text = String::new();
        let mut line = |line: &str| {
            let _ = writeln!(text, "{line}");
        };
        let mut first = Vec::new();
        if !packages.is_empty() {
            first.push(format!("  * install with apt-get: {}", packages.join(" ")));
        }
        if builds {
            first.push("  * build Freeboard into the target directory".to_owned());
        }
        match self {
            Plan::SlowDisk(version) => {
                line("The same `qemu-img convert`, plain and under Freeboard, in a memory cgroup of");
                line("200 MB on a disk that writes 31 MB/s. On this machine, as root, it will");
                line("");
                first.iter().for_each(|change| line(change));
                line("  * mount a tmpfs in the directory for temporary files; it holds 1.4 GB at most");
                line("  * make a loop device with XFS in it, and let it write 31 MB/s");
                match version {
                    Version::V1 => {
                        line("  * make a memory cgroup with a limit of 200 MB, twice, and run qemu-img in it:");
                        line("    the kernel will kill the plain one");
                    }
                    Version::V2 => {
                        line("  * hand the memory and io controllers on from the root cgroup, if they are not");
                        line("  * make a cgroup with a memory limit of 200 MB, twice; qemu-img runs in it, and");
                        line("    after three seconds a neighbour that takes 60 MB");
                    }
                }
                line("");
                line("At the end, or on Ctrl-C, all of it is removed but packages and build.");
                line("It takes less than a minute.");
            }
            Plan::BoundOnly(why) => {
                line("The whole picture, a kill on a slow disk and none, cannot be shown here:");
                line(&format!("{why}."));
                line("");
                line("What can be shown is the bound: 600 MB go to the disk that is there, under");
                line("`freeboard run`, with at most 16 MiB at a time that are not on it yet. It will");
                line("");
                first.iter().for_each(|change| line(change));
                line("  * write 1.2 GB beside Freeboard itself, removed at the end or on Ctrl-C");
            }
        }
        line("");
        text
    }
}

/// CAP_SYS_ADMIN among the effective capabilities.
fn may_mount() -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(effective.trim(), 16).is_ok_and(|effective| effective & CAP_SYS_ADMIN != 0)
}
