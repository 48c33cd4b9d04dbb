//! A document's value.

use super::scalar::resolve;
use crate::stream::Problem;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, StrInput, Tag};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Nothing in a cluster is nested deeper, and serde_json reads no deeper either.
const DEEPEST: usize = 128;
/// Values that aliases may stand for in all: a few lines of them can stand for any number.
const MOST_ALIASED: usize = 1 << 18;

/// The one document in a text; `None`: there is none.
///
/// # Errors
/// It is not YAML, not JSON's kind of data, or more than one document.
pub fn document(text: &str) -> Result<Option<Value>, Problem> {
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: HashMap::new(), aliased: 0 };
    let mut value = None;
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => return Ok(value),
            (Event::DocumentStart(_), at) => {
                if value.is_some() {
                    return Err(problem(at, "a second document begins without ---; mend: write --- before it"));
                }
                let (event, at) = reader.next()?;
                value = Some(reader.value(event, at, 0)?.value);
            }
            _ => {}
        }
    }
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
}

/// A value, and how many there are in it.
#[derive(Clone)]
struct Node {
    value: Value,
    size: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Marker), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start)),
            Some(Err(error)) => Err(syntax(&error)),
            None => Ok((Event::StreamEnd, Marker::new(0, 1, 0))),
        }
    }

    fn value(&mut self, event: Event<'t>, at: Marker, depth: usize) -> Result<Node, Problem> {
        if depth > DEEPEST {
            return Err(problem(at, "nested deeper than anything in a cluster is; mend: look for a list in itself"));
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (Node { value: scalar(&text, style, tag.as_deref(), at)?, size: 1 }, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor);
                let node = node.ok_or_else(|| problem(at, "the anchor stands in itself; mend: write it out"))?.clone();
                self.aliased += node.size;
                if self.aliased > MOST_ALIASED {
                    return Err(problem(at, "aliases stand for too much; mend: write less of it"));
                }
                return Ok(node);
            }
            _ => return Err(problem(at, "nothing stands here; mend: write a value")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Node, Problem> {
        let mut list = Vec::new();
        let mut size = 1;
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Node { value: Value::Array(list), size }),
                (event, at) => {
                    let node = self.value(event, at, depth + 1)?;
                    size += node.size;
                    list.push(node.value);
                }
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Node, Problem> {
        let mut map = Map::new();
        let mut merged = Vec::new();
        let mut size = 1;
        loop {
            let (event, at) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let key = self.value(event, at, depth + 1)?.value;
            let (event, value_at) = self.next()?;
            let node = self.value(event, value_at, depth + 1)?;
            size += node.size;
            if is_merge {
                merged.extend(maps(node.value, value_at)?);
                continue;
            }
            let Some(key) = key_text(key) else {
                return Err(problem(at, "a list or a map as a key; mend: write a text"));
            };
            if map.contains_key(&key) {
                return Err(problem(at, &format!("{key} stands here a second time; mend: leave one")));
            }
            map.insert(key, node.value);
        }
        // what is written out goes before what is merged, and of that the first
        for (key, value) in merged.into_iter().flatten() {
            map.entry(key).or_insert(value);
        }
        Ok(Node { value: Value::Object(map), size })
    }
}

/// What a merge key names: a map, or several.
fn maps(value: Value, at: Marker) -> Result<Vec<Map<String, Value>>, Problem> {
    let several = match value {
        Value::Array(several) => several,
        one => vec![one],
    };
    let map = |one| match one {
        Value::Object(map) => Ok(map),
        _ => Err(problem(at, "<< merges a map, and this is none; mend: name the anchor of one")),
    };
    several.into_iter().map(map).collect()
}

/// A key as Kubernetes has it: always a text.
fn key_text(key: Value) -> Option<String> {
    match key {
        Value::String(text) => Some(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(key.to_string()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Marker) -> Result<Value, Problem> {
    let is_text = match tag {
        None => style != ScalarStyle::Plain,
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => true,
        Some(tag) if tag.is_yaml_core_schema() && ["int", "float", "bool", "null"].contains(&&*tag.suffix) => false,
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => true,
        Some(tag) => {
            let what = format!("{}{} is no tag that Kubernetes knows; mend: leave it out", tag.handle, tag.suffix);
            return Err(problem(at, &what));
        }
    };
    if is_text {
        return Ok(Value::String(text.to_string()));
    }
    resolve(text).ok_or_else(|| problem(at, &format!("{text} is no number that Kubernetes takes; mend: quote it")))
}

fn problem(at: Marker, what: &str) -> Problem {
    Problem { line: at.line(), column: at.col() + 1, what: what.into() }
}

fn syntax(error: &ScanError) -> Problem {
    problem(*error.marker(), &format!("not YAML: {}", error.info()))
}
