//! The picture: the waterline over time, and below it the writers.

use super::model::{Model, SPAN, Sidecar};
use super::water::{Layer, Water};
use freeboard_config::size::show;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Widget, Wrap};
use std::time::Duration;

/// Columns beside the graph, for sizes.
const GUTTER: u16 = 18;

impl Layer {
    /// How it is drawn; readable without colour too.
    const fn look(self) -> (char, Color, &'static str) {
        match self {
            Layer::Anonymous => ('▓', Color::Blue, "anonymous"),
            Layer::Dirty => ('█', Color::Red, "dirty"),
            Layer::Writeback => ('▒', Color::Yellow, "writeback"),
            Layer::Clean => ('░', Color::Green, "clean"),
        }
    }
}

/// Draws everything. `span`: how much of the past the graph's width is.
pub fn draw(model: &Model, span: Duration, buffer: &mut Buffer) {
    let [head, graph, times, legend, _, table, foot] = Layout::vertical([
        Constraint::Length(if *model.sidecar() == Sidecar::Alive { 2 } else { 4 }),
        Constraint::Fill(3),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(2),
        Constraint::Length(1),
    ])
    .areas(buffer.area);
    header(model, head, buffer);
    if let Some((container, ..)) = model.chosen() {
        waterline(model, &container.water, span, graph, buffer);
        let ago = format!("{:GUTTER$}{} s ago", "", span.as_secs(), GUTTER = usize::from(GUTTER));
        Line::raw(ago).render(times, buffer);
        Line::raw("now").right_aligned().render(times, buffer);
        layers(&container.water, legend, buffer);
        writers(model, table, buffer);
    }
    Line::raw("q ends, Tab shows the next container").style(Color::DarkGray).render(foot, buffer);
}

fn header(model: &Model, area: Rect, buffer: &mut Buffer) {
    let title = match model.chosen() {
        Some((one, number, of)) => format!("usage {}  {} ({number} of {of})", show(one.water.usage), one.name),
        None => "no container is with the sidecar now".to_owned(),
    };
    let [first, rest] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    Line::from(vec![Span::styled("freeboard top  ", Style::new().bold()), Span::raw(title)]).render(first, buffer);
    let sidecar = match model.sidecar() {
        Sidecar::Alive => Line::styled("sidecar: alive", Color::Green),
        Sidecar::Missing(why) => Line::styled(format!("no sidecar: {why}"), Color::Red),
    };
    Paragraph::new(sidecar).wrap(Wrap { trim: true }).render(rest, buffer);
}

/// The row of a height in an area whose top row is `top` bytes; `None`: it is not in it.
fn row_of(bytes: u64, top: u64, area: Rect) -> Option<u16> {
    let rows = u128::from(area.height.max(1));
    let from_bottom = u128::from(bytes).checked_mul(rows)?.checked_div(u128::from(top))?.min(rows - 1);
    (bytes <= top).then(|| area.bottom().saturating_sub(1 + from_bottom as u16))
}

fn waterline(model: &Model, now: &Water, span: Duration, area: Rect, buffer: &mut Buffer) {
    let highest = || model.waterline().map(|(_, water)| water.usage).max().unwrap_or(0);
    let top = now.limit.unwrap_or_else(|| highest().saturating_mul(5) / 4).max(1);
    let graph = Rect { x: area.x + GUTTER, width: area.width.saturating_sub(GUTTER), ..area };
    let marks = [
        Some((0, "", Color::Reset, ' ')),
        now.target.map(|bytes| (bytes, "target ", Color::Yellow, '╌')),
        Some(now.limit.map_or((top, "", Color::Reset, ' '), |bytes| (bytes, "limit ", Color::Red, '━'))),
    ];
    for (bytes, name, color, line) in marks.into_iter().flatten() {
        let Some(y) = row_of(bytes, top, area) else { continue };
        let label = format!("{name}{}│", show(bytes));
        buffer.set_string(area.x, y, format!("{label:>width$}", width = usize::from(GUTTER)), color);
        for x in graph.left()..graph.right() {
            buffer[(x, y)].set_char(line).set_fg(color);
        }
    }
    for y in area.top()..area.bottom() {
        buffer.set_string(area.x + GUTTER - 1, y, "│", Style::new());
    }
    let columns = u64::from(graph.width).max(1);
    for column in 0..graph.width {
        // what was last seen by the end of the column's time
        let end = span.mul_f64((columns - 1 - u64::from(column)) as f64 / columns as f64);
        let Some((ago, water)) = model.waterline().rfind(|(ago, _)| *ago >= end) else { continue };
        if ago > SPAN.min(end + span) {
            continue;
        }
        for row in 0..graph.height {
            // at the middle of the cell
            let middle = u128::from(top) * u128::from(2 * row + 1) / u128::from(2 * graph.height);
            if let Some(layer) = water.at(middle as u64) {
                let (mark, color, _) = layer.look();
                buffer[(graph.x + column, graph.bottom() - 1 - row)].set_char(mark).set_fg(color);
            }
        }
    }
}

/// What the marks mean, and how much of each there is now.
fn layers(water: &Water, area: Rect, buffer: &mut Buffer) {
    let mut words = Vec::new();
    for layer in Layer::ALL {
        let (mark, color, name) = layer.look();
        words.push(Span::styled(format!("{mark}{mark}"), color));
        words.push(Span::raw(format!(" {name} {}  ", show(water.of(layer)))));
    }
    Line::from(words).render(area, buffer);
}

fn writers(model: &Model, area: Rect, buffer: &mut Buffer) {
    let right = |text: String| Cell::from(Line::raw(text).right_aligned());
    let head = ["HELD BACK", "OF LAST s", "WRITTEN", "A SECOND", "OWED"].map(|word| right(word.to_owned()));
    let head = Row::new([Cell::from("WRITER")].into_iter().chain(head)).style(Style::new().bold());
    let rows = model.rows().into_iter().map(|row| {
        let one = &row.counted;
        let name = match (&one.name, one.pid) {
            (Some(name), 0) => name.clone(),
            (Some(name), pid) => format!("{name} ({pid})"),
            (None, pid) => format!("process {pid}"),
        };
        let now = if one.is_held { " now" } else { "" };
        let cells = [
            format!("{:.1} s{now}", one.held_back.as_secs_f64()),
            format!("{} %", row.held_percent),
            show(one.written),
            show(row.rate),
            show(one.owed),
        ];
        let style = if one.is_held { Style::new().fg(Color::Yellow) } else { Style::new() };
        Row::new([Cell::from(name)].into_iter().chain(cells.map(right))).style(style)
    });
    let widths = [Constraint::Fill(1)].into_iter().chain([14, 10, 10, 10, 10].map(Constraint::Length));
    Widget::render(Table::new(rows, widths).header(head), area, buffer);
}

#[cfg(test)]
#[path = "draw_tests.rs"]
mod tests;
