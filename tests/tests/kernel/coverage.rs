//! Which bytes of which programs are seen: all, to the byte, by the kernel's own count. `cargo xtask coverage` shows
//! the same at full size.

use freeboard_tests::MIB;
use freeboard_tests::coverage::{Bench, Kind};
use freeboard_tests::lab::{self, Lab};
use freeboard_tests::written::cannot_count;

const DATA: u64 = 20 * MIB;

#[test]
fn all_bytes_are_seen() {
    let test = "coverage";
    if let Some(reason) = cannot_count() {
        return lab::skip(test, reason);
    }
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::new(&lab, DATA);
    let mut unseen = Vec::new();
    for row in bench.rows().iter().filter(|row| matches!(row.kind(), Kind::Calls | Kind::Queued)) {
        let outcome = bench.outcome(row);
        println!("{:26} {} bytes written, {} seen", row.name, outcome.written, outcome.seen());
        outcome.under.assert_ok(row.name);
        assert!(outcome.written >= DATA / 2, "{}: {} bytes: this shows nothing", row.name, outcome.written);
        if outcome.seen() != outcome.written {
            unseen.push(row.name);
        }
    }
    assert!(unseen.is_empty(), "other bytes are seen than are written by {unseen:?}");
}
