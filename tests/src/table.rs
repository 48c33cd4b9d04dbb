//! Measured figures, side by side. Printed in one piece, because tests run side by side too.

use crate::MIB;
use crate::cgroup::Run;
use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;

/// Prints runs of one case as a table.
pub fn print(case: &str, runs: &[(&str, &Run)]) {
    let mut text = format!("\n{case}\n");
    let heads = ["", "end", "wall s", "peak usage", "cache", "unwritten", "anon", "limit hits", "OOM kills"];
    let widths = [34, 9, 8, 11, 8, 10, 8, 11, 10];
    let mut row = |cells: [&str; 9]| {
        for (cell, width) in cells.iter().zip(widths) {
            let _ = if width == widths[0] { write!(text, "  {cell:width$}") } else { write!(text, "{cell:>width$}") };
        }
        text.push('\n');
    };
    row(heads);
    for (name, run) in runs {
        let figures = run.figures;
        let end = match (run.status.code(), run.status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (_, signal) => format!("signal {}", signal.unwrap_or(0)),
        };
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / MIB as f64);
        row([
            name,
            &end,
            &format!("{:.2}", run.wall.as_secs_f64()),
            &mib(figures.peak_usage_bytes),
            &mib(figures.peak_cache_bytes),
            &mib(figures.peak_unwritten_bytes),
            &mib(figures.peak_anon_bytes),
            &figures.limit_hits.to_string(),
            &figures.oom_kills.to_string(),
        ]);
    }
    text.push_str("  sizes in MiB\n");
    println!("{text}");
}
