//! Starts what the command line asks for, and ends as it ends.

use clap::Parser;
use freeboard_sidecar::cli::{Cli, Command};
use freeboard_sidecar::run::Ending;
use freeboard_sidecar::{check, doctor, explain, inject, library, run, say, service, sidecar, signals, top};
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(flags) => run::run(&flags),
        Command::Sidecar(flags) => sidecar::sidecar(&flags).map(|()| Ending::Code(0)),
        Command::Ready(flags) => service::check_is_served(&flags.socket).map(|()| Ending::Code(0)),
        Command::Check(flags) => check::check(&flags).map(|()| Ending::Code(0)),
        Command::Doctor(flags) => doctor::doctor(&flags),
        Command::Top(flags) => top::top(&flags).map(|()| Ending::Code(0)),
        Command::Explain(flags) => explain::explain(&flags).map(|()| Ending::Code(0)),
        Command::Inject(flags) => inject::inject(&flags).map(|()| Ending::Code(0)),
        Command::Uninject(flags) => inject::uninject(&flags).map(|()| Ending::Code(0)),
        Command::Install(flags) => library::install_with_program(&flags.dir).map(|()| Ending::Code(0)),
    };
    match done {
        Ok(Ending::Code(code)) => ExitCode::from(code),
        Ok(Ending::Signal(signal)) => signals::die_of(signal),
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}
