//! The commands and their flags: one table behind the parser and the help.

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Keeps the page cache of programs that write from filling their container's memory limit.
#[derive(Debug, Parser)]
#[command(name = "freeboard", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command with its writes paced
    Run(Run),
    /// Serve the library in other containers
    Sidecar(Sidecar),
    /// Check a workload file and print what it sets
    Check(Check),
    /// Say what a program is, and how each of its writes will be seen
    Doctor(Doctor),
    /// Say what fills a container's memory, who sees which number of it, and what helps
    Explain(Explain),
    /// Watch a container's memory against its limit, and who writes and who waits
    Top(Top),
}

/// Flags of `freeboard run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Memory limit for the command, such as 600M or 1Gi; makes a cgroup for it
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub limit: Option<u64>,
    /// Workload file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write what was counted to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Have the kernel tell of writes that no library can see: of static programs and Go (auto), of every program, or
    /// never
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub notify: Notify,
    /// Do not print the line at the end
    #[arg(long)]
    pub quiet: bool,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

/// When a command's writes are told of by the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Notify {
    /// If the command is a static program or one in Go, or a script of one
    #[default]
    Auto,
    /// Also if it only starts such programs
    Always,
    /// Not at all
    Never,
}

/// Flags of `freeboard sidecar`.
#[derive(Debug, clap::Args)]
pub struct Sidecar {
    /// Directory for the region's files; applications find it in FREEBOARD_REGION
    #[arg(long, value_name = "DIR")]
    pub region: PathBuf,
    /// Unix socket to listen on; applications find it in FREEBOARD_SOCKET
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Workload file; read again when it changes, and on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve metrics for Prometheus, /healthz and /readyz here, such as 0.0.0.0:9409
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    /// Directory to put libfreeboard.so into first
    #[arg(long, value_name = "DIR")]
    pub install_lib: Option<PathBuf>,
}

/// Arguments of `freeboard check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Workload file
    pub file: PathBuf,
}

/// Arguments of `freeboard doctor`. Ends with 0 where all writes are seen, with 1 where some are not.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// A process that runs
    #[arg(value_name = "PID", value_parser = pid, required_unless_present = "command", conflicts_with = "command")]
    pub pid: Option<u32>,
    /// A command, as `freeboard run` would start it; it is not started
    #[arg(value_name = "CMD", last = true)]
    pub command: Vec<OsString>,
}

/// Arguments of `freeboard explain`.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// A process, or the path of a memory cgroup; this process's own if there is none
    #[arg(value_name = "PID|CGROUP", conflicts_with = "oom_log")]
    pub subject: Option<String>,
    /// Explain the last message of the OOM killer's in a saved log; /dev/stdin works too
    #[arg(long, value_name = "FILE")]
    pub oom_log: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `freeboard top`.
#[derive(Debug, clap::Args)]
pub struct Top {
    /// Directory of a sidecar's region; FREEBOARD_REGION if it is not given, else the group that this runs in
    #[arg(long, value_name = "DIR")]
    pub region: Option<PathBuf>,
    /// Print one picture, and end
    #[arg(long)]
    pub once: bool,
}

/// No program starts in less.
const LEAST_LIMIT: u64 = 1 << 20;
/// The kernel counts pages in a signed number of bytes (`PAGE_COUNTER_MAX` in include/linux/page_counter.h).
const MOST_LIMIT: u64 = i64::MAX as u64 - 0xffff;

fn size(text: &str) -> Result<u64, String> {
    match freeboard_config::size::parse(text) {
        Ok(bytes) if bytes < LEAST_LIMIT => {
            Err("less than 1 MiB leaves no room to start in; mend: give a size such as 200M".into())
        }
        Ok(bytes) if bytes > MOST_LIMIT => {
            Err("the kernel takes no limit of 8 EiB or more; mend: give a smaller one, or none".into())
        }
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "not an address with a port; mend: write 127.0.0.1:9409, or 0.0.0.0:9409 for all".into())
}

fn pid(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("not the id of a process; mend: for a command, freeboard doctor -- {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_table_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_command_is_the_commands_own() {
        for arguments in [
            &["freeboard", "run", "--limit", "600M", "--", "dd", "--quiet", "of=x"][..],
            &["freeboard", "run", "--limit=600M", "dd", "--quiet", "of=x"],
        ] {
            let Command::Run(run) = Cli::try_parse_from(arguments).unwrap().command else { panic!("not run") };
            assert_eq!((run.limit, run.quiet), (Some(600_000_000), false));
            assert_eq!(run.command, ["dd", "--quiet", "of=x"]);
        }
        let wrong: [&[&str]; 6] = [
            &["freeboard"],
            &["freeboard", "run"],
            &["freeboard", "run", "--limit", "0", "true"],
            &["freeboard", "run", "--limit", "4k", "true"],
            &["freeboard", "run", "--limit", "9Ei", "true"],
            &["freeboard", "run", "--limt", "600M", "true"],
        ];
        for arguments in wrong {
            assert_eq!(Cli::try_parse_from(arguments).unwrap_err().exit_code(), 2, "{arguments:?}");
        }
    }
}
