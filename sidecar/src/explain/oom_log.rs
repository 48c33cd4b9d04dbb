//! What the kernel says when it kills for memory: `mm/oom_kill.c` and `mm/memcontrol*.c` of 3.10 to 6.18, cgroup v1 and
//! v2, from dmesg, the journal or syslog.
//!
//! Each line is looked for by its words wherever they stand, so that any time stamp, host name or log level may come
//! before; what is not there is not known. One message per kill, which begins at "invoked oom-killer".

use super::figures::Figures;
use serde::Serialize;

/// Sizes in the table of tasks are in pages of the machine that printed it; nearly all have these.
const PAGE_BYTES: u64 = 4096;
/// From here on a number of kilobytes says that there is no limit (PAGE_COUNTER_MAX).
const NO_LIMIT_KB: u64 = 1 << 50;

/// One process in a message.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Task {
    /// In the node's namespace.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Heap and stacks.
    pub anonymous_bytes: Option<u64>,
    /// tmpfs and shared memory that it has mapped.
    pub shmem_bytes: Option<u64>,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Message {
    /// It was a group that met its limit; else it is the node that was out of memory.
    pub is_of_group: bool,
    /// The group whose limit was met.
    pub group: Option<String>,
    /// What the message says of it.
    pub figures: Figures,
    /// The processes in it.
    pub tasks: Vec<Task>,
    /// Those that were killed.
    pub killed: Vec<Task>,
}

/// The messages in a log, first to last.
pub fn messages(log: &str) -> Vec<Message> {
    let mut reader = Reader::default();
    // syslog writes a line break as #012, /dev/kmsg as \x0a
    let log = log.replace("#012", "\n").replace("\\x0a", "\n");
    log.lines().for_each(|line| reader.read(line));
    reader.end();
    reader.done
}

/// Where in a message a line stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Part {
    #[default]
    Elsewhere,
    /// Below "Memory cgroup stats".
    Stats,
    /// Below the head of the table of tasks.
    Tasks,
}

#[derive(Debug, Default)]
struct Reader {
    done: Vec<Message>,
    /// `None`: no message has begun.
    message: Option<Message>,
    /// Lines of `memory.stat`.
    stats: String,
    /// Names of the columns of the table of tasks, from `uid` on.
    columns: Vec<String>,
    part: Part,
    /// The message's kill was read: what is next begins another, or is a kill of the same group.
    is_over: bool,
}

impl Reader {
    fn read(&mut self, line: &str) {
        if line.contains(" invoked oom-killer: ") {
            self.end();
            self.message = Some(Message::default());
        } else if let Some(usage) = after(line, "memory: usage ") {
            self.begin_if(|message| message.figures.usage.is_some());
            let figures = &mut self.message().figures;
            figures.usage = kilobytes(usage);
            figures.limit = after(usage, "limit ").and_then(kilobytes);
            figures.limit_hits = after(usage, "failcnt ").and_then(digits);
            self.message().is_of_group = true;
        } else if let Some(usage) = after(line, "kmem: usage ") {
            self.message().figures.kernel = kilobytes(usage);
        } else if let Some(rest) = after(line, "Memory cgroup stats for ") {
            self.part = Part::Stats;
            // until Linux 5.2 all on one line, one line for each group below: the first is the sum of all
            let (group, numbers) = rest.split_once(": ").unwrap_or((rest.trim_end().trim_end_matches(':'), ""));
            if self.message().group.is_none() {
                self.message().group = Some(group.to_owned());
            }
            if self.stats.is_empty() {
                for word in numbers.split_whitespace() {
                    let said = word.split_once(':').and_then(|(key, number)| Some((key, kilobytes(number)?)));
                    self.stats.extend(said.map(|(key, bytes)| format!("{key} {bytes}\n")));
                }
            }
        } else if let Some(columns) = table_head(line) {
            self.part = Part::Tasks;
            self.columns = columns;
        } else if let Some(facts) = after(line, "oom-kill:constraint=") {
            self.part = Part::Elsewhere;
            self.message().is_of_group = facts.starts_with("CONSTRAINT_MEMCG");
            let group = facts.split(',').find_map(|fact| fact.strip_prefix("oom_memcg="));
            if let Some(group) = group {
                self.message().group = Some(group.to_owned());
            }
        } else if let Some(group) = after(line, " killed as a result of limit of ") {
            self.message().is_of_group = true;
            self.message().group = Some(group.trim().to_owned());
        } else if let Some(killed) = after(line, "Killed process ").and_then(killed) {
            let is_of_group = line.contains("Memory cgroup out of memory");
            // with memory.oom.group, or where threads share memory, one message has several
            self.begin_if(|message| is_of_group && message.figures == Figures::default() && !message.killed.is_empty());
            self.message().is_of_group |= is_of_group;
            self.message().killed.push(killed);
            self.part = Part::Elsewhere;
            self.is_over = true;
        } else if self.part == Part::Tasks {
            let task = task(line, &self.columns);
            self.message().tasks.extend(task);
        } else if self.part == Part::Stats
            && let mut words = line.split_whitespace().rev()
            && let (Some(number), Some(key)) = (words.next(), words.next())
        {
            self.stats += &format!("{key} {number}\n");
        }
    }

    fn message(&mut self) -> &mut Message {
        self.message.get_or_insert_default()
    }

    /// Begins another message where the last one is over, and where that is so.
    fn begin_if(&mut self, is_another: impl FnOnce(&Message) -> bool) {
        if self.is_over && self.message.as_ref().is_some_and(is_another) {
            self.end();
        }
    }

    fn end(&mut self) {
        let Reader { done, message, stats, .. } = std::mem::take(self);
        self.done = done;
        let Some(mut message) = message else { return };
        message.figures.add_stat(&stats);
        let unlimited = message.figures.limit.filter(|&bytes| bytes >> 10 < NO_LIMIT_KB);
        message.figures.limit = unlimited;
        infer(&mut message);
        if message.is_of_group || !message.killed.is_empty() {
            self.done.push(message);
        }
    }
}

/// What the processes say, where the group's own numbers are missing.
fn infer(message: &mut Message) {
    let processes = if message.tasks.is_empty() { &message.killed } else { &message.tasks };
    let sum = |bytes: fn(&Task) -> Option<u64>| processes.iter().filter_map(bytes).reduce(u64::saturating_add);
    // what was killed is exact where the table of tasks does not split what is resident
    let anonymous =
        sum(|task| task.anonymous_bytes).or(message.killed.iter().filter_map(|task| task.anonymous_bytes).max());
    message.figures.anonymous = message.figures.anonymous.or(anonymous);
    message.figures.shmem = message.figures.shmem.or(sum(|task| task.shmem_bytes));
}

/// What stands behind a word.
fn after<'a>(line: &'a str, words: &str) -> Option<&'a str> {
    line.split_once(words).map(|(_, rest)| rest)
}

/// The digits that a text begins with.
fn digits(text: &str) -> Option<u64> {
    text.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// `585936kB`, also with KB, in bytes.
fn kilobytes(text: &str) -> Option<u64> {
    digits(text)?.checked_mul(1024)
}

/// `13364 (busybox) total-vm:2332kB, anon-rss:0kB, …`, with a comma before `total-vm` until Linux 5.2.
fn killed(text: &str) -> Option<Task> {
    let (name, facts) = text.split_once(" (")?.1.rsplit_once(')')?;
    let fact = |key: &str| after(facts, key).and_then(kilobytes);
    Some(Task {
        pid: digits(text)?.try_into().ok()?,
        name: name.to_owned(),
        anonymous_bytes: fact("anon-rss:"),
        shmem_bytes: fact("shmem-rss:"),
    })
}

/// `[  pid  ]   uid  tgid total_vm      rss … name`: the columns from `uid` on.
fn table_head(line: &str) -> Option<Vec<String>> {
    let columns = line.split_once("pid")?.1.split_once(']')?.1.split_whitespace();
    let columns: Vec<String> = columns.map(str::to_owned).collect();
    let (first, last) = (columns.first()?, columns.last()?);
    (first == "uid" && last == "name").then_some(columns)
}

/// `[  13364]     0 13364      583      316 … busybox`.
fn task(line: &str, columns: &[String]) -> Option<Task> {
    let numbers = columns.len().checked_sub(1)?;
    line.match_indices('[').find_map(|(at, _)| {
        let (pid, rest) = line.get(at + 1..)?.split_once(']')?;
        let mut words = rest.split_whitespace();
        let row = words.by_ref().take(numbers).map(|word| word.parse().ok()).collect::<Option<Vec<i64>>>()?;
        let pages = |column: &str| {
            let index = columns.iter().position(|name| name == column)?;
            u64::try_from(*row.get(index)?).ok()?.checked_mul(PAGE_BYTES)
        };
        let name: Vec<&str> = words.collect();
        Some(Task {
            pid: pid.trim().parse().ok()?,
            name: (row.len() == numbers && !name.is_empty()).then(|| name.join(" "))?,
            anonymous_bytes: pages("rss_anon"),
            shmem_bytes: pages("rss_shmem"),
        })
    })
}

#[cfg(test)]
#[path = "oom_log_tests.rs"]
mod tests;
