//! The budget as this process sees it: the region that the sidecar keeps, or, without one, its own cgroup.
//!
//! With a socket (`FREEBOARD_SOCKET`) the library sends its cgroup's directory and gets two memfds: sealed against
//! shrinking, so that no truncation can kill it. With a directory alone (`FREEBOARD_REGION`) the budget file is copied,
//! never mapped: anybody who may write to a plain file can truncate it. Mappings are never undone, because another
//! thread may be reading them; there are at most [`ATTACHMENTS`], one a start of a sidecar. A sidecar that was only
//! late is known by its counters' file, and nothing is mapped again.
//!
//! This is one of the modules that may say `unsafe`.

mod row;

use crate::apart::{self, Apart};
use crate::{descriptors, group, helper, ledger, process, reads, speed, sweep, sys};
use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
use freeboard_budget::law::{self, Share, Target, Verdict};
use freeboard_budget::layout::{
    self, Aside, CONTAINER_DROP, CONTAINER_DROP_CLOSED, CONTAINER_FLAG_BITS, CONTAINER_LIVE, CONTAINER_PRESSURE,
    CONTAINER_UNLIMITED, Container, DROP_BEHIND, Kind, PATTERN_BYTES, Policy, Rule, STALE_MS, Slot,
};
use freeboard_budget::policy::Bank;
use freeboard_budget::protocol::{self, Hello, Welcome};
use freeboard_budget::shm::Mapped;
use freeboard_budget::slots::Report;
use freeboard_budget::{Mode, glob};
use libc::c_int;
use row::{Name, Row};

/// Starts of a sidecar that a process can follow; after that it reads its own cgroup.
const ATTACHMENTS: usize = 64;
/// A file of the region larger than this is not ours.
const FILE_BYTES_MAX: usize = 4 << 20;
const _: () = assert!(FILE_BYTES_MAX / size_of::<Slot>() <= row::ROWS_MAX);
/// Longest wait for the sidecar's answer.
const ANSWER_MS: u64 = 200;
/// Time until a sidecar is asked again that did not answer.
const UNANSWERED_NS: u64 = 10_000_000_000;
/// A process that did not write for this many ticks is no writer.
const ACTIVE_TICKS: u64 = 10;
/// The window of `mode = "always"` where the workload file gives none, in bytes.
const ALWAYS_WINDOW: u64 = 4 << 20;

/// One start of a sidecar.
struct Attachment {
    budget: Mapped,
    /// `None`: a copied budget file.
    counters: Option<Counters>,
    container: usize,
    copy_bytes: usize,
}

struct Counters {
    /// Device and inode of their file.
    file: (u64, u64),
    row: Row,
}

struct Place(UnsafeCell<MaybeUninit<Attachment>>);
// SAFETY: written once, by the one that is on an errand, before CURRENT counts it; after that it is only read.
unsafe impl Sync for Place {}

static ATTACHED: [Place; ATTACHMENTS] = [const { Place(UnsafeCell::new(MaybeUninit::uninit())) }; ATTACHMENTS];
/// Number of entries written; the last one is in force.
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static TRIED_AT: AtomicU64 = AtomicU64::new(0);
static LAST_TICK: AtomicU64 = AtomicU64::new(0);
static LAST_TICK_AT: AtomicU64 = AtomicU64::new(0);
static COPIED_AT: AtomicU64 = AtomicU64::new(0);
/// The word of the policy that was noticed last; 0: none yet.
static POLICY_SEEN: AtomicU64 = AtomicU64::new(0);
/// No policy's word: the last one was of another sidecar.
const ANOTHERS: u64 = u64::MAX;
static EXCLUDED: AtomicBool = AtomicBool::new(false);
/// What the policy says, at hand: each small file asks for it.
static MODE: AtomicU8 = AtomicU8::new(Mode::Auto as u8);
static HAS_RULES: AtomicBool = AtomicBool::new(false);
/// A rule says `always` for some file of this process.
static ALWAYS: AtomicBool = AtomicBool::new(false);
static FLAGS: AtomicU64 = AtomicU64::new(0);
static ALLOWED: AtomicU64 = AtomicU64::new(0);
/// The group's unwritten at the last tick.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);
/// What this process owed when it last read its group by itself.
static OWED_THEN: AtomicU64 = AtomicU64::new(0);
static JUDGED_AT: AtomicU64 = AtomicU64::new(0);
static REFRESHED_AT: AtomicU64 = AtomicU64::new(0);

/// Where the environment says the region and the socket are; copied at start, because setenv may move the originals.
struct Path {
    bytes: UnsafeCell<[u8; 128]>,
    len: AtomicU32,
}
// SAFETY: written once, in the constructor, before `len` is published; after that only read.
unsafe impl Sync for Path {}

static SOCKET: Path = Path { bytes: UnsafeCell::new([0; 128]), len: AtomicU32::new(0) };
static REGION: Path = Path { bytes: UnsafeCell::new([0; 128]), len: AtomicU32::new(0) };

impl Path {
    fn set(&self, name: &CStr) {
        // SAFETY: getenv reads the environment of a process that is still starting; the result is a C string.
        let value = unsafe {
            let at = libc::getenv(name.as_ptr());
            if at.is_null() {
                return;
            }
            CStr::from_ptr(at).to_bytes()
        };
        // SAFETY: the constructor is the only writer, and `len` is still 0, so nobody reads.
        let bytes = unsafe { &mut *self.bytes.get() };
        if let Some(room) = bytes.get_mut(..value.len()) {
            room.copy_from_slice(value);
            self.len.store(value.len() as u32, Release);
        }
    }

    /// Empty where the environment says nothing, or more than fits a Unix socket's address.
    fn get(&self) -> &[u8] {
        let len = self.len.load(Acquire) as usize;
        // SAFETY: published by `len`, and never written again.
        unsafe { &*self.bytes.get() }.get(..len).unwrap_or(&[])
    }
}

/// Reads the environment. Once, from the constructor.
pub fn start() {
    SOCKET.set(c"FREEBOARD_SOCKET");
    REGION.set(c"FREEBOARD_REGION");
    if has_place() {
        reads::may_be();
    }
}

/// The environment says where a sidecar would be.
fn has_place() -> bool {
    !SOCKET.get().is_empty() || !REGION.get().is_empty()
}

/// The socket is not to be used: as if the environment did not name one.
pub fn without_socket() {
    SOCKET.len.store(0, Release);
}

/// A child of fork has a row of its own, and looks for its group anew.
pub fn reset() {
    if let Some(row) = own_row() {
        row.reset();
    }
    REFRESHED_AT.store(0, Relaxed);
    JUDGED_AT.store(0, Relaxed);
    group::reset();
}

fn current() -> Option<&'static Attachment> {
    let place = ATTACHED.get(CURRENT.load(Acquire).checked_sub(1)?)?;
    // SAFETY: places below CURRENT were written before it was raised, and are never written again.
    Some(unsafe { (*place.0.get()).assume_init_ref() })
}

fn own_row() -> Option<&'static Row> {
    Some(&current()?.counters.as_ref()?.row)
}

/// Usage is near its target: flushed pages are to be dropped.
pub fn wants_drop() -> bool {
    FLAGS.load(Relaxed) & CONTAINER_DROP != 0 || mode() == Mode::Always
}

/// A file that is closed is to be dropped when it has been written: later nobody can.
pub fn wants_drop_closed() -> bool {
    FLAGS.load(Relaxed) & CONTAINER_DROP_CLOSED != 0 || wants_drop()
}

/// Usage is near its target: any page of a file that we write may go.
pub fn is_over_target() -> bool {
    FLAGS.load(Relaxed) & CONTAINER_DROP != 0
}

/// The group owes half of what it may: what is closed now goes to the disk now.
pub fn is_pressed() -> bool {
    FLAGS.load(Relaxed) & CONTAINER_PRESSURE != 0
}

/// The group owes nearly all that it may: what is closed now is waited for.
pub fn is_crowded() -> bool {
    UNWRITTEN.load(Relaxed) >= ALLOWED.load(Relaxed) / 4 * 3
}

/// Somebody asked for a window, by its size or by `mode = "always"`.
pub fn has_a_window_set() -> bool {
    let is_always = mode() == Mode::Always || ALWAYS.load(Relaxed);
    is_always || policy().is_some_and(|policy| policy.window_bytes.load(Relaxed) != 0)
}

/// Most unwritten bytes for the whole group, as last heard.
pub fn allowed() -> u64 {
    ALLOWED.load(Relaxed)
}

/// The group's unwritten, as last heard.
pub fn unwritten() -> u64 {
    UNWRITTEN.load(Relaxed)
}

/// What the other processes of the group owe, as far as they say so.
pub fn owed_by_others() -> u64 {
    own_row().map_or(0, |row| row.others(LAST_TICK.load(Relaxed), ACTIVE_TICKS).owed_bytes)
}

/// There is a sidecar that counts this process.
pub fn is_attached() -> bool {
    CURRENT.load(Relaxed) != 0
}

fn policy() -> Option<&'static Policy> {
    attachment_row::<Policy>(&current()?.budget, 0)
}

/// A row with the life of the process: mappings are never undone.
fn attachment_row<R: freeboard_budget::shm::Row + 'static>(mapped: &Mapped, index: usize) -> Option<&'static R> {
    let row: *const R = mapped.row::<R>(index)?;
    // SAFETY: the row lies in a mapping that stays for the life of the process; it is made of atomics.
    Some(unsafe { &*row })
}

/// How the process is treated, as of the last [`refresh`]: by the workload file, `auto` without one.
pub fn mode() -> Mode {
    Mode::from_u8(MODE.load(Relaxed))
}

/// How it is treated by what the policy says now.
fn mode_now() -> Mode {
    if EXCLUDED.load(Relaxed) {
        return Mode::Off;
    }
    policy().map_or(Mode::Auto, |policy| Mode::from_u8(policy.word.load(Relaxed) as u8))
}

/// How long a call is held while the disk makes no progress, in nanoseconds.
pub fn max_stall_ns() -> u64 {
    let configured = policy().map_or(0, |policy| policy.max_stall_ms.load(Relaxed));
    if configured == 0 { 10_000_000_000 } else { configured.saturating_mul(1_000_000) }
}

fn target() -> Target {
    match policy() {
        Some(policy) if policy.target_bytes.load(Relaxed) != 0 => Target::Bytes(policy.target_bytes.load(Relaxed)),
        Some(policy) if (1..=100).contains(&policy.target_percent.load(Relaxed)) => {
            Target::Percent(policy.target_percent.load(Relaxed))
        }
        _ => Target::Percent(80),
    }
}

/// How a file is treated, as of the last [`refresh`]: by the first rule that matches its path, else as the process.
pub fn mode_of_file(fd: c_int) -> Mode {
    let process = mode();
    if process == Mode::Off || !HAS_RULES.load(Relaxed) {
        return process;
    }
    match rule_of_file(fd) {
        Some((mode, _)) if mode < u32::from(u8::MAX) => {
            let mode = Mode::from_u8(mode as u8);
            if mode == Mode::Always {
                ALWAYS.store(true, Relaxed);
            }
            mode
        }
        _ => process,
    }
}

/// A rule says that what is read of a file goes behind the reader.
pub fn drops_behind(fd: c_int) -> bool {
    HAS_RULES.load(Relaxed) && rule_of_file(fd).is_some_and(|(_, reads)| reads == DROP_BEHIND)
}

/// Mode and reads of the first rule that matches an open file's path. Not part of its caller: see
/// [`is_program_excluded`].
#[inline(never)]
fn rule_of_file(fd: c_int) -> Option<(u32, u32)> {
    let (attachment, policy) = (current()?, policy()?);
    let mut path = [0u8; 1024];
    let mut link = [0u8; 64];
    let link = helper::descriptor_path(&mut link, sys::gettid(), fd)?;
    first_match(&attachment.budget, Kind::Rules, policy, sys::read_link(link, &mut path)?)
}

/// Some rule in force asks for drop-behind.
fn has_drop_behind() -> bool {
    let (Some(attachment), Some(policy)) = (current(), policy()) else { return false };
    let budget = &attachment.budget;
    policy.read(|bank| rules(budget, Kind::Rules, policy, bank).any(|rule| rule.reads.load(Relaxed) == DROP_BEHIND))
}

/// The rows of a bank.
fn rules<'a>(budget: &'a Mapped, kind: Kind, policy: &Policy, bank: Bank) -> impl Iterator<Item = &'a Rule> {
    let rows = if kind == Kind::Rules { bank.rules(policy) } else { bank.excludes(policy) }.load(Relaxed) as usize;
    // a count is only as good as who wrote it
    let rows = rows.min(budget.count(kind) / 2);
    let first = bank.first_row(budget.count(kind));
    (0..rows).filter_map(move |row| budget.rule(kind, first + row))
}

/// Mode and reads of the first row in force whose pattern matches.
fn first_match(budget: &Mapped, kind: Kind, policy: &Policy, path: &[u8]) -> Option<(u32, u32)> {
    policy.read(|bank| {
        rules(budget, kind, policy, bank).find_map(|rule| {
            let mut pattern = [0u8; PATTERN_BYTES];
            for (bytes, word) in pattern.chunks_exact_mut(8).zip(&rule.pattern) {
                bytes.copy_from_slice(&word.load(Relaxed).to_le_bytes());
            }
            let pattern = pattern.get(..rule.len.load(Relaxed) as usize)?;
            glob::matches(pattern, path).then(|| (rule.mode.load(Relaxed), rule.reads.load(Relaxed)))
        })
    })
}

/// Brings window, chunk and flags up to date. From the slow path; cheap where it was done within the last 5 ms: half of
/// what the sidecar takes between two looks. Returns the time, which has to be asked for anyway.
pub fn refresh() -> u64 {
    let now = sys::now_ns();
    if now.wrapping_sub(REFRESHED_AT.load(Relaxed)) >= 5_000_000 {
        REFRESHED_AT.store(now, Relaxed);
        refresh_at(now);
    }
    now
}

/// Hears what the rules say, for a process that only reads so far: it has no row, because it is no writer, and nothing
/// is judged. `false`: there is nobody who could say so.
pub fn ask_for_rules() -> bool {
    let now = sys::now_ns();
    // not while one that did not answer is left in peace
    if current().is_none() && TRIED_AT.load(Relaxed) < now {
        apart::run(|apart| attach(apart, now));
    }
    let is_told = current().is_some();
    if is_told {
        notice_policy();
    }
    is_told
}

fn refresh_at(now: u64) {
    let mut attachment = current();
    // a copied file serves until the socket answers
    let is_settled = |attachment: &Attachment| {
        is_live(attachment, now) && (attachment.counters.is_some() || SOCKET.get().is_empty())
    };
    let is_due = now.saturating_sub(TRIED_AT.load(Relaxed)) > STALE_MS * 1_000_000;
    if has_place() && is_due && !attachment.is_some_and(is_settled) {
        apart::run(|apart| attach(apart, now));
        attachment = current();
    }
    if let Some(Attachment { counters: Some(Counters { row, .. }), container, .. }) = attachment
        && row.is_none()
    {
        apart::alone(|apart| row.claim(apart, Name::NONE, pid_container(*container), LAST_TICK.load(Relaxed)));
    }
    let mode = notice_policy();
    if mode == Mode::Off || mode == Mode::Observe {
        FLAGS.store(0, Relaxed);
        ALLOWED.store(u64::MAX, Relaxed);
        ledger::set_share(Share::UNLIMITED);
        return;
    }
    let row = attachment
        .filter(|attachment| is_live(attachment, now))
        .and_then(|attachment| attachment_row::<Container>(&attachment.budget, attachment.container))
        .filter(|row| row.word.load(Relaxed) & CONTAINER_LIVE != 0);
    let (allowed, unowned, speed) = match row {
        Some(row) => {
            UNWRITTEN.store(row.unwritten_bytes.load(Relaxed), Relaxed);
            let word = row.word.load(Acquire);
            FLAGS.store(word & ((1 << CONTAINER_FLAG_BITS) - 1), Relaxed);
            let allowed = (word >> CONTAINER_FLAG_BITS).saturating_mul(ledger::PAGE);
            let allowed = if word & CONTAINER_UNLIMITED != 0 { u64::MAX } else { allowed };
            (allowed, row.unowned_bytes.load(Relaxed), row.speed_bytes_per_s.load(Relaxed))
        }
        None => (judge_own(now), 0, speed::get()),
    };
    ALLOWED.store(allowed, Relaxed);
    if sweep::is_left_alone() {
        sweep::go_on(); // there was no limit before
    }
    let speed = (speed != 0).then_some(speed);
    let configured = policy().map_or(0, |policy| policy.window_bytes.load(Relaxed));
    let is_always = mode == Mode::Always || ALWAYS.load(Relaxed);
    let configured = if is_always && configured == 0 { ALWAYS_WINDOW } else { configured };
    if allowed == u64::MAX && configured == 0 && ledger::window() != u64::MAX {
        ledger::aside(Aside::Unlimited);
    }
    ledger::set_share(match own_row() {
        Some(own) => {
            let others = own.others(LAST_TICK.load(Relaxed), ACTIVE_TICKS);
            law::share(allowed, unowned, others.writers + 1, others.owed_bytes, speed, configured)
        }
        // without shared counters nobody says who else writes
        None => law::share_unseen(allowed, UNWRITTEN.load(Relaxed), OWED_THEN.load(Relaxed), speed, configured),
    });
}

/// The law, from the process's own cgroup; at most every 20 ms. What is allowed.
fn judge_own(now: u64) -> u64 {
    if now.wrapping_sub(JUDGED_AT.load(Relaxed)) < 20_000_000 {
        return ALLOWED.load(Relaxed);
    }
    let speed = speed::get();
    let read = |apart: &Apart| (group::judge(apart, target(), (speed != 0).then_some(speed)), group::unwritten(apart));
    let Some((verdict, unwritten)) = apart::run(read) else { return ALLOWED.load(Relaxed) };
    JUDGED_AT.store(now, Relaxed);
    let verdict = verdict.unwrap_or(Verdict::UNLIMITED);
    let flag = |on: bool, bit: u64| if on { bit } else { 0 };
    let flags = flag(verdict.drop, CONTAINER_DROP)
        | flag(verdict.drop_closed, CONTAINER_DROP_CLOSED)
        | flag(verdict.pressure, CONTAINER_PRESSURE);
    FLAGS.store(flags, Relaxed);
    UNWRITTEN.store(unwritten.unwrap_or(0), Relaxed);
    OWED_THEN.store(ledger::owed(), Relaxed);
    verdict.allowed
}

/// Has the heartbeat moved within [`STALE_MS`]?
fn is_live(attachment: &Attachment, now: u64) -> bool {
    if attachment.counters.is_none() && now.wrapping_sub(COPIED_AT.load(Relaxed)) > layout::TICK_MS * 1_000_000 {
        COPIED_AT.store(now, Relaxed);
        apart::run(|_| copy_file(attachment));
    }
    let tick = attachment.budget.tick().load(Acquire);
    if LAST_TICK.swap(tick, Relaxed) != tick {
        LAST_TICK_AT.store(now, Relaxed);
        return true;
    }
    now.wrapping_sub(LAST_TICK_AT.load(Relaxed)) < STALE_MS * 1_000_000
}

/// The policy may have changed since this process and its descriptors were looked at. How the process is treated now.
fn notice_policy() -> Mode {
    let word = policy().map_or(0, |policy| policy.word.load(Acquire));
    let before = if word == 0 { 0 } else { POLICY_SEEN.swap(word, Relaxed) };
    let has_changed = before != 0 && before != word;
    if has_changed && let Some(attachment) = current() {
        EXCLUDED.store(is_excluded(&attachment.budget), Relaxed);
        ALWAYS.store(false, Relaxed);
    }
    let mode = mode_now();
    MODE.store(mode as u8, Relaxed);
    HAS_RULES.store(policy().is_some_and(|policy| policy.rules.iter().any(|rows| rows.load(Relaxed) != 0)), Relaxed);
    if word != 0 && before != word {
        reads::decide(mode != Mode::Off && mode != Mode::Observe && has_drop_behind());
    }
    // left alone, they stay known: whoever knows none never looks, and would not hear of the next policy
    if has_changed && mode != Mode::Off {
        descriptors::forget_policy();
    }
    mode
}

/// Writes the process's totals to its row.
pub fn publish(owed_bytes: u64, holding: bool) {
    let Some(attachment) = current() else { return };
    let Some(Counters { row, .. }) = &attachment.counters else { return };
    let tick = LAST_TICK.load(Relaxed);
    let totals = Report { last_tick: tick, owed_bytes, holding: u64::from(holding), ..ledger::TOTALS.report() };
    if let Err(lost) = row.publish(&totals) {
        // a child of fork, or the sidecar took an idle process's row back
        apart::alone(|apart| row.claim(apart, lost, pid_container(attachment.container), tick));
        let _ = row.publish(&totals);
    }
}

/// The process ends: its last word, if it has said anything or has something to say.
pub fn end() {
    let Some(row) = own_row() else { return };
    if !row.is_none() || ledger::TOTALS.written_bytes.load(Relaxed) > 0 {
        publish(0, false);
    }
    row.end();
}

/// The process goes on after all, in a row of its own again.
pub fn reopen() {
    if let Some(row) = own_row() {
        row.reopen();
    }
}

fn pid_container(container: usize) -> u64 {
    u64::from(process::pid() as u32) | (container as u64) << 32
}

/// Looks for a sidecar: by its socket, else by the files of its region. Claims no row.
fn attach(apart: &Apart, now: u64) {
    TRIED_AT.store(now, Relaxed);
    let count = CURRENT.load(Relaxed);
    if count == ATTACHMENTS {
        return;
    }
    let known = current();
    let Some(attachment) = attach_by_socket(apart).or_else(|| attach_by_file(apart)) else { return };
    let is_new = !known.is_some_and(|known| core::ptr::eq(known, attachment));
    let tick = attachment.budget.tick().load(Acquire);
    let has_moved = LAST_TICK.swap(tick, Relaxed) != tick;
    if is_new {
        // an answer on the socket is a sign of life; a file is alive when its tick is seen to move
        let seen_at = if attachment.counters.is_some() { now } else { now.wrapping_sub(2 * STALE_MS * 1_000_000) };
        LAST_TICK_AT.store(seen_at, Relaxed);
        CURRENT.store(count + 1, Release);
        // its rules may be others though their word is the same, and files may be open already
        POLICY_SEEN.store(ANOTHERS, Relaxed);
    } else if has_moved {
        LAST_TICK_AT.store(now, Relaxed); // the thread that answers is not the one that looks
    }
}

/// Puts what is to be in force next into its place.
fn keep(_: &Apart, attachment: Attachment) -> Option<&'static Attachment> {
    let place = ATTACHED.get(CURRENT.load(Relaxed))?;
    // SAFETY: there is one `Apart` at a time, so this is the only writer, and the place at CURRENT has no readers yet.
    Some(unsafe { (*place.0.get()).write(attachment) })
}

fn is_excluded(budget: &Mapped) -> bool {
    let Some(policy) = budget.row::<Policy>(0) else { return false };
    policy.excludes.iter().any(|rows| rows.load(Relaxed) != 0) && is_program_excluded(budget, policy)
}

/// Not part of its caller, whose frame may lie on a small signal stack.
#[inline(never)]
fn is_program_excluded(budget: &Mapped, policy: &Policy) -> bool {
    let mut program = [0u8; 1024];
    sys::read_link(c"/proc/self/exe", &mut program)
        .is_some_and(|program| first_match(budget, Kind::Excludes, policy, program).is_some())
}

fn attach_by_socket(apart: &Apart) -> Option<&'static Attachment> {
    let path = SOCKET.get();
    if path.is_empty() {
        return None;
    }
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    for (slot, &byte) in address.sun_path.get_mut(..path.len())?.iter_mut().zip(path) {
        *slot = byte as _;
    }
    let bytes = size_of::<libc::sa_family_t>() + path.len() + 1;
    let directory = group::open_directory(apart);
    if directory < 0 {
        return None;
    }
    let socket = sys::packet_socket();
    let mut found = None;
    if socket >= 0 {
        if sys::connect(socket, &address, bytes.min(size_of_val(&address))) == 0 {
            found = introduce(apart, socket, directory);
        }
        sys::close(socket);
    }
    sys::close(directory);
    found
}

/// Room for one control message with two descriptors.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Says hello and takes what comes back.
fn introduce(apart: &Apart, socket: c_int, directory: c_int) -> Option<&'static Attachment> {
    let mut hello =
        Hello { magic: protocol::MAGIC, major: layout::MAJOR, minor: layout::MINOR, pid: process::pid() as u32 };
    let mut control = Control([0; 64]);
    let mut vector = libc::iovec { iov_base: (&raw mut hello).cast(), iov_len: size_of::<Hello>() };
    // SAFETY: a msghdr of zeros is a valid empty one.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: the control buffer has room for one descriptor; CMSG_* only compute addresses inside it.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<c_int>() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(directory);
    }
    if sys::send_message(socket, &message) != size_of::<Hello>() as isize {
        return None;
    }
    if !sys::wait_readable(socket, ANSWER_MS) {
        // it is stopped: each try would hold a write back for nothing
        TRIED_AT.store(sys::now_ns().saturating_add(UNANSWERED_NS), Relaxed);
        return None;
    }
    let mut welcome = Welcome { magic: 0, status: u32::MAX, container: 0 };
    control = Control([0; 64]);
    vector = libc::iovec { iov_base: (&raw mut welcome).cast(), iov_len: size_of::<Welcome>() };
    message.msg_iov = &raw mut vector;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    message.msg_flags = 0;
    if sys::receive_message(socket, &mut message) != size_of::<Welcome>() as isize {
        return None;
    }
    let mut fds = [-1; 2];
    // SAFETY: the kernel filled the control buffer; the descriptors that it names were made for us, and the length of
    // the message says how many there are.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null() && (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
            let count = ((*header).cmsg_len).saturating_sub(libc::CMSG_LEN(0) as usize) / size_of::<c_int>();
            for index in 0..count {
                let fd = libc::CMSG_DATA(header).cast::<c_int>().add(index).read_unaligned();
                match fds.get_mut(index) {
                    Some(slot) => *slot = fd,
                    None => sys::close(fd),
                }
            }
        }
    }
    let [budget_fd, counters_fd] = fds;
    let wanted = welcome.magic == protocol::MAGIC && welcome.status == protocol::STATUS_OK;
    let found = if wanted { take(apart, budget_fd, counters_fd, welcome.container as usize) } else { None };
    for fd in fds {
        if fd >= 0 {
            sys::close(fd);
        }
    }
    found
}

/// What a welcome brings: a sidecar that we know gives us the counters that we have, in which our row stays.
fn take(apart: &Apart, budget: c_int, counters: c_int, container: usize) -> Option<&'static Attachment> {
    let file = sys::fstat(counters).map(|stat| (stat.dev, stat.ino))?;
    let is_known = |known: &&Attachment| known.counters.as_ref().is_some_and(|counters| counters.file == file);
    if let Some(known) = current().filter(is_known) {
        return Some(known);
    }
    let (budget, budget_bytes) = map(budget, false)?;
    let Some((counters, _)) = map(counters, true) else {
        sys::unmap(budget.address().cast_mut(), budget_bytes);
        return None;
    };
    let counters = Some(Counters { file, row: Row::new(counters) });
    keep(apart, Attachment { budget, counters, container, copy_bytes: 0 })
}

/// Maps a sealed memfd and checks it.
fn map(fd: c_int, counters: bool) -> Option<(Mapped, usize)> {
    let bytes = usize::try_from(sys::fstat(fd)?.size).ok().filter(|&bytes| bytes <= FILE_BYTES_MAX)?;
    let seals = sys::seals(fd);
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return None; // somebody could truncate it under us
    }
    let at = sys::map_shared(fd, bytes, counters);
    if at.is_null() {
        return None;
    }
    // SAFETY: a fresh mapping of `bytes`, page-aligned, that the seal keeps whole and that is never undone once taken.
    let mapped = unsafe { if counters { Mapped::counters(at, bytes) } else { Mapped::budget(at, bytes) } };
    if mapped.is_err() {
        sys::unmap(at, bytes);
    }
    Some((mapped.ok()?, bytes))
}

fn open_budget_file() -> c_int {
    let mut path = [0u8; 160];
    let name = REGION.get().iter().chain(b"/").chain(layout::BUDGET_FILE.as_bytes()).chain(b"\0");
    for (slot, &byte) in path.iter_mut().zip(name) {
        *slot = byte;
    }
    match CStr::from_bytes_until_nul(&path) {
        Ok(path) => sys::open(path, libc::O_RDONLY | libc::O_NONBLOCK),
        Err(_) => -1,
    }
}

/// Copies the region's budget file into memory of our own, to be copied anew at every tick. Not where its sidecar is
/// the one that we know already.
fn attach_by_file(apart: &Apart) -> Option<&'static Attachment> {
    if REGION.get().is_empty() {
        return None;
    }
    let known = current().map(|attachment| attachment.budget.generation().load(Relaxed));
    let fd = open_budget_file();
    let bytes = sys::fstat(fd).and_then(|stat| usize::try_from(stat.size).ok());
    let attachment = bytes.filter(|&bytes| bytes <= FILE_BYTES_MAX).and_then(|bytes| {
        let at = sys::map_private(bytes);
        if at.is_null() {
            return None;
        }
        // SAFETY: fresh private memory of that length.
        let filled = sys::read(fd, unsafe { core::slice::from_raw_parts_mut(at, bytes) });
        // SAFETY: the same memory, page-aligned, kept for good once taken.
        let mapped = unsafe { Mapped::budget(at, bytes) };
        match (filled, mapped) {
            (Some(filled), Ok(budget)) if filled == bytes && known != Some(budget.generation().load(Relaxed)) => {
                let container = own_container(apart, &budget)?;
                keep(apart, Attachment { budget, counters: None, container, copy_bytes: bytes })
            }
            _ => {
                sys::unmap(at, bytes);
                None
            }
        }
    });
    if fd >= 0 {
        sys::close(fd);
    }
    attachment
}

/// The row of this process's cgroup, by the inode of its directory; one beyond the end where the sidecar does not know
/// it, so that the policy holds and the law is applied here.
fn own_container(apart: &Apart, budget: &Mapped) -> Option<usize> {
    let directory = group::open_directory(apart);
    let inode = sys::fstat(directory).map(|stat| stat.ino);
    if directory >= 0 {
        sys::close(directory);
    }
    let rows = budget.count(Kind::Containers);
    let known = (0..rows)
        .find(|&index| budget.row::<Container>(index).is_some_and(|row| Some(row.cgroup_id.load(Relaxed)) == inode));
    Some(known.unwrap_or(rows))
}

/// Copies the file once more over the same memory: every field that changes is one aligned word.
fn copy_file(attachment: &Attachment) {
    let fd = open_budget_file();
    if fd < 0 {
        return;
    }
    if sys::fstat(fd).is_some_and(|stat| stat.size as usize == attachment.copy_bytes) {
        sys::read_over(fd, attachment.budget.address(), attachment.copy_bytes);
    }
    sys::close(fd);
}
