//! Problems and their places: `file:line:column: what is wrong; mend: what to write instead`.

use std::fmt;
use std::ops::Range;

/// Why a workload file was not taken. [`Display`](fmt::Display) gives one problem per line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    lines: Vec<String>,
}

impl Error {
    /// A file that could not even be read: there is no line to name.
    pub(crate) fn of_file(name: &str, fault: &Fault) -> Error {
        Error { lines: vec![format!("{name}: {fault}")] }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for Error {}

/// What is wrong and what to write instead, without the place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    what: String,
    mend: String,
}

impl Fault {
    pub(crate) fn new(what: impl Into<String>, mend: impl Into<String>) -> Fault {
        Fault { what: what.into(), mend: mend.into() }
    }

    /// Names the key that it is about.
    pub(crate) fn of_key(self, key: &str) -> Fault {
        Fault { what: format!("{key} {}", self.what), mend: self.mend }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; mend: {}", self.what, self.mend)
    }
}

/// The problems of one text, collected so that a person can mend all of them at once.
pub(crate) struct Problems<'t> {
    text: &'t [u8],
    /// Offset behind each newline.
    lines: Vec<usize>,
    found: Vec<(usize, Fault)>,
}

impl<'t> Problems<'t> {
    /// Takes bytes, because a text that is not UTF-8 has lines and columns too.
    pub(crate) fn new(text: &'t [u8]) -> Problems<'t> {
        let lines =
            text.iter().enumerate().filter(|&(_, &byte)| byte == b'\n').map(|(newline, _)| newline + 1).collect();
        Problems { text, lines, found: Vec::new() }
    }

    pub(crate) fn add(&mut self, span: Range<usize>, fault: Fault) {
        self.found.push((span.start, fault));
    }

    pub(crate) fn line(&self, offset: usize) -> usize {
        self.place(offset).0
    }

    pub(crate) fn into_error(mut self, name: &str) -> Option<Error> {
        if self.found.is_empty() {
            return None;
        }
        self.found.sort_by_key(|&(offset, _)| offset);
        let line = |(offset, fault): &(usize, Fault)| {
            let (line, column) = self.place(*offset);
            format!("{name}:{line}:{column}: {fault}")
        };
        Some(Error { lines: self.found.iter().map(line).collect() })
    }

    /// Line and column, both from 1; a column is a character, as editors count.
    fn place(&self, offset: usize) -> (usize, usize) {
        let offset = offset.min(self.text.len());
        let newlines = self.lines.partition_point(|&start| start <= offset);
        let line_start = newlines.checked_sub(1).map_or(0, |last| self.lines[last]);
        let continues = |byte: u8| byte & 0xC0 == 0x80;
        let column = self.text[line_start..offset].iter().filter(|&&byte| !continues(byte)).count() + 1;
        (newlines + 1, column)
    }
}

/// A person's text as it appears in a message: in quotes, on one line, and not longer than a line.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
