//! The picture as it stands on a terminal.

use super::*;
use crate::top::model::{Container, Counted, Sample};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

const MIB: u64 = 1 << 20;

fn second(second: u64) -> Duration {
    Duration::from_secs(second)
}

fn water(usage: u64, dirty: u64, writeback: u64) -> Water {
    let (limit, target) = (Some(200 * MIB), Some(160 * MIB));
    Water { limit, target, usage: usage * MIB, anonymous: 20 * MIB, dirty: dirty * MIB, writeback: writeback * MIB }
}

fn sample(sidecar: Sidecar, water: Water, writers: Vec<Counted>) -> Sample {
    Sample { sidecar, containers: vec![Container { id: 7, name: "cgroup 7".into(), water, writers }] }
}

/// What stands on a terminal of that size.
fn shown(model: &Model, span: Duration, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(model, span, frame.buffer_mut())).unwrap();
    terminal
}

fn lines(terminal: &Terminal<TestBackend>) -> Vec<String> {
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(buffer.area.width));
    rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()).collect()
}

/// Ten seconds of a container that fills, with two writers.
fn filling() -> Model {
    let writers = |at: u64| {
        let held = Duration::from_millis(at * 700);
        let quick = Counted { id: 1, pid: 41, written: 3 * MIB, ..Counted::default() };
        let name = Some("qemu-img".to_owned());
        let slow =
            Counted { id: 2, pid: 42, name, written: at * 30 * MIB, owed: 30 * MIB, held_back: held, is_held: true };
        vec![quick, slow]
    };
    let mut model = Model::new(second(0), sample(Sidecar::Alive, water(40, 0, 0), writers(0)));
    for at in 1..=10 {
        model.add(second(at), sample(Sidecar::Alive, water(40 + at * 10, at * 2, at * 2), writers(at)));
    }
    model
}

#[test]
fn the_waterline_and_the_writers() {
    let terminal = shown(&filling(), second(10), 78, 24);
    let want = include_str!("fixtures/filling.txt");
    assert_eq!(lines(&terminal).join("\n") + "\n", want);
    // limit and target, and each layer of the newest column, have colours of their own
    let buffer = terminal.backend().buffer();
    let colors: Vec<Color> = (3..14).map(|y| buffer[(77, y)].fg).collect();
    for color in [Color::Red, Color::Yellow, Color::Blue, Color::Green] {
        assert!(colors.contains(&color), "{colors:?} lack {color}");
    }
}

#[test]
fn where_there_is_no_sidecar_it_is_said() {
    let why = "its heart has not beaten for 9 s; mend: start it again";
    let model = Model::new(second(0), sample(Sidecar::Missing(why.into()), water(100, 0, 0), Vec::new()));
    let lines = lines(&shown(&model, second(10), 78, 24));
    assert_eq!(lines[1], format!("no sidecar: {why}"));
    let none = Model::new(second(0), Sample { sidecar: Sidecar::Alive, containers: Vec::new() });
    assert!(super::tests::lines(&shown(&none, second(10), 78, 24))[0].contains("no container"));
}

#[test]
fn any_size_and_any_numbers_can_be_drawn() {
    let absurd =
        Water { limit: Some(0), target: Some(u64::MAX), usage: u64::MAX, anonymous: u64::MAX, dirty: 1, writeback: 1 };
    let unlimited = Water { limit: None, target: None, ..water(100, 10, 10) };
    let nothing = Water::default();
    for water in [absurd, unlimited, nothing, Water { usage: u64::MAX, limit: None, ..absurd }] {
        let model = Model::new(second(0), sample(Sidecar::Alive, water, Vec::new()));
        for (width, height) in [(1, 1), (10, 3), (19, 12), (80, 24), (300, 100)] {
            shown(&model, second(10), width, height);
        }
    }
    for (width, height) in [(1, 1), (20, 8), (40, 10)] {
        shown(&filling(), second(10), width, height);
    }
}
