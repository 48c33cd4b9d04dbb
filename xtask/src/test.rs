//! `cargo xtask test`: what CI runs, and in which order. `cargo xtask bench`, `cargo xtask coverage`.

use crate::{deps, dist};
use anyhow::{Context, anyhow, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;
use xshell::{Cmd, Shell, cmd};

/// Cargo's arguments: `tests/` and its kernel suite.
const KERNEL_SUITE: [&str; 3] = ["test", "--package", "freeboard-tests"];

/// Runs every step and stops at the first that fails.
///
/// # Errors
/// The step that failed.
pub fn run() -> anyhow::Result<()> {
    deps::install(&deps::missing_for_tests())?;
    // meanwhile: much of its time is one thread's, the linker's
    let given_away = std::thread::spawn(|| -> anyhow::Result<()> {
        println!("==> what is given away, and the release build");
        let start = Instant::now();
        dist::run()?;
        let sh = Shell::new()?;
        // one by one, as they are given away: together they would have other features, and be built once more
        for package in ["freeboard-preload", "freeboard-sidecar", "latency-probe"] {
            cmd!(sh, "cargo build --release --package {package}").run()?;
        }
        println!("==> what is given away, and the release build: done in {:.0} s", start.elapsed().as_secs_f64());
        Ok(())
    });
    let sh = Shell::new()?;
    step("formatting", cmd!(sh, "cargo fmt --all --check"))?;
    step("lints", cmd!(sh, "cargo clippy --workspace --all-targets --quiet -- -D warnings"))?;
    let unit_tests = ["test", "--workspace", "--exclude", "freeboard-tests"];
    step("debug build", cmd!(sh, "cargo {unit_tests...} --no-run --quiet"))?;
    step("debug build", cmd!(sh, "cargo {KERNEL_SUITE...} --no-run --quiet"))?;
    // A workspace of its own. Clippy compiles what is run, for a check by it alone would go through 200 packages once more.
    step("the injector's formatting", cmd!(sh, "cargo fmt --manifest-path injector/Cargo.toml --check"))?;
    let injector =
        cmd!(sh, "cargo test --manifest-path injector/Cargo.toml --target-dir target/injector --no-fail-fast");
    step("its lints and tests", injector.env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver"))?;
    // in a target directory of its own: the flag would rebuild the workspace
    let model = cmd!(sh, "cargo test --release --package freeboard-budget --test loom --target-dir target/loom");
    // what is slow here is loom's own work, not the code that it runs: optimized at once, not when it is linked
    let model = model.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    step("model check of the shared memory", model.env("RUSTFLAGS", "--cfg loom"))?;
    // nothing else is under way from here on: some wait for something to happen within seconds
    given_away.join().map_err(|_| anyhow!("the release build panicked"))??;
    step("unit tests", cmd!(sh, "cargo {unit_tests...} --no-fail-fast"))?;
    timed("real programs and kernels", kernel_suite)
}

/// Most cases wait for a throttled disk of their own, some keep a processor busy, and those that measure what others
/// would disturb have the machine for themselves. What fails beside another one is said, and counts if it fails alone,
/// too.
fn kernel_suite() -> anyhow::Result<()> {
    let first = run_tests(&[])?;
    for name in &first.failed {
        println!("==> once more, alone: {name}");
        let alone = run_tests(&["--exact", name])?;
        ensure!(alone.failed.is_empty() && alone.passed.contains(name), "{name} fails alone, too");
    }
    Ok(())
}

/// The names of tests, by what came of them.
#[derive(Default)]
struct Outcome {
    passed: Vec<String>,
    failed: Vec<String>,
    /// Test programs that began, less those that said their result.
    cut_off: i32,
}

/// Runs tests of the kernel suite, not captured, because the figures are a result too.
///
/// # Errors
/// They cannot be run, or end badly without a test that failed.
fn run_tests(options: &[&str]) -> anyhow::Result<Outcome> {
    let mut cargo = Command::new("cargo");
    // a thread for each test: they wait for their turns in the order in which they are begun (tests/src/turn.rs)
    cargo.args(KERNEL_SUITE).args(["--no-fail-fast", "--", "--nocapture", "--test-threads=1000"]);
    let mut cargo = cargo.args(options).stdout(Stdio::piped()).spawn()?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(cargo.stdout.take().context("no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned(); // programs print what they like
        if line.ends_with("has been running for over 60 seconds") {
            continue; // most of them have not begun
        }
        println!("{line}");
        outcome.cut_off += i32::from(line.starts_with("running ")) - i32::from(line.starts_with("test result: "));
        outcome.passed.extend(name(&line, " ... ok"));
        outcome.failed.extend(name(&line, " ... FAILED"));
    }
    let ended = cargo.wait()?;
    let all_ran = !outcome.failed.is_empty() && outcome.cut_off == 0;
    ensure!(ended.success() || all_ran, "the tests could not be run to their end: {ended}");
    Ok(outcome)
}

/// The test's, in a line by which libtest says what came of it.
fn name(line: &str, outcome: &str) -> Option<String> {
    Some(line.strip_prefix("test ")?.strip_suffix(outcome)?.to_owned())
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
    timed(&format!("{name}: {command}"), || Ok(command.quiet().run()?))
}

fn timed(name: &str, act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("==> {name}");
    let start = Instant::now();
    act()?;
    println!("==> {name}: done in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_failed() {
        let failed = |line| name(line, " ... FAILED");
        assert_eq!(failed("test small_files ... FAILED").unwrap(), "small_files");
        assert_eq!(failed("test tests::deep::one ... FAILED").unwrap(), "tests::deep::one");
        for line in ["test small_files ... ok", "test result: FAILED. 4 passed; 1 failed", "FAILED", ""] {
            assert_eq!(failed(line), None, "{line}");
        }
    }
}
