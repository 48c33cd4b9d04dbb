//! What runs in processes that are forked from the launcher, which has threads: system calls alone, nothing that
//! allocates or takes a lock.
//!
//! This is one of the crate's modules that may say `unsafe`.

use super::{Answer, Desk, PLACES, block_signals, check, close_all_but, install};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, IoSlice, retry_on_intr};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg};
use rustix::process::{PidfdFlags, chdir, getpid, pidfd_open, setsid};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the child, between fork and exec, put the filter in force and send the listener to the `launcher`, or the errno
/// where it has none.
pub fn prepare_child(command: &mut Command, program: Vec<libc::sock_filter>, launcher: OwnedFd) {
    // SAFETY: `enter` makes system calls alone.
    unsafe { command.pre_exec(move || enter(&program, &launcher)) };
}

/// The child's part. Without leave it goes on unpaced; with it, but without the launcher, it must not.
fn enter(program: &[libc::sock_filter], launcher: &OwnedFd) -> io::Result<()> {
    match install(program) {
        Ok(listener) => {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = [listener.as_fd()];
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(launcher, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
            match retry_on_intr(|| recv(launcher, &mut [0u8; 1], RecvFlags::empty()))?.0 {
                0 => Err(io::Error::from_raw_os_error(libc::EPIPE)),
                _ => Ok(()),
            }
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0).to_ne_bytes();
            send(launcher, &errno, SendFlags::NOSIGNAL)?;
            Ok(())
        }
    }
}

/// Tries to put the filter in force, in a child that executes nothing.
///
/// # Errors
/// Why the kernel refuses.
pub fn try_filter(program: Vec<libc::sock_filter>) -> io::Result<()> {
    in_child(move || install(&program).map(drop))
}

/// Makes a system call on a descriptor that there is not, in a child that executes nothing: a seccomp filter may kill
/// for it.
///
/// # Errors
/// EBADF, or what the filter says; [`io::ErrorKind::Interrupted`]: the child was killed.
pub fn try_call(number: libc::c_long) -> io::Result<()> {
    // SAFETY: whatever the call does, it does to the child, which ends.
    in_child(move || check(unsafe { libc::syscall(number, -1, 0, 0, 0, 0, 0) }).map(drop))
}

/// Calls `act`, which makes system calls alone, in a child that ends then.
fn in_child(mut act: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> io::Result<()> {
    // an errno that none of the calls has
    const DONE: i32 = libc::EHWPOISON;
    let mut child = Command::new("/proc/self/exe");
    // SAFETY: the caller's.
    unsafe { child.pre_exec(move || Err(act().err().unwrap_or_else(|| io::Error::from_raw_os_error(DONE)))) };
    match child.spawn() {
        Err(error) if error.raw_os_error() == Some(DONE) => Ok(()),
        Err(error) => Err(error),
        // it could not say how the call ended
        Ok(mut killed) => killed.wait().and(Err(io::ErrorKind::Interrupted.into())),
    }
}

/// Starts a second process that holds the listener too. Were the launcher the only one and died, every call that is
/// told of would return ENOSYS: the program would lose what it writes. This one lets all calls go from then on, and
/// ends when no process is left that the listener is told of.
///
/// # Errors
/// There can be no other process, or none that knows when this one ends.
pub fn start_standby(listener: &OwnedFd, desk: &Desk) -> io::Result<()> {
    let launcher = pidfd_open(getpid(), PidfdFlags::empty())?;
    // SAFETY: the child makes system calls alone, and ends with _exit.
    unsafe {
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                stand_by(listener, &launcher, desk);
                libc::_exit(0)
            }
            _ => Ok(()),
        }
    }
}

fn stand_by(listener: &OwnedFd, launcher: &OwnedFd, desk: &Desk) {
    block_signals();
    // what is sent to the launcher's process group is not meant for this one, nor is its directory in use
    let _ = setsid();
    let _ = chdir(c"/");
    close_all_but([listener.as_fd(), launcher.as_fd()]);

    let mut fds = [PollFd::new(launcher, PollFlags::IN), PollFd::new(listener, PollFlags::empty())];
    while fds[0].revents().is_empty() {
        if nobody_is_left(&fds[1]) || retry_on_intr(|| poll(&mut fds, None)).is_err() {
            return;
        }
    }
    for place in 0..PLACES {
        desk.answer(listener.as_fd(), place, Answer::Go);
    }
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    while retry_on_intr(|| poll(&mut fds, None)).is_ok() && !nobody_is_left(&fds[0]) {
        match desk.take(listener.as_fd(), 0) {
            Ok(_) => desk.answer(listener.as_fd(), 0, Answer::Go),
            // gone, or interrupted
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::INTR)) => {}
            Err(_) => return,
        }
    }
}

fn nobody_is_left(listener: &PollFd) -> bool {
    listener.revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)
}
