//! Podman with storage and namespaces of its own. It has no daemon: one process keeps the namespaces, and all that runs
//! in them goes with it, when this is dropped or with the test's process.

use crate::docker::{PATH, remove_groups};
use crate::lab::{Lab, path_str};
use anyhow::{Context, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Debian packages that the host needs.
pub const APT_PACKAGES: &[&str] = &["catatonit", "podman", "runc", "util-linux"];

/// Debian's crun does not know cgroup v1, and a machine without CAP_SYS_RESOURCE cannot raise limits.
const SETTINGS: &str = "[containers]
default_ulimits = [\"nofile=1024:1024\", \"nproc=30000:30000\"]
[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"file\"
runtime = \"runc\"
";
/// The control group that Podman makes for all pods.
const GROUP: &str = "libpod_parent";

/// An empty Podman.
#[derive(Debug)]
pub struct Podman {
    keeper: Child,
    dir: PathBuf,
}

impl Podman {
    /// Makes the namespaces.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn start(lab: &Lab) -> anyhow::Result<Podman> {
        let dir = lab.dir().join("podman");
        fs::create_dir(&dir)?;
        fs::write(dir.join("settings"), SETTINGS)?;
        let mut keeper = Command::new("setpriv");
        keeper.env("PATH", PATH).args(["--pdeathsig=KILL", "unshare", "--fork", "--kill-child", "--pid"]);
        // its locks lie in /dev/shm; and without blkio in sight containers stay in its root group, where a slow disk's
        // rule is
        let keep = "mount -t tmpfs locks /dev/shm && umount /sys/fs/cgroup/blkio && echo up && exec sleep infinity";
        keeper.args(["--mount", "--mount-proc", "sh", "-c", keep]);
        let keeper = keeper.stdout(fs::File::create(dir.join("said"))?).spawn().context("cannot start unshare")?;
        let podman = Podman { keeper, dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read(podman.dir.join("said"))?.is_empty() {
            ensure!(Instant::now() < deadline, "there are no namespaces to be had");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(podman)
    }

    /// A program, in there.
    fn inside(&self, program: &str) -> Command {
        let of_keeper = PathBuf::from(format!("/proc/{}/ns", self.keeper.id()));
        let mut inside = Command::new("nsenter");
        inside.env("PATH", PATH).env("CONTAINERS_CONF", self.dir.join("settings")).stdin(Stdio::null());
        inside.arg(format!("--mount={}", path_str(&of_keeper.join("mnt"))));
        inside.arg(format!("--pid={}", path_str(&of_keeper.join("pid_for_children")))).arg(program);
        inside
    }

    /// `podman`, in there.
    pub fn podman(&self) -> Command {
        let (mut podman, dir) = (self.inside("podman"), path_str(&self.dir));
        podman.args(["--root", &format!("{dir}/root"), "--runroot", &format!("{dir}/run"), "--tmpdir"]);
        podman.arg(format!("{dir}/tmp"));
        podman
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // it makes directories in blkio's place, where nobody else sees them
        let _ = self.inside("rm").args(["-rf", &format!("/sys/fs/cgroup/blkio/{GROUP}")]).status();
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let groups = hierarchies.map(|hierarchy| hierarchy.path().join(GROUP)).filter(|group| group.exists());
        for group in groups {
            remove(&group);
        }
    }
}

/// What was killed may still be on its way out.
fn remove(group: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = remove_groups(group) {
        if Instant::now() > deadline {
            eprintln!("cannot remove the control group {}: {error}", group.display());
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
