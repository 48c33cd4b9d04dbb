//! The answer for people.

use super::figures::Kind;
use super::report::Report;
use freeboard_config::size::show;
use std::fmt::Write;

impl Kind {
    /// For people.
    const fn name(self) -> &'static str {
        match self {
            Kind::Anonymous => "anonymous",
            Kind::Unwritten => "unwritten",
            Kind::CleanCache => "clean cache",
            Kind::Slab => "slab",
            Kind::Tmpfs => "tmpfs",
        }
    }

    /// What it is.
    const fn words(self) -> &'static str {
        match self {
            Kind::Anonymous => "heaps and stacks: only the programs themselves can give it back",
            Kind::Unwritten => "page cache that is not on the disk: given back as fast as the disk writes",
            Kind::CleanCache => "page cache that is on the disk: given back at once when memory is wanted",
            Kind::Slab => "the kernel's own memory: inodes, directory entries, page tables",
            Kind::Tmpfs => "files in memory and shared memory: given back when they are deleted",
        }
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut lines = Lines::default();
        let version = self.cgroup_version.map_or(String::new(), |version| format!(", cgroup v{version}"));
        lines.add("group", format!("{}{version}", self.group.as_deref().unwrap_or("unknown")));
        let inferred = if self.verdict_is_inferred { " (inferred: the kernel's words do not say)" } else { "" };
        lines.add("verdict", format!("{}: {}{inferred}", self.verdict.name(), self.verdict.words()));
        lines.add("verdict", self.standing.words());
        for task in &self.killed {
            let bytes = task.anonymous_bytes.map_or(String::new(), |bytes| format!(", {} anonymous", show(bytes)));
            lines.add("killed", format!("{} (process {}){bytes}", task.name, task.pid));
        }

        for part in &self.parts {
            lines.add("memory", format!("{:<12}{}", part.kind.name(), amount(Some(part.bytes), part.percent)));
        }
        let whole = self.limit_bytes.map_or("none".to_owned(), show);
        let hits = self.limit_hits.map_or(String::new(), |hits| format!(", met {hits} times"));
        lines.add("limit", format!("{whole}{hits}"));

        for number in &self.numbers {
            let over = if number.is_over_the_line == Some(true) { ", over 80 %" } else { "" };
            lines.add(
                "who sees",
                format!("{:<12}{}  {}{over}", number.reader, amount(number.bytes, number.percent), number.looks_at),
            );
        }
        if let Some(node) = self.node {
            lines.add(
                "who sees",
                format!(
                    "{:<12}{:>9}          the node, {} available: /proc/meminfo knows no group",
                    "free",
                    show(node.total_bytes),
                    show(node.available_bytes)
                ),
            );
        }

        for task in self.processes.iter().filter(|task| task.anonymous_bytes > Some(0)) {
            lines.add(
                "processes",
                format!("{:>9}  {} (process {})", show(task.anonymous_bytes.unwrap_or(0)), task.name, task.pid),
            );
        }
        for file in &self.files {
            let unwritten = match (file.is_tmpfs, file.unwritten_bytes) {
                (true, _) => ", in tmpfs".to_owned(),
                (_, 0) => String::new(),
                (_, bytes) => format!(", {} unwritten", show(bytes)),
            };
            lines.add(
                "files",
                format!("{:>9}  {}{unwritten} (process {})", show(file.cached_bytes), file.path, file.pid),
            );
        }
        for mount in &self.tmpfs {
            lines.add("tmpfs", format!("{:>9}  {} (of process {})", show(mount.used_bytes), mount.mount, mount.pid));
        }
        let can = if self.freeboard.can { "helps" } else { "cannot help" };
        lines.add("freeboard", format!("{can}: {}", self.freeboard.how));
        for tool in &self.next {
            lines.add("next", format!("{}: {}", tool.command, tool.shows));
        }
        for note in &self.notes {
            lines.add("note", note);
        }
        lines.text
    }
}

/// A size, and what it is of the limit.
fn amount(bytes: Option<u64>, percent: Option<f64>) -> String {
    let percent = percent.map_or(String::new(), |percent| format!("{percent:.1} %"));
    format!("{:>9} {percent:>8}", bytes.map_or("unknown".to_owned(), show))
}

/// Lines with a head; one that repeats is left blank.
#[derive(Default)]
struct Lines {
    text: String,
    last: &'static str,
}

impl Lines {
    fn add(&mut self, head: &'static str, words: impl AsRef<str>) {
        let shown = if head == self.last { "" } else { head };
        self.last = head;
        // writing to a string does not fail
        // names are the container's own choice, and are not to speak to the terminal
        let harmless = |sign: char| if sign.is_control() { char::REPLACEMENT_CHARACTER } else { sign };
        let words: String = words.as_ref().trim_end().chars().map(harmless).collect();
        let _ = writeln!(self.text, "{shown:<12}{words}");
    }
}
