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
use freeboard_tests::neighbour;
use plan::Plan;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_shutdown;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
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
    /// Its neighbour in the cgroup, who takes so many bytes of memory
    #[arg(long, hide = true)]
    neighbour: Option<u64>,
}

/// Shows what Freeboard does.
///
/// # Errors
/// What kept it from showing it.
pub fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    if let Some(bytes) = flags.neighbour {
        println!("{}", neighbour::take(bytes));
        return Ok(ExitCode::SUCCESS);
    }
    let plan = Plan::for_this_machine();
    if flags.perform {
        match plan {
            Plan::SlowDisk(disk) => slow_disk::perform(disk)?,
            Plan::BoundOnly(_) => bound::perform()?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    // The first process of a container gets no signal that it has not asked for.
    let is_unwatched = Arc::new(AtomicBool::new(true));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        register_conditional_shutdown(signal, 128 + signal, is_unwatched.clone())?;
    }
    let missing = deps::missing(plan.programs());
    // an image brings the build with it
    let built = std::env::var_os("FREEBOARD_BIN_DIR").map(PathBuf::from);
    print!("{}", plan.describe(&missing, built.is_none()));
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
    let built = built.map_or_else(build, Ok)?;
    watch::perform(&plan, &built, &is_unwatched)
}

fn is_agreed() -> anyhow::Result<bool> {
    print!("Go on? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Builds the program and the library; returns the directory that holds them.
fn build() -> anyhow::Result<PathBuf> {
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
