//! Where neither a limit nor a slow disk can be made: one run on the disk that is there, with a window of its own.

use super::picture::{self, Frame, Sample, Screen};
use anyhow::{Context, ensure};
use freeboard_tests::{MB, MIB, freeboard, sys, truth};
use ratatui::style::Color;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DATA: u64 = 600 * MB;
const WORKLOAD: &str = "[writes]\nmode = \"always\"\nwindow = \"16MiB\"\n";
/// A page of the page cache.
const PAGE: u64 = 4096;
const SAMPLE_EVERY: Duration = Duration::from_millis(2);
const FRAME: Frame = Frame { top_bytes: 50 * MB, is_limit: false, line: None, span_s: 0.0 };

/// Runs and shows it.
///
/// # Errors
/// The disk cannot be written, or the output is not what it should be.
pub fn perform() -> anyhow::Result<()> {
    let dir = directory(&freeboard::bin_dir());
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let [source, output, workload] = ["source.img", "output.img", "workload.toml"].map(|name| dir.join(name));
    println!("making 600 MB of random data in {}", dir.display());
    let mut random = File::create(&source)?;
    io::copy(&mut File::open("/dev/urandom")?.take(DATA), &mut random)?;
    random.sync_all()?;
    File::create(&workload)?.write_all(WORKLOAD.as_bytes())?;
    let written = File::create(&output)?;

    let mut command = Command::new(freeboard::program());
    command.args(["run", "--config"]).arg(&workload).args(["--", "dd", "bs=1M", "conv=notrunc"]);
    // so that what it makes goes with the directory, however this ends
    command.env("XDG_RUNTIME_DIR", &dir);
    command.arg(format!("if={}", source.display())).arg(format!("of={}", output.display()));
    let title = "freeboard run --config workload.toml -- dd bs=1M";
    println!("\nworkload.toml:\n\n{WORKLOAD}\n{}\n", picture::legend("kept in the page cache"));

    let mut screen = Screen::new();
    let mut samples = Vec::new();
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start freeboard")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let at_s = start.elapsed().as_secs_f64();
        samples.extend(sys::cachestat(&written, 0, 0).map(|stat| {
            let unwritten_bytes = (stat.dirty + stat.writeback) * PAGE;
            Sample { at_s, usage_bytes: stat.cached * PAGE, unwritten_bytes }
        }));
        if samples.len() % 64 == 0 {
            screen.preview(|| picture::graph(title, Color::Green, frame(&samples), &samples))?;
        }
        std::thread::sleep(SAMPLE_EVERY);
    };
    let wall_s = start.elapsed().as_secs_f64();
    let mut said = String::new();
    child.stderr.take().context("stderr was piped")?.read_to_string(&mut said)?;
    ensure!(status.success(), "{status}: {said}");
    let is_seen = samples.iter().any(|sample| sample.usage_bytes > 0);
    if is_seen {
        screen.show(&picture::graph(
            &format!("{title}: done after {wall_s:.1} s"),
            Color::Green,
            frame(&samples),
            &samples,
        ))?;
    } else {
        println!("No graph: the kernel does not tell what it has cached of a file here (cachestat(2): Linux 6.5 or");
        println!("later, a Docker of 2024 or later, not on overlayfs). What it counted for the whole cgroup:");
        println!("\n{}", said.lines().last().unwrap_or_default());
    }
    truth::assert_same(&source, &output);
    println!();
    let mut rows = vec![vec![String::new(), "under Freeboard".to_owned()]];
    let mut row = |name: &str, cell: String| rows.push(vec![name.to_owned(), cell]);
    row("written", format!("{} MB", DATA / MB));
    row("time", format!("{wall_s:.1} s"));
    row("window", format!("{} MB", 16 * MIB / MB));
    if is_seen {
        let peak_bytes = samples.iter().map(|sample| sample.unwritten_bytes).max().unwrap_or(0);
        row("most unwritten at a time", format!("{:.0} MB", peak_bytes as f64 / 1e6));
    }
    row("output", "identical byte for byte".into());
    screen.show(&picture::table(&rows))?;
    Ok(())
}

/// Removes what [`perform`] made, if it made anything.
pub fn remove(built: &Path) {
    match fs::remove_dir_all(directory(built)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("cannot remove {}: {error}", directory(built).display());
        }
        _ => {}
    }
}

fn directory(built: &Path) -> PathBuf {
    built.join("demo")
}

/// As high as what is drawn, and a step more.
fn frame(samples: &[Sample]) -> Frame {
    let step = FRAME.top_bytes;
    let peak = samples.iter().map(|sample| sample.usage_bytes).max().unwrap_or(0);
    Frame { top_bytes: (peak + 1).next_multiple_of(step), ..FRAME }
}
