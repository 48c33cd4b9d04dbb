//! A test's place on the machine, and its turn there. Everything a test makes (loop disks, mounts, cgroups) carries the
//! name of its lab, so one routine cleans up after a test that passed, one that panicked, and, before the next one
//! starts, a run that was killed.

use crate::sys;
use crate::turn::{Need, Turn};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What names of ours start with; the process id and a number follow.
const PREFIX: &str = "freeboard-tests-";
/// Set where a skipped kernel test is a failure.
const REQUIRE: &str = "FREEBOARD_REQUIRE_KERNEL_SUITE";
/// Rules of the root group reach buffered writes, which kernel workers issue from there.
const BLKIO_RULES: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device";
/// They reach what a process sends to the disk itself only where it is in that group too.
const BLKIO_PROCESSES: &str = "/sys/fs/cgroup/blkio/cgroup.procs";

/// One test's place: a directory in memory, and a turn.
#[derive(Debug)]
pub struct Lab {
    name: String,
    dir: PathBuf,
    _turn: Turn,
}

impl Lab {
    /// A lab for a test whose figures nobody else may disturb.
    ///
    /// `None`, said loudly, where this machine cannot run it; a panic if `FREEBOARD_REQUIRE_KERNEL_SUITE` is set.
    pub fn alone(test: &str) -> Option<Lab> {
        Lab::open(test, Need::Machine, no_root().or_else(no_slow_disk))
    }

    /// A lab for a test that mostly waits for its own disk.
    ///
    /// `None` as for [`Lab::alone`].
    pub fn shared(test: &str) -> Option<Lab> {
        Lab::open(test, Need::Disk, no_root().or_else(no_slow_disk))
    }

    /// A lab for a guest, whose disks are qemu's, and whose one processor qemu itself emulates; and for the tests inside
    /// it.
    ///
    /// `None` as for [`Lab::alone`].
    pub fn for_guest(test: &str) -> Option<Lab> {
        Lab::open(test, Need::Processor, no_root())
    }

    /// A lab for what needs no disk that is slow, or makes it slow by itself.
    ///
    /// `None` as for [`Lab::alone`].
    pub fn with_own_disks(test: &str) -> Option<Lab> {
        Lab::open(test, Need::Processor, no_root())
    }

    fn open(test: &str, need: Need, cannot_run: Option<&str>) -> Option<Lab> {
        if let Some(reason) = cannot_run {
            skip(test, reason);
            return None;
        }
        let turn = Turn::wait(need);
        sweep_dead();

        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = scratch().join(&name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
        let lab = Lab { name, dir, _turn: turn };
        // In memory, so that the real disk under the machine sets no time; that of the loop disks is set by their
        // rules.
        run("mount", &["-t", "tmpfs", "-o", "size=75%", &lab.name, &path_str(&lab.dir)]);
        Some(lab)
    }

    /// The lab's own directory, on tmpfs. All in it goes with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A name for something outside the directory (a cgroup), by which the clean-up finds it.
    pub fn name(&self, of: &str) -> String {
        format!("{}-{of}", self.name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove(&self.dir, &self.name);
    }
}

/// Runs a tool that must succeed and returns its stdout, trimmed.
///
/// # Panics
/// With the tool's stderr, where it is missing or fails.
pub fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {tool}: {error}; `cargo xtask deps` installs it"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {}: {}\n{stderr}", arguments.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A path as text; all of ours are.
pub fn path_str(path: &Path) -> String {
    path.to_str().unwrap_or_else(|| panic!("{} is not UTF-8", path.display())).to_owned()
}

/// Sets the write limit of a block device in bytes per second; 0 lifts it. It holds for this process and for what it
/// starts from now on.
pub fn throttle(device: &Path, bytes_per_second: u64) -> io::Result<()> {
    if bytes_per_second == 0 && !Path::new(BLKIO_RULES).exists() {
        return Ok(()); // without the controller there is no rule
    }
    let name = device.file_name().unwrap_or_default();
    let numbers = fs::read_to_string(Path::new("/sys/block").join(name).join("dev"))?;
    fs::write(BLKIO_PROCESSES, "0")?;
    fs::write(BLKIO_RULES, format!("{} {bytes_per_second}", numbers.trim()))
}

/// Unmounts, and for ten seconds tries again where something is still in there: a process that has ended can be on its
/// way out.
///
/// # Errors
/// What umount says in the end.
pub fn unmount(point: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let output = Command::new("umount").arg(point).output()?;
        if output.status.success() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Says that a test cannot run here, past the harness, which keeps back what a test that passed has printed.
///
/// # Panics
/// Where `FREEBOARD_REQUIRE_KERNEL_SUITE` is set.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os(REQUIRE).is_none(), "{test} cannot run: {reason}, and {REQUIRE} is set");
    let _ = writeln!(io::stderr(), "SKIPPED: {test}: {reason}");
}

fn no_root() -> Option<&'static str> {
    let root = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").expect("no /proc")) == 0;
    (!root).then_some("it needs root, for disks and memory cgroups")
}

fn no_slow_disk() -> Option<&'static str> {
    if !Path::new(BLKIO_RULES).exists() {
        Some("it needs the cgroup v1 blkio controller, to make a slow disk")
    } else if !Path::new("/dev/loop-control").exists() {
        Some("it needs loop devices")
    } else {
        None
    }
}

/// Not the machine's temporary directory itself where that is in memory: paths of disks must not depend on it.
fn scratch() -> PathBuf {
    std::env::temp_dir()
}

/// Removes what processes that are gone have left behind.
pub fn sweep_dead() {
    let dead = |name: &str| {
        let pid = name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok()?;
        let gone = sys::kill(pid, 0).is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH));
        gone.then_some(())
    };
    for entry in fs::read_dir(scratch()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if dead(&name).is_some() {
            remove(&entry.path(), &name);
        }
    }
}

/// Removes a lab: processes, cgroups, mounts, loop disks, directory. Says what it could not remove, and goes on.
fn remove(dir: &Path, name: &str) {
    let complain = |what: &str, error: io::Error| eprintln!("cannot remove {what} of {name}: {error}");
    let loops = loop_devices(dir);
    for device in &loops {
        // or else unmounting would wait for the slow disk
        throttle(device, 0).unwrap_or_else(|error| complain("the throttle", error));
    }
    for group in crate::cgroup::groups_named(&format!("{name}-")) {
        crate::cgroup::remove(&group).unwrap_or_else(|error| complain("a cgroup", error));
    }
    crate::written::remove(&format!("{name}-"));
    let umount = |point: &Path| unmount(point).unwrap_or_else(|error| complain("a mount", error));
    let mounts = mounts_under(dir);
    for point in mounts.iter().filter(|point| *point != dir) {
        umount(point);
    }
    for device in &loops {
        if let Err(error) = Command::new("losetup").arg("--detach").arg(device).status() {
            complain("a loop disk", error);
        }
    }
    if mounts.iter().any(|point| point == dir) {
        umount(dir);
    }
    fs::remove_dir(dir).unwrap_or_else(|error| complain("the directory", error));
}

/// Mount points at or below a directory, the last mounted first.
fn mounts_under(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
    points.retain(|point| point.starts_with(dir));
    points.reverse();
    points
}

/// Loop devices whose file lies below a directory.
fn loop_devices(dir: &Path) -> Vec<PathBuf> {
    let mut devices = Vec::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim()).starts_with(dir) {
            devices.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    devices
}
