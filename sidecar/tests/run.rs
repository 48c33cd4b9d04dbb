//! `freeboard run` for real: what a command and its caller notice of it, which is nothing, and what is left behind.

mod support;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use support::*;

fn run(script: &str) -> Output {
    freeboard(["run", "--", "sh", "-c", script]).output().unwrap()
}

#[test]
fn the_ending_is_handed_on() {
    for code in [0, 1, 7, 255] {
        assert_eq!(run(&format!("exit {code}")).status.code(), Some(code));
    }
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGINT, libc::SIGSEGV, libc::SIGRTMIN() + 3] {
        let output = run(&format!("kill -{signal} $$"));
        assert_eq!(output.status.signal(), Some(signal));
        assert!(!output.status.core_dumped(), "a second core would hide the command's own");
    }
    let output = freeboard(["run", "/no/such/program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(stderr(&output).contains("/no/such/program"), "{}", stderr(&output));
    let output = freeboard(["run", "/etc/passwd"]).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
}

#[test]
fn the_command_gets_what_it_would_have_got() {
    // everything that a process can be told of its own start; the descriptors' numbers and what they are
    let look = "grep -E '^(Sig(Blk|Ign)|Seccomp|NoNewPrivs)' /proc/self/status; \
                for fd in /proc/self/fd/*; do echo $fd $(readlink $fd | sed 's/[0-9]*//g'); done; \
                cut -d' ' -f5,6 /proc/$$/stat; ulimit -Sn; ulimit -c; umask; pwd; cat || true";
    let prefixes: [&[&str]; 5] = [
        &[],
        &["env", "--ignore-signal=PIPE"],
        &["env", "--ignore-signal=HUP,CHLD,INT"],
        &["env", "--block-signal=USR1,TERM"],
        &["bash", "-c", "exec \"$@\" <&-", "bash"],
    ];
    let start = |mut command: Command| {
        // one process group for the pair, as a shell would make
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut process = command.spawn().unwrap();
        let group = process.id();
        // the command may have closed it
        let _ = process.stdin.take().unwrap().write_all(b"input\n");
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success());
        stdout(&output).replace(&group.to_string(), "GROUP").replace(library().to_str().unwrap(), "")
    };
    for prefix in prefixes {
        let command = |middle: &[&str]| {
            let words: Vec<&str> = prefix.iter().chain(middle).copied().chain(["bash", "-c", look]).collect();
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).env("FREEBOARD_LIB", library());
            command
        };
        // signals 32 and 33 are the C library's own: it takes them over where a program has threads
        let strip = |text: String| {
            let line = |line: &str| match line.strip_prefix("SigIgn:\t") {
                Some(mask) => format!("SigIgn: {:x}", u64::from_str_radix(mask, 16).unwrap() & !(3 << 31)),
                None => line.to_owned(),
            };
            text.lines().map(line).collect()
        };
        let plain: Vec<String> = strip(start(command(&[])));
        let under: Vec<String> = strip(start(command(&[FREEBOARD, "run", "--quiet", "--"])));
        assert_eq!(under, plain, "after {prefix:?}");
        assert_eq!(plain.iter().any(|line| line == "input"), !prefix.contains(&"bash"));
    }
}

#[test]
fn one_line_at_the_end_unless_quiet() {
    let output = run("echo out; echo err >&2");
    assert_eq!(stdout(&output), "out\n");
    let text = stderr(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "err"), "{text}");
    for part in ["freeboard: ", " written, ", "peak unwritten ", "held back ", "unseen "] {
        assert!(lines[1].contains(part), "{part:?} in {text}");
    }
    let output = freeboard(["run", "--quiet", "sh", "-c", "echo err >&2"]).output().unwrap();
    assert_eq!(stderr(&output), "err\n");
    // nobody reads stderr: the command's ending is handed on all the same
    let mut process = freeboard(["run", "sh", "-c", "exit 3"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(process.stderr.take());
    assert_eq!(process.wait().unwrap().code(), Some(3));
}

#[test]
fn the_library_comes_first_and_what_was_there_is_kept() {
    let show = "printf '%s\\n' \"$LD_PRELOAD\" \"$FREEBOARD_REGION\" \"$FREEBOARD_SOCKET\"; \
                stat -c %a $FREEBOARD_REGION; grep -c libfreeboard /proc/self/maps";
    let output = freeboard(["run", "bash", "-c", show]).env("LD_PRELOAD", "libm.so.6").output().unwrap();
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("{}:libm.so.6", library().display()));
    assert_eq!(Path::new(lines[2]).parent(), Some(Path::new(lines[1])));
    assert_eq!(lines[3], "700");
    assert_ne!(lines[4], "0", "the library is loaded");
    assert!(!Path::new(lines[1]).exists(), "the directory is gone");
}

/// A command that is killed with its process group where a test fails before it ended.
struct Started(Child);

impl Started {
    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("it ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn signals_are_handed_on_once() {
    let script = r#"trap 'echo usr1' USR1; trap 'echo rt' RTMIN+2; trap 'echo term; exit 9' TERM; trap 'echo hup' HUP
                    echo ready; while :; do sleep 0.02; done"#;
    // a shell cannot trap what was ignored when it started, as it may be here
    let mut command = Command::new("env");
    command.args(["--default-signal", FREEBOARD, "run", "--quiet", "bash", "-c", script]);
    command.env("FREEBOARD_LIB", library()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Started(command.process_group(0).spawn().unwrap());
    let (said, heard) = mpsc::channel();
    let output = BufReader::new(process.0.stdout.take().unwrap());
    std::thread::spawn(move || output.lines().try_for_each(|line| said.send(line.unwrap())));
    let mut lines = std::iter::from_fn(|| match heard.recv_timeout(Duration::from_secs(10)) {
        Err(RecvTimeoutError::Timeout) => panic!("no word for ten seconds"),
        line => line.ok(),
    });
    assert_eq!(lines.next().unwrap(), "ready");
    let pid = process.0.id();
    for (name, line) in [("USR1", "usr1"), ("HUP", "hup"), ("RTMIN+2", "rt"), ("TERM", "term")] {
        assert!(Command::new("bash").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap().success());
        assert_eq!(lines.next().unwrap(), line);
    }
    assert_eq!(process.end().code(), Some(9));
    assert_eq!(lines.next(), None, "each came once");

    let mut process = freeboard(["run", "--quiet", "sleep", "100"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGTERM));
}

#[test]
fn a_key_on_the_terminal_reaches_the_command_once() {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let side = || File::options().read(true).write(true).open(OsStr::from_bytes(name.to_bytes())).unwrap();
    let script = "trap 'echo int' INT; trap 'echo quit; exit 5' QUIT; echo ready; while :; do sleep 0.02; done";
    let process = Command::new("setsid")
        .args(["--ctty", "--wait", "env", "--default-signal", FREEBOARD, "run", "--quiet", "bash", "-c", script])
        .env("FREEBOARD_LIB", library())
        .stdin(side())
        .stdout(side())
        .stderr(side())
        .spawn()
        .unwrap();
    let mut process = Started(process);
    let mut terminal = File::from(terminal);
    let mut seen = String::new();
    let mut until = |terminal: &mut File, wanted: &str| {
        while !seen.contains(wanted) {
            let mut bytes = [0u8; 256];
            let ten_seconds = Timespec { tv_sec: 10, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&ten_seconds)).unwrap();
            assert_eq!(ready, 1, "no word for ten seconds after {seen:?}");
            let got = terminal.read(&mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes[..got]));
        }
        seen.clone()
    };
    until(&mut terminal, "ready");
    terminal.write_all(b"\x03").unwrap();
    until(&mut terminal, "int");
    std::thread::sleep(Duration::from_millis(200));
    terminal.write_all(b"\x1c").unwrap();
    let all = until(&mut terminal, "quit");
    assert_eq!(all.matches("int\r\n").count(), 1, "{all:?}");
    assert_eq!(process.end().code(), Some(5));
}

#[test]
fn what_outlives_the_command_does_not_keep_the_launcher() {
    let start = Instant::now();
    let output = run("sleep 20 >/dev/null 2>&1 & echo $!");
    assert!(output.status.success() && start.elapsed() < Duration::from_secs(5));
    let sleeper: i32 = stdout(&output).trim().parse().unwrap();
    kill_process(Pid::from_raw(sleeper).unwrap(), Signal::KILL).expect("it is left alone");
}

#[test]
fn a_limit_is_a_group_for_the_command_alone() {
    if !can_make_cgroups("a_limit_is_a_group_for_the_command_alone") {
        return;
    }
    let (_, own) = freeboard_sidecar::cgroup::own_directory().unwrap();
    let groups = || {
        let entries = std::fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter(|name| name.to_string_lossy().starts_with("freeboard-test-run")).count()
    };
    // in a group of the test's own, so that other tests' groups are not counted
    let parent = CgroupDir::make("run").unwrap();
    let inside = |command: &mut Command| {
        let mut script = Command::new("bash");
        script.args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#]).arg(&parent.0);
        script.arg(command.get_program()).args(command.get_args()).env("FREEBOARD_LIB", library());
        script
    };
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let script = r#"group=$(sed -n 's/^[0-9]*:memory://p; s/^0:://p' /proc/self/cgroup | head -1); echo "$group""#;
    let mut command = freeboard(["run", "--quiet", "--limit", "100M", "--report"]);
    command.arg(&report).args(["--", "bash", "-c", script]);
    let output = inside(&mut command).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let group = stdout(&output).lines().next().unwrap().to_owned();
    assert!(json["cgroup"].as_str().unwrap().ends_with(Path::new(&group).file_name().unwrap().to_str().unwrap()));
    assert_eq!(json["limit_bytes"].as_u64().unwrap() / 65536, 100_000_000 / 65536);
    assert_eq!((&json["exit_code"], &json["cgroup_is_its_own"]), (&0.into(), &true.into()));
    assert!(json["peak_usage_bytes"].as_u64().unwrap() > 0);
    assert!(!Path::new(json["cgroup"].as_str().unwrap()).exists());

    // more anonymous memory than the limit: the kernel kills, and says so
    let mut command = freeboard(["run", "--limit", "50M", "--report"]);
    command.arg(&report).args(["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    let output = inside(&mut command).output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!((&json["signal"], &json["exit_code"]), (&libc::SIGKILL.into(), &serde_json::Value::Null));
    assert_eq!(json["oom_kills"], 1);
    assert!(json["limit_hits"].as_u64().unwrap() > 0);
    for part in ["1 killed for memory", "most of what met the limit was not counted"] {
        assert!(stderr(&output).contains(part), "{part:?} in {}", stderr(&output));
    }

    // a signal to the launcher leaves no group behind either
    let mut process = inside(&mut freeboard(["run", "--limit", "50M", "sleep", "100"])).spawn().unwrap();
    eventually("the group is there", || {
        std::fs::read_dir(&parent.0).unwrap().any(|entry| entry.unwrap().path().is_dir())
    });
    std::thread::sleep(Duration::from_millis(200));
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGTERM));

    // groups that the command made in its own go with it
    let left = || {
        let mut entries = std::fs::read_dir(&parent.0).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| path.is_dir())
    };
    let move_below = format!(
        "group=$(echo {}/freeboard-*) && mkdir -p $group/empty $group/a/b && echo $$ >$group/a/b/cgroup.procs",
        parent.0.display()
    );
    let output =
        inside(&mut freeboard(["run", "--quiet", "--limit", "50M", "sh", "-c", &move_below])).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    assert_eq!(left(), None);

    // what lives on in the group, or below it, keeps all of it, and that is said
    for begin in ["true", &move_below] {
        let script = format!("{begin} && {{ sleep 20 >/dev/null 2>&1 & echo $!; }}");
        let output =
            inside(&mut freeboard(["run", "--quiet", "--limit", "50M", "sh", "-c", &script])).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stderr(&output);
        let sleeper = stdout(&output).trim().to_owned();
        assert!(text.contains(&format!("left processes in it ({sleeper})")), "{text}");
        let kept = left().unwrap();
        assert!(text.contains(kept.to_str().unwrap()), "{text}");
        assert_eq!(kept.join("empty").exists(), begin != "true");
        kill_process(Pid::from_raw(sleeper.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
        for group in ["empty", "a/b", "a", ""].map(|name| kept.join(name)) {
            eventually("the group can be removed", || std::fs::remove_dir(&group).is_ok() || !group.exists());
        }
    }
    drop(parent);
    assert_eq!(groups(), 0, "everything that was made below the test's group is gone");
}

#[test]
fn a_limit_that_is_not_allowed_is_refused_whole() {
    if !can_make_cgroups("a_limit_that_is_not_allowed_is_refused_whole") {
        return;
    }
    // as another user, from a place that it may read
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    for (from, name) in [(Path::new(FREEBOARD), "freeboard"), (library(), "libfreeboard.so")] {
        std::fs::copy(from, dir.path().join(name)).unwrap();
    }
    let mark = dir.path().join("started");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(dir.path().join("freeboard"))
        .args(["run", "--limit", "100M", "touch"])
        .arg(&mark)
        .env("TMPDIR", dir.path())
        .env_remove("FREEBOARD_LIB")
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(text.contains("--limit: cannot make a cgroup in") && text.contains("mend:"), "{text}");
    assert!(!mark.exists(), "the command was not started");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left");
}

#[test]
fn what_no_library_paces_is_reported_as_unseen() {
    if !can_make_cgroups("what_no_library_paces_is_reported_as_unseen") {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let report = dir.path().join("report.json");
    // Kept dirty for longer than a report may take, with the library told to stand aside. Written again and again, so
    // that a sync by somebody else on this machine spoils one second and not all.
    let script = format!(
        "for i in $(seq 40); do dd if=/dev/zero of={}/x bs=1M count=30 conv=notrunc status=none; sleep 0.1; done",
        dir.path().display()
    );
    let mut command = freeboard(["run", "--limit", "200M", "--report"]);
    command.arg(&report).args(["sh", "-c", &script]).env("FREEBOARD_DISABLED", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let mib = |key: &str| json[key].as_u64().unwrap() >> 20;
    assert_eq!(json["written_bytes"], 0);
    // a page that is written again while it is under writeback counts twice
    assert!((29..=60).contains(&mib("peak_unwritten_bytes")), "{json:#}");
    assert!((28..=60).contains(&mib("unseen_bytes")), "{json:#}");
    assert!(!stderr(&output).contains("not counted"), "{}", stderr(&output));
    assert!((30..=40).contains(&mib("peak_cache_bytes")), "{json:#}");
    assert!(mib("peak_usage_bytes") >= 30, "{json:#}");
}

#[test]
fn what_cannot_be_set_up_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("bad.toml"), "[writes]\nmode = \"fast\"\n").unwrap();
    std::fs::write(path("text.so"), "not a library").unwrap();
    std::fs::copy(library(), path("a library.so")).unwrap();
    let mark = path("started");
    let library = library().to_str().unwrap();
    let cases: [(&str, &[&str], &str); 7] = [
        ("/no/such/lib.so", &[], "/no/such/lib.so"),
        (&path("text.so"), &[], "not a shared object"),
        (&path("a library.so"), &[], "has a space or a colon"),
        (library, &["--config", &path("bad.toml")], "bad.toml:2:8"),
        (library, &["--config", "/no/such.toml"], "/no/such.toml"),
        (library, &["--report", &path("no/such/report")], "--report"),
        (library, &["--limit", "600Q"], "600Q"),
    ];
    for (library, flags, want) in cases {
        let output = Command::new(FREEBOARD)
            .arg("run")
            .args(flags)
            .args(["touch", &mark])
            .env("FREEBOARD_LIB", library)
            .env("TMPDIR", dir.path())
            .env_remove("XDG_RUNTIME_DIR")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{want}: {}", stderr(&output));
        assert!(stderr(&output).contains(want), "{want}: {}", stderr(&output));
        assert!(output.stdout.is_empty() && !Path::new(&mark).exists(), "{want}");
        let left = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("freeboard-"));
        assert_eq!(left.count(), 0, "{want}: a directory is left");
    }
}
