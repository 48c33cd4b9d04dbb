//! A day in seconds: containers and processes come and go by the thousand, some of them in disorder, and what the
//! service holds afterwards is what it held after the first hour.
//!
//! Real are the groups (the kernel's), the memfds, the region's files, the messages on the socket, and the service's own
//! code for all of them. Simulated are the clock, on which the service looks every minute and not ten times a second (what
//! counts time in looks, as the end of a killed process's row, takes as many), and the processes: this one says hello,
//! claims, counts and ends as the library does.

use super::mounted::Mounted;
use super::state::State;
use super::{Bells, Place, server};
use crate::cgroup::own_directory;
use crate::metrics;
use crate::sweep::Done;
use freeboard_budget::cgroup::Version;
use freeboard_budget::layout::{Header, Kind, MAJOR, MINOR, Slot, counters_layout};
use freeboard_budget::protocol::{MAGIC, STATUS_FULL, STATUS_NOT_A_CGROUP, STATUS_OK, Welcome};
use freeboard_budget::slots::Report;
use freeboard_config::Workload;
use freeboard_tests::lab;
use parking_lot::Mutex;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::IoSlice;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::mem::{MaybeUninit, offset_of};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(60);
const LOOKS_AN_HOUR: u32 = 60;
const HOURS: u32 = 24;
/// A container comes every minute and stays for so many looks.
const POD_STAYS: u32 = 2;
/// In the middle of each hour this many come at once, more than there are rows for.
const CROWD: u32 = 70;
const CROWD_STAYS: u32 = 3;
/// Each process writes so much.
const WRITTEN: u64 = 1 << 20;
/// The resident size may differ by so much, for the allocator's sake.
const SLACK_BYTES: u64 = 64 << 10;

/// A memory cgroup of the kernel's; removed when dropped.
struct Pod(PathBuf);

impl Pod {
    /// Makes one below this process's own.
    fn make(number: u32) -> Option<Pod> {
        let (version, own): (Version, PathBuf) = own_directory().ok()?;
        let path = own.join(format!("freeboard-churn-{}-{number}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let pod = Pod(path);
        fs::write(pod.0.join(version.limit_file()), "67108864").ok()?;
        Some(pod)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A process that was let in.
struct Process {
    place: Place,
    report: Report,
    /// The look at which it ends.
    until: u32,
    /// It ends without a word.
    is_killed: bool,
}

/// What the service holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    containers: usize,
    metrics_lines: usize,
    /// Of the process.
    descriptors: usize,
    /// Of the region's memory.
    mappings: usize,
}

struct Node {
    state: Mutex<State>,
    mounted: Mounted,
    region: tempfile::TempDir,
    bells: Bells,
    now: Duration,
    look: u32,
    /// With the look at which each goes.
    pods: VecDeque<(u32, Pod)>,
    pods_made: u32,
    pods_refused: u32,
    processes: Vec<Process>,
    processes_made: u64,
}

impl Node {
    fn new() -> Node {
        let region = tempfile::tempdir().unwrap();
        let state = State::create(&Workload::default(), 1).unwrap();
        let mounted = Mounted::create(region.path(), &state, 1).unwrap();
        Node {
            state: Mutex::new(state),
            mounted,
            region,
            bells: Bells::new().unwrap(),
            now: LOOK,
            look: 0,
            pods: VecDeque::new(),
            pods_made: 0,
            pods_refused: 0,
            processes: Vec::new(),
            processes_made: 0,
        }
    }

    /// Says something on the socket and returns status and row of the answer, if there is one. The descriptors that
    /// come with it are not taken.
    fn say(&self, words: &[u8], descriptors: &[BorrowedFd]) -> Option<(u32, u32)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (process, ours) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        sendmsg(&process, &[IoSlice::new(words)], &mut ancillary, SendFlags::empty()).unwrap();
        assert!(server::answer(&ours, &self.state, &self.bells, self.now));
        drop(ours);
        let mut welcome = [0u8; size_of::<Welcome>()];
        let length = rustix::io::read(&process, &mut welcome).unwrap();
        let word = |at: usize| u32::from_ne_bytes(welcome[at..at + 4].try_into().unwrap());
        (length == welcome.len()).then(|| (word(offset_of!(Welcome, status)), word(offset_of!(Welcome, container))))
    }

    fn greet(&self, pod: &Pod) -> (u32, u32) {
        let directory = File::open(&pod.0).unwrap();
        self.say(&hello(), &[directory.as_fd()]).unwrap()
    }

    /// What nobody should say.
    fn babble(&self) {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(self.say(&hello(), &[file.as_fd(); 8]), Some((STATUS_NOT_A_CGROUP, 0)));
        assert_eq!(self.say(b"hello", &[file.as_fd()]), None);
    }

    /// A process in the row's container writes, until a look to come.
    fn start(&mut self, row: u32, until: u32, is_killed: bool) {
        self.processes_made += 1;
        let nonce = self.processes_made << 1 | 1;
        let state = self.state.lock();
        let slot = state.claim(row, nonce).expect("there is a row for each process");
        let mut place = Place { row, slot, nonce, reported: Report::default(), added_up: Report::default() };
        // each on a disk of its own, of which it says that it waits for it
        let mut report =
            Report { written_bytes: WRITTEN, owed_bytes: WRITTEN, dev: nonce, holding: 1, ..Report::default() };
        assert!(state.consult(&mut place, &mut report, true).is_some(), "the container is judged");
        drop(state);
        self.processes.push(Process { place, report, until, is_killed });
    }

    fn end_processes(&mut self) {
        let (state, look) = (self.state.lock(), self.look);
        self.processes.retain_mut(|process| {
            if process.until > look {
                return true;
            }
            if !process.is_killed {
                (process.report.owed_bytes, process.report.confirmed_bytes, process.report.holding) = (0, WRITTEN, 0);
                state.consult(&mut process.place, &mut process.report, true);
                state.leave(&process.place);
            }
            false
        });
    }

    /// A process that only mounts the region writes and ends.
    fn write_by_file(&mut self) {
        self.processes_made += 1;
        let nonce = self.processes_made << 1 | 1;
        let slot = Slot::default();
        assert!(slot.claim(nonce, 0, 0) && slot.end(nonce));
        let file = File::options().write(true).open(self.region.path().join("counters")).unwrap();
        let row = counters_layout(1).table(Kind::Slots).map(|table| u64::from(table.offset + table.stride)).unwrap();
        for (at, word) in [
            (offset_of!(Header, tick) as u64, 1),
            (row + offset_of!(Slot, written_bytes) as u64, WRITTEN),
            (row + offset_of!(Slot, state) as u64, slot.state.load(Relaxed)),
        ] {
            file.write_all_at(&word.to_ne_bytes(), at).unwrap();
        }
    }

    /// A container with one process, which ends before it, or is killed with it.
    fn add_pod(&mut self, stays: u32) {
        let pod = Pod::make(self.pods_made).expect("a group could be made before");
        self.pods_made += 1;
        match self.greet(&pod) {
            (STATUS_OK, row) => {
                let is_killed = self.pods_made.is_multiple_of(2);
                self.start(row, self.look + stays - u32::from(!is_killed), is_killed);
            }
            (status, _) => {
                assert_eq!(status, STATUS_FULL);
                self.pods_refused += 1;
            }
        }
        self.pods.push_back((self.look + stays, pod));
    }

    /// Everything between two looks, and the second of them. One container stays, and processes in it come and go.
    fn step(&mut self, lasting: &Pod) {
        self.add_pod(POD_STAYS);
        self.babble();
        self.write_by_file();
        if self.look % LOOKS_AN_HOUR == LOOKS_AN_HOUR / 2 {
            (0..CROWD).for_each(|_| self.add_pod(CROWD_STAYS));
        }
        for number in 0..2 {
            let (status, row) = self.greet(lasting);
            assert_eq!(status, STATUS_OK);
            // so many are killed that rows get scarce
            let is_killed = (self.look * 2 + number) % 8 < 5;
            self.start(row, self.look + 1 + self.look % 10, is_killed);
        }
        self.end_processes();
        let look = self.look;
        self.pods.retain(|&(until, _)| until > look);
        self.look += 1;
        self.now += LOOK;
        self.state.lock().tick(self.now, false);
        self.mounted.exchange(&self.state).unwrap();
    }

    fn held(&self) -> Held {
        let snapshot = self.state.lock().snapshot(self.now, Done::default());
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        Held {
            containers: snapshot.containers.len(),
            metrics_lines: metrics::text(snapshot).lines().count(),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            mappings: maps.lines().filter(|line| line.contains("/memfd:freeboard-")).count(),
        }
    }
}

fn hello() -> Vec<u8> {
    [&MAGIC.to_ne_bytes()[..], &MAJOR.to_ne_bytes(), &MINOR.to_ne_bytes(), &std::process::id().to_ne_bytes()].concat()
}

/// Of this process, and what it has of shared memory.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
    };
    (kib("RssAnon:") + kib("RssShmem:")) << 10
}

#[test]
fn nothing_grows_in_a_day() {
    let test = "nothing_grows_in_a_day";
    if Pod::make(0).is_none() {
        return lab::skip(test, "it needs root, and a memory cgroup that it may make groups in");
    }
    // in a process of its own, because what is counted is a process's
    let day = ["--exact", "service::churn::a_day", "--ignored", "--nocapture"];
    let output = Command::new(std::env::current_exe().unwrap()).args(day).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"));
}

#[test]
#[ignore = "runs in a process of its own, which another test starts"]
fn a_day() {
    // as the sidecar does
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let start = Instant::now();
    let mut node = Node::new();
    let empty = node.held();
    let lasting = Pod::make(u32::MAX).unwrap();
    let mut hours = Vec::new();
    let mut most_resident_bytes = [0; 2];
    for hour in 0..HOURS {
        for _ in 0..LOOKS_AN_HOUR {
            node.step(&lasting);
            if hour > 0 {
                let half = &mut most_resident_bytes[usize::from(hour >= HOURS / 2)];
                *half = (*half).max(resident_bytes());
            }
        }
        hours.push(node.held());
    }
    println!(
        "a day in {:.1} s: {} containers ({} found no row), {} processes; held after the first hour {:?}, after the last \
         {:?}; resident at most {} KiB in hours 2 to 12, {} KiB in hours 13 to 24",
        start.elapsed().as_secs_f64(),
        node.pods_made,
        node.pods_refused,
        node.processes_made,
        hours[0],
        hours[hours.len() - 1],
        most_resident_bytes[0] >> 10,
        most_resident_bytes[1] >> 10,
    );
    assert!(node.pods_refused > 0, "the table was never full");
    assert!(hours.iter().all(|hour| *hour == hours[0]), "{hours:?}");
    assert!(most_resident_bytes[1] <= most_resident_bytes[0] + SLACK_BYTES);

    node.pods.clear();
    drop(lasting);
    node.state.lock().tick(node.now + LOOK, false);
    let left = node.held();
    assert_eq!((left.descriptors, left.mappings), (empty.descriptors, empty.mappings));
    assert_eq!(left.containers, 1, "those that only mount the region are told of for ever");
    let totals = node.state.lock().summary().totals;
    assert_eq!((totals.processes, totals.written_bytes), (node.processes_made, node.processes_made * WRITTEN));
}
