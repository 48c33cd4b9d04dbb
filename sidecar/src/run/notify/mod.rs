//! Pacing of writes that no library sees, those of static programs and of Go: the kernel tells of their larger writes
//! (a seccomp filter with a user notifier, seccomp_unotify(2)), and each waits for its answer. Holding the answer back
//! is the back-pressure.
//!
//! | module | job |
//! | --- | --- |
//! | [`filter`] | which calls are told of |
//! | [`call`] | what one of them says |
//! | [`pacer`] | whether it goes or waits |
//! | [`copies`] | which of the kernel's own copies may be refused |
//! | [`file`] | a file's pages: sent, counted, given back |
//! | [`programs`] | whose calls are somebody else's affair |
//! | [`sys`] | system calls |
//! | [`sys::forked`] | the child until it executes its program; the process that lets calls go when the launcher is gone |
//!
//! Between fork and exec the child puts the filter in force and sends the listener to the launcher; it executes its
//! program when the launcher has said that the standby process holds the listener too.

mod call;
mod copies;
mod file;
mod filter;
mod pacer;
mod programs;
mod sys;

use crate::cgroup::Group;
use crate::service::{Seat, now};
use crate::{library, say};
use anyhow::{Context, Result};
use call::Call;
use freeboard_budget::slots::Report;
use freeboard_config::Workload;
use pacer::{Pacer, Word};
use programs::Programs;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{IoSliceMut, retry_on_intr, write};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg,
    send, socketpair,
};
use std::io;
use std::mem::MaybeUninit;
use std::process::Command;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use sys::{Answer, Desk, forked};

/// Time between two looks while a call waits.
const HOLDING: Duration = Duration::from_millis(2);
/// Time between two looks while files are written to.
const WRITING: Duration = Duration::from_millis(10);

/// What the child sends instead of a listener where there is none: the errno.
const ERRNO_BYTES: usize = size_of::<i32>();

/// Whether the kernel would tell of a command's writes here.
///
/// # Errors
/// Why not.
pub fn is_available() -> io::Result<()> {
    if !sys::is_new_enough() {
        return Err(io::Error::other("it needs Linux 5.9 or later"));
    }
    forked::try_filter(filter::program())
}

pub use sys::forked::try_call;
pub use sys::{CacheStat, cachestat, cachestat_of, start_writeback};

/// A notifier for one command, from before it starts until it has ended.
#[derive(Debug)]
pub struct Notifier {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<Report>,
}

impl Notifier {
    /// Has the command's larger writes told of. `group` is the cgroup that it runs in.
    ///
    /// # Errors
    /// What could not be had. That the kernel does not allow it is known, and said, only when the command starts.
    pub fn prepare(
        command: &mut Command,
        seat: Seat,
        group: Group,
        workload: &Workload,
        quiet: bool,
    ) -> Result<Notifier> {
        anyhow::ensure!(sys::is_new_enough(), "it needs Linux 5.9 or later");
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).context("no event descriptor")?);
        let (ours, childs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .context("no pair of sockets")?;
        let pacer = Pacer::new(workload, Programs::new(library::LIBRARY, workload.processes.exclude.clone()));
        let desk = Desk::new().context("no memory")?;
        let stopped = stop.clone();
        let serve = move || match receive(&ours, &stopped) {
            Some(Ok(listener)) => {
                if let Err(error) = forked::start_standby(&listener, &desk) {
                    // unanswered, the child does not go on
                    say(&format!("cannot start a second process, without which writes could be lost: {error}"));
                    return Report::default();
                }
                let _ = send(&ours, &[0], SendFlags::NOSIGNAL);
                drop(ours);
                Loop { listener, desk, pacer, seat, group }.run(&stopped)
            }
            Some(Err(error)) => {
                if !quiet {
                    say(&format!(
                        "the kernel does not tell of writes here ({error}): what no library sees is not paced"
                    ));
                }
                Report::default()
            }
            None => Report::default(),
        };
        let thread = Builder::new().name("notifier".into()).spawn(serve).context("no thread")?;
        // last: from here on the child counts on that thread
        forked::prepare_child(command, filter::program(), childs);
        Ok(Notifier { stop, thread })
    }

    /// Ends: the standby process answers for what still runs when this process has ended. Returns what was counted.
    pub fn finish(self) -> Report {
        let _ = write(&*self.stop, &1u64.to_ne_bytes());
        self.thread.join().unwrap_or_default()
    }
}

/// What the child sent; `None`: told to stop before it did.
fn receive(child: &OwnedFd, stop: &OwnedFd) -> Option<io::Result<OwnedFd>> {
    let mut fds = [PollFd::new(child, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    retry_on_intr(|| poll(&mut fds, None)).ok()?;
    if !fds[1].revents().is_empty() {
        return None;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut errno = [0; ERRNO_BYTES];
    let received =
        retry_on_intr(|| recvmsg(child, &mut [IoSliceMut::new(&mut errno)], &mut ancillary, RecvFlags::CMSG_CLOEXEC));
    let received = match received {
        Ok(received) => received,
        Err(error) => return Some(Err(error.into())),
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return fds.next().map(Ok);
        }
    }
    (received.bytes == ERRNO_BYTES).then(|| Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))))
}

/// Serves the calls of a command.
struct Loop {
    listener: OwnedFd,
    desk: Desk,
    pacer: Pacer,
    seat: Seat,
    group: Group,
}

impl Loop {
    fn run(mut self, stop: &OwnedFd) -> Report {
        let mut free: Vec<usize> = (0..sys::PLACES).collect();
        let mut somebody_is_left = true;
        let mut due = Duration::ZERO;
        loop {
            let wait = Timespec::try_from(due.saturating_sub(now())).unwrap_or_default();
            let wait = self.pacer.is_busy().then_some(&wait);
            let listening = somebody_is_left && !free.is_empty();
            let listener = if listening { self.listener.as_fd() } else { stop.as_fd() };
            let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::from_borrowed_fd(listener, PollFlags::IN)];
            if retry_on_intr(|| poll(&mut fds, wait)).is_err() || !fds[0].revents().is_empty() {
                break;
            }
            let events = fds[1].revents();
            let time = now();
            if time >= due {
                let word = self.ask();
                for place in self.pacer.pass_time(word, time) {
                    self.desk.answer(self.listener.as_fd(), place, Answer::Go);
                    free.push(place);
                }
            }
            if events.contains(PollFlags::IN)
                && let Some(place) = free.pop()
            {
                let answer = match self.desk.take(self.listener.as_fd(), place) {
                    Ok(told) => self.pacer.meet(place, Call::of(&told), time),
                    // its program was killed meanwhile; the place is empty
                    Err(_) => Some(Answer::Go),
                };
                if let Some(answer) = answer {
                    self.desk.answer(self.listener.as_fd(), place, answer);
                    free.push(place);
                }
            } else if listening && events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                somebody_is_left = false;
            }
            // the first call that waits is looked after soon
            due = if time >= due { time + WRITING } else { due };
            due = if self.pacer.is_holding() { due.min(time + HOLDING) } else { due };
        }
        for place in self.pacer.release() {
            self.desk.answer(self.listener.as_fd(), place, Answer::Go);
        }
        let word = self.ask();
        self.pacer.pass_time(word, now());
        self.ask();
        self.pacer.report
    }

    /// Publishes what was counted, and gives the law's word.
    fn ask(&mut self) -> Word {
        let wrote = self.pacer.take_wrote();
        let Some((row, share)) = self.seat.consult(&mut self.pacer.report, wrote) else { return Word::NONE };
        // newer than the row's
        let unwritten_bytes = self.group.own().stat().ok().and_then(|stat| stat.unwritten());
        Word {
            verdict: row.verdict,
            share,
            is_over_target: row.usage > row.target,
            unwritten_bytes: unwritten_bytes.unwrap_or(row.unwritten),
        }
    }
}
