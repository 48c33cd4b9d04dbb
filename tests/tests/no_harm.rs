//! What is cached for a reason stays cached: what was there before we wrote, the end of a growing file, and what is
//! read back at once.

use freeboard_tests::cgroup::measure;
use freeboard_tests::lab::{Lab, run};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::fs;
use std::path::Path;
use std::process::Command;

const DISK: u64 = 30 * MIB;
/// Most that may be read from the disk of what a program reads.
const AMPLIFICATION: f64 = 0.05;

fn shell(script: &str, arguments: &[&Path]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]).args(arguments);
    command
}

#[test]
fn what_was_cached_before_stays() {
    let test = "what was cached before";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let (old, new) = (programs::random_file(&lab, 40 * MIB), programs::random_file(&lab, 60 * MIB + 1000));
    let file = disk.dir().join("file");
    fs::copy(&old, &file).expect("cannot copy");
    disk.write_out();

    // drops all that it appends, as soon as it has arrived
    let always = freeboard::workload(lab.dir(), "[writes]\nmode = \"always\"\nwindow = \"4MiB\"\n");
    let mut append = Command::new("dd");
    append.args(["bs=64k", "conv=notrunc", "oflag=append", "status=none"]);
    append.arg(format!("if={}", new.display())).arg(format!("of={}", file.display()));
    let run = measure(&lab, 200 * MB, &mut freeboard::under(&append, Some(&always)));
    run.assert_ok(test);

    let [before, tail] =
        [(0, 40 * MIB), (100 * MIB, 1000)].map(|(at, bytes)| truth::cached_range(&file, at, bytes).bytes);
    let all = truth::cached(&file).bytes;
    println!("{test}: {} MiB of 40 MiB from before, {tail} bytes of the tail, {} MiB in all", before / MIB, all / MIB);
    assert_eq!(before, 40 * MIB, "what was cached before we wrote was dropped");
    assert!(tail > 0, "the tail of the file was dropped");
    assert!(all <= 50 * MIB, "nothing was dropped: this shows nothing");
}

/// Once more with an old end inside a page, and with many closes: what outlives a close is dropped by other means.
#[test]
fn what_was_cached_before_stays_when_files_are_closed() {
    let test = "what was cached before, many closes";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let old = programs::random_file(&lab, 20 * MIB + 1000);
    let file = disk.dir().join("file");
    fs::copy(&old, &file).expect("cannot copy");
    disk.write_out();

    let always = freeboard::workload(lab.dir(), "[writes]\nmode = \"always\"\nwindow = \"4MiB\"\n");
    let appends = "import sys\nfor n in range(24):\n    with open(sys.argv[1], 'ab') as f: f.write(bytes(2 << 20))";
    let mut python = Command::new(run("python3", &["-c", "import sys; print(sys.executable)"]));
    python.args(["-c", appends]).arg(&file);
    measure(&lab, 200 * MB, &mut freeboard::under(&python, Some(&always))).assert_ok(test);

    let before = truth::cached_range(&file, 0, 20 * MIB + 1000).bytes;
    let all = truth::cached(&file).bytes;
    println!("{test}: {} KiB of 20481 KiB from before, {} MiB of 68 MiB in all", before >> 10, all / MIB);
    assert!(before >= 20 * MIB, "what was cached before we wrote was dropped");
    assert!(all <= 40 * MIB, "nothing was dropped: this shows nothing");
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
    let mut rows = Vec::new();
    for (name, read_mib, limit_mb, script) in cases {
        disk.settle();
        let before = disk.read_bytes();
        let measured =
            measure(&lab, limit_mb * MB, &mut freeboard::under(&shell(script, &[&source, disk.dir()]), None));
        let read = disk.read_bytes() - before;
        println!("{name}: {:.1} MiB of {read_mib} MiB were read from the disk", read as f64 / MIB as f64);
        rows.push((name, measured, read as f64 / (read_mib * MIB) as f64));
    }
    table::print(test, &rows.iter().map(|(name, run, _)| (*name, run)).collect::<Vec<_>>());
    for (name, run, ratio) in rows {
        run.assert_ok(name);
        assert!(ratio <= AMPLIFICATION, "{name}: {:.0} % came from the disk", ratio * 100.0);
    }
}
