//! A value as YAML, in blocks.

use super::scalar::is_plain;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// A document's text, with a newline at its end.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => entries(&mut out, map, 0, false),
        Value::Array(list) if !list.is_empty() => items(&mut out, list, 0, false),
        _ => scalar(&mut out, value, 0),
    }
    out
}

/// The value behind `key:` or `-`, where the line stands.
fn behind(out: &mut String, value: &Value, indent: usize, in_list: bool) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push(if in_list { ' ' } else { '\n' });
            entries(out, map, indent, in_list);
        }
        Value::Array(list) if !list.is_empty() => {
            out.push(if in_list { ' ' } else { '\n' });
            items(out, list, indent, in_list);
        }
        _ => {
            out.push(' ');
            scalar(out, value, indent);
        }
    }
}

/// `has_begun`: the first stands on the line that is there.
fn entries(out: &mut String, map: &Map<String, Value>, indent: usize, has_begun: bool) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 || !has_begun {
            pad(out, indent);
        }
        // a reader looks no further than 1024 characters for the colon
        if key.chars().count() > 1000 {
            let _ = write!(out, "? {}\n{:indent$}", quoted(key), "");
        } else if is_plain(key) {
            out.push_str(key);
        } else {
            out.push_str(&quoted(key));
        }
        out.push(':');
        behind(out, value, indent + 2, false);
    }
}

fn items(out: &mut String, list: &[Value], indent: usize, has_begun: bool) {
    for (index, value) in list.iter().enumerate() {
        if index > 0 || !has_begun {
            pad(out, indent);
        }
        out.push('-');
        behind(out, value, indent + 2, true);
    }
}

fn pad(out: &mut String, indent: usize) {
    let _ = write!(out, "{:indent$}", "");
}

/// With the newline behind it. `indent`: of the lines of a block.
fn scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(text) if is_plain(text) => out.push_str(text),
        Value::String(text) if is_block(text) => return block(out, text, indent),
        Value::String(text) => out.push_str(&quoted(text)),
        other => out.push_str(&other.to_string()),
    }
    out.push('\n');
}

/// Whether a text of several lines can stand as it is.
fn is_block(text: &str) -> bool {
    let is_shown =
        |c: char| matches!(c, ' '..='~' | '\n' | '\u{a0}'..='\u{d7ff}') && !matches!(c, '\u{2028}' | '\u{2029}');
    let is_bare = |line: &str| !line.ends_with(' ');
    text.trim_end_matches('\n').contains('\n')
        && !text.starts_with([' ', '\n'])
        && text.chars().all(is_shown)
        && text.split('\n').all(is_bare)
}

fn block(out: &mut String, text: &str, indent: usize) {
    let body = text.trim_end_matches('\n');
    let ends = text.len() - body.len();
    out.push_str(match ends {
        0 => "|-\n",
        1 => "|\n",
        _ => "|+\n",
    });
    // at the top of a document a line of dashes or dots would end it
    let indent = indent.max(2);
    for line in body.split('\n') {
        if !line.is_empty() {
            pad(out, indent);
        }
        out.push_str(line);
        out.push('\n');
    }
    out.push_str(&"\n".repeat(ends.saturating_sub(1)));
}

/// In double quotes: JSON's, and what YAML cannot show escaped the same way. In single ones where that is easier to read.
fn quoted(text: &str) -> String {
    if text.contains('"') && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let json = Value::from(text).to_string();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}
