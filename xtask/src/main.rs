//! The project's own tasks: `cargo xtask demo`, `cargo xtask dist`, `cargo xtask test`, `cargo xtask bench`,
//! `cargo xtask coverage`, `cargo xtask deps`.

mod demo;
mod deps;
mod dist;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Freeboard's tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Tasks {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Shows the same program plain and under Freeboard: one is killed, one finishes.
    Demo(demo::Flags),
    /// Builds what is given away, into target/dist: the library, and the program as a static file.
    Dist,
    /// Everything that CI runs: formatting, lints, unit tests, the release build, real programs, the kernel suite.
    Test,
    /// What the library costs: ten pairs or more of each case, plain and under the library; takes a quarter of an hour.
    Bench,
    /// Which bytes of which programs are seen: a table in Markdown; takes a quarter of an hour.
    Coverage {
        /// Programs whose name holds one of these words; all where there is none
        programs: Vec<String>,
    },
    /// Installs, with apt and as root, what the tests need and this machine lacks; elsewhere names it.
    Deps,
}

fn main() -> ExitCode {
    let done = match Tasks::parse().task {
        Task::Demo(flags) => demo::run(&flags),
        Task::Dist => dist::run().map(|()| ExitCode::SUCCESS),
        Task::Test => test::run().map(|()| ExitCode::SUCCESS),
        Task::Bench => test::bench().map(|()| ExitCode::SUCCESS),
        Task::Coverage { programs } => test::coverage(&programs).map(|()| ExitCode::SUCCESS),
        Task::Deps => deps::install(&deps::missing_for_tests()).map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
