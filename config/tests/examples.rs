//! The examples are valid, and say what their comments promise.

use std::path::{Path, PathBuf};
use std::time::Duration;

use freeboard_budget::Mode;
use freeboard_budget::law::Target;
use freeboard_config::{Processes, Rule, Workload, Writes};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn load(name: &str) -> Workload {
    Workload::load(&directory().join(name)).unwrap_or_else(|error| panic!("{error}"))
}

fn rule(path: &str, mode: Option<Mode>, reads_drop_behind: bool) -> Rule {
    Rule { path: path.to_owned(), mode, reads_drop_behind }
}

#[test]
fn there_is_an_example_for_every_kind_of_workload_and_no_other() {
    let mut names: Vec<_> = std::fs::read_dir(directory())
        .expect("examples/")
        .map(|entry| entry.expect("an entry of examples/").file_name().into_string().expect("a UTF-8 name"))
        .collect();
    names.sort();
    let tested =
        ["backup-tar.toml", "cdi-importer.toml", "database-dump.toml", "image-processing.toml", "jvm-logs.toml"];
    assert_eq!(names, tested);
}

#[test]
fn cdi_importer() {
    let workload = load("cdi-importer.toml");
    assert_eq!(workload.memory.target, Target::Percent(80));
    assert_eq!(workload.writes, Writes { mode: Mode::Auto, window_bytes: None, max_stall: Duration::from_secs(60) });
    let always = Some(Mode::Always);
    assert_eq!(workload.rules, [rule("/data/**", always, false), rule("/dev/cdi-block-volume", always, false)]);
    assert_eq!(workload.processes, Processes { exclude: vec!["/usr/sbin/nbdkit".to_owned()] });
}

#[test]
fn jvm_logs() {
    let workload = load("jvm-logs.toml");
    assert_eq!(workload.memory.target, Target::Percent(90));
    assert_eq!(workload.writes, Writes::default());
    assert_eq!(
        workload.rules,
        [
            rule("/dumps/**/*.hprof", Some(Mode::Always), false),
            rule("/var/log/app/**", Some(Mode::Always), true),
            rule("/tmp/hsperfdata_*/*", Some(Mode::Off), false),
        ]
    );
    assert_eq!(workload.sweep.paths, ["/logs/**"]);
}

#[test]
fn database_dump() {
    let workload = load("database-dump.toml");
    assert_eq!(workload.writes.window_bytes, Some(32 << 20));
    assert_eq!(
        workload.rules,
        [
            rule("/var/lib/postgresql/*/main/pg_wal/**", Some(Mode::Off), false),
            rule("/var/lib/postgresql/**", Some(Mode::Observe), false),
            rule("/backup/**", Some(Mode::Always), false),
        ]
    );
}

#[test]
fn backup_tar() {
    let workload = load("backup-tar.toml");
    assert_eq!(workload.memory.target, Target::Bytes(400 << 20));
    assert_eq!(
        workload.writes,
        Writes { mode: Mode::Always, window_bytes: Some(8 << 20), max_stall: Duration::from_secs(300) }
    );
    assert_eq!(workload.rules, [rule("/backup/*.snar", Some(Mode::Auto), false), rule("/srv/**", None, true)]);
}

#[test]
fn image_processing() {
    let workload = load("image-processing.toml");
    assert_eq!(workload.memory.target, Target::Percent(75));
    assert_eq!(workload.writes, Writes::default());
    assert_eq!(
        workload.rules,
        [
            rule("/images/in/**", None, true),
            rule("/images/tmp/**", Some(Mode::Auto), false),
            rule("/images/out/**", Some(Mode::Always), false),
        ]
    );
    assert_eq!(workload.processes.exclude, ["/usr/bin/exiftool", "/usr/local/bin/thumbs-*"]);
    assert_eq!(workload.sweep.paths, ["/images/in/**", "/images/out/**"]);
}
