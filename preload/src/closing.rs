//! What a file still owes when it is closed, and a process when it ends: nobody can send it later.

use crate::descriptors::{self, Entry};
use crate::files::{self, File};
use crate::flush::{self, How};
use crate::helper::{self, Kept};
use crate::ledger::{self, TOTALS};
use crate::look::EDGE_PAGES;
use crate::{look, pace, probe, process, reads, region, sys};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use freeboard_budget::Mode;
use freeboard_budget::law::MIN_ALLOWED;
use libc::c_int;

/// Closes of files that still owed something, before the helper is worth its start.
const CLOSES_BEFORE_HELPER: u64 = 4;
static CLOSES: AtomicU64 = AtomicU64::new(0);

/// A child of fork has closed nothing yet.
pub fn reset() {
    CLOSES.store(0, Relaxed);
}

/// A descriptor is about to be closed. Where the group is pressed, what its file owes is sent on its way; where usage
/// is near its target, the helper keeps the file until it is written, and drops it.
pub fn before_close(fd: c_int, entry: Entry) {
    let Some(file) = entry.file() else { return };
    if matches!(file.how(), How::Remote | How::Unstable) {
        // close itself writes everything back to the server (nfs(5), close-to-open)
        if file.is_last_user() {
            helper::release(file, region::max_stall_ns());
        }
        return;
    }
    // as heard when some file was last looked at
    let drops = file.mode() == Mode::Always || region::wants_drop_closed();
    if !(drops || region::is_pressed() || ledger::is_filling()) {
        return;
    }
    file.harvest();
    if file.owed() == 0 || file.mode() == Mode::Observe || !descriptors::is_on(fd, file) {
        return;
    }
    let pace::Turn::Mine(mine) = pace::take() else { return };
    look::send(file, fd);
    region::publish(ledger::owed(), pace::is_holding());
    // what a flush leaves where it is, nobody writes for 5 to 30 s
    let keeps = (drops || probe::is_stuck(file, fd)) && file.is_last_user();
    let is_for_helper = keeps && CLOSES.fetch_add(1, Relaxed) >= CLOSES_BEFORE_HELPER && !sys::has_lease(fd);
    pace::give(mine);
    if !keeps {
        hold_short_process(file, fd);
    } else if is_for_helper {
        let mut kept = Kept::NotYet;
        pace::hold(file, fd, || {
            if !helper::is_full() {
                kept = hand_over(file, fd, drops);
            }
            kept != Kept::NotYet
        });
        if kept != Kept::Yes && drops && !probe::is_stuck(file, fd) {
            // not for longer than the helper would keep it: others may write to it, too
            let began = sys::now_ns();
            pace::hold(file, fd, || {
                let is_late = sys::now_ns().wrapping_sub(began) > helper::KEEP_NS;
                is_late || !region::is_crowded() || is_clean(file, fd)
            });
            sys::drop_cache(fd, file.droppable_from(), 0);
        }
    }
}

/// Gives the helper a file with all that it owes. What it does not take stays with the closed files.
fn hand_over(file: &'static File, fd: c_int, drops: bool) -> Kept {
    let pace::Turn::Mine(mine) = pace::take() else { return Kept::NotYet };
    let charge = file.take_all();
    pace::give(mine);
    let kept = helper::keep(file, fd, charge, drops);
    if kept != Kept::Yes {
        files::closed().fetch_add(charge, Relaxed);
    }
    kept
}

/// A process that writes more than a window is held by that; of many short ones none ever fills it. Waits until what it
/// owes of the file has arrived, and not what others write to it, or the group is no longer crowded.
fn hold_short_process(file: &'static File, fd: c_int) {
    if region::is_crowded() && TOTALS.written_bytes.load(Relaxed) < MIN_ALLOWED {
        let owes_little = || file.owed() <= EDGE_PAGES * ledger::PAGE;
        pace::hold(file, fd, || !region::is_crowded() || owes_little() || is_clean(file, fd));
    }
}

/// Nothing of the file is on its way, as far as that can be seen.
fn is_clean(file: &File, fd: c_int) -> bool {
    flush::measure(file, fd, 0, u64::MAX).is_none_or(|stat| stat.dirty + stat.writeback <= EDGE_PAGES)
}

/// The process ends: what is owed is sent on its way where the group is pressed.
pub fn end() {
    reads::end();
    if !region::is_attached() && files::all().next().is_none() || !process::is_ours() {
        return;
    }
    if let pace::Turn::Mine(mine) = pace::take() {
        for file in files::all() {
            file.harvest();
            if file.owed() > 0
                && file.mode() != Mode::Observe
                && (region::is_pressed() || ledger::is_filling())
                && let Some(fd) = descriptors::find(file)
            {
                look::send(file, fd);
            }
        }
        pace::give(mine);
        for file in files::all() {
            if file.owed() > 0
                && file.mode() != Mode::Observe
                && let Some(fd) = descriptors::find(file)
            {
                hold_short_process(file, fd);
            }
        }
    }
    region::end();
}
