//! Random operations, the same ones plainly and under the library in the mode that flushes most: what each of them
//! gives must be the same, to the errno, the offset and the descriptor's number, and so must the files be in the end.
//! Where it is not, operations are left out for as long as the difference stays, and what remains is shown.

use crate::cgroup::Group;
use crate::lab::Lab;
use crate::{MB, freeboard};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

/// A process carries out so many.
const BATCH: usize = 50_000;
const HANGS_AFTER: Duration = Duration::from_secs(100);
const SHRINKS_FOR: Duration = Duration::from_secs(180);

/// Operations that can be carried out again.
#[derive(Clone, Copy, Debug)]
struct Sequence {
    seed: usize,
    /// Sizes and offsets are so many times the usual ones.
    scale: usize,
    operations: usize,
    /// Of the memory cgroup in which it is carried out under the library.
    limit_bytes: u64,
}

impl Sequence {
    fn usual(seed: usize, operations: usize) -> Sequence {
        Sequence { seed, scale: 1, operations, limit_bytes: 4000 * MB }
    }

    /// Writes that fill the window at once, where there is room for little more.
    fn pressed(seed: usize, operations: usize) -> Sequence {
        Sequence { seed, scale: 16, operations, limit_bytes: 60 * MB }
    }
}

struct Bench<'lab> {
    lab: &'lab Lab,
    dir: &'lab Path,
    program: &'lab Path,
    always: PathBuf,
}

/// What is left of one run.
struct Trace {
    log: String,
    held_calls: f64,
}

impl Bench<'_> {
    fn new<'lab>(lab: &'lab Lab, program: &'lab Path, dir: &'lab Path) -> Bench<'lab> {
        let text =
            "[writes]\nmode = \"always\"\nwindow = \"1MiB\"\n[[rule]]\npath = \"/**\"\nreads = \"drop-behind\"\n";
        let always = freeboard::workload(lab.dir(), text);
        Bench { lab, dir, program, always }
    }

    /// Carries out a sequence, or what is `kept` of it.
    fn run(&self, sequence: &Sequence, kept: Option<&[usize]>, under: bool) -> Trace {
        let dir = self.dir.join("work");
        let [log, kept_file, report] = ["log", "kept", "report"].map(|name| self.lab.dir().join(name));
        fs::create_dir(&dir).expect("cannot make a directory");
        let mut command = Command::new(self.program);
        command.args([sequence.seed, sequence.scale, sequence.operations].map(|number| number.to_string()));
        command.args([&dir, &log]);
        if let Some(numbers) = kept {
            let mut flags = vec![b'0'; sequence.operations];
            numbers.iter().for_each(|&number| flags[number] = b'1');
            fs::write(&kept_file, flags).expect("cannot write the numbers of operations");
            command.arg(&kept_file);
        }
        if under {
            command = freeboard::reporting(&command, &self.always, &report);
        }
        let group = Group::new(self.lab, if under { sequence.limit_bytes } else { 4000 * MB });
        let mut member = group.spawn(&mut command);
        while !member.ended() && member.age() < HANGS_AFTER {
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut trace = Trace { log: String::new(), held_calls: 0.0 };
        let end = if member.ended() {
            let run = member.wait();
            if under && run.status.success() {
                trace.held_calls = freeboard::reported(&report, "held_calls");
            }
            if run.status.success() { String::new() } else { format!("{}\n{}\n", run.status, run.output) }
        } else {
            member.kill();
            format!("hung for {HANGS_AFTER:?}\n")
        };
        // one that ended before its time has written less, or nothing
        trace.log = fs::read_to_string(&log).unwrap_or_default() + &end;
        let _ = fs::remove_file(&log);
        fs::remove_dir_all(&dir).expect("cannot remove a directory");
        trace
    }

    /// Compares the two logs of a sequence. How often a call was held back.
    fn compare(&self, sequence: &Sequence) -> f64 {
        let (plain, under) = (self.run(sequence, None, false), self.run(sequence, None, true));
        if plain.log != under.log {
            self.report(sequence, &first_difference(&plain.log, &under.log));
        }
        under.held_calls
    }

    /// Shrinks a sequence whose logs differ, and shows what is left.
    fn report(&self, sequence: &Sequence, first: &str) -> ! {
        let deadline = Instant::now() + SHRINKS_FOR;
        let logs = |kept: &[usize]| [false, true].map(|under| self.run(sequence, Some(kept), under).log);
        let differ = |kept: &[usize]| {
            let [plain, under] = logs(kept);
            plain != under
        };
        // what comes after the first line that differs cannot matter, and seldom what comes before the last reset
        let line_number = |line: &str| line.split(' ').next().and_then(|number| number.parse::<usize>().ok());
        let last = first.lines().find_map(line_number).map_or(sequence.operations, |number| number + 1);
        let all: Vec<usize> = (0..last.min(sequence.operations)).collect();
        let mut kept = all.clone();
        for tail in [300, 1500, 5000, 20_000].map(|length| &all[all.len().saturating_sub(length)..]) {
            if differ(tail) {
                kept = tail.to_vec();
                break;
            }
        }
        let mut parts = 2;
        while kept.len() > 1 && Instant::now() < deadline {
            let step = kept.len().div_ceil(parts);
            let without = |start: usize| [&kept[..start], &kept[(start + step).min(kept.len())..]].concat();
            let shorter =
                (0..kept.len()).step_by(step).map(without).find(|shorter| Instant::now() < deadline && differ(shorter));
            match shorter {
                Some(shorter) => (kept, parts) = (shorter, parts.max(3) - 1),
                None if step == 1 => break,
                None => parts = (parts * 2).min(kept.len()),
            }
        }
        let [plain, under] = logs(&kept);
        panic!(
            "{sequence:?} on {}: the library changes what operations give, first\n{first}\n\
             What is left of it ({} operations: {kept:?}), plainly:\n{plain}\n{}",
            self.dir.display(),
            kept.len(),
            first_difference(&plain, &under),
        );
    }
}

/// The first line of two logs that is not the same.
fn first_difference(plain: &str, under: &str) -> String {
    let end = "(the end)";
    let lines = |log| str::lines(log).chain(std::iter::repeat(end));
    let pairs = lines(plain).zip(lines(under)).take(plain.lines().count() + under.lines().count());
    let mut number = "";
    for (plain, under) in pairs {
        // the lines of an operation with several follow the one with its number
        if plain.starts_with(|first: char| first.is_ascii_digit()) {
            number = plain.split(' ').next().unwrap_or(end);
        }
        if plain != under {
            return format!("{number} plainly\n{plain}\n{number} under the library\n{under}");
        }
    }
    "no difference any more: it does not come every time".to_owned()
}

/// A number from the environment.
///
/// # Panics
/// Where it is none.
pub fn number(variable: &str, usual: usize) -> usize {
    env::var(variable).map_or(usual, |value| {
        value.parse().unwrap_or_else(|error| panic!("{variable} is to be a number, and is {value}: {error}"))
    })
}

/// Carries out so many operations in a directory, some of them where there is little memory. `program` is
/// `tests/programs/differential.c`, compiled. Returns how many calls were held back, and how many more where there is
/// little memory.
///
/// # Panics
/// Where the library changes what an operation gives.
pub fn compare(lab: &Lab, program: &Path, filesystem: &str, dir: &Path, operations: usize) -> [f64; 2] {
    let bench = Bench::new(lab, program, dir);
    let first_seed = number("FREEBOARD_DIFFERENTIAL_SEED", 1) * 1_000_000;
    let start = Instant::now();
    let mut held_calls = [0.0; 2];
    let pressed = (operations / 50).max(1);
    for (index, done) in (0..operations - pressed).step_by(BATCH).enumerate() {
        let sequence = Sequence::usual(first_seed + index, BATCH.min(operations - pressed - done));
        held_calls[0] += bench.compare(&sequence);
    }
    for (index, done) in (0..pressed).step_by(BATCH).enumerate() {
        let sequence = Sequence::pressed(first_seed + 500_000 + index, BATCH.min(pressed - done));
        held_calls[1] += bench.compare(&sequence);
    }
    println!(
        "{operations} operations on {filesystem}, each as without the library; {} calls were held back, {} more with \
         60 MB of memory; {:.0} s",
        held_calls[0],
        held_calls[1],
        start.elapsed().as_secs_f64()
    );
    held_calls
}
