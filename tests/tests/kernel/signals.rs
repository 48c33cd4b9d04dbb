//! Signals and cancellations meet calls that are held back. What comes of it is what would come of it without the
//! library.

use freeboard_tests::cases::Cases;
use freeboard_tests::lab::Lab;

#[test]
fn signals_and_cancellation() {
    let test = "signals and cancellation";
    let Some(lab) = Lab::shared(test) else { return };
    let cases = [
        "handlers_that_write",
        "handlers_that_write_much",
        "jumping_out_of_writes",
        "jumping_out_of_large_writes",
        "interrupted",
        "storm",
        "nobody_reads",
        "file_size_limit",
        "on_a_small_stack",
        "reading_on_a_small_stack",
        "cancelled_at",
        "cancelled_at_any_time",
    ];
    Cases::new(&lab, "signals").compare(test, &cases, &[]);
}
