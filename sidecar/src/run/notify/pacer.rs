//! What becomes of each call: it goes at once, or it waits its turn until the disk has taken what the command owes.
//!
//! The whole command is one writer under the law, with one window. Pure but for the files it looks at: the loop around
//! it brings the calls, the time and the law's word, and takes the answers.

use super::call::{Call, Kind, LARGEST_COPY_BYTES};
use super::copies::Copies;
use super::file::{self, File, Identity};
use super::programs::Programs;
use super::sys::Answer;
use freeboard_budget::law::{Share, Verdict};
use freeboard_budget::layout::Aside;
use freeboard_budget::slots::Report;
use freeboard_budget::{Mode, glob};
use freeboard_config::Workload;
use std::collections::VecDeque;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Files to keep an eye on; each costs a descriptor, of which a process usually may have 1024. A window's worth of
/// small files waits here until it is written.
const MOST_FILES: usize = 512;
/// Time after which a file is no longer being written to.
const IDLE: Duration = Duration::from_secs(1);
/// Time for which a file that is left alone is not looked at again, which takes some 20 µs.
const LEFT_ALONE: Duration = Duration::from_millis(1);
/// Time between two times that pages of a file are given back: what cannot be given back costs every processor a stop.
const GIVING_BACK: Duration = Duration::from_millis(20);
/// The kernel itself starts writeback of what is this old (vm.dirty_expire_centisecs).
const EXPIRED: Duration = Duration::from_secs(30);
/// Looking at files takes at most one part in this many of the time.
const LOOKS_SHARE: u32 = 10;

/// What the law says now.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// Of the group.
    pub verdict: Verdict,
    /// Of the command.
    pub share: Share,
    /// Usage is over its target.
    pub is_over_target: bool,
    /// Dirty plus writeback of the group.
    pub unwritten_bytes: u64,
}

impl Word {
    /// Before the law has spoken: nothing waits.
    pub const NONE: Word =
        Word { verdict: Verdict::UNLIMITED, share: Share::UNLIMITED, is_over_target: false, unwritten_bytes: u64::MAX };
}

/// A file that was met.
#[derive(Debug)]
struct Known {
    identity: Identity,
    /// Who wrote to it last, and by which descriptor.
    by: (u32, i32),
    mode: Mode,
    file: Result<File, Aside>,
    /// Of one that is left alone: when that was found out.
    last_call: Duration,
}

impl Known {
    /// Whether what is known holds for a call by this thread to this descriptor. That a file is left alone does so
    /// for a moment: it may be by how that descriptor was opened, or because this process had none to spare.
    fn holds_for(&self, by: (u32, i32), now: Duration) -> bool {
        self.file.is_ok() || self.by == by && !self.is_old(now)
    }

    fn is_old(&self, now: Duration) -> bool {
        now.saturating_sub(self.last_call) > if self.file.is_ok() { IDLE } else { LEFT_ALONE }
    }
}

/// A call that waits.
#[derive(Debug)]
struct Waiting {
    place: usize,
    call: Call,
    since: Duration,
}

/// What all the command's calls that were told of come to.
#[derive(Debug)]
pub struct Pacer {
    word: Word,
    mode: Mode,
    rules: Vec<(String, Mode)>,
    max_stall: Duration,
    programs: Programs,
    copies: Copies,
    files: Vec<Known>,
    /// Owed to files that are looked at no more.
    elsewhere_bytes: u64,
    /// When that last became more.
    elsewhere_since: Duration,
    /// Of it, what is not waited for any more.
    elsewhere_forgiven_bytes: u64,
    waiting: VecDeque<Waiting>,
    /// When something last reached the disk, or nobody waited.
    last_progress: Duration,
    next_look: Duration,
    /// Written since this was last asked.
    wrote: bool,
    /// The numbers to be published.
    pub report: Report,
}

impl Pacer {
    /// One that has not met any file.
    pub fn new(workload: &Workload, programs: Programs) -> Pacer {
        let rule = |rule: &freeboard_config::Rule| Some((rule.path.clone(), rule.mode.unwrap_or(workload.writes.mode)));
        Pacer {
            word: Word::NONE,
            mode: workload.writes.mode,
            rules: workload.rules.iter().filter_map(rule).collect(),
            max_stall: workload.writes.max_stall,
            programs,
            copies: Copies::new(),
            files: Vec::new(),
            elsewhere_bytes: 0,
            elsewhere_forgiven_bytes: 0,
            elsewhere_since: Duration::ZERO,
            waiting: VecDeque::new(),
            last_progress: Duration::ZERO,
            next_look: Duration::ZERO,
            wrote: false,
            report: Report::default(),
        }
    }

    /// Whether a call waits.
    pub fn is_holding(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether there is anything to do as time passes.
    pub fn is_busy(&self) -> bool {
        self.is_holding() || !self.files.is_empty() || self.elsewhere_bytes > 0
    }

    /// Whether something was written since the last time that this was asked.
    pub fn take_wrote(&mut self) -> bool {
        std::mem::take(&mut self.wrote)
    }

    /// Takes a call that lies in `place`. Returns its answer, if that is known already.
    pub fn meet(&mut self, place: usize, call: Call, now: Duration) -> Option<Answer> {
        let answer = self.decide(place, call, now);
        if let Kind::Copy { source: Some(source), .. } = call.kind
            && !matches!(answer, Some(Answer::Fail(_)))
            && let Ok(target) = Identity::find(call.thread, call.fd)
        {
            self.copies.let_go(&source, target, call.thread, call.fd);
        }
        answer
    }

    fn decide(&mut self, place: usize, call: Call, now: Duration) -> Option<Answer> {
        if matches!(call.kind, Kind::Allocate | Kind::Unmount) {
            self.let_closed_go(call.kind == Kind::Unmount, now);
            return Some(Answer::Go);
        }
        let index = match self.find(&call, now) {
            Ok(index) => index,
            Err(None) => return Some(Answer::Go),
            Err(Some(aside)) => {
                self.report.aside[aside as usize] += 1;
                return Some(Answer::Go);
            }
        };
        if let Kind::Copy { refusal, source: Some(source) } = call.kind
            && call.bytes >= LARGEST_COPY_BYTES
            && self.is_paced(index)
            && self.copies.is_first(&source, self.files[index].identity)
        {
            return Some(Answer::Fail(refusal));
        }
        self.report.calls += 1;
        if self.is_paced(index) && (self.is_holding() || !self.has_room(call.bytes)) {
            if !self.is_holding() {
                self.last_progress = now;
            }
            self.report.held_calls += 1;
            self.report.dev = self.files[index].file.as_ref().map_or(0, |file| file.dev);
            self.waiting.push_back(Waiting { place, call, since: now });
            // what it waits for has to be on its way
            self.start_all();
            return None;
        }
        self.let_go(Some(index), &call, now);
        Some(Answer::Go)
    }

    /// The file that a call writes to; `None` for why: a call that is the library's affair, or nobody's.
    fn find(&mut self, call: &Call, now: Duration) -> Result<usize, Option<Aside>> {
        let identity = Identity::find(call.thread, call.fd).map_err(Some)?;
        let by = (call.thread, call.fd);
        if self.programs.is_left_alone(call.thread, call.at) {
            return Err(None);
        }
        let met = self.files.iter().position(|known| known.identity == identity);
        let met = met.filter(|&index| self.files[index].holds_for(by, now));
        let index = match met {
            Some(index) => index,
            None => {
                self.files.retain(|known| known.identity != identity);
                self.let_closed_go(false, now);
                if self.files.len() == MOST_FILES {
                    self.forget_oldest(now);
                }
                let mode = self.mode_of(call);
                let file = if mode == Mode::Off { Err(Aside::Policy) } else { File::open(by.0, by.1, identity) };
                self.files.push(Known { identity, by, mode, file, last_call: now });
                self.files.len() - 1
            }
        };
        let known = &mut self.files[index];
        match known.file {
            Ok(_) => {
                (known.by, known.last_call) = (by, now);
                Ok(index)
            }
            Err(aside) => Err(Some(aside)),
        }
    }

    fn mode_of(&self, call: &Call) -> Mode {
        let path = std::fs::read_link(file::place(call.thread, call.fd)).unwrap_or_default();
        let path = path.as_os_str().as_bytes();
        let rule = self.rules.iter().find(|(pattern, _)| glob::matches(pattern.as_bytes(), path));
        rule.map_or(self.mode, |&(_, mode)| mode)
    }

    fn is_paced(&self, index: usize) -> bool {
        self.files[index].mode != Mode::Observe && self.word.share != Share::UNLIMITED
    }

    /// What is waited for.
    fn owed_bytes(&self) -> u64 {
        let elsewhere = self.elsewhere_bytes.saturating_sub(self.elsewhere_forgiven_bytes);
        self.files().map(File::owed_bytes).fold(elsewhere, u64::saturating_add)
    }

    fn unwritten_bytes(&self) -> u64 {
        self.files().map(File::unwritten_bytes).fold(self.elsewhere_bytes, u64::saturating_add)
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter_map(|known| known.file.as_ref().ok())
    }

    /// The disk makes no progress: what is owed is not waited for any more, neither by calls that come later, nor by
    /// those that write to another disk.
    fn forgive(&mut self) {
        self.files.iter_mut().filter_map(|known| known.file.as_mut().ok()).for_each(File::forgive);
        self.elsewhere_forgiven_bytes = self.elsewhere_bytes;
    }

    /// Whether a call fits into the window. One that is larger than all of it goes when nothing is owed.
    fn has_room(&self, bytes: u64) -> bool {
        let owed = self.owed_bytes();
        owed.saturating_add(bytes) <= self.word.share.window || owed == 0
    }

    fn let_go(&mut self, index: Option<usize>, call: &Call, now: Duration) {
        self.wrote = true;
        self.report.written_bytes = self.report.written_bytes.saturating_add(call.bytes);
        let Some(index) = index else {
            self.owe_elsewhere(call.bytes, call.bytes, now);
            return;
        };
        let paced = self.is_paced(index);
        let Ok(file) = &mut self.files[index].file else { return };
        // before this call is counted: none of its bytes are there to be looked at
        if paced && file.unstarted_bytes >= self.word.share.chunk {
            // what was only written again is not worth the disk's time
            file.look(self.word.unwritten_bytes);
            if file.unstarted_bytes >= self.word.share.chunk / 2 {
                self.report.flushed_bytes += file.unstarted_bytes;
                file.start();
            }
        }
        file.let_go(call.bytes);
    }

    fn start_all(&mut self) {
        for known in &mut self.files {
            if let Ok(file) = &mut known.file
                && file.unstarted_bytes > 0
            {
                self.report.flushed_bytes += file.unstarted_bytes;
                file.start();
            }
        }
    }

    /// Time has passed, and the law says `word`. Returns the places of calls that go now.
    pub fn pass_time(&mut self, word: Word, now: Duration) -> Vec<usize> {
        self.word = word;
        if now >= self.next_look {
            let started = crate::service::now();
            self.look(now);
            let took = crate::service::now().saturating_sub(started);
            self.next_look = now + took * LOOKS_SHARE;
        }
        let arrived = self.report.written_bytes.saturating_sub(self.unwritten_bytes());
        let confirmed = arrived.max(self.report.confirmed_bytes);
        if confirmed > self.report.confirmed_bytes || !self.is_holding() {
            self.last_progress = now;
        }
        self.report.confirmed_bytes = confirmed;

        let stalled = now.saturating_sub(self.last_progress) > self.max_stall;
        if stalled {
            self.forgive();
        }
        let mut free = Vec::new();
        while let Some(first) = self.waiting.front()
            && (stalled || word.share == Share::UNLIMITED || self.has_room(first.call.bytes))
        {
            let Some(Waiting { place, call, since }) = self.waiting.pop_front() else { break };
            let held_ns = now.saturating_sub(since).as_nanos() as u64;
            self.report.held_back_ns += held_ns;
            self.report.longest_held_back_ns = self.report.longest_held_back_ns.max(held_ns);
            self.report.aside[Aside::Stalled as usize] += u64::from(stalled);
            let index = self.find(&call, now).ok();
            self.let_go(index, &call, now);
            free.push(place);
        }
        self.report.owed_bytes = self.owed_bytes();
        self.report.holding = self.is_holding().into();
        free
    }

    /// Lets every call go that waits.
    pub fn release(&mut self) -> Vec<usize> {
        self.waiting.drain(..).map(|waiting| waiting.place).collect()
    }

    /// Looks at all files: what has arrived, what is to be given back, what is not written to any more.
    fn look(&mut self, now: Duration) {
        let word = self.word;
        let expired = now.saturating_sub(self.elsewhere_since) > EXPIRED;
        self.elsewhere_bytes = if expired { 0 } else { self.elsewhere_bytes.min(word.unwritten_bytes) };
        self.elsewhere_forgiven_bytes = self.elsewhere_forgiven_bytes.min(self.elsewhere_bytes);
        let limited = word.share != Share::UNLIMITED;
        let owes_much = self.owed_bytes() >= word.share.window / 8;
        self.let_closed_go(false, now);
        let mut index = 0;
        while index < self.files.len() {
            let idle = self.files[index].is_old(now);
            let Known { identity, by, mode, file, .. } = &mut self.files[index];
            let Ok(file) = file else {
                if idle {
                    drop(self.files.swap_remove(index))
                } else {
                    index += 1
                }
                continue;
            };
            file.look(word.unwritten_bytes);
            file.is_closed = file.is_closed || Identity::find(by.0, by.1) != Ok(*identity);
            let paced = limited && *mode != Mode::Observe;
            let always = *mode == Mode::Always;
            if paced && file.unstarted_bytes > 0 && (idle || file.is_closed && (owes_much || always)) {
                self.report.flushed_bytes += file.unstarted_bytes;
                file.start();
            }
            let keep = paced && file.is_closed && file.unwritten_bytes() > 0 && (word.verdict.drop_closed || always);
            // what is closed is given back once, when it is on the disk: there is no later
            let wanted = if file.is_closed {
                file.unwritten_bytes() == 0 && (word.verdict.drop_closed || always)
            } else {
                (word.verdict.drop || always) && now.saturating_sub(file.given_back) >= GIVING_BACK
            };
            if paced && wanted {
                file.given_back = now;
                self.report.dropped_bytes += file.give_back(word.is_over_target);
            }
            if !keep && (file.is_closed || idle && file.unwritten_bytes() == 0) {
                let (unwritten, owed) = (file.unwritten_bytes(), file.owed_bytes());
                self.files.swap_remove(index);
                self.owe_elsewhere(unwritten, owed, now);
            } else {
                index += 1;
            }
        }
    }

    fn forget_oldest(&mut self, now: Duration) {
        let oldest = (0..self.files.len()).min_by_key(|&index| self.files[index].last_call).unwrap_or(0);
        let paced = self.is_paced(oldest);
        if let Ok(mut file) = self.files.swap_remove(oldest).file {
            if paced {
                self.report.flushed_bytes += file.unstarted_bytes;
                file.start();
            }
            self.owe_elsewhere(file.unwritten_bytes(), file.owed_bytes(), now);
        }
    }

    /// Closes what its program has closed, deleted files or `all`: space and mounts are not kept longer than without us.
    fn let_closed_go(&mut self, all: bool, now: Duration) {
        for index in (0..self.files.len()).rev() {
            let Known { identity, by, file, .. } = &mut self.files[index];
            let Ok(file) = file else { continue };
            let is_deleted = file.is_deleted();
            if !(all || is_deleted) || Identity::find(by.0, by.1) == Ok(*identity) {
                continue;
            }
            // what was deleted never has to reach the disk
            let (unwritten, owed) = if is_deleted { (0, 0) } else { (file.unwritten_bytes(), file.owed_bytes()) };
            self.files.swap_remove(index);
            self.owe_elsewhere(unwritten, owed, now);
        }
    }

    /// `owed`: what of the unwritten bytes is waited for.
    fn owe_elsewhere(&mut self, unwritten: u64, owed: u64, now: Duration) {
        if unwritten > 0 {
            self.elsewhere_bytes = self.elsewhere_bytes.saturating_add(unwritten);
            self.elsewhere_forgiven_bytes =
                self.elsewhere_forgiven_bytes.saturating_add(unwritten.saturating_sub(owed));
            self.elsewhere_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::dup2;
    use std::fs::File as Std;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    fn pacer() -> Pacer {
        Pacer::new(&Workload::default(), Programs::new(crate::library::LIBRARY, Vec::new()))
    }

    fn open(path: &Path, flags: i32) -> OwnedFd {
        Std::options().create(true).write(true).custom_flags(flags).open(path).unwrap().into()
    }

    fn write_by(thread: u32, fd: &OwnedFd) -> Call {
        Call { thread, at: 0, fd: fd.as_raw_fd(), bytes: 4096, kind: Kind::Write }
    }

    /// A descriptor that waits for the disk by itself says nothing of the next one with its number, or of another
    /// process's.
    #[test]
    fn what_is_left_alone_is_looked_at_again() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("file");
        let (mut fd, plain) = (open(&path, libc::O_SYNC), open(&path, 0));
        // two threads with one table: as two processes whose descriptors have one number
        let [one, other] = [file::own_thread(), std::process::id()];
        let mut pacer = pacer();
        let meet = |pacer: &mut Pacer, thread, fd: &OwnedFd, ms| {
            assert_eq!(pacer.meet(0, write_by(thread, fd), Duration::from_millis(ms)), Some(Answer::Go));
            (pacer.report.aside[Aside::Direct as usize], pacer.report.calls)
        };
        assert_eq!(meet(&mut pacer, one, &fd, 0), (1, 0));
        assert_eq!(meet(&mut pacer, one, &fd, 1), (2, 0));
        dup2(&plain, &mut fd).unwrap();
        assert_eq!(meet(&mut pacer, one, &fd, 1), (3, 0), "it is looked at for each call");
        assert_eq!(meet(&mut pacer, one, &fd, 2), (3, 1));

        assert_ne!(one, other);
        pacer.files.clear();
        dup2(open(&path, libc::O_SYNC), &mut fd).unwrap();
        assert_eq!(meet(&mut pacer, one, &fd, 20), (4, 1));
        dup2(&plain, &mut fd).unwrap();
        assert_eq!(meet(&mut pacer, other, &fd, 20), (4, 2));
    }

    /// Neither space nor a mount is kept by a file that is open here alone.
    #[test]
    fn what_is_closed_and_deleted_is_let_go() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let [deleted, named, kept] = ["deleted", "named", "kept"].map(|name| dir.path().join(name));
        let (mut pacer, thread) = (pacer(), std::process::id());
        let fds = [&deleted, &named, &kept].map(|path| open(path, 0));
        for fd in &fds {
            pacer.meet(0, write_by(thread, fd), Duration::ZERO);
        }
        let [deleted_open, named_open, kept_open] = fds;
        std::fs::remove_file(&deleted).unwrap();
        std::fs::remove_file(&kept).unwrap();
        let mut left_after = |kind| {
            let call = Call { thread, at: 0, fd: -1, bytes: 4096, kind };
            assert_eq!(pacer.meet(0, call, Duration::ZERO), Some(Answer::Go));
            pacer.files.len()
        };
        assert_eq!(left_after(Kind::Unmount), 3, "all are open");
        drop((deleted_open, named_open));
        assert_eq!(left_after(Kind::Allocate), 2);
        assert_eq!(left_after(Kind::Unmount), 1);
        drop(kept_open);
        pacer.pass_time(Word::NONE, Duration::from_millis(1));
        assert_eq!(pacer.files.len(), 0);
    }
}
