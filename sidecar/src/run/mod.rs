//! `freeboard run`: the service inside a launcher, around one command.
//!
//! The launcher is not to be noticed: same process group, same terminal, same descriptors, same signals, same ending.

mod environment;
pub mod linkage;
pub mod notify;
mod report;

use crate::cgroup::made::{self, Made};
use crate::cgroup::{open_path, own_directory};
use crate::cli;
use crate::service::{self, Service, now};
use crate::signals::{self, Queue};
use crate::{library, say};
use anyhow::{Context, Result, bail};
use freeboard_budget::Mode;
use freeboard_config::Workload;
use notify::Notifier;
use report::Report;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use std::io;
use std::path::PathBuf;
use std::process::Command;

/// The group that the command starts in.
#[derive(Debug)]
struct Watched {
    row: u32,
    path: PathBuf,
    /// Its ancestors can be seen up to the hierarchy's root.
    rooted: bool,
    /// It was made for the command.
    made: bool,
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// With an exit code.
    Code(u8),
    /// By a signal.
    Signal(i32),
}

/// Runs a command and returns its ending. A command that cannot be executed ends with 127 (not found) or 126, as in a
/// shell.
///
/// # Errors
/// What of our own could not be set up; the command was not started then, and nothing is left behind.
pub fn run(flags: &cli::Run) -> Result<Ending> {
    // before anything is made that a signal would leave behind, and before any thread starts
    let (mut signals, inherited) = signals::take_over().context("cannot watch for signals")?;
    let workload = flags.config.as_deref().map(Workload::load).transpose()?.unwrap_or_default();
    let library = library::find()?;
    let report_file = flags.report.as_deref().map(report::File::open).transpose()?;
    let made = flags.limit.map(Made::with_limit).transpose()?;
    let directory = environment::private_directory(flags.region.as_deref())?;
    let socket = directory.path().join(environment::SOCKET_FILE);
    let service = Service::start(directory.path(), &socket, &workload, service::BUSY)?;

    // without a memory cgroup that can be seen no peak is known, and the library goes by the workload file alone
    let path = made.as_ref().map_or_else(|| own_directory().map(|(_, path)| path), |made| Ok(made.path().to_owned()));
    let watched = match path.and_then(|path| Ok((open_path(&path)?, path))) {
        Ok((group, path)) => {
            let rooted = group.rooted;
            Some(Watched { row: service.watch(group)?, path, rooted, made: made.is_some() })
        }
        Err(_) => None,
    };

    let mut command = Command::new(&flags.command[0]);
    command.args(&flags.command[1..]);
    environment::prepare(&mut command, &library, directory.path(), &socket)?;
    let door = made.as_ref().map(Made::door).transpose()?;
    signals::prepare_child(&mut command, inherited, door);
    let notifier = watched.as_ref().and_then(|watched| notifier(flags, &mut command, &service, watched, &workload));

    let started = now();
    let ending = match command.spawn() {
        Ok(child) => wait_for(Pid::from_child(&child), &mut signals)?,
        Err(error) if error.raw_os_error() == Some(signals::NO_ENTRY) => {
            bail!("--limit: the kernel does not let the command into the cgroup made for it; mend: {}", made::MEND)
        }
        Err(error) => cannot_execute(&flags.command[0], &error),
    };
    let wall = now().saturating_sub(started);
    drop(command);
    let notified = notifier.map(Notifier::finish);

    let (summary, observed) = service.finish(watched.as_ref().map(|watched| watched.row));
    let record = made.as_ref().map(Made::record).unwrap_or_default();
    let report = Report::new(&flags.command, ending, wall, watched, observed, record, &summary, notified.as_ref());
    drop(service);
    drop(directory);
    if let Some(made) = made
        && let Err(error) = made.remove()
    {
        say(&error.to_string());
    }
    if let Some(file) = report_file
        && let Err(error) = file.write(&report)
    {
        say(&format!("{error:#}"));
    }
    if !flags.quiet {
        say(&report.line());
    }
    Ok(ending)
}

/// Has the command's writes told of by the kernel, where that is wanted. Where it cannot be had, the command runs
/// without.
fn notifier(
    flags: &cli::Run,
    command: &mut Command,
    service: &Service,
    watched: &Watched,
    workload: &Workload,
) -> Option<Notifier> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let wanted = match flags.notify {
        cli::Notify::Always => true,
        cli::Notify::Never => false,
        cli::Notify::Auto => linkage::is_unseen(&flags.command[0], &path),
    };
    if !wanted || workload.writes.mode == Mode::Off {
        return None;
    }
    let group = open_path(&watched.path).ok()?;
    let seat = service.seat(watched.row)?;
    let notifier = Notifier::prepare(command, seat, group, workload, flags.quiet);
    notifier
        .inspect_err(|error| {
            if !flags.quiet {
                say(&format!("writes cannot be told of, and what no library sees is not paced: {error:#}"));
            }
        })
        .ok()
}

/// Waits for the command, and meanwhile hands signals on, and reaps what else becomes this process's child (it may be a
/// container's first process).
fn wait_for(child: Pid, signals: &mut Queue) -> Result<Ending> {
    loop {
        let mut fds = [PollFd::new(&*signals, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, None)).context("cannot wait for the command")?;
        while let Some(signal) = signals.take() {
            if signal.number == libc::SIGCHLD {
                while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                    if pid == child {
                        return Ok(ending(status));
                    }
                }
            } else if signal
                .sender
                .is_some_and(|sender| sender != std::process::id() && sender != child.as_raw_pid() as u32)
            {
                // What a key on the terminal sends, the kernel sent to the command too. The command's own signal to
                // its process group reached it as well.
                signals::send(child, signal.number);
            }
        }
    }
}

fn ending(status: WaitStatus) -> Ending {
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => Ending::Signal(signal),
        (Some(code), None) => Ending::Code(code as u8),
        (None, None) => Ending::Code(2),
    }
}

fn cannot_execute(command: &std::ffi::OsStr, error: &io::Error) -> Ending {
    say(&format!("cannot execute {}: {error}", command.display()));
    Ending::Code(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}
