//! `freeboard top`: the waterline of a container against its target and limit, and below it who writes and who waits.
//!
//! | module | job |
//! | --- | --- |
//! | [`source`] | samples of a region, or of this process's own group |
//! | [`writers`] | what the writers of a region count |
//! | [`model`] | from samples to what is shown |
//! | [`water`] | what memory is at one moment |
//! | [`draw`] | the picture |

mod draw;
mod model;
mod source;
mod water;
mod writers;

use crate::cli::Top;
use crate::service::now;
use crate::signals::Requests;
use anyhow::{Context, Result, bail};
use model::{Model, SPAN};
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use source::Source;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(200);
/// For this long `--once` looks: rates want a second.
const ONCE: Duration = Duration::from_millis(1400);
/// The picture of `--once`.
const ONCE_SIZE: Rect = Rect::new(0, 0, 100, 30);

/// Shows the picture until it is ended by q, Ctrl-C or a signal; or once.
///
/// # Errors
/// There is nothing to look at, or no terminal to show it on.
pub fn top(flags: &Top) -> Result<()> {
    let named = std::env::var_os("FREEBOARD_REGION").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let mut source = Source::open(flags.region.clone().or(named).as_deref())?;
    if flags.once {
        return once(&mut source);
    }
    if !std::io::stdout().is_terminal() {
        bail!("stdout is no terminal; mend: start it on one, or with --once");
    }
    // before any thread starts, so that all of them leave these signals to the descriptor
    let mut end = Requests::watch().context("cannot watch for signals")?;
    // it also has a panic restore the terminal first
    let mut terminal = ratatui::try_init().context("the terminal cannot be set up")?;
    let done = show(&mut source, &mut terminal, &mut end);
    ratatui::restore();
    done
}

/// Draws until told to end.
fn show(source: &mut Source, terminal: &mut ratatui::DefaultTerminal, end: &mut Requests) -> Result<()> {
    let start = now();
    let mut model = Model::new(start, source.look(start)?);
    loop {
        let span = (now() - start).clamp(Duration::from_secs(10), SPAN);
        terminal
            .draw(|frame| draw::draw(&model, span, frame.buffer_mut()))
            .context("the terminal cannot be written")?;
        let due = now() + PERIOD;
        while let left = due.saturating_sub(now())
            && !left.is_zero()
        {
            if end.wait(Some(Duration::ZERO))?.is_some() {
                return Ok(());
            }
            if !event::poll(left).context("the terminal cannot be read")? {
                continue;
            }
            match event::read().context("the terminal cannot be read")? {
                Event::Key(key) if key.kind != KeyEventKind::Press => {}
                Event::Key(key) => match (key.code, key.modifiers) {
                    (KeyCode::Char('q') | KeyCode::Esc, _) => return Ok(()),
                    (KeyCode::Char('c'), KeyModifiers::CONTROL) => return Ok(()),
                    (KeyCode::Tab, _) => model.choose_next(),
                    _ => {}
                },
                _ => {}
            }
        }
        let now = now();
        model.add(now, source.look(now)?);
    }
}

/// Looks for a little more than a second, and prints the picture.
fn once(source: &mut Source) -> Result<()> {
    let start = now();
    let mut model = Model::new(start, source.look(start)?);
    while now() - start < ONCE {
        std::thread::sleep(PERIOD);
        let now = now();
        model.add(now, source.look(now)?);
    }
    let mut buffer = Buffer::empty(ONCE_SIZE);
    draw::draw(&model, ONCE, &mut buffer);
    std::io::stdout().write_all(text(&buffer).as_bytes()).context("stdout cannot be written")
}

/// A picture without colours.
fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let lines = buffer.content().chunks(width).map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
    lines.map(|line| line.trim_end().to_owned() + "\n").collect()
}
