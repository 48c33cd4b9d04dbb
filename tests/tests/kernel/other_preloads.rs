//! Other libraries that people preload, before ours and after it: they work as they do alone, and so does ours.

use freeboard_tests::cgroup::measure;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::fs;
use std::process::Command;

const LIBRARIES: [(&str, &str); 5] = [
    ("jemalloc", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
    ("tcmalloc", "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
    ("eatmydata", "/usr/lib/x86_64-linux-gnu/libeatmydata.so.1"),
    ("nocache", "/usr/lib/nocache/nocache.so"),
    ("libfaketime", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"),
];

#[test]
fn in_either_order() {
    let test = "other libraries that are preloaded";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 30 * MIB);
    let source = programs::random_file(&lab, 80 * MIB);
    let copy = disk.dir().join("copy");
    let ours = freeboard::library().display().to_string();
    let mut rows = Vec::new();
    for (name, other) in LIBRARIES {
        for (order, preload) in [("first", format!("{other}:{ours}")), ("last", format!("{ours}:{other}"))] {
            let mut dd = Command::new("dd");
            dd.args(["bs=64k", "conv=fsync", "status=none"]).env("LD_PRELOAD", preload).env("FAKETIME", "-1y");
            dd.arg(format!("if={}", source.display())).arg(format!("of={}", copy.display()));
            let run = measure(&lab, 60 * MB, &mut dd);
            // what the loader cannot load it says here
            assert_eq!(run.output, "", "{name} {order}");
            disk.settle();
            truth::assert_same(&copy, &source);
            fs::remove_file(&copy).expect("cannot remove the copy");
            rows.push((format!("{name} {order}"), run));
        }
    }
    let rows: Vec<_> = rows.iter().map(|(name, run)| (name.as_str(), run)).collect();
    table::print(test, &rows);
    for (name, run) in rows {
        run.assert_never_at_the_limit(name);
    }
}
