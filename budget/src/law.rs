//! The law: how many unwritten bytes a container may hold, and one process's share of them.
//!
//! ```text
//! room    = target - other                    other: usage that reclaim cannot give back, less the unwritten
//! allowed = min(room, max(limit / 10, speed x 1 s)), and beyond the tenth no more than fits beside what is cached
//! window  = (allowed - unowned) / active writers
//! chunk   = what the disk writes in 75 ms, at most a quarter of the window
//! ```
//!
//! The page cache in front of a slow disk is a bloated buffer: what lies in it cannot be taken back faster than the
//! disk writes. So `allowed` is what the disk drains within a second, or a tenth of the limit, whichever is more, and
//! never more than there is room for.

use crate::layout::STALE_MS;

/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;

/// Smallest piece in which flushing still costs little beside the disk's own work: a window is not divided into smaller
/// ones, but where the window itself is no larger than that.
pub const MIN_CHUNK: u64 = 256 << 10;

/// Largest piece, so that no single call of ours keeps a fast disk's queue to itself.
pub const MAX_CHUNK: u64 = 64 * MIB;

/// Least that is ever allowed.
pub const MIN_ALLOWED: u64 = MIB;

/// Smallest window of one of many writers. Below it a writer waits for its own bytes.
pub const MIN_WINDOW: u64 = 64 << 10;

/// The kernel counts charges per CPU in batches of 64 pages, so usage can be this much higher than it says, a CPU.
/// Source: `MEMCG_CHARGE_BATCH` in `mm/memcontrol.c`; two CPUs' worth is what one writer and one flusher can hide.
pub const COUNTER_LAG: u64 = 2 * 64 * 4096;

/// The ceiling for usage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Per cent of the limit, 1 to 100.
    Percent(u64),
    /// Bytes; at most the limit rules.
    Bytes(u64),
}

impl Target {
    /// The target in bytes under a limit; `u64::MAX` where there is no limit and the target is a share of it.
    pub fn bytes(self, limit_bytes: u64) -> u64 {
        match self {
            Target::Percent(_) if limit_bytes == u64::MAX => u64::MAX,
            Target::Percent(percent) => limit_bytes / 100 * percent + limit_bytes % 100 * percent / 100,
            Target::Bytes(bytes) => bytes.min(limit_bytes),
        }
    }
}

/// What is known of one cgroup at one moment, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level {
    /// Hard limit; `u64::MAX`: none.
    pub limit: u64,
    /// Ceiling for usage.
    pub target: u64,
    /// Usage.
    pub usage: u64,
    /// Usage that reclaim cannot give back, less the unwritten.
    pub other: u64,
    /// Dirty plus writeback.
    pub unwritten: u64,
}

/// What the law says of one cgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Most unwritten bytes for all writers together; `u64::MAX`: no limit is in force.
    pub allowed: u64,
    /// Drop what has been flushed.
    pub drop: bool,
    /// Keep files that are closed until they are written, and drop them: usage is over half of what `drop`
    /// starts at. What is closed cannot be dropped later, and kernel memory (inodes) may still take its place.
    pub drop_closed: bool,
    /// The group owes half of `allowed` or more.
    pub pressure: bool,
}

impl Verdict {
    /// The verdict where nothing limits.
    pub const UNLIMITED: Verdict = Verdict { allowed: u64::MAX, drop: false, drop_closed: false, pressure: false };

    /// The smaller room rules; pressure or want of drop at any level counts.
    pub fn stricter(self, other: Verdict) -> Verdict {
        Verdict {
            allowed: self.allowed.min(other.allowed),
            drop: self.drop || other.drop,
            drop_closed: self.drop_closed || other.drop_closed,
            pressure: self.pressure || other.pressure,
        }
    }
}

/// Judges one level. `speed` is the disk's in bytes per second, where it is known.
pub fn judge(level: &Level, speed: Option<u64>) -> Verdict {
    if level.target == u64::MAX {
        return Verdict::UNLIMITED;
    }
    let room = level.target.saturating_sub(level.other).saturating_sub(COUNTER_LAG);
    let tenth = level.limit.min(level.target.saturating_mul(2)) / 10;
    let buffer = match speed {
        Some(speed) => tenth.min(speed.saturating_mul(10)).max(speed),
        None => tenth,
    };
    let wanted = room.min(buffer).max(MIN_ALLOWED);
    // Usage can still grow by what is allowed and not yet there; an eighth more covers what reaches the disk, and stays
    // cached, before the next tick.
    let growth = wanted.saturating_sub(level.unwritten).saturating_add(wanted / 8).saturating_add(4 * COUNTER_LAG);
    // Where clean pages fill the room, they are dropped first: until then there is a tenth, or what fits beside them.
    let fits = level.unwritten.saturating_add(level.target.saturating_sub(level.usage));
    let allowed = wanted.min(fits.max(tenth)).max(MIN_ALLOWED);
    let usage_soon = level.usage.saturating_add(growth);
    // A fast disk makes more than that clean before somebody looks again: that is at most for as long as it takes to
    // notice that nobody does. Until it is measured that may be more than fits, but clean: to drop for what a disk may
    // be would cost whoever reads back what was written (an sqlite load at 120 MB: two thirds of it came from the
    // disk). A disk that takes longer for what is wanted makes no more clean than is counted already.
    let arriving = speed.map_or(0, |speed| speed / 1000 * STALE_MS).saturating_sub(wanted);
    Verdict {
        allowed,
        drop: usage_soon.saturating_add(arriving) > level.target,
        drop_closed: usage_soon > level.target / 2,
        pressure: level.unwritten >= allowed / 2,
    }
}

/// One process's share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Most bytes that the process may owe; `u64::MAX`: not limited.
    pub window: u64,
    /// The piece in which the window is flushed and waited for.
    pub chunk: u64,
}

impl Share {
    /// The share where nothing limits: no call ever gets to the slow path by it.
    pub const UNLIMITED: Share = Share { window: u64::MAX, chunk: u64::MAX };
}

/// What of `allowed` belongs to `mine` of its writers (at least 1), beside `others` who owe `others_owed`.
///
/// A newcomer gets what they leave, at least a quarter of an equal part, until they have drained to theirs; so the sum
/// stays near `allowed` without anybody being asked to give back what the disk has not yet taken.
pub fn part(allowed: u64, mine: u64, others: u64, others_owed: u64) -> u64 {
    let mine = mine.max(1);
    let equal = allowed / mine.saturating_add(others) * mine;
    equal.min(allowed.saturating_sub(others_owed).max(equal / 4)).max(MIN_WINDOW)
}

/// Divides `allowed` among `writers` (this one included; at least 1), of whom the others owe `others_owed`; see
/// [`part`]. `configured` is the workload file's window, 0 for "auto".
pub fn share(allowed: u64, unowned: u64, writers: u64, others_owed: u64, speed: Option<u64>, configured: u64) -> Share {
    if allowed == u64::MAX && configured == 0 {
        return Share::UNLIMITED;
    }
    let mine = allowed.saturating_sub(unowned.min(allowed / 2));
    sized(part(mine, 1, writers.saturating_sub(1), others_owed), speed, configured)
}

fn sized(window: u64, speed: Option<u64>, configured: u64) -> Share {
    let most = if configured == 0 { u64::MAX } else { configured };
    let window = window.min(most).max(MIN_WINDOW);
    Share { window, chunk: chunk(window, speed) }
}

/// The share of a process that cannot know who else writes, but owed so much when the whole group had so much
/// unwritten.
///
/// While others have unwritten bytes too, what it owes grows and shrinks in proportion to what all have: every other
/// process does the same, so the sum of all windows is what is allowed, whatever their number. What all of them give up
/// goes to all alike, a smallest window each, so that newcomers get their part in time.
pub fn share_unseen(allowed: u64, unwritten: u64, owed: u64, speed: Option<u64>, configured: u64) -> Share {
    if allowed == u64::MAX && configured == 0 {
        return Share::UNLIMITED;
    }
    let others = unwritten.saturating_sub(owed);
    let window = if others <= allowed / 8 {
        // others may begin at the same moment
        allowed.saturating_sub(others).min(owed.saturating_mul(4).max(allowed / 4))
    } else {
        let part = u128::from(allowed) * u128::from(owed.min(unwritten)) / u128::from(unwritten.max(1));
        let part = u64::try_from(part).unwrap_or(allowed);
        (part - part / 16).saturating_add(MIN_WINDOW)
    };
    sized(window, speed, configured)
}

/// The chunk of a window: what the disk writes in 75 ms, or, until its speed is known, an eighth of the window; in
/// whole pieces of 2 MiB where it is larger than that, because a large folio is only dropped as a whole.
pub fn chunk(window: u64, speed: Option<u64>) -> u64 {
    let wanted = speed.map_or(window / 8, |speed| speed / 1000 * 75);
    let quarter = (window / 4).max(MIN_WINDOW.min(window));
    let bounded = wanted.min(quarter).clamp(MIN_CHUNK.min(quarter), MAX_CHUNK);
    if bounded >= 2 * MIB { bounded & !(2 * MIB - 1) } else { bounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn level(limit: u64, other: u64, unwritten: u64, usage: u64) -> Level {
        Level { limit, target: Target::Percent(80).bytes(limit), usage, other, unwritten }
    }

    #[test]
    fn targets() {
        assert_eq!(Target::Percent(80).bytes(200 * MB), 160 * MB);
        assert_eq!(Target::Percent(80).bytes(u64::MAX), u64::MAX);
        assert_eq!(Target::Bytes(500 * MB).bytes(200 * MB), 200 * MB);
        assert_eq!(Target::Bytes(500 * MB).bytes(u64::MAX), 500 * MB);
    }

    #[test]
    fn allowed_is_a_tenth_or_a_second_of_the_disk_and_never_more_than_there_is_room() {
        let roomy = level(200 * MB, 20 * MB, 0, 20 * MB);
        assert_eq!(judge(&roomy, None).allowed, 20 * MB);
        assert_eq!(judge(&roomy, Some(31 * MB)).allowed, 31 * MB);
        // a slow disk caps the tenth at ten seconds
        assert_eq!(judge(&roomy, Some(MB)).allowed, 10 * MB);
        // anonymous memory leaves little
        let tight = level(200 * MB, 150 * MB, 0, 150 * MB);
        assert_eq!(judge(&tight, Some(31 * MB)).allowed, 10 * MB - COUNTER_LAG);
        let full = level(200 * MB, 190 * MB, 0, 190 * MB);
        assert_eq!(judge(&full, Some(31 * MB)).allowed, MIN_ALLOWED);
        assert!(judge(&full, None).drop);
    }

    #[test]
    fn dropping_starts_before_the_target() {
        let allowed = 31 * MB;
        let far = level(200 * MB, 20 * MB, allowed, 100 * MB);
        assert!(!judge(&far, Some(31 * MB)).drop);
        let near = level(200 * MB, 20 * MB, allowed, 155 * MB);
        assert!(judge(&near, Some(31 * MB)).drop);
        // the same usage, but all of it clean: a burst could still come on top
        let clean = level(200 * MB, 20 * MB, 0, 130 * MB);
        assert!(judge(&clean, Some(31 * MB)).drop);
    }

    #[test]
    fn beyond_a_tenth_what_is_clean_goes_first() {
        // target 48 MB, most of it clean; the disk could drain 31 MB in a second
        let full = level(60 * MB, 2 * MB, 6 * MB, 46 * MB);
        let verdict = judge(&full, Some(31 * MB));
        assert!(verdict.drop);
        assert_eq!(verdict.allowed, 8 * MB);
        // over its target: still a tenth
        assert_eq!(judge(&level(60 * MB, 2 * MB, 2 * MB, 55 * MB), Some(31 * MB)).allowed, 6 * MB);
        // dropped
        assert_eq!(judge(&level(60 * MB, 2 * MB, 6 * MB, 9 * MB), Some(31 * MB)).allowed, 31 * MB);
    }

    #[test]
    fn no_limit_no_pacing() {
        let free = level(u64::MAX, 20 * MB, 5 * MB, 100 * MB);
        assert_eq!(judge(&free, Some(31 * MB)), Verdict::UNLIMITED);
        assert_eq!(share(u64::MAX, 0, 3, 0, None, 0), Share::UNLIMITED);
        assert_eq!(share(u64::MAX, 0, 1, 0, None, 4 * MIB).window, 4 * MIB);
    }

    #[test]
    fn shares_add_up() {
        for writers in 1..20u64 {
            let equal = share(64 * MIB, 0, writers, 0, None, 0);
            assert!(equal.window * writers <= 64 * MIB || equal.window == MIN_WINDOW);
            assert!(equal.chunk <= equal.window / 4);
        }
        // a newcomer beside a writer that owes everything
        let newcomer = share(64 * MIB, 0, 2, 64 * MIB, None, 0);
        assert_eq!(newcomer.window, 8 * MIB);
        assert_eq!(share(64 * MIB, 0, 2, 32 * MIB, None, 0).window, 32 * MIB);
    }

    #[test]
    fn windows_of_those_who_do_not_know_each_other_add_up_to_what_is_allowed() {
        let allowed = 20 * MIB;
        for (writers, unwritten) in [(2u64, 40 * MIB), (7, 10 * MIB), (100, 20 * MIB), (100, 60 * MIB)] {
            let owed = unwritten / writers;
            let window = share_unseen(allowed, unwritten, owed, None, 0).window;
            assert!(writers * window <= allowed + writers * MIN_WINDOW, "{writers} writers: {window}");
            assert!(writers * window >= allowed / 8 * 7, "{writers} writers: {window}");
        }
        // alone, it has all of it soon, and at once what it asked for before
        assert_eq!(share_unseen(allowed, 0, 0, None, 0).window, 5 * MIB);
        assert_eq!(share_unseen(allowed, 5 * MIB, 5 * MIB, None, 0).window, 20 * MIB);
        // a newcomer beside one that owes everything
        assert_eq!(share_unseen(allowed, 20 * MIB, 0, None, 0).window, MIN_WINDOW);
        assert_eq!(share_unseen(u64::MAX, 0, 0, None, 0), Share::UNLIMITED);
        assert_eq!(share_unseen(u64::MAX, 9, 9, None, 4 * MIB).window, 4 * MIB);
    }

    #[test]
    fn a_chunk_is_75_ms_of_the_disk_at_most_a_quarter_of_the_window() {
        assert_eq!(chunk(32 * MIB, Some(31 * MB)), 2 * MIB);
        assert_eq!(chunk(4 * MIB, Some(31 * MB)), MIB);
        assert_eq!(chunk(4 * MIB, None), 512 << 10);
        assert_eq!(chunk(MIB, Some(MB)), MIN_CHUNK);
        assert_eq!(chunk(MIN_WINDOW, Some(31 * MB)), MIN_WINDOW);
        assert_eq!(chunk(u64::MAX, Some(u64::MAX)), MAX_CHUNK);
    }
}
