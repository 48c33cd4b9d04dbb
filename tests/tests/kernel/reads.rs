//! `reads = "drop-behind"`: a backup of 250 MiB of cold files in a group of 60 MB, and one file by each way of reading.
//! What the page cache holds afterwards is the kernel's word.

use freeboard_tests::cgroup::{Group, Run};
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, sys, table, truth};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const LIMIT: u64 = 60 * MB;
/// In this group everything would stay cached.
const ROOMY: u64 = 600 * MB;
/// What the kernel reads ahead, what stays behind the reader until it goes on, and the programs themselves.
const CACHE_MOST: u64 = 20 * MIB;
/// What of a file stays: nothing but what a program has open at its end.
const LEFT_MOST: u64 = MIB;

/// Files that a backup reads, on a disk of their own.
struct Source {
    cold: Vec<PathBuf>,
    /// All of it was cached before.
    warm: PathBuf,
    /// And of this one what lies from 8 to 12 MiB.
    half: PathBuf,
}

impl Source {
    fn new(dir: &Path) -> Source {
        let random = fs::read(programs::random_file_on_disk(16 * MIB)).expect("cannot read random bytes");
        let make = |name: &str, bytes: u64| {
            let path = dir.join(name);
            let data: Vec<u8> = random.iter().copied().cycle().take(bytes as usize).collect();
            fs::write(&path, data).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
            path
        };
        let large = (0..3).map(|n| make(&format!("large-{n}"), 60 * MIB));
        let small = (0..60).map(|n| make(&format!("small-{n}"), 300_000));
        Source { cold: large.chain(small).collect(), warm: make("warm", 16 * MIB), half: make("half", 32 * MIB) }
    }

    fn prepare(&self) {
        for path in self.cold.iter().chain([&self.warm, &self.half]) {
            truth::make_cold(path);
        }
        fs::read(&self.warm).expect("cannot read");
        let half = File::open(&self.half).expect("cannot open");
        sys::do_not_read_ahead(&half).expect("posix_fadvise");
        let mut middle = vec![0; 4 << 20];
        half.read_exact_at(&mut middle, 8 * MIB).expect("cannot read");
    }

    fn cold_cached(&self) -> u64 {
        self.cold.iter().map(|path| truth::cached(path).bytes).sum()
    }

    fn cold_bytes(&self) -> u64 {
        self.cold.iter().map(|path| path.metadata().expect("cannot stat").len()).sum()
    }
}

fn rule(lab: &Lab, dir: &Path) -> PathBuf {
    freeboard::workload(lab.dir(), &format!("[[rule]]\npath = \"{}/**\"\nreads = \"drop-behind\"\n", dir.display()))
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn a_backup_keeps_to_itself() {
    let test = "a backup under drop-behind";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Ext4, 0);
    let dir = disk.dir().join("data");
    fs::create_dir(&dir).expect("cannot make a directory");
    let source = Source::new(&dir);
    let with_rule = rule(&lab, &dir);

    let backup = shell(&format!("tar --create --file - --directory {} . | sha256sum", dir.display()));
    let run = |limit: u64, mut command: Command| -> (Run, u64) {
        source.prepare();
        let run = Group::new(&lab, limit).run(&mut command);
        (run, source.cold_cached())
    };
    let (plain, _) = run(LIMIT, shell(&format!("tar --create --file - --directory {} . | sha256sum", dir.display())));
    let (under, left) = run(LIMIT, freeboard::under(&backup, Some(&with_rule)));
    table::print(test, &[("plain", &plain), ("drop-behind", &under)]);
    println!("{test}: {} KiB of the source are cached afterwards", left >> 10);

    assert!(plain.figures.limit_hits > 0, "{test}: the plain run was never at the limit: this shows nothing");
    under.assert_never_at_the_limit(test);
    assert_eq!(under.output, plain.output, "{test}: another archive");
    let cache = under.figures.peak_cache_bytes;
    assert!(cache <= CACHE_MOST, "{test}: page cache was up to {} MiB", cache / MIB);
    assert!(left <= LEFT_MOST, "{test}: {} KiB of the source are cached", left >> 10);

    // most of it: a machine that is short of memory takes some back itself
    let warm = truth::cached(&source.warm).bytes;
    assert!(warm >= 12 * MIB, "{test}: of what was cached before {} MiB are left of 16", warm / MIB);
    let middle = truth::cached_range(&source.half, 8 * MIB, 4 * MIB).bytes;
    assert!(middle >= 3 * MIB, "{test}: of the part that was cached before {} MiB are left of 4", middle / MIB);
    let rest = truth::cached(&source.half).bytes - middle;
    assert!(rest <= LEFT_MOST, "{test}: of the rest of its file {} KiB are cached", rest >> 10);

    let elsewhere = rule(&lab, Path::new("/nowhere"));
    let (_, kept) = run(ROOMY, freeboard::under(&backup, Some(&elsewhere)));
    let all = source.cold_bytes();
    assert!(kept >= all / 8 * 7, "{test}: without a rule for it {} of {} MiB stay cached", kept / MIB, all / MIB);
}

#[test]
fn each_way_of_reading() {
    let test = "ways of reading under drop-behind";
    let Some(lab) = Lab::shared(test) else { return };
    // where a copy is a copy
    let disk = SlowDisk::new(&lab, Filesystem::XfsWithoutReflinks, 0);
    let dir = disk.dir().join("data");
    fs::create_dir(&dir).expect("cannot make a directory");
    let (file, copied) = (dir.join("file"), disk.dir().join("copied"));
    fs::copy(programs::random_file_on_disk(32 * MIB), &file).expect("cannot copy");
    let with_rule = rule(&lab, &dir);
    let (from, to) = (file.display(), copied.display());
    let python = |code: &str| {
        let open = format!("f = os.open(\"{from}\", os.O_RDONLY); o = open(\"{to}\", \"wb\")");
        format!("python3 -c 'import os\n{open}\n{code}'")
    };
    let ways = [
        ("read", format!("dd if={from} of={to} bs=64k status=none")),
        ("read, at once", format!("dd if={from} of={to} bs=32M status=none")),
        ("read, an inherited descriptor", format!("tr a a < {from} > {to}")),
        ("copy_file_range", python("while os.copy_file_range(f, o.fileno(), 1 << 30): pass")),
        ("sendfile", python("while os.sendfile(o.fileno(), f, None, 1 << 30): pass")),
        ("pread", python("for n in range(128): o.write(os.pread(f, 1 << 18, n << 18))")),
        ("preadv", python("b = bytearray(1 << 18)\nfor n in range(128): os.preadv(f, [b], n << 18); o.write(b)")),
        ("stdio", format!("sed -n p {from} > {to}")),
    ];
    for (way, script) in ways {
        let cached = |command: &mut Command| {
            truth::make_cold(&file);
            Group::new(&lab, ROOMY).run(command).assert_ok(way);
            let cached = truth::cached(&file).bytes;
            truth::assert_same(&copied, &file);
            cached
        };
        let plain = cached(&mut shell(&script));
        let left = cached(&mut freeboard::under(&shell(&script), Some(&with_rule)));
        println!("{test}: {way}: plain {} KiB are cached, with the rule {}", plain >> 10, left >> 10);
        assert!(plain >= 28 * MIB, "{way}: plainly {} KiB are cached: this shows nothing", plain >> 10);
        assert!(left <= LEFT_MOST, "{way}: {} KiB are cached", left >> 10);
    }

    // two readers, one 8 MiB behind the other: what he is about to read stays
    truth::make_cold(&file);
    let follow = python(
        "g = os.open(f\"/proc/self/fd/{f}\", os.O_RDONLY)
for n in range(128):
    os.pread(f, 1 << 18, n << 18)
    if n >= 32: os.pread(g, 1 << 18, n - 32 << 18)",
    );
    Group::new(&lab, ROOMY).run(&mut freeboard::under(&shell(&follow), Some(&with_rule))).assert_ok("a follower");
    let left = truth::cached(&file).bytes;
    println!("{test}: followed by another reader, {} MiB are cached", left / MIB);
    assert!(left >= 8 * MIB, "what somebody else reads was dropped: {} MiB are cached", left / MIB);

    // who reads it twice (to hash it, then to send it) wants it again
    truth::make_cold(&file);
    let twice = python("for n in range(2):\n    os.lseek(f, 0, os.SEEK_SET)\n    while os.read(f, 1 << 18): pass");
    Group::new(&lab, ROOMY).run(&mut freeboard::under(&shell(&twice), Some(&with_rule))).assert_ok("twice");
    let left = truth::cached(&file).bytes;
    println!("{test}: read twice, {} MiB are cached", left / MIB);
    assert!(left >= 28 * MIB, "what is read again was dropped again: {} MiB are cached", left / MIB);
}

/// A pipe is no reason to ask for the rules, and who only reads is no writer.
#[test]
fn asking_for_the_rules() {
    let test = "asking for the rules";
    let Some(lab) = Lab::shared(test) else { return };
    let (with_rule, report) = (rule(&lab, Path::new("/nowhere")), lab.dir().join("report"));
    let (file, code) = (programs::random_file_on_disk(MIB), lab.dir().join("code.py"));
    // the builtin module alone: others are files that are read
    let text = "
import posix, sys
def has_region():
    maps = b''
    f = posix.open('/proc/self/maps', posix.O_RDONLY)
    while part := posix.read(f, 4000): maps += part
    posix.close(f)
    return b'/memfd:' in maps
r, w = posix.pipe()
for n in range(2000):
    posix.write(w, bytes(8192))
    posix.read(r, 8192)
assert not has_region(), 'it asked when it read a pipe'
posix.pread(posix.open(sys.argv[1], posix.O_RDONLY), 8192, 0)
assert has_region(), 'it did not ask when it read a file: this shows nothing'
";
    fs::write(&code, text).expect("cannot write a program");
    let mut python = Command::new("python3");
    python.args(["-I", "-S"]).args([&code, &file]);
    let run = Group::new(&lab, ROOMY).run(&mut freeboard::reporting(&python, &with_rule, &report));
    run.assert_ok(test);
    assert_eq!(freeboard::reported(&report, "processes"), 0.0, "{test}: who only reads counts as a writer");
}
