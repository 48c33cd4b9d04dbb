//! How each of a program's writes is seen. No I/O.

use super::Obstacle;
use super::file::{Libc, Runtime, Use};
use serde::Serialize;

/// How bytes are seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// By functions in the place of libc's.
    Hooked,
    /// By functions in the tables of glibc's streams.
    Streams,
    /// The kernel tells the launcher.
    Notified,
    /// In the page cache, when it is there already: sent early and accounted for, but not held back.
    Swept,
    /// Not at all: as without us, but for what the law takes off the others' share.
    Unseen,
}

impl Seen {
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Seen::Hooked => "hooked",
            Seen::Streams => "FILE tables",
            Seen::Notified => "notified",
            Seen::Swept => "swept",
            Seen::Unseen => "UNSEEN",
        }
    }
}

/// A way to write, and how what goes by it is seen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Way {
    pub writes: &'static str,
    pub seen: Seen,
    pub how: String,
}

/// What decides.
#[derive(Debug)]
pub struct Facts<'a> {
    pub libc: &'a Libc,
    pub runtime: Runtime,
    pub uses: &'a [(Use, String)],
    pub library: Result<(), &'a Obstacle>,
    pub notifier: Result<(), Option<&'a Obstacle>>,
    pub is_deep: bool,
}

/// All ways that the program is known to have.
pub fn ways(facts: &Facts) -> Vec<Way> {
    let mut ways = Vec::new();
    let way = &mut |writes, seen, how: &str| ways.push(Way { writes, seen, how: how.to_owned() });
    let evidence = |one: Use| facts.uses.iter().find(|&&(used, _)| used == one).map(|(_, evidence)| evidence.as_str());
    let rest = [(Use::Mapped, "mapped files"), (Use::Aio, "AIO"), (Use::IoUring, "io_uring")];

    let notified = |way: &mut dyn FnMut(&'static str, Seen, &str), writes| {
        way(writes, Seen::Notified, "with 4096 bytes or more, and all vectors");
        way("smaller write calls", Seen::Unseen, "the kernel does not tell of them: it would cost more than it helps");
    };
    match (facts.library, facts.notifier) {
        (Ok(()), notifier) => {
            if facts.runtime.is_go() && notifier.is_ok() {
                notified(way, "Go's own calls");
            } else if facts.runtime.is_go() {
                way("Go's own calls", Seen::Unseen, "Go makes its system calls itself, past libc");
            }
            if facts.runtime != Runtime::Go {
                way(
                    "write calls",
                    Seen::Hooked,
                    "write, pwrite, writev, copy_file_range, sendfile, splice and syscall()",
                );
            }
            match (evidence(Use::Stdio), facts.libc) {
                (None, _) => {}
                (Some(evidence), Libc::Glibc(_)) if facts.is_deep => way("stdio", Seen::Streams, evidence),
                (Some(evidence), Libc::Glibc(_)) => {
                    way("stdio", Seen::Unseen, &format!("{evidence}; FREEBOARD_DEEP=0"))
                }
                (Some(evidence), _) => way("stdio", Seen::Unseen, &format!("{evidence}; only glibc has the tables")),
            }
        }
        (Err(_), Ok(())) => notified(way, "write calls"),
        (Err(obstacle), Err(notifier)) => {
            let obstacle = notifier.unwrap_or(obstacle);
            way("all", Seen::Unseen, &format!("{}: {}", obstacle.what, obstacle.place));
            return ways;
        }
    }
    for (one, writes) in rest {
        let evidence = match facts.runtime.maps_files() {
            Some(evidence) if one == Use::Mapped => evidence,
            _ => evidence(one),
        };
        let Some(evidence) = evidence else { continue };
        match one {
            _ if facts.library.is_err() => way(writes, Seen::Unseen, evidence),
            Use::Mapped => way(writes, Seen::Swept, &format!("{evidence}; mappings of 1 MiB or more")),
            Use::Aio if is_of_libc(evidence) => way(writes, Seen::Unseen, evidence),
            Use::Aio => way(writes, Seen::Hooked, &format!("{evidence}; as it is submitted")),
            _ if is_by_liburing(evidence) => {
                way(writes, Seen::Hooked, &format!("{evidence}; as it is submitted by liburing"))
            }
            _ => way(
                writes,
                Seen::Swept,
                &format!("{evidence}, without liburing.so; known only where libc's syscall() has made the ring"),
            ),
        }
    }
    ways
}

/// The program's submissions go through the shared library's functions.
fn is_by_liburing(evidence: &str) -> bool {
    ["liburing.so", "io_uring_queue_init"].iter().any(|sign| evidence.contains(sign))
}

/// POSIX's asynchronous writes are made by threads inside libc.
fn is_of_libc(evidence: &str) -> bool {
    ["aio_write", "lio_listio"].iter().any(|function| evidence.contains(function))
}

#[cfg(test)]
mod tests {
    use super::super::obstacle;
    use super::*;

    #[test]
    fn each_way_is_seen_as_it_is() {
        let glibc = Libc::Glibc(None);
        let nothing = obstacle("nothing is loaded", "here", "none");
        let refused = obstacle("the kernel refuses", "here", "none");
        let stdio = &[(Use::Stdio, "a imports puts".to_owned())][..];
        let all = [Use::Stdio, Use::Mapped, Use::Aio, Use::IoUring].map(|one| (one, "it has liburing.so.2".to_owned()));
        let told = Err(&nothing);
        let (hooked, streams, notified, swept, unseen) =
            (Seen::Hooked, Seen::Streams, Seen::Notified, Seen::Swept, Seen::Unseen);
        let cases = [
            (&glibc, Runtime::C, &[][..], Ok(()), Err(None), true, vec![("write calls", hooked)]),
            (&glibc, Runtime::C, stdio, Ok(()), Err(None), true, vec![("write calls", hooked), ("stdio", streams)]),
            (&glibc, Runtime::C, stdio, Ok(()), Err(None), false, vec![("write calls", hooked), ("stdio", unseen)]),
            (&Libc::Musl, Runtime::C, stdio, Ok(()), Err(None), true, vec![("write calls", hooked), ("stdio", unseen)]),
            (
                &glibc,
                Runtime::Rust,
                &all,
                Ok(()),
                Err(None),
                true,
                vec![
                    ("write calls", hooked),
                    ("stdio", streams),
                    ("mapped files", swept),
                    ("AIO", hooked),
                    ("io_uring", hooked),
                ],
            ),
            (
                &glibc,
                Runtime::C,
                &[(Use::IoUring, "it has a ring".to_owned())],
                Ok(()),
                Err(None),
                true,
                vec![("write calls", hooked), ("io_uring", swept)],
            ),
            (
                &glibc,
                Runtime::C,
                &[(Use::Aio, "a imports aio_write".to_owned())],
                Ok(()),
                Err(None),
                true,
                vec![("write calls", hooked), ("AIO", unseen)],
            ),
            (
                &glibc,
                Runtime::C,
                &all[1..],
                told,
                Ok(()),
                true,
                vec![
                    ("write calls", notified),
                    ("smaller write calls", unseen),
                    ("mapped files", unseen),
                    ("AIO", unseen),
                    ("io_uring", unseen),
                ],
            ),
            (
                &glibc,
                Runtime::GoWithCgo,
                &[],
                Ok(()),
                Err(None),
                true,
                vec![("Go's own calls", unseen), ("write calls", hooked)],
            ),
            (
                &glibc,
                Runtime::GoWithCgo,
                &[],
                Ok(()),
                Ok(()),
                true,
                vec![("Go's own calls", notified), ("smaller write calls", unseen), ("write calls", hooked)],
            ),
            (&glibc, Runtime::Node, &all[1..2], Ok(()), Err(None), true, vec![("write calls", hooked)]),
            (
                &glibc,
                Runtime::Java,
                &[],
                Ok(()),
                Err(None),
                true,
                vec![("write calls", hooked), ("mapped files", swept)],
            ),
            (&Libc::None, Runtime::Go, &[], Ok(()), Err(None), true, vec![("Go's own calls", unseen)]),
            (
                &Libc::None,
                Runtime::Go,
                &[],
                told,
                Ok(()),
                true,
                vec![("write calls", notified), ("smaller write calls", unseen)],
            ),
            (&glibc, Runtime::C, stdio, told, Err(None), true, vec![("all", unseen)]),
            (&glibc, Runtime::C, stdio, told, Err(Some(&refused)), true, vec![("all", unseen)]),
        ];
        for (libc, runtime, uses, library, notifier, is_deep, want) in cases {
            let facts = Facts { libc, runtime, uses, library, notifier, is_deep };
            let ways: Vec<_> = ways(&facts).iter().map(|way| (way.writes, way.seen)).collect();
            assert_eq!(ways, want, "{facts:?}");
        }
    }
}
