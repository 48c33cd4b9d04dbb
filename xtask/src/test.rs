//! `cargo xtask test`: what CI runs, and in which order. `cargo xtask bench`, `cargo xtask coverage`.

use crate::{deps, dist};
use anyhow::{Context, anyhow, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
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
    // A workspace of its own. Clippy compiles what is run, for a check by it alone would go through 200 packages once more.
    step("the injector's formatting", cmd!(sh, "cargo fmt --manifest-path injector/Cargo.toml --check"))?;
    let injector =
        cmd!(sh, "cargo test --manifest-path injector/Cargo.toml --target-dir target/injector --no-fail-fast");
    step("its lints and tests", injector.env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver"))?;
    // in a target directory of its own: the flag would rebuild the workspace
    let model = cmd!(sh, "cargo test --release --package freeboard-budget --test loom --target-dir target/loom");
    step("model check of the shared memory", model.env("RUSTFLAGS", "--cfg loom"))?;
    // nothing else is under way from here on: some wait for something to happen within seconds
    given_away.join().map_err(|_| anyhow!("the release build panicked"))??;
    step("unit tests", cmd!(sh, "cargo test --workspace --exclude freeboard-tests --no-fail-fast"))?;
    timed("real programs and kernels", kernel_suite)
}

/// Two at a time: most cases wait for a throttled disk of their own, and those that measure lock the others out. What
/// fails so, beside another one, is said, and counts if it fails alone, too.
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
}

/// Runs tests of the kernel suite, not captured, because the figures are a result too.
///
/// # Errors
/// They cannot be run, or end badly without a test that failed.
fn run_tests(options: &[&str]) -> anyhow::Result<Outcome> {
    let mut cargo = Command::new("cargo");
    // with one thread libtest would begin its line before the test, which prints into it
    cargo.args(["test", "--package", "freeboard-tests", "--no-fail-fast", "--", "--nocapture", "--test-threads=2"]);
    let mut cargo = cargo.args(options).stdout(Stdio::piped()).spawn()?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(cargo.stdout.take().context("no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned(); // programs print what they like
        println!("{line}");
        outcome.passed.extend(name(&line, " ... ok"));
        outcome.failed.extend(name(&line, " ... FAILED"));
    }
    let ended = cargo.wait()?;
    ensure!(ended.success() || !outcome.failed.is_empty(), "the tests could not be run to their end: {ended}");
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
