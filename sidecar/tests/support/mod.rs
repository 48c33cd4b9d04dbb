//! What the tests of the program share: the program, the library, a running sidecar, a client of its socket.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod hostile;
pub mod impostor;

use freeboard_budget::layout::{Header, MAJOR, MINOR};
use freeboard_budget::protocol::{Hello, MAGIC, Welcome};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The program under test.
pub const FREEBOARD: &str = env!("CARGO_BIN_EXE_freeboard");

/// The library: what FREEBOARD_LIB names, or built into the place where the program looks for it.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("FREEBOARD_LIB") {
            return path.into();
        }
        let folder = Path::new(FREEBOARD).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["build", "--quiet", "--package", "freeboard-preload", "--target-dir"])
            .arg(folder.parent().unwrap());
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(
            cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success(),
            "the library does not build"
        );
        folder.join("libfreeboard.so")
    })
}

/// `freeboard` with arguments.
pub fn freeboard<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new(FREEBOARD);
    command.args(arguments).env("FREEBOARD_LIB", library()).stdin(Stdio::null());
    command
}

/// What a command wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something is so, for at most five seconds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(5), "not within 5 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether this test can make cgroups; says loudly where it cannot.
pub fn can_make_cgroups(test: &str) -> bool {
    let able = rustix::process::geteuid().is_root() && CgroupDir::make(&format!("probe-{test}")).is_some();
    if !able {
        eprintln!("SKIPPED {test}: needs root and a memory cgroup that it may make groups in");
        assert!(std::env::var_os("CI").is_none(), "CI must be able to run this");
    }
    able
}

/// A memory cgroup of the test's own; removed when dropped.
pub struct CgroupDir(pub PathBuf);

impl CgroupDir {
    /// Makes one below the test's own group.
    pub fn make(name: &str) -> Option<CgroupDir> {
        let (_, own) = freeboard_sidecar::cgroup::own_directory().ok()?;
        let path = own.join(format!("freeboard-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        path.join("memory.stat").exists().then_some(CgroupDir(path))
    }

    /// Sets the hard limit.
    pub fn limit(&self, bytes: u64) {
        let names = ["memory.limit_in_bytes", "memory.max"];
        let file = names.map(|name| self.0.join(name)).into_iter().find(|file| file.exists()).unwrap();
        std::fs::write(file, bytes.to_string()).unwrap();
    }
}

impl Drop for CgroupDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A sidecar in a directory of its own; ended when dropped.
pub struct Sidecar {
    pub process: Child,
    pub dir: tempfile::TempDir,
}

impl Sidecar {
    /// Starts one and waits until it listens.
    pub fn start(more: &[&str]) -> Sidecar {
        let dir = tempfile::tempdir().unwrap();
        let process = Sidecar::spawn(dir.path(), more);
        Sidecar { process, dir }.listening()
    }

    /// Starts the process alone.
    pub fn spawn(dir: &Path, more: &[&str]) -> Child {
        let mut command = Command::new(FREEBOARD);
        command.args(["sidecar", "--region"]).arg(dir).arg("--socket").arg(dir.join("socket")).args(more);
        command.env("FREEBOARD_LIB", library()).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn listening(self) -> Sidecar {
        eventually("the sidecar listens", || dial(&self.socket()).is_some());
        self
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// The heartbeat in the region's file.
    pub fn tick(&self) -> u64 {
        let bytes = std::fs::read(self.dir.path().join("budget")).unwrap();
        let at = std::mem::offset_of!(Header, tick);
        u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Number of descriptors that the process has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection to a socket.
pub fn dial(path: &Path) -> Option<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).ok()?;
    Some(socket)
}

/// Sends bytes and descriptors in one message.
pub fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// What came back: status, row, descriptors. `None`: the other side closed without a word.
pub fn receive(socket: &OwnedFd) -> Option<(u32, u32, Vec<OwnedFd>)> {
    let mut bytes = [0u8; size_of::<Welcome>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let descriptors = descriptors.collect();
    if got.bytes == 0 {
        return None;
    }
    assert_eq!(got.bytes, bytes.len());
    assert_eq!(u64::from_ne_bytes(bytes[..8].try_into().unwrap()), MAGIC);
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    Some((word(8), word(12), descriptors))
}

/// A hello of this version.
pub fn hello() -> Vec<u8> {
    hello_of(MAGIC, MAJOR)
}

pub fn hello_of(magic: u64, major: u16) -> Vec<u8> {
    let hello = Hello { magic, major, minor: MINOR, pid: std::process::id() };
    let parts: [&[u8]; 4] =
        [&hello.magic.to_ne_bytes(), &hello.major.to_ne_bytes(), &hello.minor.to_ne_bytes(), &hello.pid.to_ne_bytes()];
    parts.concat()
}

/// Says hello with a directory and returns the answer.
pub fn greet(socket: &Path, directory: &Path) -> Option<(u32, u32, Vec<OwnedFd>)> {
    let directory = std::fs::File::open(directory).unwrap();
    let socket = dial(socket)?;
    send(&socket, &hello(), &[directory.as_fd()]);
    receive(&socket)
}

/// The group that the test itself is in.
pub fn own_group() -> std::path::PathBuf {
    freeboard_sidecar::cgroup::own_directory().unwrap().1
}
