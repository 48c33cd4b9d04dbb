//! A second process that holds the listener too. Were the launcher the only one and died, every call that is told of
//! would return ENOSYS: the program would lose what it writes. This one lets all calls go from then on.

use super::sys::{self, Answer, Desk};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{PidfdFlags, chdir, getpid, pidfd_open, setsid};
use std::io;

/// Starts it. It ends when no process is left that the listener is told of.
///
/// # Errors
/// There can be no other process, or none that knows when this one ends.
pub fn start(listener: &OwnedFd, desk: &Desk) -> io::Result<()> {
    let launcher = pidfd_open(getpid(), PidfdFlags::empty())?;
    // SAFETY: `stand_by` makes system calls alone, without libc, and allocates nothing.
    unsafe { sys::fork(|| stand_by(listener, &launcher, desk)) }
}

fn stand_by(listener: &OwnedFd, launcher: &OwnedFd, desk: &Desk) {
    sys::block_signals();
    // what is sent to the launcher's process group is not meant for this one, nor is its directory in use
    let _ = setsid();
    let _ = chdir(c"/");
    // SAFETY: this process has one thread, which uses the two that are kept.
    unsafe { sys::close_all_but([listener.as_fd(), launcher.as_fd()]) };

    let mut fds = [PollFd::new(launcher, PollFlags::IN), PollFd::new(listener, PollFlags::empty())];
    while fds[0].revents().is_empty() {
        if nobody_is_left(&fds[1]) || retry_on_intr(|| poll(&mut fds, None)).is_err() {
            return;
        }
    }
    for place in 0..sys::PLACES {
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
