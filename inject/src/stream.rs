//! Text in, text out. Documents that an edit does not touch come out byte by byte, with their comments; of one that it
//! touches the comments above it stay.

use crate::object;
use crate::yaml;
use serde_json::Value;
use std::fmt;

/// How objects are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Documents behind `---`.
    Yaml,
    /// One object after another.
    Json,
}

/// What is wrong with a text, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// In one line, with the mend.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

/// Has an edit look at each object of a stream, those in Lists too, and gives the stream as it is then, in its own
/// format if no other is named.
///
/// # Errors
/// The text is neither YAML nor JSON, or what the edit says, with the line of the document that it says it of.
pub fn edit(
    text: &str,
    format: Option<Format>,
    edit: &mut dyn FnMut(&mut Value) -> Result<(), String>,
) -> Result<String, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (own, documents) = if text.trim_start().starts_with('{') {
        (Format::Json, json_documents(text)?)
    } else {
        (Format::Yaml, yaml_documents(text)?)
    };
    let format = format.unwrap_or(own);
    let mut out = String::with_capacity(text.len() + text.len() / 2);
    for document in documents {
        let Some(value) = &document.value else {
            if format == own {
                out.push_str(document.text);
            }
            continue;
        };
        let mut edited = value.clone();
        let mut done = Ok(());
        object::each(&mut edited, &mut |object| {
            if done.is_ok() {
                done = edit(object);
            }
        });
        done.map_err(|what| Problem { line: document.line, column: 1, what })?;
        if edited == *value && format == own {
            out.push_str(document.text);
            continue;
        }
        // what stood before this one may not have ended its line
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        match (format, own) {
            (Format::Yaml, Format::Yaml) => {
                let head = head(document.text);
                // where content stands behind the marker, on its line
                out.push_str(if head.is_empty() && behind_marker(document.text).is_some() { "---\n" } else { head });
            }
            (Format::Yaml, Format::Json) if !out.is_empty() => out.push_str("---\n"),
            _ => {}
        }
        match format {
            Format::Yaml => out.push_str(&yaml::write(&edited)),
            Format::Json => out.push_str(&format!("{edited:#}{}", document.tail())),
        }
    }
    Ok(out)
}

/// A piece of the stream; all pieces together are the stream.
struct Document<'t> {
    text: &'t str,
    /// Where its content begins, from 1.
    line: usize,
    /// `None`: nothing but comments.
    value: Option<Value>,
}

impl Document<'_> {
    /// What ends it in JSON: the space behind it, where there is any.
    fn tail(&self) -> &str {
        let tail = &self.text[self.text.trim_end().len()..];
        if tail.is_empty() || !self.text.starts_with('{') { "\n" } else { tail }
    }
}

/// Cut before each line `---`, as kubectl does.
fn yaml_documents(text: &str) -> Result<Vec<Document<'_>>, Problem> {
    let mut documents = Vec::new();
    let mut first_line = 1;
    let mut rest = text;
    while !rest.is_empty() {
        let mut length = 0;
        for line in rest.split_inclusive('\n') {
            if length > 0 && behind_marker(line).is_some() {
                break;
            }
            length += line.len();
        }
        let (text, behind) = rest.split_at(length);
        let value = if text.lines().all(|line| is_empty(line) || line.starts_with('%')) {
            None
        } else {
            let place = |problem: Problem| Problem { line: problem.line + first_line - 1, ..problem };
            yaml::document(text).map_err(place)?
        };
        let line = first_line + head(text).lines().count();
        documents.push(Document { text, line, value });
        first_line += text.matches('\n').count();
        rest = behind;
    }
    Ok(documents)
}

/// The lines of a document above its content: `---`, comments, empty ones.
fn head(text: &str) -> &str {
    let lines = text.split_inclusive('\n').take_while(|line| is_empty(line));
    &text[..lines.map(str::len).sum()]
}

/// What stands behind the `---` that a document begins with.
fn behind_marker(line: &str) -> Option<&str> {
    line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether a line has no content.
fn is_empty(line: &str) -> bool {
    let line = behind_marker(line).unwrap_or(line).trim();
    line.is_empty() || line.starts_with('#')
}

fn json_documents(text: &str) -> Result<Vec<Document<'_>>, Problem> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut documents = Vec::new();
    let mut start = text.len() - text.trim_start().len();
    let mut line = 1 + text[..start].matches('\n').count();
    documents.push(Document { text: &text[..start], line, value: None });
    while let Some(value) = stream.next() {
        let value = value.map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let place = format!(" at line {line} column {column}");
            Problem { line, column, what: format!("not JSON: {}", error.to_string().replace(&place, "")) }
        })?;
        let end = stream.byte_offset();
        let end = text.len() - text[end..].trim_start().len();
        let text = &text[start..end];
        documents.push(Document { text, line, value: Some(value) });
        line += text.matches('\n').count();
        start = end;
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Marks every Pod.
    fn mark(object: &mut Value) -> Result<(), String> {
        match (object["kind"] == "Pod", object["bad"].is_null()) {
            (_, false) => Err("bad".into()),
            (true, _) => {
                object["marked"] = json!(true);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn marked(text: &str, format: Option<Format>) -> Result<String, Problem> {
        edit(text, format, &mut mark)
    }

    #[test]
    fn what_is_not_touched_stays_byte_by_byte() {
        let text = "# head\n\n---\n# why\nkind:   Other   # odd\nmode: 0644\n--- # more\nkind: Pod # lost\nmode: 0644\n---\n{kind: Other}\n...\n---\nlast: 'no newline'";
        let want = "# head\n\n---\n# why\nkind:   Other   # odd\nmode: 0644\n--- # more\nkind: Pod\nmode: 420\nmarked: true\n---\n{kind: Other}\n...\n---\nlast: 'no newline'";
        assert_eq!(marked(text, None).as_deref(), Ok(want));
        assert_eq!(marked(want, None).as_deref(), Ok(want));
        for same in ["", "\n", "# only\n", "---\n", "%YAML 1.2\n---\nkind: A\n", "a: |\n  --- no\n  ---\n", "\"---\"\n"]
        {
            assert_eq!(marked(same, None).as_deref(), Ok(same));
        }
    }

    #[test]
    fn documents_stay_apart() {
        let flow = "a: 1\n--- {kind: Pod}\n--- {b: 1}";
        assert_eq!(marked(flow, None).as_deref(), Ok("a: 1\n---\nkind: Pod\nmarked: true\n--- {b: 1}"));
        let unended = "kind: Pod\n---\nkind: Pod";
        let want = "kind: Pod\nmarked: true\n---\nkind: Pod\nmarked: true\n";
        assert_eq!(marked(unended, None).as_deref(), Ok(want));
    }

    #[test]
    fn lists_are_gone_through() {
        let text = "kind: List\nitems:\n  - kind: Pod\n  - kind: PodList\n    items:\n      - kind: Pod\n";
        let out = marked(text, None).unwrap();
        assert_eq!(out.matches("marked: true").count(), 2, "{out}");
    }

    #[test]
    fn either_format_becomes_the_other() {
        let json = "{\"kind\":\"Pod\",\"a\":1.50}\n  {\"kind\":\"B\"}\n";
        assert_eq!(marked(json, Some(Format::Yaml)).as_deref(), Ok("kind: Pod\na: 1.5\nmarked: true\n---\nkind: B\n"));
        let want = "{\n  \"kind\": \"Pod\",\n  \"a\": 1.5,\n  \"marked\": true\n}\n  {\"kind\":\"B\"}\n";
        assert_eq!(marked(json, None).as_deref(), Ok(want));
        assert_eq!(marked(want, None).as_deref(), Ok(want));
        let yaml = "# c\nkind: Pod\n---\nkind: B\n";
        let want = "{\n  \"kind\": \"Pod\",\n  \"marked\": true\n}\n{\n  \"kind\": \"B\"\n}\n";
        assert_eq!(marked(yaml, Some(Format::Json)).as_deref(), Ok(want));
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line_with_its_place() {
        let cases = [
            ("kind: Pod\n---\na: b: c\n", "3:5: not YAML: "),
            ("a: [1\n---\n", "not YAML: "),
            ("a: 1\na: 2\n", "2:1: a stands here a second time; mend: leave one"),
            ("# c\n---\n\na: .inf\n", "4:4: .inf is no number that Kubernetes takes; mend: quote it"),
            ("a: !foo 1\n", "1:4: !foo is no tag that Kubernetes knows; mend: leave it out"),
            ("? [a]\n: b\n", "a list or a map as a key; mend: write a text"),
            ("<<: 1\n", "<< merges a map, and this is none; mend: name the anchor of one"),
            ("a: *b\n", "not YAML: "),
            ("a: &b [*b]\n", ""),
            ("{\"kind\": \"Pod\"}\n{\"kind\" 1}\n", "2:9: not JSON: expected `:`"),
            ("# c\n---\n# d\nbad: 1\n", "4:1: bad"),
            ("{}\n\n{\"bad\": 1}\n", "3:1: bad"),
            ("a: 1\n...\nb: 1\n", "mend: write --- before it"),
            ("a: \"b", "not YAML: "),
        ];
        for (text, want) in cases {
            let said = marked(text, None).unwrap_err().to_string();
            assert!(said.contains(want) && !said.contains('\n'), "{text:?}: {said}");
        }
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(marked(&deep, None).is_err());
        let bomb = (1..40).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}]\n", i - 1)).collect::<String>();
        assert!(marked(&format!("a0: &a0 [1]\n{bomb}"), None).unwrap_err().what.contains("aliases stand for too much"));
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let texts = [
            "a: &x {b: 1, c: [1, {d: ~}]}\ne: {<<: *x, b: 2}\nf: *x\n",
            "on: yes\n8080: '8080'\n'0644': \"0644\"\n1.5: 1e3\n",
            "a: |\n  one\n   two\n\n  three\nb: |-\n  x\n  y\nc: |+\n  x\n  y\n\n\nd: >\n  folded\n  line\n",
            "- - - 1\n    - 2\n  - []\n- {}\n- ''\n- '  x'\n- \"\\u0007\\ttab\\u2028\"\n- 'é — 日本'\n- |\n  a \n  b\n",
            "- '2026-01-01'\n- 2026-01-01\n- '12e5'\n- '1_000'\n- '0b1'\n- '~'\n- '#x'\n- 'a: b'\n- '- x'\n- '='\n- '<<'\n- '.5'\n- 'NO'\n- '-1'\n- '---'\n- '...'\n- \"'\"\n- 18446744073709551615\n",
            "just text",
            "|\n  a\n  b\n",
        ];
        for text in texts {
            let value = yaml::document(text).unwrap().unwrap();
            let written = yaml::write(&value);
            assert_eq!(yaml::document(&written).unwrap().unwrap(), value, "{written}");
            assert_eq!(yaml::write(&yaml::document(&written).unwrap().unwrap()), written);
        }
        let merged = yaml::document(texts[0]).unwrap().unwrap();
        assert_eq!(merged["e"], json!({"b": 2, "c": [1, {"d": null}]}));
        let keys = yaml::document(texts[1]).unwrap().unwrap();
        assert_eq!(keys, json!({"true": true, "8080": "8080", "0644": "0644", "1.5": 1000.0}));
        let long = json!({"k".repeat(1100): "v".repeat(5000), "b": {"x".repeat(1100): [1]}});
        assert_eq!(yaml::document(&yaml::write(&long)).unwrap().unwrap(), long);
    }
}
