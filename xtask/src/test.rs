//! `cargo xtask test`: what CI runs, and in which order. `cargo xtask bench`, `cargo xtask coverage`.

use crate::{deps, dist};
use anyhow::anyhow;
use std::time::Instant;
use xshell::{Cmd, Shell, cmd};

/// Runs every step and stops at the first that fails.
///
/// # Errors
/// The step that failed.
pub fn run() -> anyhow::Result<()> {
    deps::install(&deps::missing_for_tests())?;
    // meanwhile: nearly all of its time is one thread's, the linker's
    let given_away = std::thread::spawn(|| -> anyhow::Result<()> {
        println!("==> what is given away, and the release build");
        let start = Instant::now();
        dist::run()?;
        let sh = Shell::new()?;
        cmd!(sh, "cargo build --release --workspace").run()?;
        println!("==> what is given away, and the release build: done in {:.0} s", start.elapsed().as_secs_f64());
        Ok(())
    });
    let sh = Shell::new()?;
    step("formatting", cmd!(sh, "cargo fmt --all --check"))?;
    step("lints", cmd!(sh, "cargo clippy --workspace --all-targets --quiet -- -D warnings"))?;
    step("debug build", cmd!(sh, "cargo test --workspace --no-run --quiet"))?;
    // in a target directory of its own: the flag would rebuild the workspace
    let model = cmd!(sh, "cargo test --release --package freeboard-budget --test loom --target-dir target/loom");
    step("model check of the shared memory", model.env("RUSTFLAGS", "--cfg loom"))?;
    // nothing else is under way from here on: some wait for something to happen within seconds
    given_away.join().map_err(|_| anyhow!("the release build panicked"))??;
    step("unit tests", cmd!(sh, "cargo test --workspace --exclude freeboard-tests --no-fail-fast"))?;
    // Two at a time: most cases wait for a throttled disk of their own, and those that measure lock the others out.
    // Not captured: the figures are a result too.
    let options = ["--test-threads=2", "--nocapture"];
    step("real programs and kernels", cmd!(sh, "cargo test --package freeboard-tests --no-fail-fast -- {options...}"))
}

/// Runs the benchmarks; their figures are for people, and nothing fails by them.
///
/// # Errors
/// The step that failed.
pub fn bench() -> anyhow::Result<()> {
    deps::install(&deps::missing_for_tests())?;
    let sh = Shell::new()?;
    step("release build", cmd!(sh, "cargo build --release --workspace"))?;
    step("benchmarks", cmd!(sh, "cargo bench --package freeboard-tests --bench hot_path --bench throughput"))
}

/// Prints which bytes of which programs are seen; nothing fails by it.
///
/// # Errors
/// The step that failed.
pub fn coverage(programs: &[String]) -> anyhow::Result<()> {
    deps::install(&deps::missing_for_tests())?;
    let sh = Shell::new()?;
    step("release build", cmd!(sh, "cargo build --release --workspace"))?;
    step("coverage", cmd!(sh, "cargo bench --package freeboard-tests --bench coverage -- {programs...}"))
}

fn step(name: &str, command: Cmd) -> anyhow::Result<()> {
    println!("==> {name}: {command}");
    let start = Instant::now();
    command.quiet().run()?;
    println!("==> {name}: done in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
