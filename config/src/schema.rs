//! Which keys there are, and which one was meant.

use crate::error::{Fault, quoted};

/// One key of a section: how it stands in a file.
struct Key {
    section: &'static str,
    name: &'static str,
    usage: &'static str,
}

const SECTIONS: [&str; 5] = ["memory", "writes", "rule", "processes", "sweep"];

const KEYS: [Key; 9] = [
    Key { section: "memory", name: "target", usage: "target = \"80%\"" },
    Key { section: "writes", name: "mode", usage: MODE },
    Key { section: "writes", name: "window", usage: "window = \"auto\" or a size in quotes, as \"4MiB\"" },
    Key { section: "writes", name: "max_stall", usage: "max_stall = \"10s\"" },
    Key { section: "rule", name: "path", usage: "path = \"/data/**\"" },
    Key { section: "rule", name: "mode", usage: MODE },
    Key { section: "rule", name: "reads", usage: "reads = \"drop-behind\"" },
    Key { section: "processes", name: "exclude", usage: "exclude = [\"/usr/bin/qemu-nbd\"]" },
    Key { section: "sweep", name: "paths", usage: "paths = [\"/logs/**\"]" },
];

const MODE: &str = "mode = \"auto\", \"always\", \"observe\" or \"off\"";

/// A section's line: rules come in any number, the others once.
pub(crate) fn heading(section: &str) -> String {
    if section == "rule" { "[[rule]]".to_owned() } else { format!("[{section}]") }
}

/// What to do about a key or section that stands in a file twice.
pub(crate) fn mend_second(name: &str) -> String {
    match name {
        "rule" => format!("start every rule with {}", heading(name)),
        section if SECTIONS.contains(&section) => format!("put all of it below one line {}", heading(section)),
        _ => "keep one of the two".to_owned(),
    }
}

/// How a key stands in a file.
pub(crate) fn usage(section: &str, name: &str) -> &'static str {
    KEYS.iter().find(|key| key.section == section && key.name == name).map_or("", |key| key.usage)
}

/// A key at the top of the file that is no section.
pub(crate) fn unknown_section(name: &str, is_section: bool) -> Fault {
    if is_section {
        let what = format!("unknown section {}", quoted(name));
        return match closest(name, &SECTIONS) {
            Some(meant) => did_you_mean(&what, &heading(meant)),
            None => Fault::new(what, format!("remove it; there are {}", list(&SECTIONS.map(heading), "and"))),
        };
    }
    let what = format!("key {} stands outside of any section", quoted(name));
    match KEYS.iter().find(|key| key.name == name) {
        Some(key) => Fault::new(what, format!("move it below a line {}", heading(key.section))),
        None => Fault::new(what, format!("remove it, or move it below one of {}", list(&SECTIONS.map(heading), "and"))),
    }
}

/// A key that its section does not have.
pub(crate) fn unknown_key(section: &str, name: &str) -> Fault {
    let what = format!("unknown key {} in {}", quoted(name), heading(section));
    let known: Vec<&str> = KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect();
    if let Some(meant) = closest(name, &known) {
        return did_you_mean(&what, meant);
    }
    match KEYS.iter().find(|key| key.name == name) {
        Some(elsewhere) => Fault::new(what, format!("move it below a line {}", heading(elsewhere.section))),
        None => Fault::new(what, format!("remove it; {} has {}", heading(section), list(&known, "and"))),
    }
}

/// A value that is none of the words that its key takes.
pub(crate) fn unknown_value(key: &str, text: &str, words: &[&str]) -> Fault {
    let what = format!("unknown {key} {}", quoted(text));
    match closest(text, words) {
        Some(meant) => did_you_mean(&what, &format!("{meant:?}")),
        None => Fault::new(
            what,
            format!("write {}", list(&words.iter().map(|word| quoted(word)).collect::<Vec<_>>(), "or")),
        ),
    }
}

fn did_you_mean(what: &str, meant: &str) -> Fault {
    Fault::new(format!("{what} (did you mean {meant}?)"), format!("write {meant}"))
}

/// The word that differs by a slip of the hand: one edit, or one in four letters. More would take an opposite for
/// a slip ("include" for "exclude").
fn closest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    let slips = |word: &str| strsim::damerau_levenshtein(&text.to_lowercase(), word);
    let meant = *words.iter().min_by_key(|word| slips(word))?;
    (slips(meant) <= (meant.len() / 4).max(1)).then_some(meant)
}

fn list(words: &[impl AsRef<str>], conjunction: &str) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {conjunction} {last}", rest.join(", ")),
        _ => words.concat(),
    }
}
