//! Which bytes of which programs are seen, as a table in Markdown: each program writes 250 MiB, or what it naturally
//! writes, to XFS on a disk of 30 MiB/s in a memory cgroup of 100 MB, or more where its own memory needs it.
//!
//! *Written* is the kernel's own count: every call that puts bytes into the page cache of the disk's files (XFS's
//! tracepoints); for mapped files their size. *Seen* is what `freeboard run` reports.

use freeboard_tests::MIB;
use freeboard_tests::cgroup::Run;
use freeboard_tests::coverage::{Bench, Kind, Outcome, Row};
use freeboard_tests::lab::{self, Lab};
use freeboard_tests::written::cannot_count;
use std::os::unix::process::ExitStatusExt;

const DATA: u64 = 250 * MIB;

fn main() {
    let test = "coverage";
    if let Some(reason) = cannot_count() {
        return lab::skip(test, reason);
    }
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::new(&lab, DATA);
    println!(
        "| program | written | hooked | notified | swept | together | end | wall | unwritten | limit hits, OOM kills | plain |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for row in bench.rows().iter().filter(|row| is_wanted(row.name)) {
        let outcome = bench.outcome(row);
        let plain = bench.plain(row);
        println!("{}", line(row, &outcome, &plain));
    }
}

/// Is it named on the command line, or nothing is? `cargo xtask coverage sqlite git`.
fn is_wanted(name: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    words.peek().is_none() || words.any(|word| name.contains(&word))
}

fn line(row: &Row, outcome: &Outcome, plain: &Run) -> String {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB as f64);
    let part = |bytes: u64| match bytes {
        0 => "-".to_owned(),
        _ => format!("{:.2} %", bytes as f64 / outcome.written as f64 * 100.0),
    };
    let seen = match row.kind() {
        Kind::Direct => "O_DIRECT".to_owned(),
        _ => part(outcome.seen() + outcome.swept),
    };
    let end = |run: &Run| match (run.status.code(), run.status.signal()) {
        (Some(code), _) => code.to_string(),
        (_, signal) => format!("signal {}", signal.unwrap_or(0)),
    };
    let pressure = |run: &Run| format!("{}, {}", run.figures.limit_hits, run.figures.oom_kills);
    let under = &outcome.under;
    format!(
        "| {} | {} | {} | {} | {} | {seen} | {} | {:.1} s | {} | {} | {}; {} |",
        row.name,
        mib(outcome.written),
        part(outcome.hooked),
        part(outcome.notified),
        part(outcome.swept),
        end(under),
        under.wall.as_secs_f64(),
        mib(under.figures.peak_unwritten_bytes),
        pressure(under),
        end(plain),
        pressure(plain),
    )
}
