//! Memory over time, and the table, as text for 80 columns that can be read without colour too.

use anstyle::{AnsiColor, Reset, Style as Ansi};
use anyhow::Context;
use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Axis, Cell, Chart, Dataset, GraphType, Row, Table, Widget};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

const WIDTH: u16 = 78;
/// One row of the graph for every 20 MB of 200, the axis and its labels.
const HEIGHT: u16 = 11 + 2;

/// The unwritten.
const DARK: char = '█';
/// The rest of the usage.
const LIGHT: char = '░';

/// Memory at one moment, in bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// Seconds since the start.
    pub at_s: f64,
    /// Usage; where it is not known, what is drawn beside the unwritten.
    pub usage_bytes: u64,
    /// Dirty and under writeback.
    pub unwritten_bytes: u64,
}

/// What the graph is drawn on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Frame {
    /// Top of the graph.
    pub top_bytes: u64,
    /// The top is a limit of the kernel's.
    pub is_limit: bool,
    /// The line that Freeboard stays under.
    pub line: Option<(u64, &'static str)>,
    /// Right end of the graph.
    pub span_s: f64,
}

/// Draws memory over time below a title.
pub fn graph(title: &str, color: Color, frame: Frame, samples: &[Sample]) -> Buffer {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let end = samples.last().map_or(0.0, |sample| sample.at_s);
    let span = frame.span_s.max((end / 4.0).ceil() * 4.0);
    let usage: Vec<_> = samples.iter().map(|sample| (sample.at_s, mb(sample.usage_bytes))).collect();
    let unwritten: Vec<_> = samples.iter().map(|sample| (sample.at_s, mb(sample.unwritten_bytes))).collect();
    let across = |bytes: u64| [(0.0, mb(bytes)), (span, mb(bytes))];
    let limit = across(frame.top_bytes);
    let line = frame.line.map(|(bytes, _)| across(bytes));

    let area = |data, mark, color: Color| {
        Dataset::default().marker(Marker::Custom(mark)).graph_type(GraphType::Area).style(color).data(data)
    };
    let level = |data, mark, color: Color| {
        Dataset::default().marker(Marker::Custom(mark)).graph_type(GraphType::Line).style(color).data(data)
    };
    let mut datasets = vec![area(&usage, LIGHT, Color::Reset), area(&unwritten, DARK, color)];
    if let Some(line) = &line {
        datasets.push(level(line, '╌', Color::Yellow));
    }
    if frame.is_limit {
        datasets.push(level(&limit, '━', Color::Red));
    }
    let labels = (0..=5).map(|fifth| {
        let bytes = frame.top_bytes / 5 * fifth;
        let number = format!("{:.0} MB", mb(bytes));
        match frame.line {
            _ if fifth == 5 && frame.is_limit => Span::styled(format!("limit {number}"), Color::Red),
            Some((at, name)) if at == bytes => Span::styled(format!("{name} {number}"), Color::Yellow),
            _ => Span::raw(number),
        }
    });
    let times = (0..=4).map(|quarter| Span::raw(format!("{:.0} s", span / 4.0 * f64::from(quarter))));
    let chart = Chart::new(datasets)
        .y_axis(Axis::default().bounds([0.0, mb(frame.top_bytes)]).labels(labels).labels_alignment(Alignment::Right))
        .x_axis(Axis::default().bounds([0.0, span]).labels(times))
        .legend_position(None);
    let mut buffer = Buffer::empty(Rect::new(0, 0, WIDTH, HEIGHT + 1));
    buffer.set_line(0, 0, &Line::styled(title, Style::new().bold()), WIDTH);
    chart.render(Rect::new(0, 1, WIDTH, HEIGHT), &mut buffer);
    buffer
}

/// What the shades of a graph mean.
pub fn legend(rest: &str) -> String {
    format!("{DARK}{DARK} not yet on the disk   {LIGHT}{LIGHT} {rest}")
}

/// A table of two or three columns; the first row is its head.
pub fn table(rows: &[Vec<String>]) -> Buffer {
    let columns = rows.first().map_or(0, Vec::len);
    let mut widths = vec![Constraint::Length(28)];
    widths.extend((1..columns).map(|_| Constraint::Fill(1)));
    let row = |cells: &Vec<String>| Row::new(cells.iter().map(|cell| Cell::from(Text::raw(cell.clone()))));
    let mut buffer = Buffer::empty(Rect::new(0, 0, WIDTH, rows.len() as u16));
    let mut all = rows.iter();
    let head = all.next().map(row).unwrap_or_default().style(Style::new().bold());
    Table::new(all.map(row), widths).header(head).render(buffer.area, &mut buffer);
    buffer
}

/// Where pictures are shown: a terminal, on which they can be drawn again and again, or anything else.
pub struct Screen {
    is_live: bool,
    drawn: u16,
}

impl Screen {
    /// Standard output.
    pub fn new() -> Screen {
        let out = std::io::stdout();
        let has_escapes = anstream::AutoStream::choice(&out) != anstream::ColorChoice::Never;
        let fits =
            rustix::termios::tcgetwinsize(&out).is_ok_and(|size| size.ws_col > WIDTH && size.ws_row > HEIGHT + 1);
        Screen { is_live: out.is_terminal() && has_escapes && fits, drawn: 0 }
    }

    /// Shows a picture that is not finished, if it can be drawn over.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn preview(&mut self, picture: impl FnOnce() -> Buffer) -> anyhow::Result<()> {
        if !self.is_live {
            return Ok(());
        }
        let picture = picture();
        self.put(&picture)?;
        self.drawn = picture.area.height;
        Ok(())
    }

    /// Shows a finished picture, over its previews.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn show(&mut self, picture: &Buffer) -> anyhow::Result<()> {
        self.put(picture)?;
        self.drawn = 0;
        Ok(())
    }

    fn put(&self, picture: &Buffer) -> anyhow::Result<()> {
        let up = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        let mut out = anstream::stdout().lock();
        write!(out, "{up}{}", text(picture)).and_then(|()| out.flush()).context("cannot write to standard output")
    }
}

/// A picture as lines with escapes for its colours; spaces at the end of a line are left out.
fn text(picture: &Buffer) -> String {
    let mut text = String::new();
    for y in 0..picture.area.height {
        let cells: Vec<_> = (0..picture.area.width).map(|x| &picture[(x, y)]).collect();
        let end = cells.iter().rposition(|cell| cell.symbol() != " ").map_or(0, |last| last + 1);
        let mut style = Ansi::new();
        for cell in &cells[..end] {
            let next = style_of(cell.style());
            if next != style {
                let _ = write!(text, "{Reset}{next}");
                style = next;
            }
            text.push_str(cell.symbol());
        }
        if style != Ansi::new() {
            let _ = write!(text, "{Reset}");
        }
        text.push('\n');
    }
    text
}

/// The few styles that are used here.
fn style_of(style: Style) -> Ansi {
    let color = match style.fg {
        Some(Color::Red) => Some(AnsiColor::Red),
        Some(Color::Green) => Some(AnsiColor::Green),
        Some(Color::Yellow) => Some(AnsiColor::Yellow),
        _ => None,
    };
    let ansi = Ansi::new().fg_color(color.map(Into::into));
    if style.add_modifier.contains(Modifier::BOLD) { ansi.bold() } else { ansi }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(picture: &Buffer) -> String {
        anstream::adapter::strip_str(&text(picture)).to_string()
    }

    #[test]
    fn a_graph_without_colour() {
        let frame = Frame { top_bytes: 200_000_000, is_limit: true, line: Some((160_000_000, "target")), span_s: 20.0 };
        let sample = |at_s: f64| Sample { at_s, usage_bytes: 100_000_000, unwritten_bytes: 40_000_000 };
        let drawn = plain(&graph("title", Color::Green, frame, &[sample(0.0), sample(10.0)]));
        let lines: Vec<&str> = drawn.lines().collect();
        assert_eq!(lines.len(), 14);
        assert_eq!(lines[0], "title");
        assert!(lines[1].starts_with(" limit 200 MB│━━━━"), "{drawn}");
        assert!(lines[3].starts_with("target 160 MB│╌╌╌╌"), "{drawn}");
        for (row, want) in [(5, None), (6, Some(LIGHT)), (8, Some(LIGHT)), (9, Some(DARK)), (11, Some(DARK))] {
            let in_graph: Vec<char> = lines[row].split('│').nth(1).unwrap_or_default().chars().collect();
            assert_eq!(in_graph.get(10).copied().filter(|mark| *mark != ' '), want, "row {row} of\n{drawn}");
            assert!(in_graph.len() < 36, "nothing is drawn where nothing was measured:\n{drawn}");
        }
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH.into()));
        assert!(lines[13].ends_with("20 s"), "{drawn}");
    }

    #[test]
    fn colours_are_given_back() {
        let mut picture = Buffer::empty(Rect::new(0, 0, 4, 1));
        picture.set_string(0, 0, "ab", Color::Red);
        assert!(text(&picture).ends_with("ab\x1b[0m\n"), "{:?}", text(&picture));
    }
}
