//! The answer: lines for people, JSON for scripts.

use super::file::{Libc, Linkage, Runtime};
use super::ways::{Facts, Seen, Way, ways};
use super::{Obstacle, Region, Subject, obstacle};
use freeboard_config::size::show;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// The answer for one program. What does not apply is null.
#[derive(Debug, Serialize)]
pub struct Report {
    pid: Option<u32>,
    program: PathBuf,
    /// What leads to it: the command's own file first.
    scripts: Vec<PathBuf>,
    libc: &'static str,
    libc_version: Option<String>,
    linkage: &'static str,
    loader: Option<PathBuf>,
    runtime: Runtime,
    /// The library that it has, or will have.
    library: Option<PathBuf>,
    /// Where a sidecar is that it is told of.
    region: Option<PathBuf>,
    /// Whether one is told of, there or not.
    is_region_named: bool,
    limit_bytes: Option<u64>,
    /// Whether limits of ancestors could be looked for up to the hierarchy's root.
    ancestors_seen: Option<bool>,
    writes: Vec<Way>,
    in_the_way: Vec<Obstacle>,
    /// No write goes unseen.
    pub all_seen: bool,
}

impl Report {
    /// Judges what is known.
    pub fn of(subject: Subject) -> Report {
        let libc = subject.elf.libc(&subject.libraries);
        let runtime = subject.elf.runtime(&subject.libraries, &libc);
        let writes = ways(&Facts {
            libc: &libc,
            runtime,
            uses: &subject.uses,
            library: subject.library.as_ref().map(drop),
            notifier: subject.notifier.as_ref().map(drop).map_err(Option::as_ref),
            is_deep: subject.is_deep,
        });
        let mut in_the_way = subject.obstacles;
        match (&subject.library, subject.notifier) {
            (Ok(_), _) | (_, Ok(())) => {}
            (Err(library), Err(notifier)) => in_the_way.insert(0, notifier.unwrap_or_else(|| library.clone())),
        }
        let limit = match subject.limit {
            Ok(limit) => Some(limit),
            Err(error) => {
                in_the_way.push(obstacle("the limit cannot be seen", error, "mount its memory cgroup's filesystem"));
                None
            }
        };
        let (region, is_region_named) = match subject.region {
            Region::None => (None, false),
            Region::Live(path) => (Some(path), true),
            Region::Useless(obstacle) => {
                in_the_way.push(obstacle);
                (None, true)
            }
        };
        let (linkage, loader) = match subject.elf.linkage {
            Linkage::Dynamic(loader) => ("dynamic", Some(loader)),
            Linkage::Static => ("static", None),
            Linkage::StaticPie => ("static-pie", None),
        };
        let (libc, libc_version) = match libc {
            Libc::Glibc(version) => ("glibc", version),
            Libc::Musl => ("musl", None),
            Libc::None => ("none", None),
            Libc::Unknown => ("unknown", None),
        };
        Report {
            pid: subject.pid,
            program: subject.program,
            scripts: subject.scripts,
            libc,
            libc_version,
            linkage,
            loader,
            runtime,
            library: subject.library.ok(),
            region,
            is_region_named,
            limit_bytes: limit.and_then(|limit| limit.bytes),
            ancestors_seen: limit.map(|limit| limit.ancestors_seen),
            all_seen: writes.iter().all(|way| way.seen != Seen::Unseen),
            writes,
            in_the_way,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |head: &str, words: String| {
            let _ = writeln!(text, "{head:<12}{words}");
        };
        let scripts: Vec<_> = self.scripts.iter().map(|path| format!("{} -> ", path.display())).collect();
        line("program", format!("{}{}", scripts.concat(), self.program.display()));
        line("libc", format!("{} {}", self.libc, self.libc_version.as_deref().unwrap_or_default()).trim().to_owned());
        let loader = self.loader.as_ref().map_or(String::new(), |loader| format!(", by {}", loader.display()));
        line("linkage", format!("{}{loader}", self.linkage));
        line("runtime", self.runtime.name().to_owned());
        let when = if self.pid.is_some() { "loaded" } else { "will be loaded by `freeboard run`" };
        line("library", self.library.as_ref().map_or("none".into(), |path| format!("{}, {when}", path.display())));
        line(
            "region",
            match (&self.region, self.is_region_named) {
                (Some(path), _) => format!("{}, a sidecar keeps it", path.display()),
                (None, true) => "of no use, see below".into(),
                (None, false) if self.pid.is_some() => "none: it goes by its own cgroup".into(),
                (None, false) => "`freeboard run` makes one".into(),
            },
        );
        let no_limit = "none: its writes are seen, and none is held back";
        let unseen =
            if self.ancestors_seen == Some(false) { "; ancestors that cannot be seen may have less" } else { "" };
        line("limit", self.limit_bytes.map_or(no_limit.into(), show) + unseen);
        for (index, way) in self.writes.iter().enumerate() {
            let head = if index == 0 { "writes" } else { "" };
            line(head, format!("{:<21}{:<13}{}", way.writes, way.seen.word(), way.how));
        }
        for (index, one) in self.in_the_way.iter().enumerate() {
            let head = if index == 0 { "in the way" } else { "" };
            line(head, format!("{}: {}; mend: {}", one.what, one.place, one.mend));
        }
        text
    }
}

impl Runtime {
    const fn name(self) -> &'static str {
        match self {
            Runtime::Go => "Go",
            Runtime::GoWithCgo => "Go with cgo",
            Runtime::Java => "Java",
            Runtime::Node => "Node",
            Runtime::Perl => "Perl",
            Runtime::Python => "Python",
            Runtime::Rust => "Rust",
            Runtime::Cpp => "C++",
            Runtime::C => "C, or another that writes by libc",
        }
    }
}
