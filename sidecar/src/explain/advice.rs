//! What helps against each verdict: Freeboard, or another tool.

use super::figures::Kind;
use crate::doctor::Runtime;
use serde::Serialize;

/// Whether Freeboard helps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Help {
    /// It does.
    pub can: bool,
    /// Why, and how.
    pub how: &'static str,
}

/// A tool that shows more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Tool {
    /// What to start.
    pub command: String,
    /// What it shows.
    pub shows: &'static str,
}

/// What Freeboard can do about memory of a kind.
pub const fn help(kind: Kind) -> Help {
    match kind {
        Kind::Unwritten => Help {
            can: true,
            how: "it keeps what is not on the disk small: start the writer by `freeboard run -- CMD`, or with LD_PRELOAD",
        },
        Kind::CleanCache => Help {
            can: true,
            how: "it gives back what programs under it have written (`freeboard run -- CMD`, or LD_PRELOAD); what was \
                  read is given back by the kernel alone, at the limit, and nobody is killed for it",
        },
        Kind::Anonymous => {
            Help { can: false, how: "it is the programs' own memory: they must need less, or get a larger limit" }
        }
        Kind::Slab => Help {
            can: false,
            how: "it is the kernel's own memory: fewer files and directories at a time, or a larger limit",
        },
        Kind::Tmpfs => Help {
            can: false,
            how: "it has no disk that it could be written to: delete files there, put them on a disk, or mount it with size=",
        },
    }
}

/// What to look with next. `biggest`: the process with most memory of its own, and what its program is written in;
/// `mount`: the fullest tmpfs; `group`: the group's directory.
pub fn next(
    kind: Kind,
    biggest: Option<(u32, Option<Runtime>)>,
    mount: Option<&str>,
    group: Option<&str>,
) -> Vec<Tool> {
    let tool = |command: String, shows| Tool { command, shows };
    let pid = biggest.map_or("PID".to_owned(), |(pid, _)| pid.to_string());
    match kind {
        Kind::Anonymous => match biggest.and_then(|(_, runtime)| runtime) {
            Some(Runtime::Go | Runtime::GoWithCgo) => vec![tool(
                "go tool pprof http://HOST:PORT/debug/pprof/heap".into(),
                "which calls hold Go's heap (the program imports net/http/pprof)",
            )],
            Some(Runtime::Java) => vec![
                tool(format!("jhsdb jmap --heap --pid {pid}"), "how full the heap is"),
                tool(
                    format!("jcmd {pid} VM.native_memory summary"),
                    "what is beside it (-XX:NativeMemoryTracking=summary)",
                ),
            ],
            Some(Runtime::Node) => {
                vec![tool(
                    "node --heapsnapshot-signal=SIGUSR2 …".into(),
                    "a snapshot of the heap, for Chrome's developer tools",
                )]
            }
            Some(Runtime::Python) => vec![tool(format!("memray attach {pid}"), "which calls allocate")],
            Some(Runtime::Perl | Runtime::Rust | Runtime::Cpp | Runtime::C) => {
                vec![tool(format!("heaptrack --pid {pid}"), "which calls allocate")]
            }
            None => vec![
                tool(format!("pmap -x {pid}"), "which mappings it has"),
                tool(
                    "pprof (Go), jhsdb (Java), memray (Python), heaptrack (C, C++, Rust)".into(),
                    "what holds the heap",
                ),
            ],
        },
        Kind::Unwritten => vec![tool("freeboard doctor PID".into(), "whether the writer's writes will be seen")],
        Kind::CleanCache => vec![tool("fincore FILE …".into(), "what of files that nobody has open is cached")],
        Kind::Slab => {
            let slabs = tool("slabtop -o -s c".into(), "which caches are large, over the whole node (root)");
            let own = group.map(|group| {
                tool(format!("grep slab {}/memory.stat", quoted(group)), "what of it can be given back (cgroup v2)")
            });
            std::iter::once(slabs).chain(own).collect()
        }
        Kind::Tmpfs => vec![
            tool(format!("du -ax {} | sort -n | tail", quoted(mount.unwrap_or("/dev/shm"))), "which files lie there"),
            tool("ipcs -m".into(), "shared memory without a file"),
        ],
    }
}

/// A path as a shell takes it for one word: it is the container's own choice, and the command is made to be pasted.
fn quoted(path: &str) -> String {
    let is_plain = |sign: char| sign.is_ascii_alphanumeric() || "/._-:@".contains(sign);
    if path.chars().all(is_plain) { path.into() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
