//! The sidecar's sweep of a volume that it mounts too, read-only: for programs without the library. The kernel's own
//! counts of the container, and of what was read from the disk.

use freeboard_budget::cgroup::{number, stat};
use freeboard_tests::cgroup::Group;
use freeboard_tests::freeboard::{self, Sidecar};
use freeboard_tests::lab::{Lab, path_str, run};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MIB, programs, truth};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A container whose own memory takes 76 % of its limit.
const LIMIT: u64 = 3000 * MIB;
const OWN_MIB: u64 = 2281;
const ALERT: u64 = LIMIT / 100 * 80;
const DISK: u64 = 200 * MIB;
/// Most that may be read from the disk of what a program reads.
const AMPLIFICATION: f64 = 0.05;
/// A sample does not count where the sweep waited longer for a processor within the second before, and this is the
/// largest part of all samples that may not count.
const STARVED: Duration = Duration::from_millis(300);
const MOST_STARVED: f64 = 0.05;
/// Longest append, but for one in a thousand; where plain ones take long on this machine, twice as long as those.
const APPEND_US: f64 = 50_000.0;

/// A disk with a directory that containers share, and where the sidecar sees it.
struct Volume<'lab> {
    disk: SlowDisk<'lab>,
    dir: PathBuf,
    seen: PathBuf,
}

impl<'lab> Volume<'lab> {
    fn new(lab: &'lab Lab, filesystem: Filesystem) -> Volume<'lab> {
        let disk = SlowDisk::new(lab, filesystem, DISK);
        let (dir, seen) = (disk.dir().join("volume"), lab.dir().join("seen"));
        for dir in [&dir, &seen] {
            fs::create_dir(dir).expect("cannot make a directory");
        }
        run("mount", &["--bind", &path_str(&dir), &path_str(&seen)]);
        run("mount", &["-o", "remount,bind,ro", &path_str(&seen)]);
        Volume { disk, dir, seen }
    }

    fn sidecar(&self, lab: &Lab) -> Sidecar {
        self.sidecar_with(lab, "")
    }

    /// The same with a line of a rule for all that it sees.
    fn sidecar_with(&self, lab: &Lab, rule: &str) -> Sidecar {
        let all = path_str(&self.seen.join("**"));
        let rule = if rule.is_empty() { String::new() } else { format!("[[rule]]\npath = {all:?}\n{rule}\n") };
        let workload = format!("{rule}[sweep]\npaths = [{all:?}]\n");
        Sidecar::start_with(lab, Some(&freeboard::workload(lab.dir(), &workload)))
    }
}

/// What a group's working set is, as Kubernetes computes it: usage without inactive file pages.
struct WorkingSet {
    stop: Arc<AtomicBool>,
    sampler: JoinHandle<Vec<Sample>>,
}

struct Sample {
    at: Instant,
    working_set: u64,
    anonymous: u64,
    unwritten: u64,
    /// How long the sidecar's thread that sweeps has waited for a processor.
    starved: Duration,
}

impl Sample {
    fn of(group: &Path, starved: Duration) -> Sample {
        let read = |file: &str| fs::read(group.join(file)).expect("cannot read the group's files");
        let usage = number(read("memory.usage_in_bytes").trim_ascii()).expect("usage is no number");
        let stat = stat(&read("memory.stat"));
        let inactive = stat.inactive_file.expect("memory.stat has no total_inactive_file");
        Sample {
            at: Instant::now(),
            working_set: usage.saturating_sub(inactive),
            anonymous: stat.anon.unwrap_or(0),
            unwritten: stat.unwritten().unwrap_or(0),
            starved,
        }
    }
}

impl WorkingSet {
    fn watch(group: &Group, sidecar: Option<&Sidecar>) -> WorkingSet {
        let (stop, dir) = (Arc::new(AtomicBool::new(false)), group.dir().to_owned());
        let is_ending = stop.clone();
        let sweeper = sidecar.map(|sidecar| sweeper(sidecar).expect("the sidecar has no thread named sweep"));
        let sampler = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while !is_ending.load(Ordering::Relaxed) {
                let starved = sweeper.as_deref().map_or(Duration::ZERO, starved);
                samples.push(Sample::of(&dir, starved));
                std::thread::sleep(Duration::from_millis(10));
            }
            samples
        });
        WorkingSet { stop, sampler }
    }

    /// The most of all samples, but for those that the machine is to blame for.
    ///
    /// # Panics
    /// Where these are more than [`MOST_STARVED`].
    fn most(self, what: &str) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut samples = self.sampler.join().expect("the sampler ended early");
        // a wait is counted when it ends: it began as long before
        for later in (1..samples.len()).rev() {
            let since = samples[later].at - samples[later - 1].at;
            let starved = samples[later].starved.saturating_sub(since);
            samples[later - 1].starved = samples[later - 1].starved.max(starved);
        }
        let mut first = 0;
        let (mut left_out, mut most) = (0, &samples[0]);
        for sample in &samples {
            while sample.at - samples[first].at > Duration::from_secs(1) {
                first += 1;
            }
            if sample.starved - samples[first].starved > STARVED {
                left_out += 1;
            } else if sample.working_set > most.working_set {
                most = sample;
            }
        }
        println!(
            "{what}: {left_out} of {} samples left out; most after {:.1} s, {} MiB, with {} MiB anonymous and {} MiB unwritten",
            samples.len(),
            (most.at - samples[0].at).as_secs_f64(),
            most.working_set / MIB,
            most.anonymous / MIB,
            most.unwritten / MIB,
        );
        let share = left_out as f64 / samples.len() as f64;
        assert!(share <= MOST_STARVED, "{what}: the machine kept the sweep waiting at {left_out} of {}", samples.len());
        most.working_set
    }
}

/// How often the sidecar's thread that sweeps has paused, as it does after each pass.
fn passes(sidecar: &Sidecar) -> u64 {
    let Some(schedstat) = sweeper(sidecar) else { return 0 };
    let status = fs::read_to_string(schedstat.with_file_name("status")).expect("the sidecar's sweep is gone");
    let pauses = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok());
    pauses.expect("status has no voluntary_ctxt_switches")
}

/// Where the kernel says how long the sidecar's thread that sweeps has run and waited, once there is one.
fn sweeper(sidecar: &Sidecar) -> Option<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{}/task", sidecar.pid())).expect("the sidecar is gone");
    let is_sweeper =
        |thread: &PathBuf| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "sweep");
    let thread = threads.flatten().map(|entry| entry.path()).find(is_sweeper);
    Some(thread?.join("schedstat"))
}

fn starved(schedstat: &Path) -> Duration {
    let text = fs::read_to_string(schedstat).expect("the sidecar's sweep is gone");
    Duration::from_nanos(text.split(' ').nth(1).and_then(|ns| ns.parse().ok()).expect("schedstat has no second number"))
}

fn anonymous(group: &Group) -> u64 {
    stat(&fs::read(group.dir().join("memory.stat")).expect("cannot read memory.stat")).anon.expect("no rss")
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a sidecar looks at a group: it has its files open.
fn is_watched(sidecar: &Sidecar, group: &Group) -> bool {
    let fds = fs::read_dir(format!("/proc/{}/fd", sidecar.pid())).expect("the sidecar is gone");
    fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path.starts_with(group.dir())))
}

/// A number or a word that a program printed.
fn printed<'a>(output: &'a str, key: &str) -> &'a str {
    let value = output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {key} in {output}"))
}

fn count(output: &str, key: &str) -> f64 {
    printed(output, key).parse().unwrap_or_else(|_| panic!("{key} is no number in {output}"))
}

fn python() -> Command {
    Command::new(run("python3", &["-c", "import sys; print(sys.executable)"]))
}

/// What one run of a service came to.
struct Service {
    working_set: u64,
    output: String,
}

/// Runs a service in a container, with a sidecar that sweeps a volume, or plainly: once it holds its memory, and the
/// sidecar has found it, it may go.
fn serve(lab: &Lab, swept: Option<&Volume>, go: &Path, command: &mut Command, what: &str) -> Service {
    let _ = fs::remove_file(go);
    let group = Group::new(lab, LIMIT);
    let member = group.spawn(command);
    eventually("the service holds its memory", || anonymous(&group) > (OWN_MIB - 60) * MIB);
    let sidecar = swept.map(|volume| volume.sidecar(lab));
    if let Some(sidecar) = &sidecar {
        eventually("the sidecar has found the container", || is_watched(sidecar, &group));
    }
    let working_set = WorkingSet::watch(&group, sidecar.as_ref());
    fs::write(go, "").expect("cannot write");
    let run = member.wait();
    let working_set = working_set.most(what);
    println!(
        "{what}: {:.1} s, own memory {} MiB, working set at most {} MiB ({:.1} % of the limit), peak usage {} MiB, {} limit hits",
        run.wall.as_secs_f64(),
        run.figures.peak_anon_bytes / MIB,
        working_set / MIB,
        100.0 * working_set as f64 / LIMIT as f64,
        run.figures.peak_usage_bytes / MIB,
        run.figures.limit_hits,
    );
    println!("{what}: {}", run.output.trim().replace('\n', ", "));
    run.assert_never_at_the_limit(what);
    Service { working_set, output: run.output }
}

/// # Panics
/// Unless appends were as fast as they should be.
fn assert_appends_wait_for_nobody(what: &str, swept: &Service, plain: &Service) {
    let [swept, plain] = [swept, plain].map(|service| count(&service.output, "p999_us"));
    assert!(swept <= APPEND_US.max(2.0 * plain), "{what}: {swept} us, plain {plain} us");
}

#[test]
fn a_jvm_that_logs_while_collectors_read() {
    let test = "a JVM's log";
    let Some(lab) = Lab::alone(test) else { return };
    let classes = path_str(&programs::java_classes(&lab, "Log"));
    let volume = Volume::new(&lab, Filesystem::Ext4);
    let go = lab.dir().join("go");
    let log_for = |swept: Option<&Volume>, mib: u64, what: &str| {
        let log = volume.dir.join(format!("{mib}.log"));
        fs::write(&log, "").expect("cannot make the log");
        let java = format!(
            "java -Xms2256m -Xmx2256m -XX:+AlwaysPreTouch -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp {classes} Log {} {} {mib} 80",
            path_str(&log),
            path_str(&go)
        );
        // what two have read the kernel takes for worth keeping, and it counts as working set
        let collectors = [None, Some(400 * MIB)].map(|pause_after: Option<u64>| {
            let mut collector = python();
            collector.arg(programs::programs_dir().join("collect.py")).arg(&log);
            collector.args(pause_after.map(|bytes| bytes.to_string()));
            collector.stdout(Stdio::piped()).spawn().expect("cannot start a collector")
        });
        let service = serve(&lab, swept, &go, Command::new("sh").args(["-c", &java]), what);
        let sum = run("sha256sum", &[&path_str(&log)]);
        let from_disk = collectors.map(|collector| {
            let output = collector.wait_with_output().expect("cannot wait for a collector");
            let collected = String::from_utf8_lossy(&output.stdout).into_owned();
            println!("{what}, collector: {}", collected.trim().replace('\n', ", "));
            assert_eq!(count(&collected, "received"), fs::metadata(&log).expect("no log").len() as f64);
            assert!(sum.starts_with(printed(&collected, "sha256")), "{what}: it received something else");
            count(&collected, "read_bytes") / count(&collected, "received")
        });
        fs::remove_file(&log).expect("cannot remove the log");
        (service, from_disk)
    };
    let (plain, _) = log_for(None, 320, "plain");
    let (swept, from_disk) = log_for(Some(&volume), 1024, "swept");
    assert!(plain.working_set > ALERT, "the plain one stayed under 80 %: this shows nothing");
    assert!(swept.working_set < ALERT, "{} MiB", swept.working_set / MIB);
    let from_disk = from_disk[0].max(from_disk[1]);
    assert!(from_disk <= AMPLIFICATION, "{:.1} % of what a collector read came from the disk", from_disk * 100.0);
    assert_appends_wait_for_nobody(test, &swept, &plain);
}

#[test]
fn a_static_go_service_with_heavy_file_io() {
    let test = "a static Go service";
    let Some(lab) = Lab::alone(test) else { return };
    let program = path_str(&programs::go_program(&lab, "images"));
    let volume = Volume::new(&lab, Filesystem::Xfs);
    let go = lab.dir().join("go");
    let take_in = |swept: Option<&Volume>, files: u64, what: &str| {
        let mut command = Command::new(&program);
        command.arg(&volume.dir).arg(&go);
        command.args([OWN_MIB, files, 30].map(|number| number.to_string()));
        serve(&lab, swept, &go, &mut command, what)
    };
    let plain = take_in(None, 200, "plain");
    let files = 300;
    let swept = take_in(Some(&volume), files, "swept");
    // what arrived, from the disk where it was dropped
    let sums = format!(
        "cd {}; for n in $(seq -f %05g 0 {}); do cat $n.original $n.result; done | sha256sum",
        path_str(&volume.dir),
        files - 1
    );
    assert!(run("sh", &["-c", &sums]).starts_with(printed(&swept.output, "sha256")), "the files hold something else");
    assert!(plain.working_set > ALERT, "the plain one stayed under 80 %: this shows nothing");
    assert!(swept.working_set < ALERT, "{} MiB", swept.working_set / MIB);
    let from_disk = count(&swept.output, "read_bytes") / (files * 2 * MIB) as f64;
    assert!(from_disk <= AMPLIFICATION, "{:.1} % of what it read came from the disk", from_disk * 100.0);
    assert_appends_wait_for_nobody(test, &swept, &plain);
}

/// A container over its target all the time.
#[test]
fn what_is_hot_leased_or_elsewhere_is_left_alone() {
    let test = "hot, leased and elsewhere";
    let Some(lab) = Lab::alone(test) else { return };
    let volume = Volume::new(&lab, Filesystem::Xfs);
    let outside = volume.disk.dir().join("outside");
    let [ready, go] = ["ready", "go"].map(|name| lab.dir().join(name));
    let group = Group::new(&lab, 240 * MIB);
    let mut program = python();
    program.arg(programs::programs_dir().join("volume.py")).args([&volume.dir, &outside, &ready, &go]);
    // so many times that the few reads that find it dropped are few of all, however slow the machine is
    let member = group.spawn(program.args(["180", "7", "280"]));
    eventually("the program has its files", || ready.exists());
    let sidecar = volume.sidecar(&lab);
    eventually("the sidecar has found the container", || is_watched(&sidecar, &group));
    fs::write(&go, "").expect("cannot write");
    let idle = volume.dir.join("idle");
    eventually("what nobody needs is given back", || {
        fs::metadata(&idle).is_ok_and(|file| file.len() == 24 * MIB) && truth::cached(&idle).bytes == 0
    });
    let ended = member.wait();
    println!("{test}: {}", ended.output.trim().replace('\n', ", "));
    ended.assert_ok(test);
    let (read, from_disk) = (count(&ended.output, "received"), count(&ended.output, "read_bytes"));
    assert!(from_disk > 0.0, "what is hot was never dropped: this shows nothing");
    assert!(from_disk <= AMPLIFICATION * read, "{from_disk} of {read} bytes came from the disk");
    assert_eq!(count(&ended.output, "pipe_readers"), 0.0, "a pipe was opened");
    assert_eq!(count(&ended.output, "lease"), f64::from(libc::F_WRLCK), "a lease was broken");
    // the machine may take some of it by itself
    assert!(truth::cached(&outside).bytes >= 2 * MIB, "what a link leads to was dropped");
    drop(sidecar);
}

/// Reads a file again and again while somebody can tell it to stop, and says how much it read, and how much of that came
/// from the disk.
fn read_in_a_loop(path: &Path, stop: &Receiver<()>) -> (u64, u64) {
    let from_disk = || {
        let io = fs::read_to_string("/proc/thread-self/io").expect("no /proc/thread-self/io");
        count(&io.replace(": ", "="), "read_bytes") as u64
    };
    let (mut buffer, before) = (vec![0; MIB as usize], from_disk());
    let (mut rounds, mut received) = (0, 0);
    // so many that the few that find it dropped are few of all, however slow the machine is
    while rounds < 200 || stop.recv_timeout(Duration::from_millis(20)) == Err(RecvTimeoutError::Timeout) {
        rounds += 1;
        let mut file = File::open(path).expect("cannot open");
        loop {
            let read = file.read(&mut buffer).expect("cannot read") as u64;
            received += read;
            if read == 0 {
                break;
            }
        }
    }
    (received, from_disk() - before)
}

/// In a group where usage is far from its target.
#[test]
fn what_a_rule_says_is_read_once_goes_although_there_is_room() {
    const BYTES: u64 = 300 * MIB;
    const THERE: u64 = 16 * MIB;
    /// 16 MiB behind the reader, a piece of the file that he is in, and what the kernel reads ahead.
    const BEHIND: u64 = 64 * MIB;
    const CACHED_MOST: u64 = BEHIND + 32 * MIB;
    let test = "read once, with room";
    let Some(lab) = Lab::shared(test) else { return };
    let volume = Volume::new(&lab, Filesystem::Ext4);
    let random = fs::read(programs::random_file_on_disk(THERE)).expect("cannot read random bytes");
    let make = |name: &str, bytes: u64| {
        let path = volume.dir.join(name);
        let mut file = File::create(&path).expect("cannot make a file");
        for part in (0..bytes).step_by(THERE as usize) {
            file.write_all(&random[..THERE.min(bytes - part) as usize]).expect("cannot write");
        }
        truth::make_cold(&path);
        path
    };
    let (once, hot, there) = (make("once", BYTES), make("hot", 4 * MIB), make("there", THERE));
    fs::read(&there).expect("cannot read");
    let roomy = || Group::new(&lab, 1000 * MIB);
    let busybox = |script: &str| {
        let mut command = Command::new("busybox");
        command.args(["sh", "-c", script]);
        command
    };
    let gone_round = |sidecar: &Sidecar| {
        let before = passes(sidecar);
        eventually("the sweep has gone round", || passes(sidecar) > before + 10);
    };

    let sidecar = volume.sidecar(&lab);
    let read_at_once = |path: &Path| busybox(&format!("exec busybox cat {} > /dev/null", path_str(path)));
    roomy().run(&mut read_at_once(&once)).assert_ok(test);
    gone_round(&sidecar);
    let kept = truth::cached(&once).bytes;
    drop(sidecar);
    truth::make_cold(&once);

    let sidecar = volume.sidecar_with(&lab, "reads = \"drop-behind\"");
    gone_round(&sidecar);
    std::thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel();
        let looped = scope.spawn(move || read_in_a_loop(&hot, &stopped));
        let pipe = lab.dir().join("pipe");
        run("mkfifo", &[&path_str(&pipe)]);
        let group = roomy();
        let cat = group.spawn(&mut busybox(&format!("exec busybox cat {} > {}", path_str(&once), path_str(&pipe))));
        let mut output = File::open(&pipe).expect("cannot open the pipe");
        // it reads on as soon as what lies behind it went, and no faster
        let (mut piece, mut most) = (vec![0; 4 * MIB as usize], 0);
        for at in (0..BYTES).step_by(piece.len()) {
            output.read_exact(&mut piece).expect("cannot read the pipe");
            let from = (at % THERE) as usize;
            assert!(piece == random[from..from + piece.len()], "{test}: other content at {at}");
            most = most.max(truth::cached(&once).bytes);
            eventually("what lies behind the reader goes", || truth::cached(&once).bytes < BEHIND);
        }
        let cat = cat.wait();
        cat.assert_never_at_the_limit(test);
        group.run(&mut read_at_once(&there)).assert_ok(test);
        eventually("the rest goes once nobody reads", || truth::cached(&once).bytes == 0);
        drop(stop);
        let (received, from_disk) = looped.join().expect("the loop ended early");
        let left = truth::cached(&there).bytes;
        println!(
            "{test}: {:.1} s, page cache of the group at most {} MiB, of the file {} MiB (without the rule {} of {} MiB \
             stay); what was there before: {} of {} MiB; read in a loop: {} MiB, {:.1} % of it from the disk",
            cat.wall.as_secs_f64(),
            cat.figures.peak_cache_bytes / MIB,
            most / MIB,
            kept / MIB,
            BYTES / MIB,
            left / MIB,
            THERE / MIB,
            received / MIB,
            100.0 * from_disk as f64 / received as f64,
        );
        assert!(kept >= BYTES / 8 * 7, "without the rule {} MiB stay: this shows nothing", kept / MIB);
        assert!(most <= CACHED_MOST, "{} MiB of it were cached", most / MIB);
        let cache = cat.figures.peak_cache_bytes;
        assert!(cache <= CACHED_MOST + 16 * MIB, "page cache of the group was up to {} MiB", cache / MIB);
        // most of it: a machine that is short of memory takes some back itself
        assert!(left >= THERE / 4 * 3, "of what was cached before {} MiB are left", left / MIB);
        assert!(from_disk as f64 <= AMPLIFICATION * received as f64, "{from_disk} of {received} came from the disk");
    });
}
