//! `freeboard top` beside a real sidecar with real writers, and on a real terminal.

mod support;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};
use support::*;

const MIB: u64 = 1 << 20;

/// A process that is ended when dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The picture of a region, or of the test's own group.
fn once(region: Option<&str>) -> String {
    let mut top = Command::new(FREEBOARD);
    top.args(["top", "--once"]).env_remove("FREEBOARD_REGION");
    let output = top.args(region.map(|dir| ["--region", dir]).into_iter().flatten()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn a_region_shows_its_containers_and_their_writers() {
    if !can_make_cgroups("a_region_shows_its_containers_and_their_writers") {
        return;
    }
    let mut sidecar = Sidecar::start(&[]);
    let region = sidecar.dir.path().to_str().unwrap().to_owned();
    eventually("the sidecar is seen", || {
        once(Some(&region)).contains("no container is with the sidecar now\nsidecar: alive")
    });

    let group = CgroupDir::make("top").unwrap();
    group.limit(64 * MIB);
    let data = tempfile::tempdir_in("/var/tmp").unwrap();
    let script = "echo $$ >\"$GROUP/cgroup.procs\" && export LD_PRELOAD=\"$LIBRARY\" && exec dd if=/dev/zero of=\"$FILE\" bs=1M count=48 conv=notrunc";
    // it writes the same file again and again, so that the disk is not filled
    let script = format!("echo $$ >\"$GROUP/cgroup.procs\"; while :; do ({script}) 2>/dev/null; done");
    let mut writer = Command::new("sh");
    writer.args(["-c", &script]).env("GROUP", &group.0).env("FILE", data.path().join("file")).env("LIBRARY", library());
    let writer =
        Started(writer.env("FREEBOARD_REGION", &region).env("FREEBOARD_SOCKET", sidecar.socket()).spawn().unwrap());
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&group.0).unwrap());
    let mut picture = String::new();
    eventually("the writer is shown", || {
        picture = once(Some(&region));
        picture.contains("dd (") && picture.contains("sidecar: alive")
    });
    for words in [&*format!("cgroup {id} (1 of 1)"), "limit 64 MiB│━━", "target 51 MiB│", "HELD BACK"] {
        assert!(picture.contains(words), "no {words:?} in\n{picture}");
    }
    drop(writer);

    sidecar.process.kill().unwrap();
    sidecar.process.wait().unwrap();
    let picture = once(Some(&region));
    assert!(picture.contains("no sidecar: it is gone: its heart has not beaten for "), "{picture}");
    // the shell's last dd may live a little longer than the shell
    eventually("the group is empty", || {
        let left = std::fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
        for pid in left.lines() {
            let _ = kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL);
        }
        left.is_empty()
    });
}

#[test]
fn without_a_sidecar_the_own_group_is_shown_and_that_is_said() {
    let picture = once(None);
    assert!(picture.contains("no sidecar: none is named (--region, FREEBOARD_REGION)"), "{picture}");
    let own = freeboard_sidecar::cgroup::own_directory().unwrap().1;
    let own: String = own.to_str().unwrap().chars().take(40).collect();
    assert!(picture.lines().next().unwrap().contains(&own), "{picture}");
    assert!(picture.contains("clean"), "{picture}");

    let nothing = tempfile::tempdir().unwrap();
    let region = nothing.path().to_str().unwrap();
    let output = Command::new(FREEBOARD).args(["top", "--once", "--region", region]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains(&format!("there is no region in {region}: ")), "{}", stderr(&output));
    std::fs::write(nothing.path().join("budget"), [7u8; 4096]).unwrap();
    let output = Command::new(FREEBOARD).args(["top", "--once", "--region", region]).output().unwrap();
    assert!(stderr(&output).contains("it is not of this version; mend: "), "{}", stderr(&output));
    let output = Command::new(FREEBOARD).arg("top").env_remove("FREEBOARD_REGION").output().unwrap();
    assert!(stderr(&output).contains("stdout is no terminal; mend: "), "{}", stderr(&output));
}

#[test]
fn the_terminal_is_as_it_was_however_it_ends() {
    type End = fn(&mut File, Pid);
    let ends: [(&str, End); 4] = [
        ("q", |terminal, _| terminal.write_all(b"q").unwrap()),
        ("Ctrl-C", |terminal, _| terminal.write_all(&[3]).unwrap()),
        ("SIGTERM", |_, process| kill_process(process, Signal::TERM).unwrap()),
        ("SIGHUP", |_, process| kill_process(process, Signal::HUP).unwrap()),
    ];
    for (what, end) in ends {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let side = || File::options().read(true).write(true).open(OsStr::from_bytes(name.to_bytes())).unwrap();
        let modes = || {
            let Termios { input_modes, output_modes, control_modes, local_modes, .. } = tcgetattr(side()).unwrap();
            (input_modes, output_modes, control_modes, local_modes)
        };
        // until the end: a terminal that nobody has open hangs up
        let _kept = side();
        let before = modes();
        let mut top = Command::new("setsid");
        top.args(["--ctty", FREEBOARD, "top"]).env_remove("FREEBOARD_REGION").env("TERM", "xterm");
        let mut top = Started(top.stdin(side()).stdout(side()).stderr(Stdio::piped()).spawn().unwrap());
        let mut terminal = File::from(terminal);
        let mut seen = String::new();
        let mut until = |terminal: &mut File, wanted: &str| {
            while !seen.contains(wanted) {
                let ready =
                    poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&Timespec { tv_sec: 10, tv_nsec: 0 }));
                assert_eq!(ready.unwrap(), 1, "{what}: no word for ten seconds after {seen:?}");
                let mut bytes = [0u8; 4096];
                let got = terminal.read(&mut bytes).unwrap();
                seen.push_str(&String::from_utf8_lossy(&bytes[..got]));
            }
        };
        // the picture stands on a screen of its own
        until(&mut terminal, "\x1b[?1049h");
        until(&mut terminal, "anonymous");
        assert_ne!(modes(), before, "{what}");
        end(&mut terminal, Pid::from_child(&top.0));
        until(&mut terminal, "\x1b[?1049l");
        until(&mut terminal, "\x1b[?25h");
        assert!(top.0.wait().unwrap().success(), "{what}");
        assert_eq!(modes(), before, "{what}");
    }
}
