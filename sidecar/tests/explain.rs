//! `freeboard explain` on real groups, filled by real programs, and on what the kernel says when it kills.

mod support;

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use support::*;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MIB;
const FILL: u64 = 56 * MIB;

/// A shell in a group, which lives until it is dropped.
struct Inhabitant(Child);

impl Inhabitant {
    /// Runs a script, in which `$FILE` is that file.
    fn start(group: &CgroupDir, file: &Path, script: &str) -> Inhabitant {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("echo $$ >\"$GROUP/cgroup.procs\" && {script}")]);
        shell.env("GROUP", &group.0).env("FILE", file).env("FILL", FILL.to_string());
        Inhabitant(shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn explain(arguments: &[&str]) -> Value {
    let output = Command::new(FREEBOARD).arg("explain").arg("--json").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Fills a group by a script until it is said to be full of that: the kernel's counters lag by up to two seconds. Each
/// line that the script reads has it go on. The group comes before who lives in it: the last is dropped first.
fn filled(verdict: &str, file: &Path, script: &str) -> Option<(Value, CgroupDir, Inhabitant)> {
    let name = format!("explain-{verdict}");
    if !can_make_cgroups(&name) {
        return None;
    }
    let group = CgroupDir::make(&name)?;
    group.limit(LIMIT);
    let mut inhabitant = Inhabitant::start(&group, file, script);
    let mut answer = Value::Null;
    let mut is_full = || {
        let _ = writeln!(inhabitant.0.stdin.as_ref().unwrap());
        answer = explain(&[&inhabitant.0.id().to_string()]);
        answer["verdict"] == verdict && answer["standing"] == "over-the-line"
    };
    let start = Instant::now();
    while !is_full() && start.elapsed() < Duration::from_secs(10) {
        sleep(Duration::from_millis(100));
    }
    assert_eq!((&answer["verdict"], &answer["standing"]), (&verdict.into(), &"over-the-line".into()), "{answer:#}");
    assert_eq!(answer["group"], group.0.to_str().unwrap());
    assert!(inhabitant.0.try_wait().unwrap().is_none(), "it is over");
    Some((answer, group, inhabitant))
}

fn part(answer: &Value, kind: &str) -> u64 {
    let parts = answer["parts"].as_array().unwrap();
    parts.iter().find(|part| part["kind"] == kind).unwrap()["bytes"].as_u64().unwrap()
}

/// A file of this test's in a directory, removed when dropped.
fn file_in(dir: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let file = dir.path().join("file");
    (dir, file)
}

#[test]
fn a_heap_is_anonymous_and_another_tool_comes_next() {
    // dd fills its buffer, and then waits for somebody to read it
    let script = "exec dd if=/dev/zero bs=$FILL count=1";
    let Some((answer, _group, inhabitant)) = filled("anonymous", Path::new(""), script) else { return };
    assert!(part(&answer, "anonymous") >= FILL, "{answer:#}");
    assert_eq!(answer["freeboard"]["can"], false);
    assert_eq!(answer["processes"][0]["pid"], inhabitant.0.id());
    assert_eq!(answer["processes"][0]["name"], "dd");
    let next = answer["next"][0]["command"].as_str().unwrap();
    assert_eq!(next, format!("heaptrack --pid {}", inhabitant.0.id()), "a program in C");
    for number in answer["numbers"].as_array().unwrap() {
        assert_eq!(number["is_over_the_line"], true, "{number}: all numbers count anonymous memory");
    }
}

#[test]
fn what_was_just_written_is_unwritten_and_then_clean() {
    let (_dir, file) = file_in("/var/tmp");
    // again and again: others may have everything written by sync(2)
    let script = "exec 3>\"$FILE\"; while head -c $FILL /dev/zero 1<>\"$FILE\" && read _; do :; done; exec sleep 60";
    let Some((answer, group, mut inhabitant)) = filled("unwritten", &file, script) else { return };
    assert_eq!(answer["verdict_is_inferred"], false);
    assert_eq!(answer["freeboard"]["can"], true);
    assert_eq!(answer["files"][0]["path"], file.to_str().unwrap(), "{answer:#}");
    assert!(answer["files"][0]["cached_bytes"].as_u64() > Some(FILL / 2), "{answer:#}");
    assert!(answer["files"][0]["unwritten_bytes"].as_u64() > Some(FILL / 2), "{answer:#}");
    assert_eq!(answer["files"][0]["pid"], inhabitant.0.id());

    inhabitant.0.stdin = None;
    let mut answer = Value::Null;
    eventually("the kernel counts it as clean", || {
        std::fs::File::open(&file).unwrap().sync_data().unwrap();
        answer = explain(&[group.0.to_str().unwrap()]);
        part(&answer, "unwritten") < MIB
    });
    assert_eq!(answer["verdict"], "clean-cache", "{answer:#}");
    // the kernel may take some of what is clean back at any time
    assert!(answer["files"][0]["cached_bytes"].as_u64() > Some(FILL / 2), "{answer:#}");
    assert_eq!(answer["files"][0]["unwritten_bytes"], 0);
    let text = Command::new(FREEBOARD).arg("explain").arg(&group.0).output().unwrap();
    let text = stdout(&text);
    for words in ["clean cache: page cache that is on the disk", file.to_str().unwrap(), "kubectl top", "/proc/meminfo"]
    {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
}

#[test]
fn files_in_memory_are_tmpfs() {
    let (_dir, file) = file_in("/dev/shm");
    let script = "exec 3>\"$FILE\" && head -c $FILL /dev/zero >&3; while read _; do :; done";
    let Some((answer, _group, _inhabitant)) = filled("tmpfs", &file, script) else { return };
    assert_eq!(answer["freeboard"]["can"], false);
    assert_eq!((&answer["files"][0]["is_tmpfs"], &answer["files"][0]["cached_bytes"]), (&true.into(), &FILL.into()));
    assert!(answer["tmpfs"].as_array().unwrap().iter().any(|mount| mount["mount"] == "/dev/shm"), "{answer:#}");
    assert!(answer["next"][0]["command"].as_str().unwrap().starts_with("du -ax "), "{answer:#}");
}

#[test]
fn this_kernels_own_message_is_understood() {
    if !can_make_cgroups("this_kernels_own_message_is_understood") {
        return;
    }
    let group = CgroupDir::make("explain-oom").unwrap();
    group.limit(20 * MIB);
    let mut inhabitant = Inhabitant::start(&group, Path::new(""), "exec dd if=/dev/zero bs=90M count=1");
    let pid = inhabitant.0.id();
    assert!(!inhabitant.0.wait().unwrap().success(), "it was to be killed");
    let dmesg = stdout(&Command::new("dmesg").output().unwrap());
    let killed = dmesg.rfind(&format!("Killed process {pid} ")).expect("the kernel tells of the kill");
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    // others may have been killed since
    std::fs::write(&log, &dmesg[..killed + dmesg[killed..].find('\n').unwrap()]).unwrap();
    let answer = explain(&["--oom-log", log.to_str().unwrap()]);
    assert_eq!((&answer["verdict"], &answer["standing"]), (&"anonymous".into(), &"killed".into()), "{answer:#}");
    assert_eq!((&answer["killed"][0]["pid"], &answer["killed"][0]["name"]), (&pid.into(), &"dd".into()));
    assert_eq!(answer["limit_bytes"], 20 * MIB);
    assert!(group.0.ends_with(answer["group"].as_str().unwrap().rsplit('/').next().unwrap()), "{answer:#}");
}

#[test]
fn what_cannot_be_explained_is_said_with_the_mend() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    std::fs::write(&log, "[1.0] all is well\n").unwrap();
    let log = log.to_str().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["4194305"], "there is no process 4194305; mend: "),
        (&["/nowhere"], "/nowhere is neither a process nor a memory cgroup"),
        (&["nowhere"], "nowhere is neither a process nor a memory cgroup"),
        (&["--oom-log", "/nowhere"], "/nowhere cannot be read"),
        (&["--oom-log", log], "there is no message of the OOM killer's in it; mend: "),
    ];
    for (arguments, words) in cases {
        let output = Command::new(FREEBOARD).arg("explain").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
}
