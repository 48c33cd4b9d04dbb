//! Whatever stands in a file: a workload or an error with a place and a mend in every line, and never a panic.

use freeboard_config::Workload;
use proptest::prelude::*;

const EXAMPLES: [&str; 5] = [
    include_str!("../examples/backup-tar.toml"),
    include_str!("../examples/cdi-importer.toml"),
    include_str!("../examples/database-dump.toml"),
    include_str!("../examples/image-processing.toml"),
    include_str!("../examples/jvm-logs.toml"),
];

/// Pieces that mean something to TOML or to us.
const PIECES: [&str; 24] = [
    "\"",
    "'",
    "[",
    "]",
    "[[rule]]",
    "=",
    "\n",
    "\r",
    ",",
    "{",
    "}",
    ".",
    "#",
    "\\",
    "\0",
    "é",
    "%",
    "0",
    "-1",
    "99999999999999999999",
    "**",
    "/",
    "true",
    "\u{feff}",
];

/// Does not judge what is right, only that every complaint is one line with a place and a mend.
fn holds(text: &str) -> Result<(), TestCaseError> {
    let Err(error) = Workload::parse(text, "w.toml") else { return Ok(()) };
    let lines = text.lines().count().max(1) + 1;
    let message = error.to_string();
    prop_assert!(!message.is_empty());
    for problem in message.split('\n') {
        let mut parts = problem.splitn(4, ':');
        prop_assert_eq!(parts.next(), Some("w.toml"));
        let line: usize = parts.next().and_then(|line| line.parse().ok()).unwrap_or(usize::MAX);
        let column: usize = parts.next().and_then(|column| column.parse().ok()).unwrap_or(0);
        prop_assert!(line >= 1 && line <= lines && column >= 1, "{problem}");
        prop_assert!(parts.next().is_some_and(|rest| rest.contains("; mend: ")), "{problem}");
        prop_assert!(!problem.contains(char::is_control), "{problem:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    #[test]
    fn mutated_examples(
        example in prop::sample::select(EXAMPLES.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..8, prop::sample::select(PIECES.to_vec())), 1..6),
    ) {
        let mut text: Vec<char> = example.chars().collect();
        for (place, removed, piece) in changes {
            let start = place.index(text.len() + 1);
            let end = (start + removed).min(text.len());
            text.splice(start..end, piece.chars());
        }
        holds(&text.into_iter().collect::<String>())?;
    }

    #[test]
    fn any_values_under_known_keys(
        value in "\\PC{0,20}|\"[^\"\\\\]{0,20}\"|[0-9._%a-zA-Z\"]{0,12}",
        key in prop::sample::select(vec![
            "memory", "memory.target", "writes.mode", "writes.window", "writes.max_stall", "rule", "processes.exclude",
        ]),
    ) {
        holds(&format!("{key} = {value}\n"))?;
        holds(&format!("[[rule]]\npath = {value}\nmode = {value}\nreads = {value}\n"))?;
    }

    #[test]
    fn any_text(text in "(\\PC|[\\n\\r\\t\\x00\"=\\[\\]]){0,200}") {
        holds(&text)?;
    }
}

#[test]
fn endless_nesting() {
    for text in ["a = [".to_owned() + &"[".repeat(100_000), "a.".repeat(100_000) + "b = 1", "[".repeat(100_000)] {
        assert!(Workload::parse(&text, "w.toml").is_err());
    }
}
