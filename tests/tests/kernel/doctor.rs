//! `freeboard doctor` of real programs. What it says of the library is compared with what the kernel shows of a program
//! that was started with it.

use freeboard_tests::lab::{Lab, path_str, run};
use freeboard_tests::{freeboard, programs, sys};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the doctor printed, and its exit code.
struct Answer {
    text: String,
    errors: String,
    code: Option<i32>,
}

impl Answer {
    fn of(doctor: &mut Command) -> Answer {
        let output = doctor.output().expect("cannot start freeboard");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Answer { text: text(&output.stdout), errors: text(&output.stderr), code: output.status.code() }
    }

    /// # Panics
    /// Unless the text has a line that holds all these words in this order.
    #[track_caller]
    fn says(&self, words: &[&str]) {
        let holds = |line: &str| {
            let mut rest = Some(line);
            words.iter().all(|word| {
                rest = rest.and_then(|rest| rest.split_once(word)).map(|(_, rest)| rest);
                rest.is_some()
            })
        };
        assert!(self.text.lines().any(holds), "no line with {words:?}:\n{}{}", self.text, self.errors);
    }

    #[track_caller]
    fn ends_with(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{}{}", self.text, self.errors);
    }
}

fn doctor(words: &[&str]) -> Command {
    let mut command = Command::new(freeboard::program());
    command.arg("doctor").args(words);
    for variable in ["FREEBOARD_REGION", "FREEBOARD_SOCKET", "FREEBOARD_DEEP", "FREEBOARD_DISABLED"] {
        command.env_remove(variable);
    }
    command
}

fn of_command(words: &[&str]) -> Answer {
    Answer::of(doctor(&["--"]).args(words))
}

fn of_process(pid: u32) -> Answer {
    Answer::of(&mut doctor(&[&pid.to_string()]))
}

/// A process that waits for its standard input to end.
struct Waits(Child);

impl Waits {
    /// Starts it, and waits until it maps a file whose path ends so.
    fn start(command: &mut Command, mapped: &str) -> Waits {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cannot start a program");
        let waits = Waits(child);
        let start = Instant::now();
        while !waits.maps(mapped) {
            assert!(start.elapsed() < Duration::from_secs(10), "it does not map {mapped}");
            std::thread::sleep(Duration::from_millis(2));
        }
        waits
    }

    /// The kernel's word.
    fn maps(&self, file: &str) -> bool {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.0.id())).unwrap_or_default();
        maps.lines().any(|line| line.ends_with(file))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let _ = sys::kill(self.0.id(), libc::SIGKILL);
        let _ = self.0.wait();
    }
}

#[test]
fn commands_of_every_kind() {
    let test = "doctor, commands";
    let Some(lab) = Lab::with_own_disks(test) else { return };
    let glibc = run("getconf", &["GNU_LIBC_VERSION"]);

    let sort = of_command(&["sort"]);
    for line in [&["libc", &glibc][..], &["linkage", "dynamic"], &["write calls", "hooked"], &["stdio", "FILE tables"]]
    {
        sort.says(line);
    }
    sort.ends_with(0);
    let shallow = Answer::of(doctor(&["--", "sort"]).env("FREEBOARD_DEEP", "0"));
    shallow.says(&["stdio", "UNSEEN", "FREEBOARD_DEEP=0"]);
    shallow.ends_with(1);
    let off = Answer::of(doctor(&["--", "sort"]).env("FREEBOARD_DISABLED", "1"));
    off.says(&["in the way", "FREEBOARD_DISABLED"]);
    off.ends_with(1);

    let busybox = of_command(&["busybox", "dd"]);
    busybox.says(&["linkage", "static"]);
    busybox.says(&["library", "none"]);
    busybox.says(&["writes", "write calls", "notified", "4096 bytes"]);
    busybox.says(&["smaller write calls", "UNSEEN"]);
    busybox.ends_with(1);
    let source = programs::programs_dir().join("copy.c");
    let pie = lab.dir().join("pie");
    run("cc", &["-static-pie", "-o", &path_str(&pie), &path_str(&source)]);
    of_command(&[&path_str(&pie)]).says(&["linkage", "static-pie"]);

    let musl = of_command(&[&path_str(&programs::musl_program(&lab, "left"))]);
    musl.says(&["libc", "musl"]);
    musl.says(&["write calls", "hooked"]);
    musl.says(&["stdio", "UNSEEN"]);
    musl.ends_with(1);

    let go = of_command(&[&path_str(&programs::go_program(&lab, "copy"))]);
    go.says(&["libc", "none"]);
    go.says(&["runtime", "Go"]);
    go.says(&["write calls", "notified"]);
    let cgo = of_command(&[&path_str(&programs::cgo_program(&lab, "cgo"))]);
    cgo.says(&["runtime", "Go with cgo"]);
    cgo.says(&["Go's own calls", "notified"]);
    cgo.says(&["write calls", "hooked"]);

    let python = run("python3", &["-c", "import sys; print(sys.executable)"]);
    for (command, runtime) in [("java", "Java"), ("node", "Node"), ("perl", "Perl"), (python.as_str(), "Python")] {
        of_command(&[command]).says(&["runtime", runtime]);
    }
    let freeboard = of_command(&[&path_str(&freeboard::program())]);
    freeboard.says(&["runtime", "Rust"]);
    let qemu = of_command(&["qemu-img", "convert"]);
    qemu.says(&["AIO", "hooked", "io_submit"]);
    qemu.says(&["io_uring", "hooked"]);

    let script = lab.dir().join("script");
    let inner = lab.dir().join("inner");
    fs::write(&inner, "#!/usr/bin/env -S busybox sh\n").expect("cannot write");
    fs::write(&script, format!("#! {} -x\n", inner.display())).expect("cannot write");
    let answer = of_command(&[&path_str(&script)]);
    answer.says(&["program", &format!("{} -> {} -> ", script.display(), inner.display()), "busybox"]);
    answer.says(&["write calls", "notified"]);

    let json = Answer::of(&mut doctor(&["--json", "--", "sort"]));
    for line in [r#""linkage": "dynamic""#, r#""seen": "hooked""#, r#""seen": "streams""#, r#""all_seen": true"#] {
        json.says(&[line]);
    }
    json.ends_with(0);
}

#[test]
fn what_stands_in_the_way() {
    let test = "doctor, obstacles";
    let Some(lab) = Lab::with_own_disks(test) else { return };
    // where no mount forbids it, unlike perhaps where temporary files are
    let cat = lab.dir().join("cat");
    fs::copy("/bin/cat", &cat).expect("cannot copy cat");
    chown(&cat, Some(65534), None).expect("cannot give a file away");
    fs::set_permissions(&cat, fs::Permissions::from_mode(0o4755)).expect("cannot make a file setuid");

    let [program, cat] = [freeboard::program(), cat].map(|path| path_str(&path));
    // as it is, and where the kernel does not give the program its owner's rights
    let paced = |prefix: &[&str]| {
        let words = [prefix, &[&program, "doctor", "--", &cat]].concat();
        let said = Answer::of(Command::new(words[0]).args(&words[1..]));
        let words = [prefix, &[cat.as_str()]].concat();
        let started = Waits::start(
            Command::new("env").arg(format!("LD_PRELOAD={}", freeboard::library().display())).args(words),
            &cat,
        );
        let start = Instant::now();
        while !started.maps("libc.so.6") && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(2));
        }
        (said, started.maps("libfreeboard.so"), of_process(started.0.id()))
    };
    let (said, is_loaded, of_it) = paced(&[]);
    assert!(!is_loaded, "the loader loaded it into a setuid program");
    said.says(&["in the way", "setuid", "mend: "]);
    said.ends_with(1);
    of_it.says(&["in the way", "setuid", "mend: "]);
    of_it.ends_with(1);
    let (said, is_loaded, of_it) = paced(&["setpriv", "--no-new-privs"]);
    assert!(is_loaded, "a program that gets no rights is not loaded with it");
    said.ends_with(0);
    of_it.says(&["library", "loaded"]);
    of_it.ends_with(0);

    let filter = path_str(&programs::c_program(&lab, "filtered"));
    let filtered = |call: libc::c_long, command: &[&str]| {
        Answer::of(Command::new(&filter).arg(call.to_string()).args([&program, "doctor", "--"]).args(command))
    };
    let flushing = filtered(libc::SYS_sync_file_range, &["sort"]);
    flushing.says(&["in the way", "kills for sync_file_range", "mend: "]);
    flushing.ends_with(1);
    let looking = filtered(451, &["sort"]);
    looking.says(&["in the way", "cachestat"]);
    looking.ends_with(0);
    let telling = filtered(libc::SYS_seccomp, &["busybox"]);
    telling.says(&["in the way", "does not tell of writes", "mend: "]);
    telling.ends_with(1);

    for (words, named) in [
        (&["--", "/no/such/program"][..], "/no/such/program"),
        (&["--", "/etc/passwd"], "/etc/passwd"),
        (&["4194305"], "4194305"),
    ] {
        let answer = Answer::of(&mut doctor(words));
        answer.ends_with(2);
        assert!(answer.errors.contains(named) && answer.errors.contains("mend: "), "{}", answer.errors);
    }
    Answer::of(&mut doctor(&[])).ends_with(2);
}

#[test]
fn processes_that_run() {
    let test = "doctor, processes";
    let Some(lab) = Lab::with_own_disks(test) else { return };
    let library = format!("LD_PRELOAD={}", freeboard::library().display());

    let plain = Waits::start(&mut Command::new("cat"), "libc.so.6");
    let answer = of_process(plain.0.id());
    answer.says(&["in the way", "is not loaded", "was started without it", "mend: "]);
    answer.ends_with(1);

    // a mapped file on a disk, and one in memory, which is none of our business
    let (disk, memory) = (Path::new(env!("CARGO_TARGET_TMPDIR")).join("mapped"), lab.dir().join("mapped"));
    for file in [&disk, &memory] {
        fs::write(file, [b'x'; 4096]).expect("cannot write");
    }
    let script = "import mmap, sys
files = [open(path, 'r+b') for path in sys.argv[1:]]
maps = [mmap.mmap(file.fileno(), 0) for file in files]
sys.stdin.read()";
    let python = run("python3", &["-c", "import sys; print(sys.executable)"]);
    let mut command = Command::new("env");
    command.args([&library, &python, "-c", script]).args([&memory, &disk]);
    let mapping = Waits::start(&mut command, &path_str(&disk));
    let answer = of_process(mapping.0.id());
    answer.says(&["library", "libfreeboard.so, loaded"]);
    answer.says(&["region", "none"]);
    answer.says(&["runtime", "Python"]);
    answer.says(&["mapped files", "swept"]);
    drop(mapping);
    let _ = fs::remove_file(disk);

    // a ring of its own, by libc's syscall() alone, and one beside liburing; the mapping says that it is there
    let script = "import ctypes, sys
for name in sys.argv[1:]:
    ctypes.CDLL(name)
parameters = ctypes.create_string_buffer(120)
ring = ctypes.CDLL(None).syscall(425, 1, parameters)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap(None, 4096, 1, 1, ring, 0)
sys.stdin.read()";
    for (liburing, seen) in [(&[][..], "swept"), (&["liburing.so.2"], "hooked")] {
        let mut command = Command::new("env");
        command.args([&library, &python, "-c", script]).args(liburing);
        let ring = Waits::start(&mut command, "anon_inode:[io_uring]");
        of_process(ring.0.id()).says(&["io_uring", seen]);
    }

    // with a sidecar, and when it has gone
    let sidecar = freeboard::Sidecar::start(&lab);
    let mut command = Command::new("cat");
    sidecar.serves(&mut command);
    let served = Waits::start(&mut command, "libfreeboard.so");
    let answer = of_process(served.0.id());
    answer.says(&["region", "a sidecar keeps it"]);
    answer.ends_with(0);
    sidecar.kill();
    let answer = of_process(served.0.id());
    answer.says(&["in the way", "heartbeat stands still", "mend: "]);
    answer.ends_with(0);

    // told of by the kernel
    let mut launcher = Command::new(freeboard::program());
    launcher.args(["run", "--quiet", "--", "busybox", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut launcher = launcher.spawn().expect("cannot start freeboard");
    let children = format!("/proc/{0}/task/{0}/children", launcher.id());
    let start = Instant::now();
    let answer = loop {
        let children = fs::read_to_string(&children).unwrap_or_default();
        let is_busybox =
            |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("busybox"));
        if let Some(pid) = children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_busybox) {
            break of_process(pid);
        }
        assert!(start.elapsed() < Duration::from_secs(10), "busybox does not start");
        std::thread::sleep(Duration::from_millis(2));
    };
    drop(launcher.stdin.take());
    launcher.wait().expect("cannot wait for freeboard");
    answer.says(&["writes", "write calls", "notified"]);
}
