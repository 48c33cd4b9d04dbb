//! The socket: one hello with the directory of the application's own cgroup in, one welcome with the region out.
//!
//! Nobody is waited for: every descriptor is non-blocking, clients are few at a time, and each has a second.

use super::state::{Admission, Refused, State};
use super::{Bells, now};
use crate::cgroup::Group;
use crate::fresh;
use anyhow::{Context, Result, bail};
use freeboard_budget::layout::MAJOR;
use freeboard_budget::protocol::{Hello, MAGIC, STATUS_FULL, STATUS_NOT_A_CGROUP, STATUS_OK, STATUS_VERSION, Welcome};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with,
};
use std::fs::Permissions;
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections at a time; more wait in the kernel's queue.
const MOST_CLIENTS: usize = 64;
/// Time that a client has for its hello.
const DEADLINE: Duration = Duration::from_secs(1);
/// Descriptors that one message may bring; the kernel closes what is beyond. One is wanted.
const MOST_DESCRIPTORS: usize = 4;

/// A listening socket.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
}

/// The socket's name in the file tree. Removed when dropped.
#[derive(Debug)]
pub struct Name(PathBuf);

/// A connection from which nothing has come yet.
struct Client {
    socket: OwnedFd,
    since: Instant,
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// How a message names a socket.
fn place(path: &Path) -> String {
    format!("socket {}", path.display())
}

/// Whether somebody takes connections there; one who is too busy at the moment does.
fn connects(address: &SocketAddrUnix) -> rustix::io::Result<()> {
    match connect(&new_socket()?, address) {
        Err(Errno::AGAIN) => Ok(()),
        result => result,
    }
}

/// A sidecar takes connections on its socket, which is there when all else is: the library and the region.
///
/// # Errors
/// Nobody does, or it may not be asked.
pub fn check_is_served(path: &Path) -> Result<()> {
    let result = SocketAddrUnix::new(path).and_then(|address| connects(&address));
    result.map_err(|error| anyhow::anyhow!("no sidecar listens at {}: {error}; mend: start one", path.display()))
}

/// A path where a socket may be put.
#[derive(Debug)]
pub struct Vacant<'a>(&'a Path);

impl<'a> Vacant<'a> {
    /// Looks whether anything that matters lies at `path`. The socket of a sidecar that is gone does not.
    ///
    /// # Errors
    /// Something else lies there, or another sidecar answers, or the path is too long.
    pub fn check(path: &'a Path) -> Result<Vacant<'a>> {
        let place = || place(path);
        let address = SocketAddrUnix::new(path).map_err(|_| {
            anyhow::anyhow!("{}: the path is too long for a socket (107 bytes); mend: choose a shorter one", place())
        })?;
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                bail!("{}: something else lies there; mend: remove it or choose another path", place())
            }
            Ok(_) => match connects(&address) {
                Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(Vacant(path)),
                Err(Errno::PROTOTYPE) => bail!("{}: another program listens there; mend: choose another path", place()),
                Ok(()) => {
                    bail!("{}: another sidecar answers there; mend: end it first or choose another path", place())
                }
                Err(error) => Err(error).with_context(place),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vacant(path)),
            Err(error) => Err(error).with_context(place),
        }
    }

    /// Listens there. What lay there is replaced in one step, so that no client ever finds nothing.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn listen(self) -> Result<(Server, Name)> {
        let path = self.0;
        let place = || place(path);
        let listener = new_socket().with_context(place)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // bound under a short name of its own, then moved into place
        let made = tempfile::Builder::new().prefix(".s").rand_bytes(4).make_in(dir, |fresh| {
            let address = SocketAddrUnix::new(fresh)?;
            bind(&listener, &address).map_err(Into::into)
        });
        let name = made.map_err(|error| fresh::unusable(dir, &error)).with_context(place)?;
        std::fs::set_permissions(name.path(), Permissions::from_mode(0o666)).with_context(place)?;
        listen(&listener, 128).with_context(place)?;
        name.persist(path).map_err(|error| error.error).with_context(place)?;
        Ok((Server { listener }, Name(path.to_owned())))
    }
}

impl Server {
    /// Serves until told to stop.
    pub fn serve(self, state: &Mutex<State>, bells: &Bells) {
        let mut clients: Vec<Client> = Vec::new();
        let mut out_of_descriptors = false;
        loop {
            let accepting = clients.len() < MOST_CLIENTS && !out_of_descriptors;
            let mut fds = vec![PollFd::new(&bells.stop, PollFlags::IN)];
            fds.extend(clients.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
            if accepting {
                fds.push(PollFd::new(&self.listener, PollFlags::IN));
            }
            // a client's time runs out unseen while nobody comes; half a deadline is soon enough
            let timeout = (!clients.is_empty() || out_of_descriptors)
                .then(|| Timespec { tv_sec: 0, tv_nsec: DEADLINE.as_nanos() as i64 / 2 });
            if retry_on_intr(|| poll(&mut fds, timeout.as_ref())).is_err() || !fds[0].revents().is_empty() {
                return;
            }
            let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut at = 0;
            clients.retain(|client| {
                let readable = ready[at];
                at += 1;
                // one message is all that is ever said; whatever came of it, the connection is done
                if readable {
                    answer(&client.socket, state, bells, now());
                }
                !readable && client.since.elapsed() < DEADLINE
            });
            out_of_descriptors = false;
            if accepting && ready[at] {
                match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                    // a library has said its hello by the time that we get to it, and a program waits for the answer
                    Ok(socket) if answer(&socket, state, bells, now()) => {}
                    Ok(socket) => clients.push(Client { socket, since: Instant::now() }),
                    Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => out_of_descriptors = true,
                    Err(_) => {}
                }
            }
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Reads a hello and answers it, if it is one, at `now` of the ticks' clock. Whoever sends something else gets no answer.
/// `false`: nothing has come yet.
pub(super) fn answer(socket: &OwnedFd, state: &Mutex<State>, bells: &Bells, now: Duration) -> bool {
    match receive(socket) {
        Ok(Some((hello, descriptors))) => welcome(socket, hello, descriptors, state, bells, now),
        Err(Errno::AGAIN) => return false,
        Ok(None) | Err(_) => {}
    }
    true
}

fn welcome(
    socket: &OwnedFd,
    hello: Hello,
    mut descriptors: Vec<OwnedFd>,
    state: &Mutex<State>,
    bells: &Bells,
    now: Duration,
) {
    if hello.major != MAJOR {
        return send(socket, STATUS_VERSION, None);
    }
    let (Some(dir), true) = (descriptors.pop(), descriptors.is_empty()) else {
        return send(socket, STATUS_NOT_A_CGROUP, None);
    };
    let known = Group::id_of(&dir).and_then(|id| state.lock().admit_known(id));
    let admitted = known.or_else(|| Group::open(dir).ok().map(|group| state.lock().admit(group, now)));
    let Some(admitted) = admitted else { return send(socket, STATUS_NOT_A_CGROUP, None) };
    match admitted {
        Ok(admission) => {
            send(socket, STATUS_OK, Some(&admission));
            Bells::ring(&bells.newcomer);
        }
        Err(Refused::Full) => send(socket, STATUS_FULL, None),
        Err(Refused::Failed(error)) => crate::say(&format!("a process could not be let in: {error:#}")),
    }
}

/// A hello and what descriptors came with it; `None`: what came is no hello.
fn receive(socket: &OwnedFd) -> rustix::io::Result<Option<(Hello, Vec<OwnedFd>)>> {
    // one byte more than a hello, so that a longer message is not taken for one
    let mut bytes = [0u8; size_of::<Hello>() + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes != size_of::<Hello>() {
        return Ok(None);
    }
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let half = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap_or_default());
    let pid = u32::from_ne_bytes(bytes[12..16].try_into().unwrap_or_default());
    let hello = Hello { magic: word(0), major: half(8), minor: half(10), pid };
    Ok((hello.magic == MAGIC).then_some((hello, descriptors)))
}

/// Sends a welcome. A client that is gone or does not read misses it.
fn send(socket: &OwnedFd, status: u32, admission: Option<&Admission>) {
    let welcome = Welcome { magic: MAGIC, status, container: admission.map_or(0, |admission| admission.row) };
    let mut bytes = [0u8; size_of::<Welcome>()];
    bytes[0..8].copy_from_slice(&welcome.magic.to_ne_bytes());
    bytes[8..12].copy_from_slice(&welcome.status.to_ne_bytes());
    bytes[12..16].copy_from_slice(&welcome.container.to_ne_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd> =
        admission.iter().flat_map(|admission| [admission.budget.as_fd(), admission.counters.as_fd()]).collect();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags);
}
