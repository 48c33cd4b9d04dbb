//! The commands and their flags: one table behind the parser and the help.

use clap::{Parser, Subcommand};
use freeboard_inject::object::Name;
use freeboard_inject::options;
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
    /// Say whether a sidecar listens, for probes
    Ready(Ready),
    /// Check a workload file and print what it sets
    Check(Check),
    /// Say what a program is, and how each of its writes will be seen
    Doctor(Doctor),
    /// Say what fills a container's memory, who sees which number of it, and what helps
    Explain(Explain),
    /// Watch a container's memory against its limit, and who writes and who waits
    Top(Top),
    /// Put Freeboard into the pods of a stream of YAML or JSON
    Inject(Inject),
    /// Take it out of them again
    Uninject(Uninject),
    /// Copy this program and the library into a directory
    Install(Install),
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
    /// Directory to make the region in; XDG_RUNTIME_DIR or TMPDIR if it is not given
    #[arg(long, value_name = "DIR")]
    pub region: Option<PathBuf>,
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

/// Arguments of `freeboard ready`. Ends with 0 where one listens.
#[derive(Debug, clap::Args)]
pub struct Ready {
    /// The sidecar's socket
    pub socket: PathBuf,
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

/// Arguments of `freeboard inject`. What was done, and why what was not, comes to stderr.
#[derive(Debug, clap::Args)]
pub struct Inject {
    /// Pods, Deployments, StatefulSets, DaemonSets, Jobs, CronJobs, Lists of them, among other things; - is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// Objects to inject, such as Deployment/writer, beside those that have the label freeboard.dev/inject: enabled
    #[arg(value_name = "KIND/NAME", value_parser = Name::parse)]
    pub objects: Vec<Name>,
    /// How to write what comes out, if not as what came in
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    pub output: Option<Output>,
    /// Serve this container alone; may be given several times
    #[arg(long = "container", value_name = "NAME")]
    pub containers: Vec<String>,
    /// ConfigMap in the pods' namespace with a workload file as its key workload.toml
    #[arg(long, value_name = "CONFIGMAP", value_parser = options::config_map)]
    pub config: Option<String>,
    /// Image with this program and the library
    #[arg(long, value_name = "IMAGE", default_value = "freeboard", value_parser = options::image)]
    pub image: String,
    /// Without a sidecar, for Kubernetes before 1.29: an init container brings the library
    #[arg(long, conflicts_with_all = ["config", "run"])]
    pub library_only: bool,
    /// Start explicit commands by `freeboard run`, for static programs
    #[arg(long)]
    pub run: bool,
    /// Pace stdio through glibc's FILE tables, too
    #[arg(long)]
    pub stdio: bool,
    /// Serve containers without a memory limit, too
    #[arg(long)]
    pub without_limit: bool,
    /// Let through what cannot be injected, as it is
    #[arg(long)]
    pub pass: bool,
}

/// Arguments of `freeboard uninject`.
#[derive(Debug, clap::Args)]
pub struct Uninject {
    /// What `freeboard inject` wrote; - is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// How to write what comes out, if not as what came in
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    pub output: Option<Output>,
}

/// How objects are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Output {
    /// Documents behind ---
    Yaml,
    /// One object after another
    Json,
}

/// Arguments of `freeboard install`.
#[derive(Debug, clap::Args)]
pub struct Install {
    /// Directory that is there
    pub dir: PathBuf,
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
