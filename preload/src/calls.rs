//! A call that writes: small ones take their pages from what the file was granted, others are admitted by the ledger
//! first; what the kernel may do in pieces is done in pieces, so that no single call brings more than a chunk.

use crate::descriptors;
use crate::files::File;
use crate::ledger::TOTALS;
use crate::{ledger, look, pace, process, region, sweep, sys};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use freeboard_budget::layout::Aside;
use libc::c_int;

/// The shortest piece of a call that is written in pieces, and of a file that is sent although it is less than a chunk.
pub const PIECE_MIN: u64 = 256 << 10;
/// The kernel writes no more than this in one call (`MAX_RW_COUNT` in include/linux/fs.h).
const MAX_RW_COUNT: usize = 0x7fff_f000;
/// The largest block that a filesystem may have.
const BLOCK_MAX: usize = 64 << 10;
/// What a copy inside the kernel is expected to bring, at most, where it is not taken in pieces.
const COPY_RESERVE: usize = 64 << 20;
/// The process says what it does, and hears what it may do, at least every so many bytes.
const LOOK_BYTES: u64 = 8 << 20;
/// The same of one that ends without a last word: Go's system call for it passes libc by.
const LOOK_BYTES_GO: u64 = 32 << 10;
/// What the process had written when it looked last.
static LOOKED_AT_BYTES: AtomicU64 = AtomicU64::new(0);

/// A call of `bytes` through a descriptor at an offset that only the kernel knows: write, writev, sendfile, splice.
/// Written whole; where it is larger than the window, it waits for an empty one first and is paced afterwards.
#[inline(always)]
pub fn plain(fd: c_int, bytes: usize, call: impl Fn() -> isize + Copy) -> isize {
    let entry = descriptors::get(fd);
    if entry.is_aside() {
        return call();
    }
    if is_small(bytes)
        && let Some(file) = entry.file()
        && let Some(wrote) = plain_granted(file, bytes, call)
    {
        return wrote;
    }
    plain_slowly(fd, bytes, call)
}

/// The call, if what the file was granted has room for it.
#[inline(always)]
fn plain_granted(file: &'static File, bytes: usize, call: impl Fn() -> isize) -> Option<isize> {
    file.touch_plain();
    if !file.book(bytes as u64, ledger::charge(bytes)) {
        return None;
    }
    let wrote = call();
    if wrote != bytes as isize {
        fell_short(file, 0, bytes, wrote);
    }
    Some(wrote)
}

/// A call of `bytes` at `offset`: pwrite, pwritev. May be called in pieces: `call(done, length)`.
#[inline(always)]
pub fn positional(fd: c_int, offset: i64, bytes: usize, call: impl Fn(usize, usize) -> isize + Copy) -> isize {
    let entry = descriptors::get(fd);
    if entry.is_aside() {
        return call(0, bytes);
    }
    if is_small(bytes)
        && let Some(file) = entry.file()
        && let Some(wrote) = positional_granted(file, offset as u64, bytes, || call(0, bytes))
    {
        return wrote;
    }
    positional_slowly(fd, offset, bytes, call)
}

/// The call, if what the file was granted has room for it.
#[inline(always)]
fn positional_granted(file: &'static File, offset: u64, bytes: usize, call: impl Fn() -> isize) -> Option<isize> {
    file.touch(offset, bytes as u64);
    if !file.book(bytes as u64, ledger::charge_at(offset, bytes)) {
        return None;
    }
    let wrote = call();
    if wrote != bytes as isize {
        fell_short(file, offset, bytes, wrote);
    }
    Some(wrote)
}

/// A call whose length stands in memory of the application's, which only the kernel may read unharmed: what it brings
/// is booked afterwards. `offset`: where it writes, if that is not the file's own place. Never taken apart.
#[inline(always)]
pub fn vectored(fd: c_int, offset: Option<u64>, call: impl Fn() -> isize + Copy) -> isize {
    let entry = descriptors::get(fd);
    if entry.is_aside() {
        return call();
    }
    // the grant has room for as much as any small call can bring
    if let Some(file) = entry.file()
        && file.has_granted(ledger::SMALL as u64)
    {
        let wrote = call();
        let (bytes, charge) = touched(file, offset, wrote);
        if is_small(bytes) {
            file.book_anyway(bytes as u64, charge);
        } else {
            settle(file, fd, 0, wrote, charge);
        }
        return wrote;
    }
    vectored_slowly(fd, offset, call)
}

#[cold]
#[inline(never)]
fn vectored_slowly(fd: c_int, offset: Option<u64>, call: impl Fn() -> isize) -> isize {
    let Some(file) = tracked(fd) else { return call() };
    let reserved = ledger::charge(ledger::SMALL.min(ledger::window() as usize / 4));
    admit(file, fd, reserved, || touch(file, offset, reserved));
    let wrote = call();
    let (_, charge) = touched(file, offset, wrote);
    settle(file, fd, reserved, wrote, charge);
    file.grant();
    wrote
}

/// Notes where a call wrote; its bytes and their charge.
fn touched(file: &File, offset: Option<u64>, wrote: isize) -> (usize, u64) {
    let bytes = wrote.max(0) as usize;
    touch(file, offset, bytes as u64);
    (bytes, offset.map_or_else(|| ledger::charge(bytes), |offset| ledger::charge_at(offset, bytes)))
}

/// Notes where a call of so many bytes writes. `offset`: `None` where only the kernel knows.
#[inline(always)]
fn touch(file: &File, offset: Option<u64>, bytes: u64) {
    match offset {
        Some(offset) => file.touch(offset, bytes),
        None => file.touch_plain(),
    }
}

/// A call that the hot path takes; not one of no bytes at all.
#[inline(always)]
const fn is_small(bytes: usize) -> bool {
    bytes.wrapping_sub(1) < ledger::SMALL - 1
}

/// Takes off what a booked call did not write: it failed, or wrote less.
#[cold]
fn fell_short(file: &'static File, offset: u64, wanted: usize, wrote: isize) {
    let wrote = wrote.max(0) as usize;
    let charge = ledger::charge_at(offset, wanted).saturating_sub(ledger::charge_at(offset, wrote));
    file.unbook(wanted.saturating_sub(wrote) as u64, charge, wrote == 0);
}

// The slow ways take their closures by value, so that what they capture is put together only where it is needed.

#[cold]
#[inline(never)]
fn plain_slowly(fd: c_int, bytes: usize, call: impl Fn() -> isize) -> isize {
    match new_file(fd, bytes).and_then(|file| plain_granted(file, bytes, &call)) {
        Some(wrote) => wrote,
        None => whole(fd, bytes, &call),
    }
}

#[cold]
#[inline(never)]
fn positional_slowly(fd: c_int, offset: i64, bytes: usize, call: impl Fn(usize, usize) -> isize) -> isize {
    match new_file(fd, bytes).and_then(|file| positional_granted(file, offset as u64, bytes, || call(0, bytes))) {
        Some(wrote) => wrote,
        None => in_pieces(fd, offset, bytes, &call),
    }
}

/// The file of a descriptor that has not been looked at yet, with a first grant: most small files never need another.
fn new_file(fd: c_int, bytes: usize) -> Option<&'static File> {
    if !is_small(bytes) || !descriptors::get(fd).is_unknown() || is_look_due() {
        return None;
    }
    let file = descriptors::look(fd).file()?;
    file.grant();
    Some(file)
}

fn whole(fd: c_int, bytes: usize, call: &dyn Fn() -> isize) -> isize {
    let Some(file) = tracked(fd) else { return call() };
    let charge = ledger::charge(bytes.min(MAX_RW_COUNT));
    admit(file, fd, charge, || file.touch_plain());
    let wrote = call();
    settle(file, fd, charge, wrote, ledger::charge(wrote.max(0) as usize));
    if is_small(bytes) {
        file.grant();
    }
    wrote
}

fn in_pieces(fd: c_int, offset: i64, bytes: usize, call: &dyn Fn(usize, usize) -> isize) -> isize {
    let Some(file) = tracked(fd) else { return call(0, bytes) };
    let bytes_max = bytes.min(MAX_RW_COUNT);
    let start = offset.max(0) as u64;
    // a write across RLIMIT_FSIZE is short when whole and raises SIGXFSZ when split; O_APPEND makes an offset void;
    // what would run over a signed offset is refused
    let is_whole = offset < 0
        || bytes_max < ledger::SMALL
        || start.saturating_add(bytes as u64) > sys::file_size_limit().min(i64::MAX as u64)
        || sys::status_flags(fd) & libc::O_APPEND != 0;
    let mut done = 0;
    loop {
        let at = start + done as u64;
        let left = bytes_max - done;
        let piece = if is_whole { left } else { left.min(piece_at(at)) };
        let charge = ledger::charge_at(at, piece);
        admit(file, fd, charge, || file.touch(at, piece as u64));
        let errno = sys::errno();
        let wrote = call(done, if is_whole { bytes } else { piece });
        settle(file, fd, charge, wrote, ledger::charge_at(at, wrote.max(0) as usize));
        if wrote < 0 {
            return failed_after(done, wrote, errno);
        }
        done += wrote as usize;
        if wrote as usize != piece || done >= bytes_max {
            if is_small(bytes) {
                file.grant();
            }
            return done as isize;
        }
    }
}

/// Books what a call has written that was admitted, and waits where that is more than the window.
fn settle(file: &'static File, fd: c_int, reserved: u64, wrote: isize, charge: u64) {
    file.harvest();
    let mut expected = reserved;
    if charge > reserved {
        ledger::reserve_anyway(charge - reserved);
        file.owe(charge - reserved);
        expected = charge;
    } else {
        ledger::credit(file.forgive(reserved - charge));
    }
    file.count(expected, wrote.max(0) as u64);
    pace_after(file, fd);
}

/// Looks at a file that was written to, where it is time, and waits where more is owed than the window holds.
fn pace_after(file: &'static File, fd: c_int) {
    if file.current() >= ledger::chunk() {
        ledger::credit(file.forgive_rewritten());
    }
    let is_full = file.current() >= ledger::chunk() && (ledger::is_filling() || look::is_prompt(file));
    if is_full || is_look_due() {
        look_after(file, fd);
    }
    if ledger::owed() > ledger::window() {
        drain_to_window(file, fd);
    }
}

/// sendfile, as [`copying`] does it. The kernel refuses what would run over a signed offset: at the source what is
/// asked for, at the target what it does at once (`do_sendfile` in fs/read_write.c).
pub fn sending(
    fd: c_int,
    from: c_int,
    from_at: *const i64,
    bytes: usize,
    call: &mut dyn FnMut(usize) -> isize,
) -> isize {
    let fits = || {
        let last = i64::MAX as u64;
        ends_by(from, from_at, bytes, last) && ends_by(fd, core::ptr::null(), bytes.min(MAX_RW_COUNT), last)
    };
    copy(fd, core::ptr::null(), from, bytes, fits, call)
}

/// copy_file_range: a copy inside the kernel that one call may carry on for a whole file. `call(length)` is repeated,
/// and the kernel moves the offsets; the result is what one call would have given. `at`, `from_at`: where the
/// application keeps the offsets, or null for the files' own.
pub fn copying(
    fd: c_int,
    at: *const i64,
    from: c_int,
    from_at: *const i64,
    bytes: usize,
    call: &mut dyn FnMut(usize) -> isize,
) -> isize {
    let fits = || ends_by(from, from_at, bytes, u64::MAX) && ends_by(fd, at, bytes, u64::MAX);
    copy(fd, at, from, bytes, fits, call)
}

/// Do `bytes` from a descriptor's offset on, or the application's own, end at `last` or before?
fn ends_by(fd: c_int, at: *const i64, bytes: usize, last: u64) -> bool {
    let start = if at.is_null() { Some(sys::position(fd)) } else { sys::read_offset(at) };
    let end = start.and_then(|start| u64::try_from(start).ok()?.checked_add(bytes as u64));
    end.is_some_and(|end| end <= last)
}

fn copy(
    fd: c_int,
    at: *const i64,
    from: c_int,
    bytes: usize,
    fits: impl Fn() -> bool,
    call: &mut dyn FnMut(usize) -> isize,
) -> isize {
    if descriptors::get(fd).is_aside() {
        return call(bytes);
    }
    let Some(file) = tracked(fd) else { return call(bytes) };
    let bytes_max = bytes.min(MAX_RW_COUNT);
    // within one file the kernel looks at the whole of both ranges
    let is_whole = bytes <= piece_at(0)
        || ledger::window() == u64::MAX
        || sys::file_size_limit() != u64::MAX
        || descriptors::is_on(from, file)
        || !fits();
    let mut done = 0;
    loop {
        let left = bytes_max - done;
        let piece = match piece_at(0) {
            _ if is_whole => bytes,
            // a filesystem that shares blocks rounds down what it is asked for, but never to nothing
            piece if left < piece + BLOCK_MAX => left,
            piece => piece,
        };
        // a copy to the end of a file is asked for with a huge length: reserve what can be expected
        let charge = ledger::charge(piece.min(COPY_RESERVE));
        let offset = if at.is_null() { None } else { sys::read_offset(at).and_then(|at| u64::try_from(at).ok()) };
        admit(file, fd, charge, || touch(file, offset, charge));
        let errno = sys::errno();
        let wrote = call(piece);
        // the kernel has just written the new offset there
        match (wrote > 0 && !at.is_null()).then(|| sys::read_offset(at)).flatten() {
            Some(end) => file.touch((end as u64).saturating_sub(wrote as u64), wrote as u64),
            None => file.touch_plain(),
        }
        settle(file, fd, charge, wrote, ledger::charge(wrote.max(0) as usize));
        if wrote < 0 {
            return failed_after(done, wrote, errno);
        }
        done += wrote as usize;
        if wrote as usize != piece || done >= bytes_max {
            return done as isize;
        }
    }
}

/// The result of a call that was made in pieces, of which one failed: what was done before it, and then no error.
fn failed_after(done: usize, failed: isize, errno: c_int) -> isize {
    if done == 0 {
        return failed;
    }
    sys::set_errno(errno);
    done as isize
}

/// From a pipe: what can come is no more than a pipe holds.
pub fn splicing(fd: c_int, at: *const i64, bytes: usize, call: &mut dyn FnMut() -> isize) -> isize {
    if descriptors::get(fd).is_aside() {
        return call();
    }
    let Some(file) = tracked(fd) else { return call() };
    let charge = ledger::charge(bytes.min(ledger::SMALL));
    admit(file, fd, charge, || {
        file.touch_plain();
        if !at.is_null() {
            file.scatter();
        }
    });
    let wrote = call();
    settle(file, fd, charge, wrote, ledger::charge(wrote.max(0) as usize));
    wrote
}

/// The writes of one submission to a queue of the kernel's, which makes them at its own time: booked as if they were
/// made now, and held back together.
#[derive(Default)]
pub struct Batch {
    /// Reserved in the ledger, and not booked yet.
    charge: u64,
    last: Option<(&'static File, c_int)>,
}

impl Batch {
    /// One of them; before any is booked. `offset`: `None` where only the kernel knows.
    pub fn expect(&mut self, fd: c_int, offset: Option<u64>, bytes: u64) {
        if descriptors::get(fd).is_aside() {
            return;
        }
        if let Some(file) = tracked(fd) {
            file.set_queued();
            self.charge = self.charge.saturating_add(queued_charge(offset, bytes).1);
            self.last = Some((file, fd));
        }
    }

    /// Waits for room for all of them.
    pub fn admit(&self) {
        if let Some((file, fd)) = self.last {
            reserve(file, fd, self.charge);
        }
    }

    /// Puts one of them on its file's account.
    pub fn book(&mut self, fd: c_int, offset: Option<u64>, bytes: u64) {
        if let Some(file) = descriptors::get(fd).file().filter(|_| self.last.is_some()) {
            let (bytes, charge) = queued_charge(offset, bytes);
            // what one has changed meanwhile is the ledger's loss
            ledger::reserve_anyway(charge.saturating_sub(self.charge));
            self.charge = self.charge.saturating_sub(charge);
            touch(file, offset, bytes);
            file.owe(charge);
            file.count(charge, bytes);
        }
    }

    /// All are booked. The last descriptor that is written to.
    pub fn end(self) -> Option<c_int> {
        ledger::credit(self.charge);
        self.last.map(|(_, fd)| fd)
    }
}

/// A booked write that the kernel did not take.
pub fn unqueue(fd: c_int, offset: Option<u64>, bytes: u64) {
    if let Some(file) = descriptors::get(fd).file() {
        let (bytes, charge) = queued_charge(offset, bytes);
        ledger::credit(file.forgive(charge));
        let taken = |written: u64| Some(written.saturating_sub(bytes));
        let _ = TOTALS.written_bytes.fetch_update(Relaxed, Relaxed, taken);
    }
}

/// Bytes of one call, at most, and their charge.
fn queued_charge(offset: Option<u64>, bytes: u64) -> (u64, u64) {
    let bytes = bytes.min(MAX_RW_COUNT as u64);
    let charge = match offset {
        Some(offset) => ledger::charge_at(offset, bytes as usize),
        None => ledger::charge(bytes as usize),
    };
    (bytes, charge)
}

/// It was submitted.
pub fn queued(fd: c_int) {
    if let Some(file) = descriptors::get(fd).file().filter(|file| descriptors::is_on(fd, file)) {
        file.set_queued();
        file.harvest();
        pace_after(file, fd);
    }
}

/// Length of the next piece of a long call at an offset: a chunk, ending where a large folio does.
fn piece_at(offset: u64) -> usize {
    let chunk = ledger::chunk().clamp(PIECE_MIN, 1 << 30);
    let end = (offset.wrapping_add(chunk)) & !(chunk.next_power_of_two() / 2 - 1) & !(ledger::PAGE - 1);
    if end > offset { (end - offset) as usize } else { chunk as usize }
}

/// The file of a descriptor, as the kernel sees it now: the table may be stale.
fn tracked(fd: c_int) -> Option<&'static File> {
    if !process::is_open() {
        return None;
    }
    let known = descriptors::get(fd);
    if let Some(file) = known.file() {
        if descriptors::is_on(fd, file) {
            return Some(file);
        }
        if process::is_ours() {
            descriptors::forget(fd);
        }
    }
    let entry = descriptors::look(fd);
    if entry.is_unknown() && !process::is_ours() {
        ledger::aside(Aside::Outside);
    }
    entry.file()
}

/// The process should look once more when it has written so much; no grant is larger.
pub fn look_bytes() -> u64 {
    if sweep::is_go() { LOOK_BYTES_GO } else { LOOK_BYTES }
}

fn is_look_due() -> bool {
    TOTALS.written_bytes.load(Relaxed).wrapping_sub(LOOKED_AT_BYTES.load(Relaxed)) >= look_bytes()
}

/// Looks at the file, if nobody else is looking.
#[cold]
fn look_after(file: &'static File, fd: c_int) {
    if !process::is_ours() {
        return;
    }
    LOOKED_AT_BYTES.store(TOTALS.written_bytes.load(Relaxed), Relaxed);
    if let pace::Turn::Mine(mine) = pace::take() {
        region::refresh();
        file.harvest();
        if descriptors::is_on(fd, file) {
            file.set_last_fd(fd);
            look::advance(file, fd);
            look::confirm(file, fd);
        } else {
            descriptors::forget(fd);
        }
        region::publish(ledger::owed(), pace::is_holding());
        pace::give(mine);
    }
}

/// Reserves a charge, and waits for the disk where the window has no room. It is the file's from here on, so that a
/// call which is left in the middle (a cancelled thread, siglongjmp) owes nothing that a look at the file would not
/// mend.
/// `touch` notes where it will write, before that is owed: a range of pages bounds what they can owe.
fn admit(file: &'static File, fd: c_int, charge: u64, touch: impl FnOnce()) {
    reserve(file, fd, charge);
    touch();
    file.owe(charge);
}

fn reserve(file: &'static File, fd: c_int, charge: u64) {
    if ledger::reserve(charge) {
        return;
    }
    region::refresh();
    if ledger::reserve(charge) {
        return;
    }
    let reserved = pace::hold(file, fd, || {
        let is_large = charge > ledger::window() && ledger::owed() <= ledger::chunk();
        ledger::reserve(charge) || ((is_large || look::group_has_room(charge)) && anyway(charge))
    });
    if !reserved {
        ledger::reserve_anyway(charge);
    }
}

fn anyway(charge: u64) -> bool {
    ledger::reserve_anyway(charge);
    true
}

/// A call that was larger than the window has been written: waits until the rest fits again.
fn drain_to_window(file: &'static File, fd: c_int) {
    pace::hold(file, fd, || ledger::owed() <= ledger::window() || look::group_has_room(0));
}
