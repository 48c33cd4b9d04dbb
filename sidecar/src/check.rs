//! `freeboard check`: what a workload file sets, in its own notation.

use crate::cli::Check;
use anyhow::Result;
use freeboard_budget::Mode;
use freeboard_budget::law::Target;
use freeboard_config::Workload;
use freeboard_config::size::show;
use std::fmt::Write as _;
use std::io::Write as _;

/// Prints the settings, defaults included.
///
/// # Errors
/// The problems of the file, or that stdout cannot be written.
pub fn check(flags: &Check) -> Result<()> {
    let workload = Workload::load(&flags.file)?;
    let text = format!("{}: ok\n{}", flags.file.display(), settings(&workload));
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// A mode as the workload file spells it.
const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Auto => "auto",
        Mode::Always => "always",
        Mode::Observe => "observe",
        Mode::Off => "off",
    }
}

/// All settings as a workload file that says the same.
fn settings(workload: &Workload) -> String {
    let target = match workload.memory.target {
        Target::Percent(percent) => format!("{percent}%"),
        Target::Bytes(bytes) => size(bytes),
    };
    let window = workload.writes.window_bytes.map_or("auto".into(), size);
    let stall = workload.writes.max_stall;
    let stall =
        if stall.subsec_nanos() == 0 { format!("{}s", stall.as_secs()) } else { format!("{}ms", stall.as_millis()) };
    let mut text = format!(
        "[memory]\ntarget = {target:?}\n[writes]\nmode = {:?}\nwindow = {window:?}\nmax_stall = {stall:?}\n",
        mode(workload.writes.mode)
    );
    for rule in &workload.rules {
        let _ = writeln!(text, "[[rule]]\npath = {:?}", rule.path);
        if let Some(one) = rule.mode {
            let _ = writeln!(text, "mode = {:?}", mode(one));
        }
        if rule.reads_drop_behind {
            let _ = writeln!(text, "reads = \"drop-behind\"");
        }
    }
    if !workload.processes.exclude.is_empty() {
        let _ = writeln!(text, "[processes]\nexclude = {:?}", workload.processes.exclude);
    }
    if !workload.sweep.paths.is_empty() {
        let _ = writeln!(text, "[sweep]\npaths = {:?}", workload.sweep.paths);
    }
    text
}

/// A size exactly: as people say it where that loses nothing, else in bytes.
fn size(bytes: u64) -> String {
    let shown = show(bytes);
    if freeboard_config::size::parse(&shown).is_ok_and(|parsed| parsed == bytes) { shown } else { bytes.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_says_the_same() {
        let texts = [
            "",
            "[memory]\ntarget = \"500M\"\n[writes]\nmode = \"always\"\nwindow = \"4MiB\"\nmax_stall = \"1500ms\"\n[[rule]]\npath = \"/data/**\"\nmode = \"off\"\n[[rule]]\npath = \"/var/log/**\"\nreads = \"drop-behind\"\n[processes]\nexclude = [\"/usr/bin/qemu-nbd\"]\n[sweep]\npaths = [\"/logs/**\"]\n",
        ];
        for text in texts {
            let workload = Workload::parse(text, "text").unwrap();
            let printed = settings(&workload);
            assert_eq!(Workload::parse(&printed, "printed").unwrap(), workload, "{printed}");
        }
        assert_eq!((size(4 << 20), size(500_000_000)), ("4 MiB".into(), "500000000".into()));
    }
}
