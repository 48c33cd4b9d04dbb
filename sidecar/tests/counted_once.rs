//! Every byte is in the report once, whatever becomes of the row of the counters in which a process reports.

mod support;

use freeboard_budget::layout::{Kind, Slot, counters_layout};
use freeboard_budget::protocol::STATUS_OK;
use freeboard_budget::slots::Phase;
use freeboard_sidecar::region::SLOTS;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;
use support::*;

/// The bits of a row's state that say its phase.
const PHASE: u64 = 3;

/// `dd` under `freeboard run`, fed by hand.
struct Fed {
    launcher: Child,
    input: ChildStdin,
    pid: u32,
    dir: tempfile::TempDir,
    fed_bytes: u64,
}

impl Fed {
    fn start() -> Fed {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let workload = dir.path().join("workload.toml");
        // a small window, so that it looks at the region every few calls
        std::fs::write(&workload, "[writes]\nwindow = \"1MiB\"\n").unwrap();
        let mut command = freeboard(["run", "--quiet", "--config"]);
        command.arg(workload).arg("--report").arg(dir.path().join("report"));
        command.args(["sh", "-c", r#"echo $$; exec dd of="$0" bs=64K status=none"#]).arg(dir.path().join("file"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut launcher = command.spawn().unwrap();
        let input = launcher.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(launcher.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Fed { launcher, input, pid: line.trim().parse().unwrap(), dir, fed_bytes: 0 }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    /// Has so many pieces written, one every 10 ms or so.
    fn feed(&mut self, pieces: usize) {
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..pieces {
            self.input.write_all(&piece).unwrap();
            self.fed_bytes += piece.len() as u64;
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Has so many pieces written, and waits until they are.
    fn feed_whole(&mut self, pieces: usize) {
        self.feed(pieces);
        eventually("dd has written all", || {
            std::fs::metadata(self.file()).is_ok_and(|file| file.len() == self.fed_bytes)
        });
    }

    /// Mappings of the region as it was handed over.
    fn mapped(&self) -> Vec<String> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        maps.lines().filter(|line| line.contains("/memfd:freeboard")).map(str::to_owned).collect()
    }

    /// The counters in which it reports.
    fn counters(&self) -> File {
        let environment = std::fs::read(format!("/proc/{}/environ", self.pid)).unwrap();
        let mut values = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
        let socket = values.find_map(|value| value.strip_prefix("FREEBOARD_SOCKET=").map(PathBuf::from)).unwrap();
        let (_, group) = freeboard_sidecar::cgroup::own_directory().unwrap();
        let (status, _, mut descriptors) = greet(&socket, &group).unwrap();
        assert_eq!((status, descriptors.len()), (STATUS_OK, 2));
        File::from(descriptors.remove(1))
    }

    /// Ends the input and checks the report.
    fn finish(self) {
        let Fed { mut launcher, input, dir, fed_bytes, .. } = self;
        drop(input);
        assert!(launcher.wait().unwrap().success());
        assert_eq!(std::fs::metadata(dir.path().join("file")).unwrap().len(), fed_bytes);
        let report = std::fs::read(dir.path().join("report")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(report["written_bytes"], fed_bytes, "{report:#}");
    }
}

/// A field of a row of the counters.
fn place(row: u32, offset: usize) -> u64 {
    let table = counters_layout(SLOTS).table(Kind::Slots).unwrap();
    u64::from(table.offset + row * table.stride) + offset as u64
}

fn field(counters: &File, row: u32, offset: usize) -> u64 {
    let mut bytes = [0u8; 8];
    counters.read_exact_at(&mut bytes, place(row, offset)).unwrap();
    u64::from_ne_bytes(bytes)
}

#[test]
fn while_the_heartbeat_is_late_now_and_then() {
    let mut fed = Fed::start();
    fed.feed(40);
    let mapped = fed.mapped();
    assert!(!mapped.is_empty(), "it found the launcher");
    // After 300 ms it is asked whether it lives. One that does not answer within 200 ms more is left alone for long.
    let launcher = Pid::from_child(&fed.launcher);
    let late = std::thread::spawn(move || {
        for _ in 0..5 {
            kill_process(launcher, Signal::STOP).unwrap();
            std::thread::sleep(Duration::from_millis(370));
            kill_process(launcher, Signal::CONT).unwrap();
            std::thread::sleep(Duration::from_millis(400));
        }
    });
    while !late.is_finished() {
        fed.feed(1);
    }
    late.join().unwrap();
    let mapped_after = fed.mapped();
    fed.finish();
    assert_eq!(mapped_after, mapped, "nothing is mapped again");
}

#[test]
fn when_an_idle_process_lost_its_row_and_writes_again() {
    let mut fed = Fed::start();
    fed.feed_whole(1);
    let counters = fed.counters();
    let pid = fed.pid;
    let state = |row| field(&counters, row, offset_of!(Slot, state));
    let is_its = |row: &u32| {
        let is_live = state(*row) & PHASE == Phase::Live as u64;
        // the lower half of the word is the process
        is_live && field(&counters, *row, offset_of!(Slot, pid_container)) as u32 == pid
    };
    let reported = |row| field(&counters, row, offset_of!(Slot, written_bytes)) > 0;
    let mut feed_until_reported = || {
        for _ in 0..100 {
            fed.feed_whole(10);
            if let Some(row) = (1..SLOTS).find(is_its).filter(|&row| reported(row)) {
                return row;
            }
        }
        panic!("it does not report");
    };
    // as the sidecar does after a minute, when rows are scarce
    let take_back = |row| {
        let ended = state(row) & !PHASE | Phase::Ended as u64;
        counters.write_all_at(&ended.to_ne_bytes(), place(row, offset_of!(Slot, state))).unwrap();
    };
    for _ in 0..2 {
        let row = feed_until_reported();
        take_back(row);
        eventually("the sidecar has added it up", || state(row) == 0);
    }
    // the process ends before that
    take_back(feed_until_reported());
    fed.finish();
}
