//! `reads = "drop-behind"`: what of a file lies behind those who read it once, though there is room. Pure.
//!
//! Nobody says from outside which pages a reader has brought. But what was not cached when the file was last looked at,
//! and came while nobody changed the file, was read.

use super::known::SETTLE;
use super::pages::Piece;
use super::walk::root_of;
use super::{Pressure, plan};
use freeboard_budget::{Mode, glob};
use freeboard_config::Workload;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

/// The workload file's rules: each path, and whether what is read of it goes. The first that matches wins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules(Vec<(String, bool)>);

impl Rules {
    /// None where no rule means what is swept, and none where the library is to leave everything alone.
    pub fn of(workload: &Workload) -> Rules {
        let is_swept = |path: &str| {
            let root = Path::new(root_of(path));
            let mut swept = workload.sweep.paths.iter().map(|swept| Path::new(root_of(swept)));
            swept.any(|swept| swept.starts_with(root) || root.starts_with(swept))
        };
        let is_left_alone = matches!(workload.writes.mode, Mode::Off | Mode::Observe);
        if is_left_alone || !workload.rules.iter().any(|rule| rule.reads_drop_behind && is_swept(&rule.path)) {
            return Rules::default();
        }
        Rules(workload.rules.iter().map(|rule| (rule.path.clone(), rule.reads_drop_behind)).collect())
    }

    /// Whether there is none.
    pub fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether what is read of a file goes.
    pub fn mean(&self, path: &[u8]) -> bool {
        let first = self.0.iter().find(|(pattern, _)| glob::matches(pattern.as_bytes(), path));
        first.is_some_and(|&(_, drops_behind)| drops_behind)
    }
}

/// What the looks told of a file of such a rule.
#[derive(Clone, Debug)]
pub struct Reads {
    /// What was cached before anybody was seen to read, or was written. It stays.
    before: Vec<Range<u64>>,
    /// The highest of the other pieces, and how many pages of it are cached: where somebody reads who is not seen.
    front: Option<(u64, u64)>,
    /// Since when that is so.
    since: Duration,
}

impl Reads {
    /// A file of which nothing was cached.
    pub fn new(now: Duration) -> Reads {
        Reads { before: Vec::new(), front: None, since: now }
    }

    /// Notes what is cached. `may_be_others`: what came since the last look may have been written, or been there.
    pub fn look(&mut self, pieces: &[Piece], may_be_others: bool, now: Duration) {
        let stays = |piece: &Piece| {
            may_be_others
                || piece.stat.dirty + piece.stat.writeback > 0
                || self.before.iter().any(|before| before.start < piece.range.end && piece.range.start < before.end)
        };
        let mut before: Vec<Range<u64>> = Vec::new();
        let mut front = None;
        for piece in pieces {
            if !stays(piece) {
                front = Some((piece.range.start, piece.stat.cached));
            } else if let Some(last) = before.last_mut().filter(|last| last.end == piece.range.start) {
                last.end = piece.range.end;
            } else {
                before.push(piece.range.clone());
            }
        }
        if front != self.front {
            (self.front, self.since) = (front, now);
        }
        self.before = before;
    }

    /// What of `0..end` may go. `looked`: when was last looked for those who have the file open. Where somebody reads
    /// who cannot be seen, his place is taken for the start of the highest piece, and after him a while has to pass.
    pub fn may_go(&self, end: u64, readers: &[u64], looked: Duration, now: Duration) -> Vec<Range<u64>> {
        let is_still = now.saturating_sub(self.since) >= SETTLE && looked > self.since;
        let unseen = self.front.filter(|_| !is_still).map(|(start, _)| start);
        let readers: Vec<u64> = readers.iter().copied().chain(unseen).collect();
        plan::without(plan::may_go(end, &readers, Pressure::None), &self.before)
    }

    /// Whether something may go soon that may not go now.
    pub fn are_under_way(&self, looked: Duration, now: Duration) -> bool {
        self.front.is_some() && now.min(looked).saturating_sub(self.since) < 2 * SETTLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::notify::CacheStat;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    fn piece(mib: u64, cached: u64, dirty: u64) -> Piece {
        let mut stat = CacheStat::default();
        (stat.cached, stat.dirty) = (cached, dirty);
        Piece { range: mib * MIB..(mib + 16) * MIB, stat }
    }

    /// The pieces of a file that starts so, all cached.
    fn cached_to(mib: u64) -> Vec<Piece> {
        (0..mib / 16).map(|n| piece(n * 16, 4096, 0)).collect()
    }

    fn may_go(reads: &Reads, readers: &[u64], looked: u32, now: u32) -> Vec<(u64, u64)> {
        let readers: Vec<_> = readers.iter().map(|reader| reader * MIB).collect();
        let ranges = reads.may_go(320 * MIB, &readers, SECOND * looked, SECOND * now);
        ranges.iter().map(|range| (range.start / MIB, range.end / MIB)).collect()
    }

    #[test]
    fn what_lies_well_behind_a_reader_goes() {
        let mut reads = Reads::new(SECOND);
        reads.look(&cached_to(96), false, SECOND * 10);
        assert_eq!(may_go(&reads, &[], 9, 10), [(0, 64)], "nobody is seen who reads at 80 MiB or farther");
        assert_eq!(may_go(&reads, &[60], 9, 10), [(0, 44)]);
        assert_eq!(may_go(&reads, &[90, 20], 9, 10), [(0, 4)]);
        assert_eq!(may_go(&reads, &[0], 9, 10), []);
        // it stands still where it was looked at
        assert_eq!(may_go(&reads, &[60], 12, 12), [(0, 44)]);
    }

    #[test]
    fn the_rest_goes_once_nobody_is_there() {
        let mut reads = Reads::new(SECOND);
        reads.look(&[piece(304, 4096, 0)], false, SECOND * 10);
        assert_eq!(may_go(&reads, &[], 9, 10), [(0, 288)]);
        assert_eq!(may_go(&reads, &[], 11, 11), [(0, 288)], "a moment ago");
        assert_eq!(may_go(&reads, &[], 10, 20), [(0, 288)], "nobody looked who has it open");
        assert_eq!(may_go(&reads, &[], 11, 12), [(0, 320)]);
        assert_eq!(may_go(&reads, &[320], 11, 12), [(0, 304)], "he may come back");
        // somebody reads on
        reads.look(&[piece(304, 4096, 0)], false, SECOND * 11);
        assert_eq!(may_go(&reads, &[], 11, 12), [(0, 320)]);
        reads.look(&[piece(304, 4000, 0)], false, SECOND * 12);
        assert_eq!(may_go(&reads, &[], 13, 13), [(0, 288)]);
    }

    #[test]
    fn what_was_there_before_or_was_written_stays() {
        let mut reads = Reads::new(SECOND);
        reads.look(&[piece(32, 100, 0), piece(48, 4096, 0)], true, SECOND);
        assert_eq!(may_go(&reads, &[], 9, 10), [(0, 32), (64, 320)]);
        assert!(!reads.are_under_way(SECOND, SECOND), "nothing of it is somebody's who reads");
        let pieces = [cached_to(96), vec![piece(160, 9, 1)]].concat();
        reads.look(&pieces, false, SECOND * 10);
        assert!(reads.are_under_way(SECOND * 10, SECOND * 10));
        assert_eq!(may_go(&reads, &[], 9, 10), [(0, 32)]);
        assert_eq!(may_go(&reads, &[], 12, 12), [(0, 32), (64, 160), (176, 320)]);
        // what is clean now was written all the same, and what went meanwhile was not
        reads.look(&[piece(48, 4096, 0), piece(160, 9, 0)], false, SECOND * 13);
        reads.look(&[cached_to(96), vec![piece(160, 9, 0)]].concat(), false, SECOND * 14);
        assert_eq!(may_go(&reads, &[], 16, 16), [(0, 48), (64, 160), (176, 320)]);
        reads.look(&cached_to(96), true, SECOND * 17);
        assert_eq!(may_go(&reads, &[], 20, 20), [(96, 320)], "written anew");
    }

    #[test]
    fn a_file_is_come_back_to_until_it_went_or_stays() {
        let mut reads = Reads::new(SECOND);
        assert!(!reads.are_under_way(SECOND, SECOND));
        reads.look(&cached_to(16), false, SECOND * 10);
        assert!(reads.are_under_way(SECOND * 9, SECOND * 10));
        assert!(reads.are_under_way(SECOND * 9, SECOND * 19), "nobody looked who has it open");
        assert!(reads.are_under_way(SECOND * 13, SECOND * 13));
        assert!(!reads.are_under_way(SECOND * 14, SECOND * 14), "he stands there");
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let rules = |text: &str| Rules::of(&Workload::parse(text, "text").unwrap());
        let [tiles, images, swept] = [
            "[[rule]]\npath = \"/images/tmp/**\"\nmode = \"auto\"\n",
            "[[rule]]\npath = \"/images/**\"\nreads = \"drop-behind\"\n",
            "[sweep]\npaths = [\"/images/in/**\", \"/logs/**\"]\n",
        ];
        let both = rules(&[tiles, images, swept].concat());
        let means = |path: &str| both.mean(path.as_bytes());
        assert_eq!(["/images/in/1", "/images/tmp/1", "/logs/1"].map(means), [true, false, false]);
        for none in [
            swept.to_owned(),
            [tiles, swept].concat(),
            images.to_owned(),
            // as an application sees it
            ["[[rule]]\npath = \"/srv/**\"\nreads = \"drop-behind\"\n", swept].concat(),
            ["[writes]\nmode = \"observe\"\n", images, swept].concat(),
        ] {
            assert!(rules(&none).are_none(), "{none}");
        }
    }
}
