//! The two runs: a memory cgroup of 200 MB, a disk of 31 MB/s.

use super::picture::{self, Frame, Sample, Screen};
use anyhow::{Context, bail};
use freeboard_budget::cgroup::{Version, number, stat};
use freeboard_tests::cgroup::{Group, Member, Run};
use freeboard_tests::lab::{Lab, path_str};
use freeboard_tests::neighbour::Stall;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, freeboard, truth};
use ratatui::style::Color;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: u64 = 200 * MB;
/// 80 % of the limit, which is what Freeboard keeps usage under unless a workload file says otherwise.
const TARGET: u64 = 160 * MB;
const DATA: u64 = 600 * MB;
/// 30 MiB/s.
const DISK: u64 = 30 << 20;
/// What a neighbour takes, and when. v2 only: on v1 the plain writer is dead by then.
const NEIGHBOUR: u64 = 60 * MB;
const NEIGHBOUR_AFTER: Duration = Duration::from_secs(3);

const SAMPLE_EVERY: Duration = Duration::from_millis(10);
const DRAW_EVERY: Duration = Duration::from_millis(200);
const FRAME: Frame = Frame { top_bytes: LIMIT, is_limit: true, line: Some((TARGET, "target")), span_s: 20.0 };

/// One run, with all that is shown of it.
struct Shown {
    run: Run,
    /// It ended well, and what is on the disk is what it read.
    is_identical: bool,
    stall: Option<Stall>,
}

/// Runs and shows them.
///
/// # Errors
/// Something could not be set up, or the output is not what it should be.
pub fn perform(version: Version) -> anyhow::Result<()> {
    println!("making the disk, and 600 MB of random data");
    let lab = Lab::with_own_disks("the demonstration").context("this machine cannot run it")?;
    let source = lab.dir().join("source.img");
    io::copy(&mut File::open("/dev/urandom")?.take(DATA), &mut File::create(&source)?)
        .with_context(|| format!("cannot make {}", source.display()))?;
    let disk = match version {
        Version::V1 => SlowDisk::new(&lab, Filesystem::Xfs, DISK),
        // the rule is the group's
        Version::V2 => SlowDisk::filled(&lab, 768 << 20),
    };
    let output = disk.dir().join("output.img");
    let stage = Stage { lab: &lab, disk: &disk, version, source: &source, output: &output };

    let mut plain = Command::new("qemu-img");
    plain.args(["convert", "-t", "writeback", "-f", "raw", "-O", "raw"]).arg(&source).arg(&output);
    let mut under = Command::new(freeboard::program());
    under.args(["run", "--"]).arg(plain.get_program()).args(plain.get_args());
    // so that what it makes goes with the lab, however this ends
    under.env("XDG_RUNTIME_DIR", lab.dir());

    let mut screen = Screen::new();
    println!("\n{}\n", picture::legend("the rest of the memory that is charged to the cgroup"));
    let plain = stage.run(&mut screen, "qemu-img convert", Color::Red, &mut plain)?;
    println!();
    let under = stage.run(&mut screen, "freeboard run -- qemu-img convert", Color::Green, &mut under)?;
    println!();

    screen.show(&picture::table(&rows(&plain, &under)))?;
    println!("\n{}", under.run.output.lines().last().unwrap_or_default());
    if !under.is_identical || under.run.figures.oom_kills > 0 {
        bail!("under Freeboard: {}\n{}", under.run.status, under.run.output);
    }
    Ok(())
}

struct Stage<'lab> {
    lab: &'lab Lab,
    disk: &'lab SlowDisk<'lab>,
    version: Version,
    source: &'lab Path,
    output: &'lab Path,
}

impl Stage<'_> {
    /// Runs a command in a fresh group, draws while it runs, and leaves an idle disk.
    fn run(&self, screen: &mut Screen, title: &str, color: Color, command: &mut Command) -> anyhow::Result<Shown> {
        let group = Group::new(self.lab, LIMIT);
        self.throttle(&group, &DISK.to_string())?;
        let mut samples = Vec::new();
        let mut member = group.spawn(command);
        let mut neighbour: Option<Member> = None;
        let mut drawn = Instant::now();
        while !member.ended() {
            samples.extend(self.sample(&group, member.age()));
            if self.version == Version::V2 && neighbour.is_none() && member.age() >= NEIGHBOUR_AFTER {
                let mut command = Command::new(std::env::current_exe()?);
                neighbour = Some(group.spawn(command.args(["demo", "--neighbour", &NEIGHBOUR.to_string()])));
            }
            if drawn.elapsed() >= DRAW_EVERY {
                let title = format!("{title}: {:.1} s", member.age().as_secs_f64());
                screen.preview(|| picture::graph(&title, color, FRAME, &samples))?;
                drawn = Instant::now();
            }
            std::thread::sleep(SAMPLE_EVERY);
        }
        let run = member.wait();
        let stall = neighbour.map(|member| member.wait().output.parse()).transpose()?;
        let title = format!("{title}: {} after {:.1} s", end(&run), run.wall.as_secs_f64());
        screen.show(&picture::graph(&title, color, FRAME, &samples))?;
        self.throttle(&group, "max")?;
        drop(group);
        self.disk.settle();
        let is_identical = run.status.success();
        if is_identical {
            truth::assert_same(self.source, self.output);
        }
        Ok(Shown { run, is_identical, stall })
    }

    /// On v2 the kernel charges writeback to the group that wrote, so the group has the rule.
    fn throttle(&self, group: &Group, bytes_per_second: &str) -> anyhow::Result<()> {
        if self.version == Version::V1 {
            return Ok(());
        }
        let name = path_str(Path::new(self.disk.device().file_name().unwrap_or_default()));
        let numbers = fs::read_to_string(Path::new("/sys/block").join(name).join("dev"))?;
        let file = group.dir().join("io.max");
        fs::write(&file, format!("{} wbps={bytes_per_second}", numbers.trim()))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn sample(&self, group: &Group, age: Duration) -> Option<Sample> {
        let read = |name: &str| fs::read(group.dir().join(name)).ok();
        Some(Sample {
            at_s: age.as_secs_f64(),
            usage_bytes: number(read(self.version.usage_file())?.trim_ascii())?,
            unwritten_bytes: stat(&read("memory.stat")?).unwritten()?,
        })
    }
}

fn end(run: &Run) -> String {
    match (run.status.code(), run.status.signal()) {
        _ if run.figures.oom_kills > 0 => "killed, out of memory".into(),
        (Some(0), _) => "done".into(),
        (Some(code), _) => format!("exit {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or(0)),
    }
}

fn rows(plain: &Shown, under: &Shown) -> Vec<Vec<String>> {
    let row = |name: &str, cell: &dyn Fn(&Shown) -> String| vec![name.to_owned(), cell(plain), cell(under)];
    let mb = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    let mut rows = vec![
        vec![String::new(), "plain".to_owned(), "under Freeboard".to_owned()],
        row("end", &|shown| end(&shown.run)),
        row("time", &|shown| format!("{:.1} s", shown.run.wall.as_secs_f64())),
        row("speed (the disk: 31.5 MB/s)", &|shown| match shown.run.status.success() {
            true => format!("{:.1} MB/s", DATA as f64 / 1e6 / shown.run.wall.as_secs_f64()),
            false => "-".into(),
        }),
        row("most unwritten at a time", &|shown| mb(shown.run.figures.peak_unwritten_bytes)),
        row("most memory used, of 200 MB", &|shown| mb(shown.run.figures.peak_usage_bytes)),
        row("times at the limit", &|shown| shown.run.figures.limit_hits.to_string()),
    ];
    if plain.stall.is_some() || under.stall.is_some() {
        let waited = |shown: &Shown, pick: fn(Stall) -> Duration| {
            shown.stall.map_or("-".into(), |stall| format!("{:.3} s", pick(stall).as_secs_f64()))
        };
        rows.push(row("a neighbour's 60 MB took", &|shown| waited(shown, |stall| stall.all)));
        rows.push(row("  the worst MiB of them", &|shown| waited(shown, |stall| stall.worst_mib)));
    }
    rows.push(row("output", &|shown| match shown.is_identical {
        true => "identical byte for byte".into(),
        false => "incomplete".into(),
    }));
    rows
}
