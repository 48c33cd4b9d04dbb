//! `cargo xtask demo`: the same `qemu-img convert` plain and under Freeboard, side by side.
//!
//! | module | job |
//! | --- | --- |
//! | [`plan`] | what can be shown on this machine, and what that changes on it |
//! | [`watch`] | the demonstration runs in a process of its own; whatever ends it, what it made is removed |
//! | [`slow_disk`] | the two runs in a memory cgroup, on a slow disk |
//! | [`bound`] | one run where neither cgroups nor disks can be made |
//! | [`picture`] | memory over time, and the table, as text |

mod bound;
mod picture;
mod plan;
mod slow_disk;
mod watch;

use crate::deps;
use anyhow::Context;
use plan::Plan;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// Flags of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Flags {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// The demonstration itself, in the process that is watched
    #[arg(long, hide = true)]
    perform: bool,
}

/// Shows what Freeboard does.
///
/// # Errors
/// What kept it from showing it.
pub fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    let plan = Plan::for_this_machine();
    if flags.perform {
        match plan {
            Plan::SlowDisk(disk) => slow_disk::perform(disk)?,
            Plan::BoundOnly(_) => bound::perform()?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let missing = deps::missing(plan.programs());
    print!("{}", plan.describe(&missing));
    if !flags.yes {
        if !io::stdin().is_terminal() {
            eprintln!("error: there is no terminal to ask on; mend: pass --yes");
            return Ok(ExitCode::from(2));
        }
        if !is_agreed()? {
            println!("Nothing was changed.");
            return Ok(ExitCode::SUCCESS);
        }
    }
    deps::install(&missing)?;
    let built = build()?;
    watch::perform(&plan, &built)
}

fn is_agreed() -> anyhow::Result<bool> {
    print!("Go on? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Builds the program and the library; returns the directory that holds them.
fn build() -> anyhow::Result<std::path::PathBuf> {
    println!("building Freeboard (the first time takes a minute or two)");
    let this = std::env::current_exe().context("no /proc/self/exe")?;
    let target = this.parent().and_then(Path::parent).context("xtask lies in target/*/")?;
    let sh = Shell::new()?;
    sh.change_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?);
    cmd!(sh, "cargo build --quiet --release --package freeboard-sidecar --package freeboard-preload")
        .arg("--target-dir")
        .arg(target)
        .quiet()
        .run()?;
    Ok(target.join("release"))
}
