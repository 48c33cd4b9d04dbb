//! Programs that make and end processes in every way, and some that live where something is missing.

use freeboard_tests::cases::Cases;
use freeboard_tests::lab::Lab;

#[test]
fn processes() {
    let test = "processes";
    let Some(lab) = Lab::shared(test) else { return };
    let cases = [
        "forked",
        "vforked",
        "spawned",
        "without_environment",
        "cloned_alone",
        "cloned_with_files",
        "cloned_with_memory",
        "cloned_with_all",
        "shares_numbers",
        "stream_reopened",
        "made_by_libc",
        "last_thread_exits",
        "daemon_that_closes",
        "eight_descriptors",
        "a_million_descriptors",
        "little_address_space",
        "other_root",
        "without_proc",
        "own_namespaces",
        "gives_up_rights",
        "bad_submissions",
    ];
    // without its environment a program is not ours, and a child in its parent's memory is let through
    let unpaced = ["without_environment", "cloned_with_memory", "cloned_with_all"];
    Cases::new(&lab, "processes").compare(test, &cases, &unpaced);
}
