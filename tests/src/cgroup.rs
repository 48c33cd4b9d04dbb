//! A memory cgroup (v1 or v2) with a limit. Runs programs in it, and says what the kernel counted meanwhile.

use crate::lab::Lab;
use crate::{MIB, sys};
use freeboard_budget::cgroup::{Version, number, stat};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two samples of memory.stat; with a busy machine it stays under 10 ms.
const SAMPLE_EVERY: Duration = Duration::from_millis(4);
/// A program that takes longer hangs: no case here should take half of it.
const TIMEOUT: Duration = Duration::from_secs(150);

/// What the kernel counted for a group, in bytes where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The kernel's own peak of usage.
    pub peak_usage_bytes: u64,
    /// Largest sampled page cache, shmem included.
    pub peak_cache_bytes: u64,
    /// Largest sampled dirty + writeback.
    pub peak_unwritten_bytes: u64,
    /// Largest sampled anonymous memory.
    pub peak_anon_bytes: u64,
    /// How often usage met the limit: memory.failcnt, or `max` of memory.events.
    pub limit_hits: u64,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// A group at one moment, in bytes where nothing else is said.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Since the group was made.
    pub at: Duration,
    /// Usage.
    pub usage_bytes: u64,
    /// Page cache, shmem included.
    pub cache_bytes: u64,
    /// Dirty + writeback.
    pub unwritten_bytes: u64,
    /// Anonymous memory.
    pub anon_bytes: u64,
    /// How often usage has met the limit.
    pub limit_hits: u64,
}

/// What became of a program.
#[derive(Debug)]
pub struct Run {
    /// How it ended.
    pub status: ExitStatus,
    /// From its start to its end.
    pub wall: Duration,
    /// What it wrote to stdout and stderr.
    pub output: String,
    /// What the kernel counted for its group until then.
    pub figures: Figures,
    /// Its group until then, every few milliseconds.
    pub samples: Vec<Sample>,
}

/// A memory cgroup of its own.
#[derive(Debug)]
pub struct Group<'lab> {
    lab: &'lab Lab,
    files: Files,
    sampler: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
}

/// The files of a group.
#[derive(Clone, Debug)]
struct Files {
    dir: PathBuf,
    version: Version,
}

impl<'lab> Group<'lab> {
    /// Makes a group with a limit.
    pub fn new(lab: &'lab Lab, limit_bytes: u64) -> Group<'lab> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (version, root) = hierarchy();
        let dir = root.join(lab.name(&NEXT.fetch_add(1, Ordering::Relaxed).to_string()));
        let made =
            fs::create_dir(&dir).and_then(|()| fs::write(dir.join(version.limit_file()), limit_bytes.to_string()));
        made.unwrap_or_else(|error| panic!("cannot make the memory cgroup {}: {error}", dir.display()));

        let files = Files { dir, version };
        let (stop, samples) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let sampler = std::thread::spawn({
            let (files, stop, samples) = (files.clone(), stop.clone(), samples.clone());
            let start = Instant::now();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // a group that is being removed has no more to say
                    let sample = files.sample(start.elapsed());
                    samples.lock().unwrap_or_else(PoisonError::into_inner).extend(sample);
                    std::thread::sleep(SAMPLE_EVERY);
                }
            }
        });
        Group { lab, files, sampler: Some(sampler), stop, samples }
    }

    /// Changes the limit.
    pub fn set_limit(&self, limit_bytes: u64) {
        let file = self.dir().join(self.files.version.limit_file());
        fs::write(&file, limit_bytes.to_string())
            .unwrap_or_else(|error| panic!("cannot set {}: {error}", file.display()));
    }

    /// Starts a program in the group; what it prints is kept. A command belongs to its group and starts once.
    pub fn spawn(&self, command: &mut Command) -> Member<'_> {
        self.spawn_with_input(command, Stdio::null())
    }

    /// The same, with something to read.
    pub fn spawn_with_input(&self, command: &mut Command, input: impl Into<Stdio>) -> Member<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let log = self.lab.dir().join(format!("output-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let out = File::create(&log).expect("cannot make the program's log");
        let procs =
            File::options().write(true).open(self.dir().join("cgroup.procs")).expect("cannot open cgroup.procs");
        command.stdin(input).stdout(out.try_clone().expect("cannot dup")).stderr(out);
        sys::enter_group_on_exec(command, procs);
        let start = Instant::now();
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start {}: {error}; `cargo xtask deps` installs it", command.get_program().display())
        });
        Member { group: self, child, start, log }
    }

    /// Runs a program in the group to its end.
    pub fn run(&self, command: &mut Command) -> Run {
        self.spawn(command).wait()
    }

    /// What the kernel counted so far.
    pub fn figures(&self) -> Figures {
        let last = self.files.sample(Duration::MAX);
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let peak = |bytes: fn(&Sample) -> u64| samples.iter().chain(&last).map(bytes).max().unwrap_or(0);
        let said = |number: Option<u64>| number.unwrap_or_else(|| panic!("{} is gone", self.dir().display()));
        let (peak_usage_file, kills_file) = match self.files.version {
            Version::V1 => ("memory.max_usage_in_bytes", "memory.oom_control"),
            Version::V2 => ("memory.peak", "memory.events"),
        };
        Figures {
            peak_usage_bytes: said(self.files.number(peak_usage_file)),
            peak_cache_bytes: peak(|sample| sample.cache_bytes),
            peak_unwritten_bytes: peak(|sample| sample.unwritten_bytes),
            peak_anon_bytes: peak(|sample| sample.anon_bytes),
            limit_hits: said(self.files.limit_hits()),
            oom_kills: said(self.files.keyed(kills_file, "oom_kill")),
        }
    }

    fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The group's directory.
    pub fn dir(&self) -> &Path {
        &self.files.dir
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
        if let Err(error) = remove(self.dir()) {
            eprintln!("cannot remove {}: {error}", self.dir().display());
        }
    }
}

/// A program that runs in a group.
#[derive(Debug)]
pub struct Member<'group> {
    group: &'group Group<'group>,
    child: Child,
    start: Instant,
    log: PathBuf,
}

impl Member<'_> {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.start.elapsed()
    }

    /// Has it ended?
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().expect("cannot wait for the program").is_some()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Where it hangs; its group is killed with it.
    pub fn wait(mut self) -> Run {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("cannot wait for the program") {
                break status;
            }
            if self.start.elapsed() > TIMEOUT {
                kill_all(&self.group.files.dir);
                panic!("hangs since {TIMEOUT:?}; it printed:\n{}", self.output());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let (wall, figures, samples) = (self.start.elapsed(), self.group.figures(), self.group.samples());
        Run { status, wall, output: self.output(), figures, samples }
    }

    /// Kills it and everything else in its group.
    pub fn kill(mut self) {
        kill_all(&self.group.files.dir);
        self.child.wait().expect("cannot wait for the program");
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Run {
    /// # Panics
    /// With the program's output, unless it ended with 0 and nothing was killed.
    pub fn assert_ok(&self, what: &str) {
        assert_eq!(self.figures.oom_kills, 0, "{what}: the kernel killed for want of memory\n{}", self.output);
        assert!(self.status.success(), "{what}: {}\n{}", self.status, self.output);
    }

    /// # Panics
    /// Unless [`Run::assert_ok`] holds and usage never met the limit.
    pub fn assert_never_at_the_limit(&self, what: &str) {
        self.assert_ok(what);
        if self.figures.limit_hits > 0 {
            self.tell_how_the_limit_was_met(what);
        }
        assert_eq!(self.figures.limit_hits, 0, "{what}: limit hits\n{}", self.output);
    }

    /// Prints the group from a second before usage first met the limit to a second after.
    fn tell_how_the_limit_was_met(&self, what: &str) {
        const AROUND: Duration = Duration::from_secs(1);
        let Some(first) = self.samples.iter().find(|sample| sample.limit_hits > 0) else { return };
        println!("{what}: at (s), usage, cache, unwritten (MiB), limit hits");
        let mut told = Duration::ZERO;
        for sample in self.samples.iter().filter(|sample| sample.at.abs_diff(first.at) < AROUND) {
            if sample.at.saturating_sub(told) > AROUND / 50 {
                told = sample.at;
                let [usage, cache, unwritten] =
                    [sample.usage_bytes, sample.cache_bytes, sample.unwritten_bytes].map(|bytes| bytes / MIB);
                println!("{:8.3} {usage:5} {cache:5} {unwritten:5} {:6}", sample.at.as_secs_f64(), sample.limit_hits);
            }
        }
    }

    /// # Panics
    /// Unless the kernel killed for want of memory.
    pub fn assert_oom_killed(&self, what: &str) {
        assert!(self.figures.oom_kills > 0, "{what}: was not killed: {}", self.status);
    }

    /// # Panics
    /// Where it took longer than `factor` times the other run.
    pub fn assert_wall_within(&self, factor: f64, other: &Run, what: &str) {
        let ratio = self.wall.as_secs_f64() / other.wall.as_secs_f64();
        assert!(
            ratio <= factor,
            "{what}: {:.2} s is {ratio:.3} x {:.2} s, more than {factor} x",
            self.wall.as_secs_f64(),
            other.wall.as_secs_f64()
        );
    }

    /// # Panics
    /// Where the kernel's peak of usage is over `bytes`.
    pub fn assert_peak_usage_within(&self, bytes: u64, what: &str) {
        let peak = self.figures.peak_usage_bytes;
        assert!(peak <= bytes, "{what}: peak usage {} MiB is over {} MiB", peak / MIB, bytes / MIB);
    }
}

/// Runs a program in a fresh group with a limit.
pub fn measure(lab: &Lab, limit_bytes: u64, command: &mut Command) -> Run {
    Group::new(lab, limit_bytes).run(command)
}

/// Directories of groups whose name starts so.
pub fn groups_named(prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(hierarchy().1).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path()).collect()
}

/// Kills what is in a group and removes it.
///
/// # Errors
/// Where it is still busy after ten seconds.
pub fn remove(dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        kill_all(dir);
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            done => return done,
        }
    }
}

fn kill_all(dir: &Path) {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|line| line.parse().ok()) {
        // one that has ended meanwhile is what we want
        let _ = sys::kill(pid, libc::SIGKILL);
    }
}

fn hierarchy() -> (Version, PathBuf) {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join(Version::V1.usage_file()).exists() {
        return (Version::V1, v1.to_owned());
    }
    let v2 = PathBuf::from("/sys/fs/cgroup");
    // the root's children have a memory controller only where the root hands it on; already on is no error
    if let Err(error) = fs::write(v2.join("cgroup.subtree_control"), "+memory") {
        panic!("cannot hand the memory controller on from {}: {error}", v2.display());
    }
    (Version::V2, v2)
}

impl Files {
    fn text(&self, file: &str) -> Option<Vec<u8>> {
        fs::read(self.dir.join(file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        number(self.text(file)?.trim_ascii())
    }

    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        let text = String::from_utf8(self.text(file)?).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
    }

    fn limit_hits(&self) -> Option<u64> {
        match self.version {
            Version::V1 => self.number("memory.failcnt"),
            Version::V2 => self.keyed("memory.events", "max"),
        }
    }

    fn sample(&self, at: Duration) -> Option<Sample> {
        let stat = stat(&self.text("memory.stat")?);
        Some(Sample {
            at,
            usage_bytes: self.number(self.version.usage_file())?,
            cache_bytes: stat.file.unwrap_or(0),
            unwritten_bytes: stat.unwritten().unwrap_or(0),
            anon_bytes: stat.anon.unwrap_or(0),
            limit_hits: self.limit_hits()?,
        })
    }
}
