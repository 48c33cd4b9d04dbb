//! `freeboard sidecar` for real: its socket, its region, its end.

mod support;

use freeboard_budget::Mode;
use freeboard_budget::layout::{CONTAINER_LIVE, Container, Header, Kind, budget_layout};
use freeboard_budget::protocol::{MAGIC, STATUS_FULL, STATUS_NOT_A_CGROUP, STATUS_OK, STATUS_VERSION};
use rustix::fd::AsFd;
use rustix::fs::{CWD, FileType, SealFlags, fcntl_get_seals, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, Read};
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};
use support::hostile::{Numbers, cases, contents};
use support::*;

const MIB: u64 = 1 << 20;

fn signal(sidecar: &Sidecar, signal: Signal) {
    kill_process(Pid::from_child(&sidecar.process), signal).unwrap();
}

/// A field of a container's row in a budget file or memfd.
fn field(budget: &File, row: u32, offset: usize) -> u64 {
    let table = budget_layout().table(Kind::Containers).unwrap();
    let mut bytes = [0u8; 8];
    budget.read_exact_at(&mut bytes, u64::from(table.offset + row * table.stride) + offset as u64).unwrap();
    u64::from_ne_bytes(bytes)
}

#[test]
fn the_region_is_there_and_the_heart_beats_ten_times_a_second() {
    let sidecar = Sidecar::start(&[]);
    let mode = |name: &str| std::fs::metadata(sidecar.dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("budget"), mode("counters"), mode("socket")), (0o444, 0o666, 0o666));
    let (tick, start) = (sidecar.tick(), Instant::now());
    std::thread::sleep(Duration::from_secs(1));
    let (beats, elapsed) = ((sidecar.tick() - tick) as f64, start.elapsed().as_secs_f64());
    assert!((beats / elapsed - 10.0).abs() < 2.0, "{beats} beats in {elapsed} s");
}

#[test]
fn the_heart_beats_on_after_a_crowd_of_newcomers() {
    let sidecar = Sidecar::start(&[]);
    for _ in 0..500 {
        greet(&sidecar.socket(), &own_group()).unwrap();
    }
    for _ in 0..5 {
        let tick = sidecar.tick();
        std::thread::sleep(Duration::from_secs(1));
        assert!(sidecar.tick() >= tick + 5, "{} beats in a second", sidecar.tick() - tick);
    }
}

#[test]
fn a_hello_gets_sealed_memory_with_the_groups_numbers() {
    let sidecar = Sidecar::start(&[]);
    let (status, row, descriptors) = greet(&sidecar.socket(), &own_group()).unwrap();
    assert_eq!((status, descriptors.len()), (STATUS_OK, 2));
    let [budget, counters] = <[_; 2]>::try_from(descriptors).unwrap().map(File::from);

    let size = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    assert!(fcntl_get_seals(&budget).unwrap().contains(size | SealFlags::FUTURE_WRITE));
    assert!(fcntl_get_seals(&counters).unwrap().contains(size));
    assert_eq!(budget.write_at(&[0], 0).unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert!(counters.set_len(0).is_err());
    counters.write_at(&[0], 4096).unwrap();

    assert_eq!(field(&budget, row, offset_of!(Container, cgroup_id)), std::fs::metadata(own_group()).unwrap().ino());
    assert_ne!(field(&budget, row, offset_of!(Container, word)) & CONTAINER_LIVE, 0);
    assert_ne!(field(&budget, row, offset_of!(Container, usage_bytes)), 0);
    assert_eq!(field(&budget, 0, offset_of!(Container, word)), 0, "row 0 has no group");

    let (_, again, _) = greet(&sidecar.socket(), &own_group()).unwrap();
    assert_eq!(again, row, "one group, one row");
}

#[test]
fn limits_that_change_and_groups_that_go_are_noticed() {
    if !can_make_cgroups("limits_that_change_and_groups_that_go_are_noticed") {
        return;
    }
    let sidecar = Sidecar::start(&[]);
    let group = CgroupDir::make("resize").unwrap();
    group.limit(64 * MIB);
    let (status, row, mut descriptors) = greet(&sidecar.socket(), &group.0).unwrap();
    assert_eq!(status, STATUS_OK);
    let budget = File::from(descriptors.remove(0));
    assert_eq!(field(&budget, row, offset_of!(Container, limit_bytes)), 64 * MIB);
    assert_eq!(field(&budget, row, offset_of!(Container, word)) >> 16, 64 * MIB / 10 / 4096);

    group.limit(128 * MIB);
    eventually("the new limit", || field(&budget, row, offset_of!(Container, limit_bytes)) == 128 * MIB);
    drop(group);
    eventually("the row is free", || field(&budget, row, offset_of!(Container, cgroup_id)) == 0);
    assert_eq!(field(&budget, row, offset_of!(Container, word)), 0);
}

#[test]
fn when_all_rows_are_taken_it_says_so_until_a_group_goes() {
    if !can_make_cgroups("when_all_rows_are_taken_it_says_so_until_a_group_goes") {
        return;
    }
    let sidecar = Sidecar::start(&[]);
    let parent = CgroupDir::make("full").unwrap();
    let mut groups: Vec<CgroupDir> = (0..64).map(|number| CgroupDir(parent.0.join(number.to_string()))).collect();
    for group in &groups {
        std::fs::create_dir(&group.0).unwrap();
    }
    // row 0 is nobody's
    let mut rows: Vec<u32> = groups[..63].iter().map(|group| greet(&sidecar.socket(), &group.0).unwrap().1).collect();
    rows.sort_unstable();
    assert_eq!(rows, (1..64).collect::<Vec<_>>());
    let last = groups.pop().unwrap();
    let (status, _, descriptors) = greet(&sidecar.socket(), &last.0).unwrap();
    assert_eq!((status, descriptors.len()), (STATUS_FULL, 0));
    let tick = sidecar.tick();
    eventually("the heart beats", || sidecar.tick() > tick + 1);
    groups.pop();
    eventually("there is room again", || greet(&sidecar.socket(), &last.0).unwrap().0 == STATUS_OK);
    drop((groups, last));
}

#[test]
fn the_limit_of_an_ancestor_rules_where_it_is_smaller() {
    if !can_make_cgroups("the_limit_of_an_ancestor_rules_where_it_is_smaller") {
        return;
    }
    let sidecar = Sidecar::start(&[]);
    let pod = CgroupDir::make("pod").unwrap();
    pod.limit(32 * MIB);
    let container = CgroupDir(pod.0.join("container"));
    std::fs::create_dir(&container.0).unwrap();
    container.limit(64 * MIB);
    let (_, row, mut descriptors) = greet(&sidecar.socket(), &container.0).unwrap();
    let budget = File::from(descriptors.remove(0));
    assert_eq!(field(&budget, row, offset_of!(Container, limit_bytes)), 32 * MIB);
    drop(container);
}

#[test]
fn hostile_clients_get_nothing_and_cost_nothing() {
    let sidecar = Sidecar::start(&[]);
    greet(&sidecar.socket(), &own_group()).unwrap();
    // the connection is closed just after its answer
    std::thread::sleep(Duration::from_millis(200));
    let before = sidecar.descriptors();
    let file = File::open("/proc/self/status").unwrap();
    let plain = File::open("/tmp").unwrap();
    let group = File::open(own_group()).unwrap();
    let dial = || dial(&sidecar.socket()).unwrap();

    for bytes in [&b"x"[..], &[0u8; 16], &[0xffu8; 4096], &hello()[..15], &[hello(), vec![0]].concat()] {
        let socket = dial();
        send(&socket, bytes, &[group.as_fd()]);
        assert!(receive(&socket).is_none(), "{} bytes", bytes.len());
    }
    let answers: [(u16, &[_], u32); 7] = [
        (99, &[group.as_fd()], STATUS_VERSION),
        (1, &[], STATUS_NOT_A_CGROUP),
        (1, &[file.as_fd()], STATUS_NOT_A_CGROUP),
        (1, &[plain.as_fd()], STATUS_NOT_A_CGROUP),
        (1, &[group.as_fd(), group.as_fd()], STATUS_NOT_A_CGROUP),
        (1, &[group.as_fd(); 4], STATUS_NOT_A_CGROUP),
        (1, &[group.as_fd(); 16], STATUS_NOT_A_CGROUP),
    ];
    for (major, descriptors, want) in answers {
        let socket = dial();
        send(&socket, &hello_of(MAGIC, major), descriptors);
        let (status, _, got) = receive(&socket).unwrap();
        assert_eq!((status, got.len()), (want, 0), "{} descriptors", descriptors.len());
    }
    // more than are served at a time, and none says a word: an honest one is served within their deadline
    let silent: Vec<_> = (0..100).map(|_| dial()).collect();
    let start = Instant::now();
    assert_eq!(greet(&sidecar.socket(), &own_group()).unwrap().0, STATUS_OK);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    // they do not have to go for their places to be free
    eventually("the silent are dropped", || sidecar.descriptors() <= before);
    drop(silent);
    let tick = sidecar.tick();
    eventually("the heart beats", || sidecar.tick() > tick);
}

#[test]
fn whatever_a_client_counts() {
    let mut sidecar = Sidecar::start(&[]);
    let (status, _, mut descriptors) = greet(&sidecar.socket(), &own_group()).unwrap();
    assert_eq!((status, descriptors.len()), (STATUS_OK, 2));
    let counters = descriptors.pop().unwrap();
    let whole = contents(&counters);
    let counters = File::from(counters);
    for case in 0..cases() {
        let mut bytes = whole.clone();
        Numbers::of_case(case).damage(&mut bytes);
        counters.write_all_at(&bytes, 0).unwrap();
        // so many looks, at least: it looks every 10 ms while somebody writes, and every 100 while nobody does
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(sidecar.process.try_wait().unwrap().is_none(), "it ended");
    let tick = sidecar.tick();
    eventually("the heart beats", || sidecar.tick() > tick + 2);
    assert_eq!(greet(&sidecar.socket(), &own_group()).unwrap().0, STATUS_OK);
}

#[test]
fn clients_come_and_go() {
    let sidecar = Sidecar::start(&[]);
    greet(&sidecar.socket(), &own_group()).unwrap();
    // the connection is closed just after its answer
    std::thread::sleep(Duration::from_millis(200));
    let before = sidecar.descriptors();
    for _ in 0..4 {
        std::thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| assert_eq!(greet(&sidecar.socket(), &own_group()).unwrap().0, STATUS_OK));
            }
        });
    }
    eventually("as many descriptors as before", || sidecar.descriptors() == before);
}

#[test]
fn truncating_the_regions_files_hurts_nobody() {
    let mut sidecar = Sidecar::start(&[]);
    let path = |name: &str| sidecar.dir.path().join(name);
    std::fs::set_permissions(path("budget"), PermissionsExt::from_mode(0o666)).unwrap();
    for name in ["budget", "counters"] {
        File::options().write(true).open(path(name)).unwrap().set_len(0).unwrap();
    }
    let reader =
        || std::fs::read(path("budget")).unwrap().get(offset_of!(Header, tick)..).is_some_and(|at| !at.is_empty());
    eventually("the budget is written again", reader);
    let tick = sidecar.tick();
    eventually("the heart beats", || sidecar.tick() > tick + 2);
    assert!(sidecar.process.try_wait().unwrap().is_none());
}

#[test]
fn it_ends_when_told_and_leaves_the_region() {
    for number in [Signal::TERM, Signal::INT] {
        let mut sidecar = Sidecar::start(&[]);
        signal(&sidecar, number);
        assert!(sidecar.process.wait().unwrap().success());
        assert!(!sidecar.socket().exists());
        let tick = sidecar.tick();
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(sidecar.tick(), tick, "the heartbeat stands still");
    }
}

#[test]
fn the_workload_file_is_read_again_and_a_bad_one_changes_nothing() {
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("workload.toml");
    let next = config.path().join("next");
    // in one step: a file that is found empty is a valid one
    let put = |text: &str| {
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, &file).unwrap();
    };
    put("");
    let mut sidecar = Sidecar::start(&["--config", file.to_str().unwrap()]);
    let mut said = std::io::BufReader::new(sidecar.process.stderr.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line
    };
    let is_in_force = |mode: Mode| {
        let budget = std::fs::read(sidecar.dir.path().join("budget")).unwrap();
        budget[budget_layout().table(Kind::Policy).unwrap().offset as usize] == mode as u8
    };
    assert!(is_in_force(Mode::Auto));

    put("[writes]\nmode = \"off\"\n");
    assert_eq!(line(), format!("freeboard: {}: read again, and in force\n", file.display()));
    eventually("the region says so", || is_in_force(Mode::Off));

    put("[writes]\nmode = \"of\"\n");
    let refused = line();
    assert!(refused.contains("workload.toml:2:8") && refused.contains("mend: "), "{refused}");
    assert!(line().ends_with("what was in force stays\n"));
    assert!(is_in_force(Mode::Off));

    std::fs::remove_file(&file).unwrap();
    assert!(line().contains("workload.toml"));
    assert!(line().ends_with("what was in force stays\n"));

    mknodat(CWD, &file, FileType::Fifo, 0o644.into(), 0).unwrap();
    assert!(line().contains("not an ordinary file"));
    assert!(line().ends_with("what was in force stays\n"));

    put("[writes]\nmode = \"always\"\n");
    assert!(line().ends_with("in force\n"));
    signal(&sidecar, Signal::HUP);
    assert!(line().ends_with("in force\n"), "it reads again when told, changed or not");
    eventually("the region says so", || is_in_force(Mode::Always));
    let tick = sidecar.tick();
    eventually("the heart beats", || sidecar.tick() > tick + 1);
}

#[test]
fn without_a_workload_file_there_is_none_to_read_again() {
    let mut sidecar = Sidecar::start(&[]);
    signal(&sidecar, Signal::HUP);
    let mut said = String::new();
    std::io::BufReader::new(sidecar.process.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("start it with --config"), "{said}");
    let tick = sidecar.tick();
    eventually("the heart beats", || sidecar.tick() > tick + 1);
}

#[test]
fn the_socket_of_a_dead_sidecar_is_replaced_and_that_of_a_live_one_is_not() {
    let mut sidecar = Sidecar::start(&[]);
    let second = Sidecar::spawn(sidecar.dir.path(), &[]).wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(stderr(&second).contains("another sidecar answers there"), "{}", stderr(&second));
    assert_eq!(greet(&sidecar.socket(), &own_group()).unwrap().0, STATUS_OK, "the first still serves");

    sidecar.process.kill().unwrap();
    sidecar.process.wait().unwrap();
    assert!(sidecar.socket().exists(), "killed, it could not tidy up");
    let before = std::fs::metadata(sidecar.dir.path().join("budget")).unwrap().ino();
    sidecar.process = Sidecar::spawn(sidecar.dir.path(), &[]);
    let sidecar = sidecar.listening();
    assert_eq!(greet(&sidecar.socket(), &own_group()).unwrap().0, STATUS_OK);
    let after = std::fs::metadata(sidecar.dir.path().join("budget")).unwrap().ino();
    assert_ne!(before, after, "nothing is laid out anew in place");
    let left: Vec<_> = std::fs::read_dir(sidecar.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_probe_hears_whether_it_listens() {
    let mut sidecar = Sidecar::start(&[]);
    let ready = |socket: &Path| freeboard(["ready", socket.to_str().unwrap()]).output().unwrap();
    let (there, tick) = (ready(&sidecar.socket()), sidecar.tick());
    assert!(there.status.success() && there.stdout.is_empty() && there.stderr.is_empty(), "{}", stderr(&there));
    eventually("the heart beats", || sidecar.tick() > tick + 2);
    sidecar.process.kill().unwrap();
    sidecar.process.wait().unwrap();
    for gone in [sidecar.socket(), sidecar.dir.path().join("none")] {
        let not_there = ready(&gone);
        let want = format!("no sidecar listens at {}: ", gone.display());
        assert_eq!(not_there.status.code(), Some(2));
        assert!(
            stderr(&not_there).contains(&want) && stderr(&not_there).contains("; mend: "),
            "{}",
            stderr(&not_there)
        );
    }
}

#[test]
fn what_cannot_work_is_said_with_its_mend() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("file"), "").unwrap();
    std::fs::write(path("bad.toml"), "[memory]\ntargt = \"80%\"\n").unwrap();
    let region = dir.path().to_str().unwrap().to_owned();
    let long = path(&"x".repeat(120));
    let cases: [(&[&str], &str); 6] = [
        (&["--region", &region, "--socket", &path("file")], "something else lies there"),
        (&["--region", &region, "--socket", &long], "too long for a socket"),
        (&["--region", &region, "--socket", &path("no/such/socket")], "no/such: there is no such directory; mend: "),
        (&["--region", &path("none"), "--socket", &path("s1")], "none: there is no such directory; mend: make it"),
        (&["--region", &region, "--socket", &path("s2"), "--config", &path("bad.toml")], "bad.toml:2:1"),
        (
            &["--region", &region, "--socket", &path("s3"), "--install-lib", &path("none")],
            "none: there is no such directory; mend: make it",
        ),
    ];
    for (arguments, want) in cases {
        let output = freeboard(["sidecar"]).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(want), "{arguments:?}: {}", stderr(&output));
    }
    for name in ["s1", "s2", "s3"] {
        assert!(!Path::new(&path(name)).exists(), "{name} is left");
    }
    assert_eq!(std::fs::read(path("file")).unwrap(), b"");
}

#[test]
fn the_library_is_installed_by_rename() {
    let lib = tempfile::tempdir().unwrap();
    let installed = lib.path().join("libfreeboard.so");
    let start = || drop(Sidecar::start(&["--install-lib", lib.path().to_str().unwrap()]));
    start();
    let first = std::fs::metadata(&installed).unwrap();
    assert_eq!(first.permissions().mode() & 0o7777, 0o755);
    assert_eq!(std::fs::read(&installed).unwrap(), std::fs::read(library()).unwrap());
    let mut mapped = File::open(&installed).unwrap();
    start();
    assert_ne!(std::fs::metadata(&installed).unwrap().ino(), first.ino());
    let mut old = Vec::new();
    mapped.read_to_end(&mut old).unwrap();
    assert_eq!(old, std::fs::read(library()).unwrap(), "whoever has the old file keeps it whole");
    assert_eq!(std::fs::read_dir(lib.path()).unwrap().count(), 1);
}

#[test]
fn check_says_what_holds_or_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("workload.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        freeboard(["check", file.to_str().unwrap()]).output().unwrap()
    };
    let good = check("[memory]\ntarget = \"60%\"\n");
    assert!(good.status.success() && good.stderr.is_empty());
    let text = stdout(&good);
    assert!(text.starts_with(&format!("{}: ok\n", file.display())), "{text}");
    assert!(text.contains("target = \"60%\"") && text.contains("max_stall = \"10s\""), "{text}");
    let bad = check("[memory]\ntarget = \"600%\"\n");
    assert_eq!((bad.status.code(), bad.stdout.len()), (Some(2), 0));
    assert!(stderr(&bad).contains("workload.toml:2:10"), "{}", stderr(&bad));
    let none = freeboard(["check", "/no/such/file"]).output().unwrap();
    assert_eq!((none.status.code(), none.status.signal()), (Some(2), None));
    assert!(stderr(&none).contains("/no/such/file"));
}
