//! The release build of what is tested: programs under `freeboard run` or with a sidecar, and the latency of their
//! writes.

use crate::lab::Lab;
use crate::sys;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The directory that cargo builds into; test programs lie in its `debug/deps` or `release/deps`.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("no /proc/self/exe");
    exe.ancestors().nth(3).expect("a test program lies in target/*/deps").to_owned()
}

/// Where the release build lies: `FREEBOARD_BIN_DIR`, or `release` beside the tests' own build.
pub fn bin_dir() -> PathBuf {
    std::env::var_os("FREEBOARD_BIN_DIR").map_or_else(|| target_dir().join("release"), PathBuf::from)
}

/// The program `freeboard`.
pub fn program() -> PathBuf {
    built("freeboard")
}

/// The library.
pub fn library() -> PathBuf {
    built("libfreeboard.so")
}

/// The same command under `freeboard run`, with a workload file where one is given.
pub fn under(command: &Command, workload: Option<&Path>) -> Command {
    under_with(command, workload, None)
}

/// The same with a workload file and, when it has ended, a report ([`reported`]).
pub fn reporting(command: &Command, workload: &Path, report: &Path) -> Command {
    under_with(command, Some(workload), Some(report))
}

/// The same without a workload file.
pub fn counting(command: &Command, report: &Path) -> Command {
    under_with(command, None, Some(report))
}

fn under_with(command: &Command, workload: Option<&Path>, report: Option<&Path>) -> Command {
    let mut under = Command::new(program());
    under.args(["run", "--quiet"]);
    for (flag, file) in [("--config", workload), ("--report", report)] {
        if let Some(file) = file {
            under.arg(flag).arg(file);
        }
    }
    under.arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => under.env(name, value),
            None => under.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        under.current_dir(dir);
    }
    under
}

/// A number in a report.
pub fn reported(report: &Path, name: &str) -> f64 {
    let text = fs::read_to_string(report).unwrap_or_else(|error| panic!("no report {}: {error}", report.display()));
    number(&text, name).unwrap_or_else(|| panic!("no number {name} in the report:\n{text}"))
}

/// The same, where there is a report that has it.
pub fn reported_if_there(report: &Path, name: &str) -> Option<f64> {
    number(&fs::read_to_string(report).ok()?, name)
}

fn number(report: &str, name: &str) -> Option<f64> {
    let value = |line: &str| line.trim().strip_prefix(&format!("\"{name}\": "))?.trim_end_matches(',').parse().ok();
    report.lines().find_map(value)
}

/// A sidecar of its own, outside of any group of ours. Ends with this value.
#[derive(Debug)]
pub struct Sidecar {
    child: Child,
    region: PathBuf,
    socket: PathBuf,
}

impl Sidecar {
    /// Starts one and waits until it listens. Another one of the same lab takes over its place.
    pub fn start(lab: &Lab) -> Sidecar {
        Sidecar::start_with(lab, None)
    }

    /// The same with a workload file.
    pub fn start_with(lab: &Lab, workload: Option<&Path>) -> Sidecar {
        Sidecar::start_in(lab.dir().join("region"), lab, workload)
    }

    /// The same with a directory for the region.
    pub fn start_in(region: PathBuf, lab: &Lab, workload: Option<&Path>) -> Sidecar {
        let socket = lab.dir().join("socket");
        fs::create_dir_all(&region).expect("cannot make the region's directory");
        // what a sidecar that was killed has left behind must not pass for the new one's
        let _ = fs::remove_file(&socket);
        let mut command = Command::new(program());
        command.arg("sidecar").arg("--region").arg(&region).arg("--socket").arg(&socket);
        if let Some(workload) = workload {
            command.arg("--config").arg(workload);
        }
        let child = command.stdin(Stdio::null()).spawn().expect("cannot start the sidecar");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "the sidecar does not listen on {}", socket.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        Sidecar { child, region, socket }
    }

    /// Makes the command a client: it finds the library and the sidecar in its environment.
    pub fn serves(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", library())
            .env("FREEBOARD_REGION", &self.region)
            .env("FREEBOARD_SOCKET", &self.socket);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) {
        self.child.kill().expect("cannot kill the sidecar");
        self.child.wait().expect("cannot wait for the sidecar");
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = sys::kill(self.child.id(), libc::SIGTERM);
        let _ = self.child.wait();
    }
}

/// How long each write call of a program took, as the program saw it.
#[derive(Debug)]
pub struct Latencies {
    /// (When the call returned, since 1970; how long it took), in the order of their return.
    calls: Vec<(Duration, Duration)>,
}

/// The same command with the latency probe in front of the library; works under `freeboard run` and with a sidecar.
pub fn probed(command: &Command, log: &Path) -> Command {
    let mut probed = Command::new("env");
    probed.arg(format!("LD_PRELOAD={}:{}", built("liblatency_probe.so").display(), library().display()));
    probed.arg(format!("LATENCY_PROBE_FILE={}", log.display()));
    probed.arg(command.get_program()).args(command.get_args());
    probed
}

impl Latencies {
    /// Reads what the probe wrote.
    pub fn read(log: &Path) -> Latencies {
        let text = fs::read_to_string(log).unwrap_or_else(|error| panic!("the probe left no log: {error}"));
        let microseconds = |word: Option<&str>| {
            Duration::from_micros(word.and_then(|word| word.parse().ok()).expect("a line of the probe's log is broken"))
        };
        let call = |line: &str| {
            let mut words = line.split(' ');
            (microseconds(words.next()), microseconds(words.next()))
        };
        let calls: Vec<_> = text.lines().map(call).collect();
        assert!(!calls.is_empty(), "the probe saw no write call");
        Latencies { calls }
    }

    /// Number of calls.
    pub fn count(&self) -> usize {
        self.calls.len()
    }

    /// The call than which `per_mille` of a thousand are no longer.
    pub fn per_mille(&self, per_mille: usize) -> Duration {
        let mut took: Vec<_> = self.calls.iter().map(|&(_, took)| took).collect();
        took.sort_unstable();
        took[(took.len() * per_mille / 1000).min(took.len() - 1)]
    }

    /// The longest call.
    pub fn longest(&self) -> Duration {
        self.per_mille(1000)
    }

    /// The longest call that returned within `span` after `moment`.
    pub fn longest_within(&self, moment: SystemTime, span: Duration) -> Duration {
        let start = moment.duration_since(UNIX_EPOCH).expect("the clock stands before 1970");
        let within = |&&(returned, _): &&(Duration, Duration)| returned >= start && returned <= start + span;
        let took = self.calls.iter().filter(within).map(|&(_, took)| took).max();
        took.unwrap_or_else(|| panic!("no write call returned within {span:?} after that moment"))
    }
}

/// Writes a workload file and returns its path.
pub fn workload(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("workload.toml");
    fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    path
}

fn built(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(path.exists(), "{} is missing: build it with `cargo build --release --workspace`", path.display());
    path
}
