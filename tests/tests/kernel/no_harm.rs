//! What is cached for a reason stays cached: what was there before we wrote, the end of a growing file, and what is
//! read back at once.

use freeboard_tests::cgroup::{Run, measure};
use freeboard_tests::lab::{Lab, run};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::fs;
use std::path::Path;
use std::process::Command;

const DISK: u64 = 30 * MIB;
const ATTEMPTS: u32 = 4;
/// Most that may be read from the disk of what a program reads.
const AMPLIFICATION: f64 = 0.05;

fn shell(script: &str, arguments: &[&Path]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]).args(arguments);
    command
}

/// Appends to a file that is cached, in `mode = "always"`, which drops what was appended as soon as it has arrived. How
/// much of the old part stays cached; then the file's tail and all of it. The machine may take cold pages back by
/// itself (DAMON), so the best of a few attempts counts: what the library drops, it drops each time.
fn append_to_cached(test: &str, old_bytes: u64, append: impl Fn(&Lab, &Path) -> Command) {
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let always = freeboard::workload(lab.dir(), "[writes]\nmode = \"always\"\nwindow = \"4MiB\"\n");
    let old = programs::random_file(&lab, old_bytes);
    let file = disk.dir().join("file");
    let stayed = (0..ATTEMPTS).any(|_| {
        fs::copy(&old, &file).expect("cannot copy");
        disk.write_out();
        let append = append(&lab, &file);
        measure(&lab, 200 * MB, &mut freeboard::under(&append, Some(&always))).assert_ok(test);
        let end = fs::metadata(&file).expect("cannot stat").len();
        let before = truth::cached_range(&file, 0, old_bytes).bytes;
        let tail = truth::cached_range(&file, end - 1, 1).bytes;
        let all = truth::cached(&file).bytes;
        println!(
            "{test}: {} of {} KiB stay, {tail} bytes of the tail; {} KiB in all",
            before >> 10,
            old_bytes >> 10,
            all >> 10
        );
        assert!(all <= old_bytes + 20 * MIB, "nothing was dropped: this shows nothing");
        before >= old_bytes && tail > 0
    });
    assert!(stayed, "what was cached before we wrote, or the tail, was dropped {ATTEMPTS} times");
}

#[test]
fn what_was_cached_before_stays() {
    append_to_cached("what was cached before", 40 * MIB, |lab, file| {
        let new = programs::random_file(lab, 60 * MIB + 1000);
        let mut dd = Command::new("dd");
        dd.args(["bs=64k", "conv=notrunc", "oflag=append", "status=none"]);
        dd.arg(format!("if={}", new.display())).arg(format!("of={}", file.display()));
        dd
    });
}

/// Once more with an old end inside a page, and with many closes: what outlives a close is dropped by other means.
#[test]
fn what_was_cached_before_stays_when_files_are_closed() {
    append_to_cached("what was cached before, many closes", 20 * MIB + 1000, |_, file| {
        let appends =
            "import sys\nfor n in range(24):\n    with open(sys.argv[1], 'ab') as f: f.write(bytes(2 << 20) + b'x')";
        let mut python = Command::new(run("python3", &["-c", "import sys; print(sys.executable)"]));
        python.args(["-c", appends]).arg(file);
        python
    });
}

#[test]
fn what_is_read_back_is_not_read_from_the_disk() {
    let test = "what is read back at once";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let source = programs::random_file(&lab, 100 * MIB);
    let cases = [
        // usage stays under its target, so nothing is dropped
        ("write, then verify", 100, 240, r#"dd bs=64k status=none if="$1" of="$2/copy" && cmp "$1" "$2/copy""#),
        // far more than there is room for, but the reader is close behind
        (
            "a log that is tailed",
            200,
            120,
            r#": >"$2/log"; tail -c +1 --follow --quiet "$2/log" >/dev/null & tail=$!
               for n in 1 2; do dd bs=64k status=none if="$1" >>"$2/log"; done; sleep 1; kill $tail"#,
        ),
        // forty objects of 2 MiB, which the linker reads when all have been written
        (
            "a compile",
            80,
            320,
            r#"set -e
               for n in $(seq 40); do
                   echo ".data; .incbin \"$1\", $n << 21, 2 << 20" | cc -x assembler -c -o "$2/$n.o" -
               done
               cc -shared -nostdlib -o "$2/linked.so" "$2"/*.o"#,
        ),
        (
            "an sqlite load",
            20,
            120,
            r#"python3 -c '
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, value BLOB)")
database.executemany("INSERT INTO t VALUES (?, randomblob(1000))", ((n,) for n in range(20000)))
database.commit()
for n in range(0, 20000): database.execute("SELECT value FROM t WHERE n = ?", (n,)).fetchone()
' "$2/database""#,
        ),
    ];
    let output = disk.dir().join("output");
    let rows = cases.map(|(name, read_mib, limit_mb, script)| {
        let attempt = || {
            fs::create_dir(&output).expect("cannot make the output directory");
            disk.settle();
            let before = disk.read_bytes();
            let run = measure(&lab, limit_mb * MB, &mut freeboard::under(&shell(script, &[&source, &output]), None));
            run.assert_ok(name);
            let read = disk.read_bytes() - before;
            fs::remove_dir_all(&output).expect("cannot remove the output");
            println!("{name}: {:.1} MiB of {read_mib} MiB were read from the disk", read as f64 / MIB as f64);
            (name, run, read as f64 / (read_mib * MIB) as f64)
        };
        // as in `append_to_cached`: the machine takes cold pages back, and then the next attempt tells
        let is_little = |(_, _, ratio): &(&str, Run, f64)| *ratio <= AMPLIFICATION;
        let first = attempt();
        (1..ATTEMPTS).fold(first, |tried, _| if is_little(&tried) { tried } else { attempt() })
    });
    table::print(test, &rows.each_ref().map(|(name, run, _)| (*name, run)));
    for (name, _, ratio) in rows {
        assert!(ratio <= AMPLIFICATION, "{name}: {:.0} % came from the disk", ratio * 100.0);
    }
}

/// A writer that is only observed: a file that is still open when it ends, and one that is closed.
#[test]
fn what_is_observed_is_neither_sent_nor_held() {
    let test = "mode observe";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let observe = freeboard::workload(lab.dir(), "[writes]\nmode = \"observe\"\n");
    let report = lab.dir().join("report");
    let write = r#"dd if=/dev/zero of="$1/closed" bs=1M count=40 status=none; head -c 100000 /dev/zero >"$1/open""#;
    let run = measure(&lab, 120 * MB, &mut freeboard::reporting(&shell(write, &[disk.dir()]), &observe, &report));
    run.assert_ok(test);
    let number = |name| freeboard::reported(&report, name);
    println!("{test}: {:.2?}, held back {} s", run.wall, number("held_back_s"));
    assert!(number("written_bytes") >= (40 * MIB + 100_000) as f64, "not all was seen");
    assert!(number("flushed_bytes") == 0.0 && number("held_calls") == 0.0, "it was paced");
}
