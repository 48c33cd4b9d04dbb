//! From bytes to a TOML tree to a [`Workload`]. Every function takes what is right and notes what is not, so that one
//! reading finds all problems.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use freeboard_budget::layout::{Kind, budget_layout};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Fault, Problems, quoted};
use crate::{Memory, Processes, Rule, Sweep, Workload, Writes, pattern, schema, size, syntax, value};

/// Twice what the longest patterns in all rows of the region take; more is a slip of the path.
const MOST_BYTES: u64 = 64 << 10;

type Value<'t> = Spanned<DeValue<'t>>;

/// The text of a file.
///
/// # Errors
/// It cannot be read, is too large, or is not UTF-8.
pub(crate) fn file(path: &Path) -> Result<String, Error> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        let mend = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "let this user read it",
            io::ErrorKind::IsADirectory => "name a file in it",
            _ => "name a readable file",
        };
        return Err(Error::of_file(&name, &Fault::new(format!("cannot be read: {error}"), mend)));
    }
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Error::of_file(
            &name,
            &Fault::new(format!("is larger than {}", size::show(MOST_BYTES)), "check the path"),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let broken_at = error.utf8_error().valid_up_to();
        let bytes = error.into_bytes();
        let mut problems = Problems::new(&bytes);
        let fault = Fault::new("not UTF-8", "save the file as UTF-8");
        problems.add(broken_at..broken_at, fault.clone());
        problems.into_error(&name).unwrap_or_else(|| Error::of_file(&name, &fault))
    })
}

/// The workload that a text describes.
pub(crate) fn text(text: &str, name: &str) -> Result<Workload, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut problems = Problems::new(text.as_bytes());
    let mut workload = Workload::default();
    if let Some(tree) = syntax::tree(text, &mut problems) {
        sections(&tree, &mut workload, &mut problems);
    }
    match problems.into_error(name) {
        Some(error) => Err(error),
        None => Ok(workload),
    }
}

fn sections(root: &DeTable<'_>, workload: &mut Workload, problems: &mut Problems<'_>) {
    for (key, value) in root {
        match key.get_ref().as_ref() {
            "memory" => memory(value, &mut workload.memory, problems),
            "writes" => writes(value, &mut workload.writes, problems),
            "rule" => workload.rules = rules(value, problems),
            "processes" => processes(value, &mut workload.processes, problems),
            "sweep" => sweep(value, &mut workload.sweep, problems),
            other => {
                let is_section = match value.get_ref() {
                    DeValue::Array(items) => items.iter().any(|item| item.get_ref().is_table()),
                    value => value.is_table(),
                };
                problems.add(key.span(), schema::unknown_section(other, is_section));
            }
        }
    }
}

fn memory(value: &Value<'_>, memory: &mut Memory, problems: &mut Problems<'_>) {
    let Some(table) = section("memory", value, problems) else { return };
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "target" => set(&mut memory.target, "memory", "target", value, value::target, problems),
            other => problems.add(key.span(), schema::unknown_key("memory", other)),
        }
    }
}

fn writes(value: &Value<'_>, writes: &mut Writes, problems: &mut Problems<'_>) {
    let Some(table) = section("writes", value, problems) else { return };
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "mode" => set(&mut writes.mode, "writes", "mode", value, value::mode, problems),
            "window" => set(&mut writes.window_bytes, "writes", "window", value, value::window, problems),
            "max_stall" => set(&mut writes.max_stall, "writes", "max_stall", value, value::max_stall, problems),
            other => problems.add(key.span(), schema::unknown_key("writes", other)),
        }
    }
}

fn rules(value: &Value<'_>, problems: &mut Problems<'_>) -> Vec<Rule> {
    let Some(items) = value.get_ref().as_array() else {
        problems.add(value.span(), wrong_section("rule", value));
        return Vec::new();
    };
    let most = rows(Kind::Rules);
    if let Some(extra) = items.get(most) {
        let what = format!("{} rules, and at most {most} fit", items.len());
        problems.add(extra.span(), Fault::new(what, "join rules with * or **"));
    }
    let rules: Vec<(Rule, usize)> = items.iter().take(most).filter_map(|item| rule(item, problems)).collect();
    for (index, (Rule { path, .. }, offset)) in rules.iter().enumerate() {
        let first = rules[..index].iter().find(|(first, _)| pattern::covers(&first.path, path));
        if let Some((first, first_offset)) = first {
            let line = problems.line(*first_offset);
            let what = format!("path {} can never match: the rule of line {line} takes all of it", quoted(path));
            let mend = if first.path == *path { "make the two rules one" } else { "move this rule before that one" };
            problems.add(*offset..*offset, Fault::new(what, mend));
        }
    }
    rules.into_iter().map(|(rule, _)| rule).collect()
}

/// One rule and the offset of its path; `None` where the path is missing or wrong.
fn rule(item: &Value<'_>, problems: &mut Problems<'_>) -> Option<(Rule, usize)> {
    let table = section("rule", item, problems)?;
    let (mut path, mut mode, mut reads_drop_behind) = (None, None, false);
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "path" => set(&mut path, "rule", "path", value, |text| checked("path", text).map(Some), problems),
            "mode" => set(&mut mode, "rule", "mode", value, |text| value::mode(text).map(Some), problems),
            "reads" => set(&mut reads_drop_behind, "rule", "reads", value, value::reads, problems),
            other => problems.add(key.span(), schema::unknown_key("rule", other)),
        }
    }
    if !table.contains_key("mode") && !table.contains_key("reads") {
        let what = "a rule that says nothing but its path";
        problems.add(item.span(), Fault::new(what, "add mode or reads; mode = \"auto\" exempts from later rules"));
    }
    let Some(place) = table.get("path") else {
        let mend = format!("add {}", schema::usage("rule", "path"));
        problems.add(item.span(), Fault::new("a rule without a path", mend));
        return None;
    };
    Some((Rule { path: path?, mode, reads_drop_behind }, place.span().start))
}

fn processes(value: &Value<'_>, processes: &mut Processes, problems: &mut Problems<'_>) {
    let Some(table) = section("processes", value, problems) else { return };
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "exclude" => {
                processes.exclude = patterns("processes", "exclude", "programs to exclude", value, checked, problems)
            }
            other => problems.add(key.span(), schema::unknown_key("processes", other)),
        }
    }
}

fn sweep(value: &Value<'_>, sweep: &mut Sweep, problems: &mut Problems<'_>) {
    let Some(table) = section("sweep", value, problems) else { return };
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "paths" => {
                let checked = |key: &str, text: &str| {
                    let path = checked(key, text)?;
                    pattern::check_directory(key, text).map(|()| path)
                };
                sweep.paths = patterns("sweep", "paths", "paths to sweep", value, checked, problems);
            }
            other => problems.add(key.span(), schema::unknown_key("sweep", other)),
        }
    }
}

/// A list of patterns, none of which leaves nothing for a later one. `what` is what many of them are called.
fn patterns(
    section: &str,
    name: &str,
    what: &str,
    value: &Value<'_>,
    checked: impl Fn(&str, &str) -> Result<String, Fault>,
    problems: &mut Problems<'_>,
) -> Vec<String> {
    let Some(items) = value.get_ref().as_array() else {
        problems.add(value.span(), wrong_type(section, name, "a list of paths", value));
        return Vec::new();
    };
    let most = rows(Kind::Excludes);
    if let Some(extra) = items.get(most) {
        let what = format!("{} {what}, and at most {most} fit", items.len());
        problems.add(extra.span(), Fault::new(what, "join them with * or **"));
    }
    let mut patterns: Vec<String> = Vec::new();
    for item in items.iter().take(most) {
        let mut one = None;
        set(&mut one, section, name, item, |text| checked(name, text).map(Some), problems);
        let Some(one) = one else { continue };
        if let Some(first) = patterns.iter().find(|first| pattern::covers(first, &one)) {
            let what = format!("{name} {} adds nothing to {} before it", quoted(&one), quoted(first));
            problems.add(item.span(), Fault::new(what, "remove it"));
        }
        patterns.push(one);
    }
    patterns
}

/// A pattern that passed its check.
fn checked(key: &str, text: &str) -> Result<String, Fault> {
    pattern::check(key, text).map(|()| text.to_owned())
}

/// Rows of one bank of the region's table.
fn rows(kind: Kind) -> usize {
    budget_layout().table(kind).map_or(0, |table| table.count as usize / 2)
}

/// The keys and values of a section; a problem where the value is not one.
fn section<'v, 't>(name: &str, value: &'v Value<'t>, problems: &mut Problems<'_>) -> Option<&'v DeTable<'t>> {
    let table = value.get_ref().as_table();
    if table.is_none() {
        problems.add(value.span(), wrong_section(name, value));
    }
    table
}

/// Stores what `parse` makes of a string value.
fn set<T>(
    slot: &mut T,
    section: &str,
    name: &str,
    value: &Value<'_>,
    parse: impl Fn(&str) -> Result<T, Fault>,
    problems: &mut Problems<'_>,
) {
    let parsed = match value.get_ref().as_str() {
        Some(text) => parse(text),
        None => Err(wrong_type(section, name, "a string", value)),
    };
    match parsed {
        Ok(parsed) => *slot = parsed,
        Err(fault) => problems.add(value.span(), fault),
    }
}

fn wrong_section(section: &str, value: &Value<'_>) -> Fault {
    let heading = schema::heading(section);
    Fault::new(format!("{section} is {}, not a section {heading}", type_of(value)), format!("write {heading}"))
}

fn wrong_type(section: &str, name: &str, wanted: &str, value: &Value<'_>) -> Fault {
    let what = format!("{name} takes {wanted}, not {}", type_of(value));
    Fault::new(what, format!("write {}", schema::usage(section, name)))
}

fn type_of(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
