//! What the TOML parser complains of, in this crate's form: with a mend.

use std::collections::BTreeSet;

use toml::de::{DeTable, Error};

use crate::error::{Fault, Problems, quoted};
use crate::schema;

/// Parses a text as far as it goes. Problems of the text go to `problems`; the tree is returned where the rest can be
/// judged all the same: where nothing is wrong but quotes that are missing, which the parser puts in.
pub(crate) fn tree<'t>(text: &'t str, problems: &mut Problems<'_>) -> Option<DeTable<'t>> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let mut whole = true;
    let mut lines = BTreeSet::new();
    for error in &errors {
        let span = error.span().unwrap_or_default();
        let unquoted = text.get(span.clone()).filter(|value| is_unquoted(error) && !value.is_empty());
        whole &= unquoted.is_some();
        // what follows the first complaint of a line is mostly its echo
        if lines.insert(problems.line(span.start)) {
            problems.add(span.clone(), fault(error, text.get(span).unwrap_or_default(), unquoted));
        }
    }
    whole.then(|| tree.into_inner())
}

fn is_unquoted(error: &Error) -> bool {
    error.message().starts_with("string values must be quoted")
}

fn fault(error: &Error, place: &str, unquoted: Option<&str>) -> Fault {
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    if let Some(value) = unquoted {
        return Fault::new("a value without quotes", format!("write {}", quoted(value)));
    }
    if is_unquoted(error) {
        return Fault::new("a key without a value", "write one behind the =, as mode = \"auto\"");
    }
    if message == "duplicate key" {
        let what = format!("{} stands here a second time", quoted(place));
        return Fault::new(what, schema::mend_second(place));
    }
    let mend = match message.rsplit_once("expected ").map(|(_, wanted)| wanted) {
        Some(closing @ ("`\"`" | "`'`" | "`]`" | "`}`")) => format!("write {} here", closing.trim_matches('`')),
        _ if message.contains("escape") => "write \\\\ for a backslash".to_owned(),
        _ => "write one key and value a line, as mode = \"auto\"".to_owned(),
    };
    Fault::new(format!("not TOML: {message}"), mend)
}
