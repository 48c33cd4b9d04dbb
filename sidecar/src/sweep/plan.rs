//! What of a file may go from the page cache.

use super::Pressure;
use std::ops::Range;

const MIB: u64 = 1 << 20;
/// The kernel drops large folios only as a whole: ranges end where none of up to this size does not.
const FOLIO: u64 = 2 * MIB;
/// What is kept before and behind a reader.
pub const AROUND_READER: u64 = 16 * MIB;

/// Rounds down to where no folio is cut.
pub fn down(offset: u64) -> u64 {
    offset & !(FOLIO - 1)
}

fn up(offset: u64) -> u64 {
    offset.checked_next_multiple_of(FOLIO).unwrap_or(u64::MAX)
}

/// What is kept for a reader.
pub fn around(reader: u64) -> Range<u64> {
    down(reader.saturating_sub(AROUND_READER))..up(reader.saturating_add(AROUND_READER))
}

/// The ranges of `0..end` that no reader is near. As long as usage is not over its target, nothing that lies before a
/// reader goes either: he has not read it yet.
pub fn may_go(end: u64, readers: &[u64], pressure: Pressure) -> Vec<Range<u64>> {
    let mut readers = readers.to_vec();
    readers.sort_unstable();
    let mut ranges = Vec::new();
    let mut from = 0;
    for reader in readers {
        let kept = around(reader);
        if kept.start.min(end) > from {
            ranges.push(from..kept.start.min(end));
        }
        from = from.max(kept.end);
        if pressure < Pressure::Over {
            return ranges;
        }
    }
    if from < end {
        ranges.push(from..end);
    }
    ranges
}

/// The parts of these ranges that none of `kept` has; both are in order.
pub fn without(ranges: Vec<Range<u64>>, kept: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    for range in ranges {
        let mut from = range.start;
        for kept in kept.iter().filter(|kept| kept.start < range.end && kept.end > range.start) {
            if kept.start > from {
                left.push(from..kept.start);
            }
            from = kept.end;
        }
        if from < range.end {
            left.push(from..range.end);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_near_a_reader_and_nothing_unread_while_there_is_room() {
        use Pressure::{Near, Over};
        type Case<'a> = (u64, &'a [u64], Pressure, &'a [(u64, u64)]);
        let cases: [Case; 9] = [
            (100, &[], Near, &[(0, 100)]),
            (0, &[], Over, &[]),
            (100, &[100], Near, &[(0, 84)]),
            (100, &[51], Near, &[(0, 34)]),
            (100, &[51], Over, &[(0, 34), (68, 100)]),
            (100, &[0], Near, &[]),
            (100, &[0], Over, &[(16, 100)]),
            (100, &[90, 20], Over, &[(0, 4), (36, 74)]),
            // readers who are beyond the end, and near each other
            (100, &[30, 40, 500], Over, &[(0, 14), (56, 100)]),
        ];
        for (end, readers, pressure, want) in cases {
            let readers: Vec<u64> = readers.iter().map(|reader| reader * MIB).collect();
            let got: Vec<_> =
                may_go(end * MIB, &readers, pressure).iter().map(|it| (it.start / MIB, it.end / MIB)).collect();
            assert_eq!(got, want, "{end} {readers:?} {pressure:?}");
        }
    }

    #[test]
    fn what_is_kept_is_left_out() {
        type Case<'a> = (&'a [(u64, u64)], &'a [(u64, u64)], &'a [(u64, u64)]);
        let cases: [Case; 6] = [
            (&[(0, 9)], &[], &[(0, 9)]),
            (&[(0, 9)], &[(0, 9)], &[]),
            (&[(0, 9)], &[(9, 12)], &[(0, 9)]),
            (&[(2, 9)], &[(0, 3), (5, 6), (8, 12)], &[(3, 5), (6, 8)]),
            (&[(0, 4), (6, 9)], &[(3, 7)], &[(0, 3), (7, 9)]),
            (&[], &[(3, 7)], &[]),
        ];
        for (ranges, kept, want) in cases {
            let [ranges, kept] = [ranges, kept].map(|all| all.iter().map(|&(from, to)| from..to).collect::<Vec<_>>());
            let got: Vec<_> = without(ranges, &kept).iter().map(|range| (range.start, range.end)).collect();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn no_offset_is_too_large() {
        let ranges = may_go(u64::MAX, &[u64::MAX], Pressure::Over);
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0], 0..down(u64::MAX - AROUND_READER));
    }
}
