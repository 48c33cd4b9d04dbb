//! What `cargo xtask dist` builds: one library for every image, and a program that needs nothing of one. A library that
//! asks its libc for too much does not only fail: no program starts with it at all.

use freeboard_tests::cgroup::{Run, measure};
use freeboard_tests::docker::succeed;
use freeboard_tests::elf::Elf;
use freeboard_tests::lab::{Lab, path_str, run};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, pairs, programs, table, truth};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
const LIBRARY: &str = "libfreeboard.so";
const PROGRAM: &str = "freeboard";

const LIMIT: u64 = 60 * MB;
const DISK: u64 = 30 * MIB;
const DATA: u64 = 120 * MIB;

/// Debian's releases with glibc 2.31, 2.36 and 2.41, and where their libcs lie.
const SUITES: [&str; 3] = ["bullseye", "bookworm", "trixie"];
const GLIBC: &str = "usr/lib/x86_64-linux-gnu/libc.so.6";
const MUSL: &str = "usr/lib/x86_64-linux-musl/libc.so";

/// In a root, a program that copies.
const DD: &[&str] = &["/bin/dd", "bs=64k", "if=/source", "of=/data/copy"];
const COPY: &[&str] = &["/copy", "/source", "/data/copy"];

#[test]
fn they_ask_for_little_and_are_small() {
    for architecture in ARCHITECTURES {
        let (library, program) = (built(architecture, LIBRARY), built(architecture, PROGRAM));
        Elf::read(&library).assert_at_home_on_every_libc();
        let asks = Elf::read(&program);
        assert!(!asks.has_loader && asks.needed.is_empty(), "{architecture}: the program is not static");
        // what a static glibc loads at run time, and another root lacks
        let names = b"/etc/nsswitch.conf";
        let has_names = fs::read(&program).unwrap().windows(names.len()).any(|bytes| bytes == names);
        assert!(!has_names, "{architecture}: the program asks for names of users or hosts");
        for (file, at_most) in [(library, 256 << 10), (program, 4 * MIB)] {
            let bytes = fs::metadata(&file).unwrap().len();
            println!("{architecture}: {} has {} KiB", file.file_name().unwrap().display(), bytes >> 10);
            assert!(bytes <= at_most, "{} has {bytes} bytes", file.display());
        }
    }
}

#[test]
fn it_loads_and_paces_in_every_root() {
    let test = "one library for every root";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let library = Elf::read(&built("x86_64", LIBRARY));
    let root = |name: &str| Root::new(&lab, &disk, name);

    let mut rows = Vec::new();
    for suite in SUITES {
        let root = root(suite).with_debian(suite);
        root.assert_has_all_for(&library, GLIBC);
        root.assert_has_all_for(&library, MUSL);
        rows.push((format!("glibc of {suite}"), root.run(DD)));
        root.take(&programs::musl_program(&lab, "copy"), "copy");
        rows.push((format!("musl of {suite}"), root.run(COPY)));
    }

    let alpine = root("alpine");
    alpine.take(&lab.dir().join("trixie").join(MUSL), "lib/ld-musl-x86_64.so.1");
    alpine.take(&programs::musl_program(&lab, "copy"), "copy");
    rows.push(("musl alone, as on Alpine".into(), alpine.run(COPY)));

    let empty = root("empty");
    empty.take(&programs::static_program(&lab, "copy"), "copy");
    rows.push(("no libc, a static program".into(), empty.run(COPY)));

    let rows: Vec<_> = rows.iter().map(|(name, run)| (name.as_str(), run)).collect();
    table::print(test, &rows);
    for (name, run) in rows {
        run.assert_never_at_the_limit(name);
    }
}

/// Its libraries and programs as they are, on this machine's kernel. The emulator knows neither cachestat nor seccomp,
/// and does not wipe memory on fork.
#[test]
fn it_loads_and_paces_on_aarch64() {
    let test = "aarch64, emulated";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let library = built("aarch64", LIBRARY);
    let asks = Elf::read(&library).undefined;
    let glibc = Elf::read(&Path::new(programs::AARCH64_LIBRARIES).join("lib/libc.so.6")).exported;
    assert!(asks.is_subset(&glibc), "glibc lacks {:?}", asks.difference(&glibc));
    assert_eq!(asks, Elf::read(&built("x86_64", LIBRARY)).undefined, "asks for more than on x86-64");

    let written = disk.dir().join("written");
    let mut each_way = programs::emulated(&programs::aarch64_program(&lab, "each_way"));
    each_way.arg(&written).env("LD_PRELOAD", &library);
    succeed(&mut each_way).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(fs::metadata(&written).unwrap().len(), 7 * MIB);
    disk.settle();

    let (source, copy, report) = (programs::random_file(&lab, DATA), disk.dir().join("copy"), lab.dir().join("report"));
    let measured = |command: &Command, page_bytes: &str| {
        let mut freeboard = programs::emulated(&built("aarch64", PROGRAM));
        freeboard.args(["run", "--quiet", "--notify", "never", "--report"]).arg(&report).arg("--");
        freeboard.arg(command.get_program()).args(command.get_args()).env("QEMU_PAGESIZE", page_bytes);
        let run = measure(&lab, 2 * LIMIT, &mut freeboard);
        disk.settle();
        run.assert_ok("an emulated program");
        (run, freeboard::reported(&report, "written_bytes"))
    };
    let mut streams = programs::emulated(&programs::aarch64_program(&lab, "streams"));
    streams.arg(&written).arg(MIB.to_string());
    let mut copies = programs::emulated(&programs::aarch64_program(&lab, "copy"));
    copies.args([&source, &copy]);
    let mut rows = Vec::new();
    for (name, command, output) in [("stdio", &streams, &written), ("copy", &copies, &copy)] {
        let (run, seen) = measured(command, "4096");
        assert_eq!(seen, fs::metadata(output).unwrap().len() as f64, "{name}");
        rows.push((name, run));
    }
    let (_, seen) = measured(&streams, "65536");
    assert_eq!(seen, 0.0, "it counts pages of 4 KiB where they have 64");
    truth::assert_same(&copy, &source);
    let rows: Vec<_> = rows.iter().map(|(name, run)| (*name, run)).collect();
    table::print(test, &rows);
    for (name, run) in rows {
        run.assert_never_at_the_limit(name);
    }
}

#[test]
fn a_process_starts_almost_as_fast() {
    let Some(lab) = Lab::alone("start of a process") else { return };
    let program = programs::c_program(&lab, "hot_path");
    let nanoseconds = pairs::measure(21, |is_under| {
        let mut command = Command::new(&program);
        command.args(["start", "100", "/bin/true"]);
        if is_under {
            command.env("LD_PRELOAD", built("x86_64", LIBRARY));
        }
        succeed(&mut command).unwrap().parse().expect("a time is a number")
    });
    println!("start of a process: {:.0} µs plain, {:.0} under", nanoseconds.plain / 1e3, nanoseconds.under / 1e3);
    let [_, ratio, _] = nanoseconds.ratio;
    assert!(ratio >= 1.0 / 1.4, "a process takes {:.2} times as long to start", 1.0 / ratio);
}

/// A root file system with the program and the library, `/source`, and what a container has: /proc, its memory cgroup,
/// /dev/null, a volume. All of it goes with the lab.
struct Root<'lab> {
    lab: &'lab Lab,
    disk: &'lab SlowDisk<'lab>,
    dir: PathBuf,
    source: PathBuf,
}

impl<'lab> Root<'lab> {
    fn new(lab: &'lab Lab, disk: &'lab SlowDisk<'lab>, name: &str) -> Root<'lab> {
        let root = Root { lab, disk, dir: lab.dir().join(name), source: programs::random_file(lab, DATA) };
        let groups = "sys/fs/cgroup/memory";
        for dir in ["data", "dev", "lib", "proc", "tmp", groups] {
            fs::create_dir_all(root.dir.join(dir)).expect("cannot make a directory");
        }
        let at = |place: &str| path_str(&root.dir.join(place));
        run("mknod", &[&at("dev/null"), "c", "1", "3"]);
        run("mount", &["-t", "proc", "proc", &at("proc")]);
        run("mount", &["--bind", &format!("/{groups}"), &at(groups)]);
        run("mount", &["--bind", &path_str(disk.dir()), &at("data")]);
        for file in [PROGRAM, LIBRARY] {
            root.take(&built("x86_64", file), file);
        }
        fs::hard_link(&root.source, root.dir.join("source")).expect("cannot link the source");
        root
    }

    /// With coreutils, glibc and musl of a release.
    fn with_debian(self, suite: &str) -> Root<'lab> {
        let archive = programs::data_dir().join(format!("{suite}.tar"));
        if !archive.exists() {
            let unfinished = archive.with_extension("unfinished.tar");
            let mut fetch = Command::new("mmdebstrap");
            fetch.args(["--quiet", "--mode=root", "--variant=extract", "--include=libc6,coreutils,musl"]);
            fetch.arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr").arg(suite).arg(&unfinished);
            succeed(&mut fetch).unwrap_or_else(|error| panic!("cannot fetch the libcs of {suite}: {error:#}"));
            fs::rename(unfinished, &archive).expect("cannot rename the archive");
        }
        fs::remove_dir(self.dir.join("lib")).expect("cannot remove a directory");
        run("tar", &["-x", "--exclude=./dev/*", "-f", &path_str(&archive), "-C", &path_str(&self.dir)]);
        self
    }

    fn take(&self, file: &Path, place: &str) {
        fs::copy(file, self.dir.join(place)).unwrap_or_else(|error| panic!("cannot copy {}: {error}", file.display()));
    }

    fn assert_has_all_for(&self, library: &Elf, libc: &str) {
        let libc = self.dir.join(libc);
        let exported = Elf::read(&libc).exported;
        let missing: Vec<_> = library.undefined.difference(&exported).collect();
        assert!(missing.is_empty(), "{} lacks {missing:?}", libc.display());
    }

    /// In this root, under the limit and on the slow disk, `freeboard run -- command`, which copies.
    fn run(&self, command: &[&str]) -> Run {
        let report = self.dir.join("report");
        let mut freeboard = Command::new("chroot");
        freeboard.arg(&self.dir).args(["/freeboard", "run", "--quiet", "--report", "/report", "--"]).args(command);
        let run = measure(self.lab, LIMIT, &mut freeboard);
        self.disk.settle();
        assert!(run.status.success(), "{}: {}: {}", self.dir.display(), run.status, run.output);
        assert_eq!(freeboard::reported(&report, "written_bytes"), DATA as f64, "{}", self.dir.display());
        let copy = self.disk.dir().join("copy");
        truth::assert_same(&copy, &self.source);
        fs::remove_file(copy).expect("cannot remove the copy");
        run
    }
}

fn built(architecture: &str, name: &str) -> PathBuf {
    let path = freeboard::target_dir().join("dist").join(architecture).join(name);
    assert!(path.exists(), "{} is missing: build it with `cargo xtask dist`", path.display());
    path
}
