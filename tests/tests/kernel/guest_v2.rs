//! cgroup v2, on a kernel of the suite's own choice: where writers die although v2 throttles each group, and where they
//! survive pinned at their limit.
//!
//! The cases at the end run inside a guest, one after another: the tests before them boot it, hand it this very
//! program, and have it run them.

use freeboard_tests::cgroup::measure;
use freeboard_tests::differential;
use freeboard_tests::guest::{Disk, Guest, Hierarchy, Kernel};
use freeboard_tests::lab::{self, Lab};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::env;
use std::time::Duration;

/// ext4 behind an NFS server.
const NFS_DISK: Disk = Disk { filesystem: "ext4", size_mib: 2048, write_bytes_per_second: 30 * MB };
const VFAT_DISK: Disk = Disk { filesystem: "vfat", size_mib: 1024, write_bytes_per_second: 10 * MB };
const XFS_DISK: Disk = Disk { filesystem: "xfs", size_mib: 2048, write_bytes_per_second: 50 * MB };
const FAST_VFAT_DISK: Disk = Disk { filesystem: "vfat", size_mib: 1024, write_bytes_per_second: 0 };
/// A filesystem that the library does not know by name.
const UDF_DISK: Disk = Disk { filesystem: "udf", size_mib: 1024, write_bytes_per_second: 20 * MB };

const SOURCE_BYTES: u64 = 300 * MIB;

/// Runs cases of [`in_guest`] in one guest.
fn boot(test: &str, kernel: Kernel, hierarchy: Hierarchy, cases: &[&str]) {
    let Some(lab) = Lab::for_guest(test) else { return };
    let program = env::current_exe().expect("no /proc/self/exe");
    let source = programs::random_file_on_disk(SOURCE_BYTES);
    let operations = programs::c_program(&lab, "differential");
    let script = format!(
        "#!/bin/sh\nexport FREEBOARD_BIN_DIR=/in FREEBOARD_REQUIRE_KERNEL_SUITE=1\n\
         mv {} source\nexec ./{} --ignored --nocapture --test-threads=1 --exact {}",
        source.file_name().expect("a file has a name").display(),
        program.file_name().expect("a program has a name").display(),
        cases.iter().map(|case| format!("guest_v2::in_guest::{case}")).collect::<Vec<_>>().join(" "),
    );
    let guest = Guest {
        kernel,
        hierarchy,
        // so much that no limit but the group's own matters, the NFS server's page cache included
        memory_mib: 6144,
        disks: vec![NFS_DISK, VFAT_DISK, XFS_DISK, UDF_DISK, FAST_VFAT_DISK],
        files: vec![program, freeboard::program(), freeboard::library(), source, operations],
        timeout: Duration::from_secs(240),
    };
    match guest.run(&lab, &script) {
        Err(error) => lab::skip(test, &format!("{error:#}")),
        Ok(outcome) => {
            // indented: a harness's own lines stand at the beginning of a line, and these are another's
            println!("{}", outcome.console.lines().map(|line| format!("    {line}\n")).collect::<String>());
            assert_eq!(outcome.exit_code, Some(0), "{test}: failed in the guest");
            // a case that is not there is no failure for the harness
            let all_passed = format!("test result: ok. {} passed", cases.len());
            assert!(outcome.console.contains(&all_passed), "{test}: not all cases ran");
        }
    }
}

#[test]
fn linux_6_1_cgroup_v1() {
    boot("Linux 6.1, cgroup v1", Kernel::V6_1, Hierarchy::V1, &["nfs_without_cachestat", "xfs", "udf"]);
}

#[test]
fn newest_linux_cgroup_v2() {
    boot("the newest Linux, cgroup v2", Kernel::Newest, Hierarchy::V2, &["xfs", "udf", "explain"]);
}

#[test]
fn operations() {
    boot(
        "random operations on NFS and vfat",
        Kernel::V6_12,
        Hierarchy::V2,
        &["operations_on_nfs", "operations_on_vfat"],
    );
}

#[test]
fn linux_6_12_cgroup_v2() {
    boot("Linux 6.12, cgroup v2", Kernel::V6_12, Hierarchy::V2, &["nfs", "vfat", "xfs", "udf"]);
}

mod in_guest {
    use super::*;
    use freeboard_tests::cgroup::{Group, Run};
    use freeboard_tests::lab::{path_str, run};
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Instant;

    const SOURCE: &str = "/in/source";
    /// Where `nfs-server` mounts its disk.
    const NFS_EXPORTED: &str = "/srv/nfs";
    const NFS_MOUNT: [&str; 5] = ["sh", "-c", include_str!("../../guest/nfs-server"), "nfs-server", "/dev/vdd"];

    /// A directory on a disk of the guest, and what runs there.
    struct Bench {
        lab: Lab,
        disk: PathBuf,
        output: PathBuf,
        limit_bytes: u64,
    }

    impl Bench {
        /// `mount` mounts the disk: a command, and the arguments before the mount point.
        fn new(test: &str, limit_bytes: u64, mount: &[&str]) -> Bench {
            assert!(Path::new("/in/init").exists(), "this case runs in a guest, which another test boots");
            let lab = Lab::for_guest(test).expect("a guest's tests are root's");
            let disk = lab.dir().join("disk");
            fs::create_dir(&disk).expect("cannot make the mount point");
            run(mount[0], &[&mount[1..], &[&path_str(&disk)]].concat());
            let output = disk.join("output");
            Bench { lab, disk, output, limit_bytes }
        }

        /// Runs a writer of `output` under the limit, and leaves the disk idle and empty for the next.
        fn run(&self, command: &mut Command) -> Run {
            self.run_in(self.limit_bytes, command)
        }

        /// The same for a command that brings its own limit.
        fn run_unlimited(&self, command: &mut Command) -> Run {
            self.run_in(u64::MAX, command)
        }

        fn run_in(&self, limit_bytes: u64, command: &mut Command) -> Run {
            let run = measure(&self.lab, limit_bytes, command);
            if run.status.success() {
                truth::assert_starts_with(Path::new(SOURCE), &self.output);
            }
            fs::remove_file(&self.output).expect("cannot remove the output");
            lab::run("sync", &["--file-system", &path_str(&self.disk)]);
            run
        }

        fn dd(&self, mib: u64, flags: &[&str]) -> Command {
            let mut command = Command::new("dd");
            command.arg(format!("if={SOURCE}")).arg(format!("of={}", self.output.display()));
            command.arg(format!("count={mib}")).args(["bs=1M", "conv=fsync"]).args(flags);
            command
        }

        fn convert(&self, cache: &str) -> Command {
            let mut command = Command::new("qemu-img");
            command.args(["convert", "-t", cache, "-f", "raw", "-O", "raw", SOURCE]).arg(&self.output);
            command
        }
    }

    /// Under `freeboard run --limit`, which makes a group of its own, below the one that is measured.
    fn limited(limit_bytes: u64, command: &Command) -> Command {
        let mut limited = Command::new(freeboard::program());
        limited.args(["run", "--quiet", "--limit", &limit_bytes.to_string(), "--"]);
        limited.arg(command.get_program()).args(command.get_args());
        limited
    }

    /// With input that comes 1 MiB at a time, 48 times, with pauses.
    fn trickled(command: &Command) -> Command {
        let mut trickled = Command::new("sh");
        let script = r#"for _ in $(seq 48); do head -c 1M /dev/zero; sleep 0.1; done | "$@""#;
        trickled.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
        trickled
    }

    #[test]
    #[ignore = "runs in a guest"]
    fn nfs() {
        nfs_as_fast_as_direct(|plain| plain.assert_oom_killed("plain"));
    }

    /// Where only the helper's commits tell what has arrived.
    #[test]
    #[ignore = "runs in a guest"]
    fn nfs_without_cachestat() {
        nfs_as_fast_as_direct(|plain| assert!(plain.figures.limit_hits > 0, "plain: never met the limit"));
    }

    fn nfs_as_fast_as_direct(assert_plain: impl FnOnce(&Run)) {
        let test = "dd of 300 MiB to NFS v4.2, 30 MB/s, limit 100 MB";
        let bench = Bench::new(test, 100 * MB, &NFS_MOUNT);
        hears_of_a_full_disk(&bench);

        let plain = bench.run(&mut bench.dd(300, &[]));
        table::print(test, &[("plain", &plain)]);
        assert_plain(&plain);

        // a busy host slows a guest down for seconds at a time: what the disk could have done shows in the best pair
        for attempt in 1.. {
            let direct = bench.run(&mut bench.dd(300, &["oflag=direct"]));
            let under = bench.run_unlimited(&mut limited(bench.limit_bytes, &bench.dd(300, &[])));
            table::print(test, &[("O_DIRECT", &direct), ("freeboard", &under)]);
            direct.assert_ok("O_DIRECT");
            under.assert_ok("freeboard");
            let cache_bytes = under.figures.peak_cache_bytes;
            assert!(cache_bytes <= 40 * MIB, "freeboard: peak cache {} MiB", cache_bytes / MIB);
            if under.wall <= direct.wall.mul_f64(1.0 / 0.9) {
                break;
            }
            assert!(attempt < 3, "freeboard: slower than 0.9 x O_DIRECT, {attempt} times");
        }
    }

    /// The disk runs full while a program waits for its input, with so small a window that each piece is committed
    /// before the next one comes. Neither write nor close reports an error that somebody else has fetched meanwhile.
    fn hears_of_a_full_disk(bench: &Bench) {
        let free = run("stat", &["--file-system", "--format=%f", NFS_EXPORTED]).parse::<u64>().expect("no number");
        let filler = format!("{NFS_EXPORTED}/filler");
        run("fallocate", &["-l", &(free * 4096 - 40 * MIB).to_string(), &filler]);
        let mut dd = Command::new("dd");
        dd.arg(format!("of={}", bench.output.display())).args(["bs=1M", "iflag=fullblock"]);
        let run = measure(&bench.lab, u64::MAX, &mut trickled(&limited(30 * MB, &dd)));
        let on_disk =
            fs::metadata(Path::new(NFS_EXPORTED).join("output")).expect("no output on the server").blocks() * 512;
        println!("full disk: {}, {} MiB of 48 are there\n{}", run.status, on_disk / MIB, run.output);
        assert!(on_disk < 48 * MIB, "the disk was not full");
        assert!(!run.status.success(), "nobody told dd that the disk was full");
        fs::remove_file(&bench.output).expect("cannot remove the output");
        // whoever asks next hears of the error too
        let _ = Command::new("sync").arg("--file-system").arg(&bench.disk).status();
        fs::remove_file(filler).expect("cannot remove the filler");
    }

    #[test]
    #[ignore = "runs in a guest"]
    fn vfat() {
        let test = "dd of 100 MiB to vfat, 10 MB/s, limit 50 MB";
        let bench = Bench::new(test, 50 * MB, &["mount", "/dev/vde"]);
        let plain = bench.run(&mut bench.dd(100, &[]));
        let limited = || limited(bench.limit_bytes, &bench.dd(100, &[]));
        let under = bench.run_unlimited(&mut limited());
        let disabled = bench.run_unlimited(limited().env("FREEBOARD_DISABLED", "1"));
        table::print(test, &[("plain", &plain), ("freeboard", &under), ("the same, disabled", &disabled)]);
        plain.assert_oom_killed("plain");
        disabled.assert_oom_killed("disabled");
        under.assert_ok("freeboard");
    }

    /// Random operations, as on the filesystems that the host can make.
    fn as_without_the_library(filesystem: &str, mount: &[&str], operations: usize) {
        let bench = Bench::new(filesystem, u64::MAX, mount);
        let program = Path::new("/in/differential-cc");
        let held_calls = differential::compare(&bench.lab, program, filesystem, &bench.disk, operations);
        assert!(held_calls.iter().sum::<f64>() > 0.0, "no call was held back");
    }

    #[test]
    #[ignore = "runs in a guest"]
    fn operations_on_nfs() {
        as_without_the_library("NFS v4.2", &NFS_MOUNT, 2000);
    }

    #[test]
    #[ignore = "runs in a guest"]
    fn operations_on_vfat() {
        as_without_the_library("vfat", &["mount", "/dev/vdh"], 6000);
    }

    #[test]
    #[ignore = "runs in a guest"]
    fn udf() {
        let test = "dd of 100 MiB to UDF, 20 MB/s, limit 50 MB";
        let bench = Bench::new(test, 50 * MB, &["mount", "-t", "udf", "/dev/vdg"]);
        let plain = bench.run(&mut bench.dd(100, &[]));
        let under = bench.run(&mut freeboard::under(&bench.dd(100, &[]), None));
        table::print(test, &[("plain", &plain), ("freeboard", &under)]);
        assert!(plain.figures.limit_hits > 0, "plain: never met the limit");
        under.assert_never_at_the_limit("freeboard");
    }

    #[test]
    #[ignore = "runs in a guest"]
    fn xfs() {
        let test = "qemu-img convert of 300 MiB to XFS, 50 MB/s, limit 100 MB";
        let bench = Bench::new(test, 100 * MB, &["mount", "/dev/vdf"]);
        let plain = bench.run(&mut bench.convert("writeback"));
        let direct = bench.run(&mut bench.convert("none"));
        let under = bench.run(&mut freeboard::under(&bench.convert("writeback"), None));
        table::print(test, &[("plain", &plain), ("-t none", &direct), ("freeboard", &under)]);
        assert!(plain.figures.limit_hits > 0, "plain: never met the limit");
        direct.assert_ok("-t none");
        under.assert_never_at_the_limit("freeboard");
    }

    /// What `freeboard explain` says of a process or a group, once it says that: the kernel's counts lag.
    fn explained(subject: &str, verdict: &str) -> String {
        let start = Instant::now();
        loop {
            let answer = run(&path_str(&freeboard::program()), &["explain", "--json", subject]);
            if answer.contains(&format!("\"verdict\": \"{verdict}\"")) && answer.contains("\"over-the-line\"") {
                return answer;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "not {verdict}:\n{answer}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[test]
    #[ignore = "runs in a guest"]
    fn explain() {
        let bench = Bench::new("freeboard explain", 64 * MIB, &["mount", "/dev/vdh"]);
        let group = Group::new(&bench.lab, bench.limit_bytes);
        let mut shell = Command::new("sh");
        // dd fills its buffer, and then waits for somebody to read it
        let heap = group.spawn(shell.args(["-c", "dd if=/dev/zero bs=56M count=1 | sleep 60"]));
        let answer = explained(&heap.pid().to_string(), "anonymous");
        let about = [
            format!("\"group\": \"{}\"", group.dir().display()),
            "\"cgroup_version\": 2".to_owned(),
            format!("\"limit_bytes\": {}", bench.limit_bytes),
            "\"limit_hits\": 0".to_owned(),
        ];
        let heaps = ["\"name\": \"dd\"", "\"can\": false"].map(str::to_owned);
        for words in about.iter().chain(&heaps) {
            assert!(answer.contains(words), "no {words} in\n{answer}");
        }
        heap.kill();

        let mut shell = Command::new("sh");
        let script = r#"head -c 56M /dev/zero >"$0" && sync "$0" && exec sleep 60 3<"$0""#;
        let cache = group.spawn(shell.args(["-c", script]).arg(&bench.output));
        let answer = explained(&path_str(group.dir()), "clean-cache");
        // how much of it is left is the kernel's affair
        let file = format!("\"path\": \"{}\"", bench.output.display());
        for words in about.iter().take(3).chain([&file]) {
            assert!(answer.contains(words), "no {words} in\n{answer}");
        }
        println!("explained: a heap, then a file's clean pages");
        cache.kill();
        drop(group);
        fs::remove_file(&bench.output).expect("cannot remove the output");
    }
}
