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
        if !is_there("/dev/loop-control") {
            return Plan::BoundOnly("there are no loop devices here");
        }
        let has_v1 = is_there(V1_MEMORY) && is_there(V1_BLKIO);
        if has_v1 && is_writable(V1_MEMORY) && is_writable(V1_BLKIO) {
            return Plan::SlowDisk(Version::V1);
        }
        let controllers = fs::read_to_string(Path::new(V2).join("cgroup.controllers")).unwrap_or_default();
        let has_v2 = ["memory", "io"].iter().all(|name| controllers.split_whitespace().any(|one| one == *name));
        match (has_v1, has_v2) {
            (false, true) if is_writable(V2) => Plan::SlowDisk(Version::V2),
            (false, false) => Plan::BoundOnly("no hierarchy of cgroups here limits both memory and disks"),
            _ => Plan::BoundOnly("cgroups cannot be made here: they are mounted read-only"),
        }
    }

    /// The programs that are started.
    pub fn programs(&self) -> &'static [&'static str] {
        match self {
            Plan::SlowDisk(Version::V1) => &["qemu-img", "mkfs.xfs", "losetup"],
            Plan::SlowDisk(Version::V2) => &["qemu-img", "mkfs.xfs", "losetup", "cc"],
            Plan::BoundOnly(_) => &[],
        }
    }

    /// What will be changed on this machine, for people. `packages` are installed first.
    pub fn describe(&self, packages: &[&str]) -> String {
        let mut text = String::new();
        let mut line = |line: &str| {
            let _ = writeln!(text, "{line}");
        };
        let install = format!("  * install with apt-get: {}", packages.join(" "));
        match self {
            Plan::SlowDisk(version) => {
                line("The same `qemu-img convert`, plain and under Freeboard, in a memory cgroup of");
                line("200 MB on a disk that writes 31 MB/s. On this machine, as root, it will");
                line("");
                if !packages.is_empty() {
                    line(&install);
                }
                line("  * build Freeboard into the target directory");
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
                line("  * build Freeboard into the target directory");
                line("  * write 1.2 GB beside it, removed at the end or on Ctrl-C");
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
