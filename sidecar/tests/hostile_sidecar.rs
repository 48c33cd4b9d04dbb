//! The library against a sidecar that means harm, or is out of its mind: whatever lies in its region and whatever it
//! answers, the program that the library was loaded into writes what it writes, ends, and hears nothing of it.
//!
//! Cases are made from a number, which is said where one fails. The library is the debug build: an overflow would
//! abort.

mod support;

use freeboard_budget::layout::{BUDGET_FILE, Header};
use freeboard_budget::protocol::{MAGIC, STATUS_OK};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::hostile::{Numbers, cases, contents};
use support::*;

/// More than a window that a region may say, so that some cases are held back.
const BYTES: usize = 3 << 20;
/// A program that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that writes, and the directory on a disk that it writes to.
struct Writer {
    dir: tempfile::TempDir,
    source: Vec<u8>,
}

impl Writer {
    fn new() -> Writer {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut numbers = Numbers::of_case(0);
        let source: Vec<u8> = (0..BYTES / 8).flat_map(|_| numbers.next().to_ne_bytes()).collect();
        fs::write(dir.path().join("source"), &source).unwrap();
        Writer { dir, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, variables: &[(&str, &Path)]) -> Child {
        let _ = fs::remove_file(self.path("output"));
        let mut dd = Command::new("dd");
        dd.args(["bs=8k", "status=none"]);
        dd.arg(format!("if={}", self.path("source").display())).arg(format!("of={}", self.path("output").display()));
        dd.env("LD_PRELOAD", library()).envs(variables.iter().copied());
        dd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits for the end, doing something meanwhile.
    #[track_caller]
    fn ends_as_ever(&self, case: u64, mut child: Child, mut meanwhile: impl FnMut()) {
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("case {case}: it hangs");
            }
            meanwhile();
            std::thread::sleep(Duration::from_micros(200));
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "case {case}: {}", output.status);
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "case {case}: {output:?}");
        assert!(fs::read(self.path("output")).unwrap() == self.source, "case {case}: other contents");
    }
}

/// A listening socket.
fn listener(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 16).unwrap();
    socket
}

/// Memory as a sidecar hands it over.
fn memory(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let memory = memfd_create("hostile", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(memory);
    file.write_all_at(bytes, 0).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

fn welcome(status: u32, row: u32) -> Vec<u8> {
    [&MAGIC.to_ne_bytes()[..], &status.to_ne_bytes(), &row.to_ne_bytes()].concat()
}

#[test]
fn whatever_lies_in_the_regions_file() {
    let sidecar = Sidecar::start(&[]);
    assert_eq!(greet(&sidecar.socket(), &own_group()).unwrap().0, STATUS_OK);
    let tick = sidecar.tick();
    eventually("the group's numbers are in the file", || sidecar.tick() > tick + 2);
    let writer = Writer::new();
    let whole = fs::read(sidecar.dir.path().join(BUDGET_FILE)).unwrap();
    let region = writer.path("region");
    fs::create_dir(&region).unwrap();
    for case in 0..cases() {
        let mut numbers = Numbers::of_case(case);
        let mut bytes = whole.clone();
        numbers.damage(&mut bytes);
        let put = |bytes: &[u8]| fs::write(region.join(BUDGET_FILE), bytes).unwrap();
        put(&bytes);
        // torn and changing while it is read: the heartbeat too, or it would soon be taken for dead
        writer.ends_as_ever(case, writer.start(&[("FREEBOARD_REGION", &region)]), || {
            numbers.damage(&mut bytes);
            bytes[..size_of::<Header>()].copy_from_slice(&whole[..size_of::<Header>()]);
            let tick = numbers.next().to_ne_bytes();
            bytes[std::mem::offset_of!(Header, tick)..][..8].copy_from_slice(&tick);
            put(&bytes[..if numbers.below(8) == 0 { numbers.below(bytes.len()) } else { bytes.len() }]);
        });
    }
}

#[test]
fn whatever_the_socket_answers() {
    let sidecar = Sidecar::start(&[]);
    let (status, row, descriptors) = greet(&sidecar.socket(), &own_group()).unwrap();
    assert_eq!(status, STATUS_OK);
    let whole: Vec<Vec<u8>> = descriptors.iter().map(contents).collect();
    let shrinkable = SealFlags::empty();
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    let wrong: [OwnedFd; 7] = [
        memory(&whole[0], shrinkable),
        memory(&[], sealed),
        memory(&whole[0][..100], sealed),
        memory(&vec![0xff; 8 << 20], sealed),
        File::open("/dev/zero").unwrap().into(),
        File::open("/proc/self/status").unwrap().into(),
        std::io::pipe().unwrap().0.into(),
    ];
    let writer = Writer::new();
    let path = writer.path("socket");
    let listener = listener(&path);
    for case in 0..cases() {
        let mut numbers = Numbers::of_case(case);
        let damaged: Vec<OwnedFd> = whole
            .iter()
            .map(|bytes| {
                let mut bytes = bytes.clone();
                numbers.damage(&mut bytes);
                memory(&bytes, sealed)
            })
            .collect();
        let mut answered: Vec<OwnedFd> = Vec::new();
        writer.ends_as_ever(case, writer.start(&[("FREEBOARD_SOCKET", &path)]), || {
            let Ok(socket) = accept_with(&listener, SocketFlags::CLOEXEC) else { return };
            let bytes = match numbers.below(8) {
                0 => return, // closed without a word
                1 => vec![0xff; 4096],
                2 => numbers.next().to_ne_bytes().repeat(2),
                3 => welcome(status, numbers.next() as u32),
                _ => welcome(status, row),
            };
            let any = |numbers: &mut Numbers| match numbers.below(3) {
                0 => wrong[numbers.below(wrong.len())].as_fd(),
                1 => descriptors[numbers.below(2)].as_fd(),
                _ => damaged[numbers.below(2)].as_fd(),
            };
            let given: Vec<BorrowedFd> = match numbers.below(3) {
                0 => (0..numbers.below(6)).map(|_| any(&mut numbers)).collect(),
                1 => vec![damaged[0].as_fd(), descriptors[1].as_fd()],
                _ => vec![damaged[0].as_fd(), damaged[1].as_fd()],
            };
            send(&socket, &bytes, &given);
            // some are left open, and nothing more is said
            if numbers.below(2) == 0 {
                answered.push(socket);
            }
        });
    }
}
