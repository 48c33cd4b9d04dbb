//! From figures to one verdict. Pure.

use super::figures::{Figures, Kind, Parts};
use freeboard_budget::law::Target;
use serde::Serialize;

/// Where alerts are set, and what Freeboard keeps usage under: per cent of the limit.
pub const LINE_PERCENT: u64 = 80;

/// How things stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// A process was killed at the limit.
    Killed,
    /// Usage is over [`LINE_PERCENT`] of the limit.
    OverTheLine,
    /// Usage is under it.
    UnderTheLine,
    /// There is no limit, or none that can be seen.
    NoLimit,
}

/// What fills a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The memory that would have to go first.
    pub kind: Kind,
    /// How things stand.
    pub standing: Standing,
    /// It follows from what was said, but was not said: the kernel, or what is left of its message, lacks figures.
    pub is_inferred: bool,
}

/// [`LINE_PERCENT`] of a limit, in bytes.
pub fn line(limit: u64) -> u64 {
    Target::Percent(LINE_PERCENT).bytes(limit)
}

/// Judges. Over the line, what rules is what keeps usage there: first what nothing but its owner can give back, where
/// that alone reaches the line; then the unwritten; then what the kernel gives back when it is asked. Under the line,
/// and without a limit, it is the largest part.
pub fn judge(figures: &Figures, was_killed: bool) -> Verdict {
    let parts = figures.parts(was_killed);
    let standing = match (was_killed, figures.limit, figures.usage) {
        (true, _, _) => Standing::Killed,
        (false, Some(limit), Some(usage)) if usage >= line(limit) => Standing::OverTheLine,
        (false, Some(_), _) => Standing::UnderTheLine,
        (false, None, _) => Standing::NoLimit,
    };
    let kind = match standing {
        Standing::Killed | Standing::OverTheLine => keeps_it_there(&parts, line(figures.limit.unwrap_or(u64::MAX))),
        Standing::UnderTheLine | Standing::NoLimit => largest(&parts.all()),
    };
    let is_of_cache = matches!(kind, Kind::Unwritten | Kind::CleanCache);
    Verdict { kind, standing, is_inferred: is_of_cache && parts.is_inferred }
}

fn keeps_it_there(parts: &Parts, line: u64) -> Kind {
    let pinned = parts.pinned();
    let pinned_bytes = pinned.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    let at_once = parts.clean.saturating_add(parts.slab_reclaimable);
    if pinned_bytes >= line {
        largest(&pinned)
    } else if pinned_bytes.saturating_add(parts.unwritten) >= line || parts.unwritten > at_once {
        Kind::Unwritten
    } else {
        largest(&[(Kind::CleanCache, parts.clean), (Kind::Slab, parts.slab_reclaimable)])
    }
}

/// The first of the largest.
fn largest(parts: &[(Kind, u64)]) -> Kind {
    parts.iter().rev().max_by_key(|(_, bytes)| bytes).map_or(Kind::Anonymous, |(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Anonymous, CleanCache, Slab, Tmpfs, Unwritten};

    /// A group with a limit of 1000 whose usage is the sum of (anonymous, unwritten, clean, slab, reclaimable slab,
    /// tmpfs).
    fn group([anonymous, unwritten, clean, kernel, reclaimable, tmpfs]: [u64; 6]) -> Figures {
        Figures {
            usage: Some(anonymous + unwritten + clean + kernel + tmpfs),
            limit: Some(1000),
            anonymous: Some(anonymous),
            file: Some(unwritten + clean + tmpfs),
            shmem: Some(tmpfs),
            dirty: Some(unwritten),
            writeback: Some(0),
            kernel: Some(kernel),
            slab_reclaimable: Some(reclaimable),
            ..Figures::default()
        }
    }

    #[test]
    fn one_verdict() {
        let cases = [
            ("a leak", [950, 10, 20, 10, 0, 0], Anonymous),
            ("a writer that needs little itself", [30, 900, 50, 10, 0, 0], Unwritten),
            ("a program whose heap leaves no room to write", [600, 380, 10, 10, 0, 0], Unwritten),
            ("a JVM beside its logs: 76 % of heap, and cache up to the limit", [760, 2, 230, 5, 0, 0], CleanCache),
            ("a reader of big files", [50, 0, 940, 10, 0, 0], CleanCache),
            ("a million inodes that the kernel can drop", [50, 10, 100, 800, 750, 0], Slab),
            ("a million inodes that it cannot", [50, 10, 30, 900, 10, 0], Slab),
            ("/dev/shm", [50, 10, 20, 10, 0, 900], Tmpfs),
            ("heap and /dev/shm", [500, 0, 0, 0, 0, 450], Anonymous),
            ("under the line it is the largest part", [100, 50, 300, 0, 0, 0], CleanCache),
            ("nothing at all", [0, 0, 0, 0, 0, 0], Anonymous),
        ];
        for (what, parts, want) in cases {
            let verdict = judge(&group(parts), false);
            assert_eq!((verdict.kind, verdict.is_inferred), (want, false), "{what}");
            let over = parts.iter().sum::<u64>() - parts[4] >= 800;
            let standing = if over { Standing::OverTheLine } else { Standing::UnderTheLine };
            assert_eq!(verdict.standing, standing, "{what}");
        }
    }

    #[test]
    fn without_a_limit_it_is_the_largest_part() {
        let figures = Figures { limit: None, ..group([100, 10, 300, 0, 0, 0]) };
        assert_eq!((judge(&figures, false).kind, judge(&figures, false).standing), (CleanCache, Standing::NoLimit));
    }

    #[test]
    fn what_was_not_said_is_inferred() {
        // the cache of a kernel that does not count dirty pages
        let old = Figures { dirty: None, writeback: None, ..group([30, 0, 950, 10, 0, 0]) };
        assert_eq!(judge(&old, true), Verdict { kind: Unwritten, standing: Standing::Killed, is_inferred: true });
        assert_eq!((judge(&old, false).kind, judge(&old, false).is_inferred), (CleanCache, true));
        // a message of which two lines are left: 585936 kB of 585936 kB, and anon-rss:23032kB
        let bytes = 585_936 << 10;
        let issue =
            Figures { usage: Some(bytes), limit: Some(bytes), anonymous: Some(23_032 << 10), ..Figures::default() };
        assert_eq!(judge(&issue, true), Verdict { kind: Unwritten, standing: Standing::Killed, is_inferred: true });
        let leak = Figures { anonymous: Some(580_000 << 10), ..issue };
        assert_eq!(judge(&leak, true), Verdict { kind: Anonymous, standing: Standing::Killed, is_inferred: false });
    }
}
