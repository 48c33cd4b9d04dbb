//! Writes that are no calls of libc's write family: submitted to queues (io_uring, AIO), stored to mappings, and made
//! by Go where nobody tells of its calls. 250 MiB to XFS on a disk of 30 MiB/s in a memory cgroup of 100 MB (120 MB for
//! qemu-img, which takes 17 for itself).

use freeboard_tests::cgroup::{Group, Run, measure};
use freeboard_tests::lab::{Lab, path_str, run};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const DISK: u64 = 30 * MIB;
const DATA: u64 = 250 * MIB;

/// A slow disk, a source in memory, and where the report goes.
struct Bench<'lab> {
    lab: &'lab Lab,
    disk: SlowDisk<'lab>,
    source: PathBuf,
    copy: PathBuf,
    report: PathBuf,
}

impl<'lab> Bench<'lab> {
    fn new(lab: &'lab Lab) -> Bench<'lab> {
        Bench::on(lab, Filesystem::Xfs)
    }

    fn on(lab: &'lab Lab, filesystem: Filesystem) -> Bench<'lab> {
        let disk = SlowDisk::new(lab, filesystem, DISK);
        let [source, report] = [programs::random_file(lab, DATA), lab.dir().join("report.json")];
        Bench { lab, copy: disk.dir().join("copy"), disk, source, report }
    }

    /// Runs a command plainly and under the library alone, onto a file that is not there yet.
    fn both(&self, test: &str, limit: u64, command: &Command, prepare: impl Fn(&Path)) -> [Run; 2] {
        let runs = [false, true].map(|under| {
            let _ = fs::remove_file(&self.copy);
            prepare(&self.copy);
            let mut command = if under { self.under(command) } else { again(command) };
            let run = measure(self.lab, limit, &mut command);
            self.disk.settle();
            run
        });
        let under = format!("{test}, freeboard");
        table::print(test, &[(test, &runs[0]), (&under, &runs[1])]);
        let [confirmed, written, swept] = ["confirmed_bytes", "written_bytes", "swept_bytes"].map(|n| self.reported(n));
        assert!(confirmed <= written + swept, "{test}: {confirmed} of {written} + {swept} bytes have arrived");
        runs
    }

    fn under(&self, command: &Command) -> Command {
        let mut under = Command::new(freeboard::program());
        under.args(["run", "--quiet", "--notify", "never", "--report"]).arg(&self.report).arg("--");
        under.arg(command.get_program()).args(command.get_args());
        under
    }

    /// A program that copies the source into a mapping.
    fn maps(&self, rate: &[&str]) -> Command {
        let mut command = Command::new("python3");
        command.arg(programs::programs_dir().join("mapping.py")).args([&self.source, &self.copy]).args(rate);
        command
    }

    fn reported(&self, name: &str) -> u64 {
        freeboard::reported(&self.report, name) as u64
    }
}

fn again(command: &Command) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    again
}

/// qemu-img submits by liburing.
#[test]
fn io_uring_is_paced() {
    let test = "qemu-img, io_uring";
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::new(&lab);
    let image = |file: &Path, more: &str| format!("driver=raw,file.driver=file,file.filename={}{more}", path_str(file));
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-n", "-T", "none", "-t", "writeback", "--image-opts"]).arg(image(&bench.source, ""));
    command.arg("--target-image-opts").arg(image(&bench.copy, ",file.aio=io_uring"));
    let size = |copy: &Path| File::create(copy).and_then(|file| file.set_len(DATA)).expect("cannot make the target");
    let [plain, under] = bench.both(test, 120 * MB, &command, size);
    assert!(plain.figures.limit_hits > 0, "the plain run was never at the limit: this shows nothing");
    under.assert_never_at_the_limit(test);
    truth::assert_same(&bench.copy, &bench.source);
    assert_eq!(bench.reported("written_bytes"), DATA);
}

/// 48 MiB at once, where the window has 30, to a file that has its size from the beginning. ext4 makes such writes
/// after the submission.
#[test]
fn a_submission_larger_than_the_window_is_paced() {
    let test = "io_uring, submissions of 48 MiB";
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::on(&lab, Filesystem::Ext4);
    let mut command = Command::new(programs::uring_program(&lab, "submissions"));
    command.arg(&bench.copy).args(["48", "5"]);
    let [plain, under] = bench.both(test, 150 * MB, &command, |_| ());
    assert!(plain.figures.limit_hits > 0, "the plain run was never at the limit: this shows nothing");
    under.assert_never_at_the_limit(test);
    assert_eq!(bench.reported("written_bytes"), 240 * MIB);
}

/// fio submits by libaio, which goes through `syscall()`.
#[test]
fn aio_is_paced() {
    let test = "fio, libaio";
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::new(&lab);
    let mut command = Command::new("fio");
    command.args(["--name=writer", "--rw=write", "--bs=256k", "--size=250M", "--ioengine=libaio", "--iodepth=16"]);
    command.args(["--fallocate=none", "--verify=crc32c", "--do_verify=0"]);
    command.arg(format!("--filename={}", path_str(&bench.copy)));
    command.arg(format!("--aux-path={}", path_str(lab.dir())));
    let [plain, under] = bench.both(test, 100 * MB, &command, |_| ());
    assert!(plain.figures.limit_hits > 0, "the plain run was never at the limit: this shows nothing");
    under.assert_never_at_the_limit(test);
    // all that was written is there: fio reads its own checksums
    let mut verify: Vec<_> = command.get_args().map(|word| word.to_str().expect("not UTF-8")).collect();
    verify.extend(["--verify_only=1", "--verify_fatal=1"]);
    run("fio", &verify);
    assert_eq!(bench.reported("written_bytes"), DATA);
}

/// A program that stores less than the disk can take: the kernel leaves all of it dirty until the limit is met, or for
/// half a minute. It is found, sent and accounted for, by a thread that is there as long as the mapping.
#[test]
fn mappings_are_swept() {
    let test = "python, mmap, 20 MiB/s";
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::new(&lab);
    let [plain, under] = bench.both(test, 100 * MB, &bench.maps(&["20"]), |_| ());
    assert!(plain.figures.limit_hits > 0, "the plain run was never at the limit: this shows nothing");
    under.assert_ok(test);
    truth::assert_same(&bench.copy, &bench.source);
    assert_eq!(plain.output.trim(), "threads 1 1 1");
    assert_eq!(under.output.trim(), "threads 1 2 1", "threads before, while and after there was a mapping");
    let (swept, unseen) = (bench.reported("swept_bytes"), bench.reported("unseen_bytes"));
    println!("{test}: {} MiB swept, {} MiB unseen", swept / MIB, unseen / MIB);
    // once the limit is met, by clean pages, the kernel wakes its own flusher again and again
    assert!(swept > 32 * MIB, "{swept} bytes were swept");
    let allowed = DISK.max(10 * MB);
    assert!(plain.figures.peak_unwritten_bytes > 2 * allowed, "the plain run owed the disk little: this shows nothing");
    let unwritten = under.figures.peak_unwritten_bytes;
    assert!(unwritten <= allowed, "unwritten {unwritten} is over what is allowed, {allowed}");
}

/// Stores cannot be held back: what is stored as fast as memory takes it meets the limit, where the kernel waits for
/// the disk.
#[test]
fn mappings_that_fill_at_once_survive() {
    let test = "python, mmap";
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::new(&lab);
    let [plain, under] = bench.both(test, 100 * MB, &bench.maps(&[]), |_| ());
    assert!(plain.figures.limit_hits > 0, "the plain run was never at the limit: this shows nothing");
    under.assert_ok(test);
    truth::assert_same(&bench.copy, &bench.source);
}

/// Stores under circumstances in which they are harder to find. No memory is short: what is swept is on the disk at the
/// end, and what is not is dirty as long as the kernel pleases; for which nobody else may be short of memory either.
#[test]
fn mappings_are_swept_wherever_they_are() {
    let test = "stores to mappings";
    let Some(lab) = Lab::alone(test) else { return };
    let bench = Bench::new(&lab);
    let program = programs::c_program(&lab, "swept");
    let unwritten = |case: &str, under: bool| -> u64 {
        let is_late = case == "limited_later";
        let group = Group::new(&lab, if is_late { 1 << 60 } else { 400 * MB });
        let file = |end: &str| PathBuf::from(format!("{}.{case}-{under}{end}", path_str(&bench.copy)));
        let mut command = Command::new(&program);
        command.arg(case).arg(file(""));
        let mut command = if under { bench.under(&command) } else { command };
        let mut running = group.spawn(&mut command);
        if is_late {
            while !file(".ready").exists() && !running.ended() {
                std::thread::sleep(Duration::from_millis(10));
            }
            group.set_limit(400 * MB);
            File::create(file(".go")).expect("cannot make a file");
        }
        let run = running.wait();
        run.assert_ok(case);
        bench.disk.settle();
        run.output.trim().parse().unwrap_or_else(|_| panic!("{case} printed {}", run.output))
    };
    let plain = unwritten("usual", false);
    assert!(plain > 48, "{plain} MiB were unwritten plainly: this shows nothing");
    for case in ["usual", "gives_up_rights", "unshares", "main_ends", "many_mappings", "limited_later"] {
        let under = unwritten(case, true);
        println!("{test}, {case}: of 64 MiB {under} are unwritten after 4 s, {plain} plainly");
        assert!(under < 16, "{case}: {under} MiB were unwritten");
    }
}

/// Nor can Go's own calls be, where the kernel does not tell of them.
#[test]
fn go_is_swept_where_nobody_tells_of_its_calls() {
    let test = "Go with cgo, swept";
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::new(&lab);
    let mut command = Command::new(programs::cgo_program(&lab, "cgo"));
    command.arg("writes").args([&bench.source, &bench.copy]);
    // as much as it writes: whether it would be killed is not the question
    let [_, under] = bench.both(test, 400 * MB, &command, |_| ());
    under.assert_never_at_the_limit(test);
    truth::assert_same(&bench.copy, &bench.source);
    let swept = bench.reported("swept_bytes");
    println!("{test}: {} MiB swept", swept / MIB);
    assert!(swept > 64 * MIB, "{swept} bytes were swept");
}

#[test]
fn a_process_that_needs_no_help_has_no_thread_more() {
    let test = "no thread without a reason";
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::new(&lab);
    // a small mapping, one of no file, one that is private and one that is only read are none
    let script = "import mmap, os, sys, time
out = open(sys.argv[1], 'w+b')
out.write(bytes(4 << 20))
out.flush()
maps = [mmap.mmap(out.fileno(), 1 << 16), mmap.mmap(-1, 4 << 20),
        mmap.mmap(out.fileno(), 4 << 20, flags=mmap.MAP_PRIVATE), mmap.mmap(out.fileno(), 4 << 20, prot=mmap.PROT_READ)]
time.sleep(0.1)
print(len(os.listdir('/proc/self/task')))";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(&bench.copy);
    let under = measure(&lab, 100 * MB, &mut bench.under(&command));
    under.assert_never_at_the_limit(test);
    assert_eq!(under.output.trim(), "1", "threads");
}

/// Mappings that are a reason only by what becomes of them.
#[test]
fn small_mappings_that_add_up_are_swept() {
    let test = "a thread for what is mapped bit by bit";
    let Some(lab) = Lab::shared(test) else { return };
    let bench = Bench::new(&lab);
    let begin = "import ctypes, mmap, os, sys, time
out = open(sys.argv[1], 'w+b')
out.truncate(4 << 20)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def threads():
    time.sleep(0.1)
    print(len(os.listdir('/proc/self/task')))
";
    let cases = [
        ("windows", "for n in range(16): mmap.mmap(out.fileno(), 1 << 16).close()\nthreads()"),
        ("mremap", "grows = mmap.mmap(out.fileno(), 1 << 16)\ngrows.resize(4 << 20)\nthreads()"),
        ("mprotect", "at = libc.mmap(None, 4 << 20, 1, 1, out.fileno(), 0)\nlibc.mprotect(at, 4 << 20, 3)\nthreads()"),
    ];
    for (case, script) in cases {
        let mut command = Command::new("python3");
        command.arg("-c").arg(format!("{begin}{script}")).arg(&bench.copy);
        let under = measure(&lab, 100 * MB, &mut bench.under(&command));
        under.assert_ok(case);
        assert_eq!(under.output.trim(), "2", "{case}: threads");
    }
}
