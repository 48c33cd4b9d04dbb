//! Signals as a descriptor, what a child inherits from before this program's start, and dying of one. This is one of
//! the crate's modules that may say `unsafe`: signal masks and dispositions have no safe interface in the crates used
//! here.

use crate::cgroup::made::Door;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::retry_on_intr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Whether SIGPIPE was ignored when the program was started.
static PIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);
/// Which of the descriptors 0 to 2 were closed when the program was started.
static WERE_CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// Rust's start-up code ignores SIGPIPE before `main`, and opens `/dev/null` for what of 0 to 2 is closed; a command is
/// to inherit both as the caller had them.
#[ctor::ctor(unsafe)]
fn look_before_the_start() {
    PIPE_WAS_IGNORED.store(is_ignored(libc::SIGPIPE), Relaxed);
    for (fd, was_closed) in (0..).zip(&WERE_CLOSED) {
        // SAFETY: asks for the flags of a number, which may be no descriptor.
        was_closed.store(unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0, Relaxed);
    }
}

fn is_ignored(signal: i32) -> bool {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null action only asks; `old` is writable and of the right size, and zero is a valid value of it.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()) == 0
            && old.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

fn set_disposition(signal: i32, ignored: bool) {
    // SAFETY: no handler function is installed, only one of the two fixed dispositions; async-signal-safe.
    unsafe {
        libc::signal(signal, if ignored { libc::SIG_IGN } else { libc::SIG_DFL });
    }
}

/// A set of signals.
fn set_of(signals: impl IntoIterator<Item = i32>) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set; the numbers are valid signals, and others change nothing.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

fn change_mask(how: i32, set: &libc::sigset_t) -> libc::sigset_t {
    let mut old = set_of([]);
    // SAFETY: both sets are initialised; async-signal-safe.
    unsafe { libc::pthread_sigmask(how, set, &mut old) };
    old
}

fn descriptor(set: &libc::sigset_t) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised; a descriptor that is returned is new and ours.
    unsafe {
        match libc::signalfd(-1, set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// A signal that came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// The process that sent it; `None`: the kernel did, as for a key on the terminal, and gave it to the whole process
    /// group.
    pub sender: Option<u32>,
}

/// Signals that wait in a descriptor instead of interrupting. Blocked for good: the mask that was in force before is
/// given to children by [`Inherited::restore`].
#[derive(Debug)]
pub struct Queue(OwnedFd);

impl Queue {
    fn of(set: &libc::sigset_t) -> io::Result<(Queue, libc::sigset_t)> {
        let queue = Queue(descriptor(set)?);
        Ok((queue, change_mask(libc::SIG_BLOCK, set)))
    }

    /// The next signal, if one is waiting.
    pub fn take(&mut self) -> Option<Signal> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is writable and `size` long; the kernel writes whole structs of plain integers, for which
        // zero is a valid value too.
        let info = unsafe {
            if libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) != size as isize {
                return None;
            }
            info.assume_init()
        };
        // SI_USER, SI_QUEUE, SI_TKILL and the like are 0 or less; what the kernel itself sends is more (signal(7))
        let sender = (info.ssi_code <= 0).then_some(info.ssi_pid);
        Some(Signal { number: info.ssi_signo as i32, sender })
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The signals that tell a service what to do.
#[derive(Debug)]
pub struct Requests(Queue);

/// What a service is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP: read the settings again.
    Reload,
}

impl Requests {
    /// Watches for them from now on, in all threads that are started after.
    ///
    /// # Errors
    /// No descriptor could be had.
    pub fn watch() -> io::Result<Requests> {
        Ok(Requests(Queue::of(&set_of([libc::SIGTERM, libc::SIGINT, libc::SIGHUP]))?.0))
    }

    /// Returns when one came, or after `longest` with `None`.
    ///
    /// # Errors
    /// The descriptor could not be waited for.
    pub fn wait(&mut self, longest: Option<Duration>) -> io::Result<Option<Request>> {
        let longest = longest.map(|longest| Timespec::try_from(longest).unwrap_or_default());
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, longest.as_ref()))?;
        let request = |signal: Signal| if signal.number == libc::SIGHUP { Request::Reload } else { Request::End };
        Ok(self.0.take().map(request))
    }
}

/// What the command is to inherit: the signal state and the closed descriptors that this program was started with.
#[derive(Clone, Copy)]
pub struct Inherited {
    mask: libc::sigset_t,
    pipe_ignored: bool,
    child_ignored: bool,
}

impl Inherited {
    /// Puts it in force. Async-signal-safe: for the child between fork and exec.
    pub fn restore(&self) {
        set_disposition(libc::SIGPIPE, self.pipe_ignored);
        set_disposition(libc::SIGCHLD, self.child_ignored);
        change_mask(libc::SIG_SETMASK, &self.mask);
        for (fd, _) in (0..).zip(&WERE_CLOSED).filter(|(_, was_closed)| was_closed.load(Relaxed)) {
            // SAFETY: what start-up code put there, in this process's own table; nothing here refers to it.
            unsafe { libc::close(fd) };
        }
    }
}

/// Takes everything that a launcher hands on to its command, and SIGCHLD, into a queue.
///
/// Left alone are the signals that stop a process (the terminal stops launcher and command together, as the shell
/// expects) and those that say that this program itself is broken.
///
/// # Errors
/// No descriptor could be had.
pub fn take_over() -> io::Result<(Queue, Inherited)> {
    let ordinary = [
        libc::SIGCHLD,
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGWINCH,
        libc::SIGURG,
        libc::SIGCONT,
        libc::SIGPWR,
        libc::SIGPIPE,
        libc::SIGXCPU,
        libc::SIGXFSZ,
        libc::SIGSTKFLT,
    ];
    let set = set_of(ordinary.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()));
    let child_ignored = is_ignored(libc::SIGCHLD);
    // an ignored SIGCHLD would have the kernel throw the command's status away
    set_disposition(libc::SIGCHLD, false);
    let (queue, mask) = Queue::of(&set)?;
    Ok((queue, Inherited { mask, pipe_ignored: PIPE_WAS_IGNORED.load(Relaxed), child_ignored }))
}

/// Sends a signal to a process. One that is gone, or that this user may not signal, does not get it.
pub fn send(process: rustix::process::Pid, signal: i32) {
    // SAFETY: plain integers.
    unsafe { libc::kill(process.as_raw_pid(), signal) };
}

/// Stands for "could not enter the cgroup" on the way from the child, which can only send an errno; exec never gives
/// it.
pub const NO_ENTRY: i32 = libc::ENOTRECOVERABLE;

/// Has the child, between fork and exec, restore what it is to inherit and go through the door into its cgroup. Where
/// that fails spawning gives [`NO_ENTRY`].
pub fn prepare_child(command: &mut std::process::Command, inherited: Inherited, door: Option<Door>) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the child makes only async-signal-safe calls: those of `restore`, and one write.
    unsafe {
        command.pre_exec(move || {
            inherited.restore();
            match &door {
                Some(door) => door.enter().map_err(|_| io::Error::from_raw_os_error(NO_ENTRY)),
                None => Ok(()),
            }
        });
    }
}

/// Ends this process by a signal as the command ended, so that the caller sees the same, but without a core dump of
/// its own. Returns a shell's code where the signal could not end it.
pub fn die_of(signal: i32) -> ExitCode {
    // SAFETY: plain integers; not dumpable means that neither a core file is written nor a core handler started.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    set_disposition(signal, false);
    change_mask(libc::SIG_UNBLOCK, &set_of([signal]));
    // SAFETY: sends a signal to this thread.
    unsafe { libc::raise(signal) };
    ExitCode::from(128 + signal as u8)
}
