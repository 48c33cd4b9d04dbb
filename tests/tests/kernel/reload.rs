//! The workload file of a running sidecar changes, as Kubernetes changes a ConfigMap's, while programs write.

use freeboard_budget::cgroup::stat;
use freeboard_tests::cgroup::Group;
use freeboard_tests::freeboard;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, programs, sys, truth};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Writes 20 MiB a second, and 240 MiB in all.
const WRITER: &str = "
import os, sys, time
output = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
for _ in range(960):
    os.write(output, bytes(256 << 10))
    time.sleep(0.0125)
";

/// A directory as a ConfigMap is mounted, and a sidecar that reads the workload file in it.
struct Configured {
    dir: PathBuf,
    sidecar: Child,
    versions: u32,
}

impl Configured {
    fn start(lab: &Lab, workload: &str) -> Configured {
        let dir = lab.dir().join("config");
        fs::create_dir_all(dir.join("region")).expect("cannot make the region's directory");
        symlink("..data/workload.toml", dir.join("workload.toml")).expect("cannot make a link");
        put(&dir, 0, workload);
        Configured { sidecar: sidecar(&dir), dir, versions: 0 }
    }

    /// Another sidecar in its place, which has never read another workload file than this.
    fn replace(&mut self, workload: &str) {
        self.end();
        self.change(workload);
        self.sidecar = sidecar(&self.dir);
    }

    fn end(&mut self) {
        let _ = sys::kill(self.sidecar.id(), libc::SIGTERM);
        let _ = self.sidecar.wait();
    }

    fn change(&mut self, workload: &str) {
        self.versions += 1;
        put(&self.dir, self.versions, workload);
    }

    /// A `dd` that writes so much to a file.
    fn writer(&self, to: &Path, mib: u64) -> Command {
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=1M"]).arg(format!("count={mib}")).arg(format!("of={}", to.display()));
        self.serve(dd)
    }

    fn serve(&self, mut command: Command) -> Command {
        command
            .env("LD_PRELOAD", freeboard::library())
            .env("FREEBOARD_REGION", self.dir.join("region"))
            .env("FREEBOARD_SOCKET", self.dir.join("socket"));
        command
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts a sidecar that has its configuration, region and socket in a directory, and waits until it listens.
fn sidecar(dir: &Path) -> Child {
    let mut command = Command::new(freeboard::program());
    command.arg("sidecar").arg("--region").arg(dir.join("region")).arg("--socket").arg(dir.join("socket"));
    let sidecar = command.arg("--config").arg(dir.join("workload.toml")).spawn().expect("cannot start the sidecar");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !dir.join("socket").exists() {
        assert!(Instant::now() < deadline, "the sidecar does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    sidecar
}

/// As the kubelet does it: a directory of its own, then the link `..data` in one step.
fn put(dir: &Path, version: u32, workload: &str) {
    let name = format!("..{version}");
    fs::create_dir(dir.join(&name)).expect("cannot make a directory");
    fs::write(dir.join(&name).join("workload.toml"), workload).expect("cannot write the workload file");
    symlink(&name, dir.join("..tmp")).expect("cannot make a link");
    fs::rename(dir.join("..tmp"), dir.join("..data")).expect("cannot rename a link");
}

#[test]
fn off_releases_every_held_call_within_a_second() {
    let test = "mode = \"off\" while five programs are held";
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file(&lab, 30 * MIB);
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, MIB);
    let to = |name: &str| disk.dir().join(name);
    for mode in ["auto", "always"] {
        let mut sidecar = Configured::start(&lab, &format!("[writes]\nmode = \"{mode}\"\n"));
        let group = Group::new(&lab, 400 * MB);
        let mut copy = Command::new("cp");
        copy.args(["--reflink=never"]).args([&source, &to("copy")]);
        let mut commands: Vec<Command> = (0..4).map(|number| sidecar.writer(&to(&number.to_string()), 30)).collect();
        commands.push(sidecar.serve(copy));
        let mut members: Vec<_> = commands.iter_mut().map(|command| group.spawn(command)).collect();
        std::thread::sleep(Duration::from_secs(3));
        assert!(members.iter_mut().all(|member| !member.ended()), "{mode}: one was not held");
        let outputs: Vec<_> = ["0", "1", "2", "3", "copy"].iter().map(|name| to(name)).collect();
        let written = || outputs.iter().map(|path| fs::metadata(path).expect("no output").len());
        let before: Vec<_> = written().collect();
        let changed = Instant::now();
        sidecar.change("[writes]\nmode = \"off\"\n");
        // a fifth of a MiB a second is each one's part of the disk
        while !written().zip(&before).all(|(now, before)| now >= before + MIB) {
            assert!(changed.elapsed() < Duration::from_secs(10), "{mode}: some are held still");
            std::thread::sleep(Duration::from_millis(5));
        }
        let took = changed.elapsed();
        members.into_iter().for_each(|member| member.wait().assert_ok(test));
        println!("{test} ({mode}): all had gone on {took:?} after the change, and ended after {:?}", changed.elapsed());
        assert!(took < Duration::from_secs(1), "{mode}: {took:?}");
        drop(group);
        drop(sidecar);
        disk.full_speed();
        disk.settle();
        truth::assert_same(&to("copy"), &source);
        disk.slow_down();
        fs::remove_dir_all(lab.dir().join("config")).expect("cannot remove the configuration");
    }
}

/// The most that the kernel has counted as unwritten in a group in so many looks 10 ms apart.
fn most_unwritten(group: &Group, looks: u32) -> u64 {
    let look = |_| {
        std::thread::sleep(Duration::from_millis(10));
        unwritten(group)
    };
    (0..looks).map(look).max().unwrap_or(0)
}

fn unwritten(group: &Group) -> u64 {
    let text = fs::read(group.dir().join("memory.stat")).expect("cannot read memory.stat");
    stat(&text).unwritten().expect("memory.stat does not count dirty and writeback")
}

/// Waits until no more than so much is unwritten.
fn eventually_unwritten(group: &Group, bytes: u64) {
    let changed = Instant::now();
    while unwritten(group) > bytes {
        assert!(changed.elapsed() < Duration::from_secs(10), "what was changed does not hold");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_smaller_window_holds_for_a_program_that_runs() {
    let test = "window = \"2MiB\" while a program writes";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 30 * MIB);
    let mut sidecar = Configured::start(&lab, "");
    let group = Group::new(&lab, 200 * MB);
    let mut member = group.spawn(&mut sidecar.writer(&disk.dir().join("output"), 250));
    let before = most_unwritten(&group, 200);
    sidecar.change("[writes]\nwindow = \"2MiB\"\n");
    eventually_unwritten(&group, 2 * MIB);
    let after = most_unwritten(&group, 100);
    assert!(!member.ended(), "it ended too soon to be looked at");
    println!("{test}: unwritten {} MiB, then at most {:.1} MiB", before / MIB, after as f64 / MIB as f64);
    assert!(before > 8 * MIB, "{before}");
    assert!(after <= 4 * MIB, "{after}");
    member.wait().assert_ok(test);
}

#[test]
fn another_sidecars_rules_hold_for_a_file_that_is_open() {
    let test = "another sidecar with another rule while a program writes";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 5 * MIB);
    let rule =
        |mode: &str| format!("[writes]\nwindow = \"2MiB\"\n[[rule]]\npath = \"/**/output\"\nmode = \"{mode}\"\n");
    let mut sidecar = Configured::start(&lab, &rule("observe"));
    let group = Group::new(&lab, 1000 * MB);
    let mut writer = Command::new("python3");
    writer.args(["-c", WRITER]).arg(disk.dir().join("output"));
    let mut member = group.spawn(&mut sidecar.serve(writer));
    // what nobody paced stays unwritten for long
    let growth_in_a_second = || {
        let before = unwritten(&group);
        most_unwritten(&group, 100).saturating_sub(before)
    };
    std::thread::sleep(Duration::from_secs(1));
    let before = growth_in_a_second();
    sidecar.replace(&rule("auto"));
    let replaced = Instant::now();
    let after = loop {
        let after = growth_in_a_second();
        if after <= 4 * MIB || replaced.elapsed() > Duration::from_secs(5) {
            break after;
        }
    };
    assert!(!member.ended(), "it ended too soon to be looked at");
    println!("{test}: unwritten grows by {} MiB in a second, then by {}", before / MIB, after / MIB);
    assert!(before > 8 * MIB, "{before}");
    assert!(after <= 4 * MIB, "{after}");
    disk.full_speed();
    member.wait().assert_ok(test);
}
