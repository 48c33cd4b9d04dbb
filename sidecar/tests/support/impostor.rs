//! A sidecar that the test itself plays, and a program that hears of no other.
#![allow(dead_code, reason = "each test binary uses its own part")]

use super::hostile::Numbers;
use super::library;
use freeboard_budget::protocol::MAGIC;
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};
use std::fmt::Display;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// More than a window that a region may say, so that some cases are held back.
pub const BYTES: usize = 3 << 20;
/// A program that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that writes, and the directory on a disk that it writes to.
pub struct Writer {
    dir: tempfile::TempDir,
    source: Vec<u8>,
}

impl Writer {
    pub fn new() -> Writer {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut numbers = Numbers::of_case(0);
        let source: Vec<u8> = (0..BYTES / 8).flat_map(|_| numbers.next().to_ne_bytes()).collect();
        fs::write(dir.path().join("source"), &source).unwrap();
        Writer { dir, source }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start(&self, variables: &[(&str, &Path)]) -> Child {
        let _ = fs::remove_file(self.path("output"));
        let mut dd = Command::new("dd");
        dd.args(["bs=8k", "status=none"]);
        dd.arg(format!("if={}", self.path("source").display())).arg(format!("of={}", self.path("output").display()));
        dd.env("LD_PRELOAD", library()).envs(variables.iter().copied());
        dd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits for the end, doing something meanwhile.
    #[track_caller]
    pub fn ends_as_ever(&self, case: impl Display, mut child: Child, mut meanwhile: impl FnMut()) {
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
pub fn listener(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 16).unwrap();
    socket
}

/// The connection of a program that has said hello, if one has come. (One that is closed before that was read resets the
/// other side.)
pub fn greeted(listener: &OwnedFd) -> Option<OwnedFd> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC).ok()?;
    rustix::io::read(&socket, &mut [0u8; 64]).ok()?;
    Some(socket)
}

/// Memory as a sidecar hands it over.
pub fn memory(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let memory = memfd_create("hostile", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(memory);
    file.write_all_at(bytes, 0).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

/// A welcome's bytes.
pub fn welcome(status: u32, row: u32) -> Vec<u8> {
    [&MAGIC.to_ne_bytes()[..], &status.to_ne_bytes(), &row.to_ne_bytes()].concat()
}
