//! What a file may leave out, and other ways to write it.

use std::time::Duration;

use freeboard_budget::Mode;
use freeboard_budget::law::Target;
use freeboard_config::{Memory, Processes, Sweep, Workload, Writes};

fn parse(text: &str) -> Workload {
    Workload::parse(text, "w.toml").unwrap_or_else(|error| panic!("{text}\n{error}"))
}

#[test]
fn an_empty_file_says_the_defaults() {
    let defaults = Workload {
        memory: Memory { target: Target::Percent(80) },
        writes: Writes { mode: Mode::Auto, window_bytes: None, max_stall: Duration::from_secs(10) },
        rules: Vec::new(),
        processes: Processes { exclude: Vec::new() },
        sweep: Sweep { paths: Vec::new() },
    };
    assert_eq!(Workload::default(), defaults);
    for text in ["", "# nothing\n", "\u{feff}", "[memory]\n[writes]\n[processes]\n[sweep]\n", "rule = []"] {
        assert_eq!(parse(text), defaults, "{text:?}");
    }
}

#[test]
fn sections_may_be_written_in_all_ways_of_toml() {
    let sections = "[memory]\ntarget = \"50%\"\n[[rule]]\npath = \"/a\"\nmode = \"off\"\n";
    let crlf = sections.replace('\n', "\r\n");
    let inline = "memory = { target = \"50%\" }\nrule = [{ path = \"/a\", mode = \"off\" }]";
    let dotted = "memory.target = '50%'\nrule = [{ path = '/a', mode = 'off' }]";
    for text in [&crlf, inline, dotted] {
        assert_eq!(parse(text), parse(sections), "{text}");
    }
}

#[test]
fn values() {
    let target = |value: &str| parse(&format!("memory.target = {value:?}")).memory.target;
    assert_eq!(target("1%"), Target::Percent(1));
    assert_eq!(target("100 %"), Target::Percent(100));
    assert_eq!(target("480M"), Target::Bytes(480_000_000));
    let window = |value: &str| parse(&format!("writes.window = {value:?}")).writes.window_bytes;
    assert_eq!(window("auto"), None);
    assert_eq!(window("4MiB"), Some(4 << 20));
    assert_eq!(window("1Mi"), Some(1 << 20));
    assert_eq!(window("18446744073709551615"), Some(u64::MAX));
    let max_stall = |value: &str| parse(&format!("writes.max_stall = {value:?}")).writes.max_stall;
    assert_eq!(max_stall("500ms"), Duration::from_millis(500));
    assert_eq!(max_stall("2m"), Duration::from_secs(120));
    assert_eq!(max_stall("1m 30s"), Duration::from_secs(90));
    assert_eq!(max_stall("24h"), Duration::from_secs(86_400));
    let mode = |value: &str| parse(&format!("writes.mode = {value:?}")).writes.mode;
    assert_eq!(["auto", "always", "observe", "off"].map(mode), [Mode::Auto, Mode::Always, Mode::Observe, Mode::Off]);
}

#[test]
fn paths_to_sweep_begin_in_a_directory() {
    let paths = ["/logs/**", "/images/*.png", "/data/a.log", "/srv/a*/b"];
    assert_eq!(parse(&format!("[sweep]\npaths = {paths:?}")).sweep.paths, paths);
}

#[test]
fn as_many_and_as_long_as_the_region_holds() {
    let longest = format!("/{}", "x".repeat(239));
    let rules: String = (0..63).map(|n| format!("[[rule]]\npath = \"/{n}/**\"\nmode = \"off\"\n")).collect();
    let excludes: Vec<String> = (0..32).map(|n| format!("/bin/{n}")).collect();
    let text = format!("[processes]\nexclude = {excludes:?}\n{rules}[[rule]]\npath = {longest:?}\nmode = \"off\"\n");
    let workload = parse(&text);
    assert_eq!(workload.rules.len(), 64);
    assert_eq!(workload.rules[63].path, longest);
    assert_eq!(workload.processes.exclude, excludes);
}
