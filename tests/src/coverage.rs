//! Programs of every kind, each of which writes about as many bytes as it is told to XFS on a slow disk, and which of
//! these bytes are seen: by hooks, by the kernel's notifications, or not at all.

use crate::cgroup::{Run, measure};
use crate::lab::{Lab, path_str, run};
use crate::slow_disk::{Filesystem, SlowDisk};
use crate::written::{Count, Written};
use crate::{MB, MIB, freeboard, programs, truth};
use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the disk writes in a second.
pub const DISK: u64 = 30 * MIB;
/// The memory limit where the program itself needs little.
pub const LIMIT: u64 = 100 * MB;
/// A user other than root: PostgreSQL wants one.
const NOBODY: &str = "65534";
/// Files for git.
const TREE_FILES: u64 = 64;

/// A program to run.
pub struct Row {
    /// What it is called in the table.
    pub name: &'static str,
    /// The command; its output lies below [`Bench::output`].
    command: Command,
    limit_bytes: u64,
    /// Makes what the command needs, at full speed, uncounted; the output's directory is there.
    prepare: Option<Prepare>,
    by_nobody: bool,
    kind: Kind,
}

type Prepare = Box<dyn Fn(&Bench)>;

/// How the program's bytes get to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// By calls, which the kernel counts.
    Calls,
    /// By a ring of the kernel's, which counts each try: those that it put off, twice. It is what was asked for.
    Queued,
    /// By memory that it shares with the file: all of it, once.
    Mapped,
    /// Past the page cache.
    Direct,
}

impl Row {
    /// By what way its bytes are written.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn limited(mut self, limit_bytes: u64) -> Row {
        self.limit_bytes = limit_bytes;
        self
    }

    fn after(mut self, prepare: impl Fn(&Bench) + 'static) -> Row {
        self.prepare = Some(Box::new(prepare));
        self
    }

    fn of_kind(mut self, kind: Kind) -> Row {
        self.kind = kind;
        self
    }

    fn by_nobody(mut self) -> Row {
        self.by_nobody = true;
        self
    }
}

/// What became of a row. Bytes.
#[derive(Debug)]
pub struct Outcome {
    /// By the kernel's count.
    pub written: u64,
    /// Seen by functions in the place of libc's, stdio's tables included.
    pub hooked: u64,
    /// Told of by the kernel.
    pub notified: u64,
    /// Found in the page cache, and in no account of a call.
    pub swept: u64,
    /// On the slow disk, under the library.
    pub under: Run,
}

impl Outcome {
    /// All that was seen when it was written.
    pub fn seen(&self) -> u64 {
        self.hooked + self.notified
    }
}

/// A disk with what the programs read, and a place for what they write.
pub struct Bench<'lab> {
    lab: &'lab Lab,
    disk: SlowDisk<'lab>,
    bytes: u64,
    /// Random bytes, on the disk, so that copy_file_range has two files of one filesystem.
    source: PathBuf,
    /// About as many in lines.
    text: PathBuf,
    /// About as many in 64 files.
    tree: PathBuf,
    output: PathBuf,
    cluster: OnceCell<Cluster>,
}

impl<'lab> Bench<'lab> {
    /// `bytes`: what each program is to write.
    pub fn new(lab: &'lab Lab, bytes: u64) -> Bench<'lab> {
        let disk = SlowDisk::new(lab, Filesystem::XfsWithoutReflinks, DISK);
        let [source, text, tree, output] = ["source", "text", "tree", "output"].map(|name| disk.dir().join(name));
        disk.full_speed();
        fs::copy(programs::random_file_on_disk(bytes), &source).expect("cannot copy the source");
        let lines = r#"base64 --wrap=76 "$0" | head --bytes="$1" >"$2""#;
        run("sh", &["-c", lines, &path_str(&source), &bytes.to_string(), &path_str(&text)]);
        fs::create_dir(&tree).expect("cannot make a directory");
        let each = (bytes / TREE_FILES).to_string();
        run("split", &["--bytes", &each, &path_str(&source), &path_str(&tree.join("file-"))]);
        disk.settle();
        for dir in [lab.dir(), disk.dir()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("cannot open a directory to all");
        }
        // what other users may not read in the build's directory
        for file in [freeboard::program(), freeboard::library()] {
            fs::copy(&file, lab.dir().join(file.file_name().expect("a file has a name")))
                .expect("cannot copy a program");
        }
        Bench { lab, disk, bytes, source, text, tree, output, cluster: OnceCell::new() }
    }

    /// All programs.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = self.copies();
        rows.extend(self.writers());
        rows.extend(self.runtimes());
        rows.extend(self.databases());
        rows.extend(self.without_libc());
        rows
    }

    fn file(&self) -> String {
        path_str(&self.output.join("file"))
    }

    fn row(&self, name: &'static str, words: &[&str]) -> Row {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Row { name, command, limit_bytes: LIMIT, prepare: None, by_nobody: false, kind: Kind::Calls }
    }

    /// A script with the source, the text and the output file as `$0`, `$1` and `$2`.
    fn script(&self, name: &'static str, script: &str) -> Row {
        self.row(name, &["sh", "-c", script, &path_str(&self.source), &path_str(&self.text), &self.file()])
    }

    fn copies(&self) -> Vec<Row> {
        let (from, to) = (path_str(&self.source), self.file());
        let bench = |name, flags: &[&str]| {
            let count = (self.bytes >> 16).to_string();
            let words = ["qemu-img", "bench", "-w", "-q", "-f", "raw", "-s", "65536", "-d", "8", "-c", &count];
            let row = self.row(name, &[&words, flags, &[&to]].concat());
            row.after(|bench| {
                let size = bench.bytes.to_string();
                run("qemu-img", &["create", "-q", "-f", "raw", &bench.file(), &size]);
            })
        };
        let dir = path_str(self.disk.dir());
        vec![
            self.row("qemu-img convert, raw", &["qemu-img", "convert", "-f", "raw", "-O", "raw", &from, &to]),
            self.row("qemu-img convert, qcow2", &["qemu-img", "convert", "-f", "raw", "-O", "qcow2", &from, &to]),
            bench("qemu-img bench, io_uring", &["-t", "writeback", "-i", "io_uring"]).of_kind(Kind::Queued),
            bench("qemu-img bench, native AIO", &["-t", "none", "-i", "native"]).of_kind(Kind::Direct),
            self.script("dd", r#"exec dd if="$0" of="$2" bs=64K status=none"#),
            self.row("cp, copy_file_range", &["cp", &from, &to]),
            self.row("cp, read and write", &["cp", "--reflink=never", &from, &to]),
            self.row("tar", &["tar", "--create", "--file", &to, "--directory", &dir, "source"]),
            self.row("rsync", &["rsync", "--whole-file", &from, &to]),
        ]
    }

    fn writers(&self) -> Vec<Row> {
        let (to, bytes) = (self.file(), self.bytes.to_string());
        let streams = path_str(&programs::c_program(self.lab, "streams"));
        let perl = r#"open my $file, ">", $ARGV[0] or die; my $line = "x" x 999 . "\n";
            print $file $line for 1 .. $ARGV[1] / 1000; close $file or die"#;
        let bash = r#"printf -v block '%999s'; for ((n = 0; n < $1 / 1000; n++)); do echo "$block"; done >"$0""#;
        vec![
            self.script("gzip", r#"exec gzip -1 --stdout "$0" >"$2""#),
            self.script("sort", r#"exec sort --buffer-size=16M --temporary-directory="${2%/*}" --output="$2" "$1""#),
            self.script("sed", r#"exec sed s/a/b/ "$1" >"$2""#),
            self.script("awk", r#"exec awk '{ print }' "$1" >"$2""#),
            self.row("bash", &["bash", "-c", bash, &to, &bytes]),
            self.row("C stdio", &[&streams, &to, &bytes]),
            self.row("perl", &["perl", "-e", perl, &to, &bytes]),
        ]
    }

    fn runtimes(&self) -> Vec<Row> {
        const RUNTIME: u64 = 120 * MB;
        let (from, to) = (path_str(&self.source), self.file());
        let python = run("python3", &["-c", "import sys; print(sys.executable)"]);
        let python = |name, code: &str| self.row(name, &[&python, "-c", code, &from, &to]);
        let classes = path_str(&programs::java_classes(self.lab, "Copy"));
        let java = |name, way| {
            let words = [
                "java",
                "-XX:-UsePerfData",
                "-Xmx16m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-cp",
                &classes,
                "Copy",
                way,
            ];
            self.row(name, &[&words[..], &[&from, &to]].concat()).limited(RUNTIME)
        };
        let node = |name, code: &str| self.row(name, &["node", "-e", code, &from, &to]).limited(RUNTIME);
        let rust = path_str(&programs::rust_program(self.lab, "copy"));
        vec![
            python(
                "python, write",
                "import sys, shutil; a, b = sys.argv[1:]; shutil.copyfileobj(open(a, 'rb'), open(b, 'wb'))",
            ),
            python("python, shutil", "import shutil, sys; shutil.copyfile(*sys.argv[1:])"),
            python(
                "python, mmap",
                "import mmap, os, sys; a, b = sys.argv[1:]; a = open(a, 'rb'); b = open(b, 'w+b'); \
                 size = os.fstat(a.fileno()).st_size; b.truncate(size); m = mmap.mmap(b.fileno(), size)\n\
                 while part := a.read(1 << 20): m.write(part)\n\
                 m.flush()",
            )
            .of_kind(Kind::Mapped),
            java("java, streams", "streams"),
            java("java, FileChannel", "channel"),
            java("java, Files.copy", "files"),
            java("java, transferTo", "transfer"),
            java("java, map", "map").of_kind(Kind::Mapped),
            node(
                "node, streams",
                "const [, from, to] = process.argv, fs = require('fs');
                 fs.createReadStream(from).pipe(fs.createWriteStream(to))",
            ),
            node("node, copyFile", "require('fs').copyFileSync(...process.argv.slice(1))"),
            self.row("Rust, fs::copy", &[&rust, "copy", &from, &to]),
            self.row("Rust, BufWriter", &[&rust, "writes", &from, &to]),
        ]
    }

    fn databases(&self) -> Vec<Row> {
        const POSTGRES: u64 = 200 * MB;
        let (to, megabytes) = (self.file(), self.bytes / MB);
        let sql = format!(
            "CREATE TABLE t (b); WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {}) \
             INSERT INTO t SELECT randomblob(10000) FROM c;",
            self.bytes / 10_000
        );
        let mut rows = vec![self.row("sqlite", &["sqlite3", &to, &sql])];

        let bin = postgres_dir();
        let tool = |name: &str| path_str(&bin.join(name));
        // a scale is 15 MB of tables, and as much log
        let scale = (megabytes / 40).max(1).to_string();
        let initdb = self.row("postgres, initdb", &[&tool("initdb"), "--auth=trust", "--pgdata", &to]);
        let pgbench = r#"PATH=$0:$PATH
            pg_ctl -D "$1" -l "$1/log" -o "-c unix_socket_directories=$2 -c listen_addresses= -c shared_buffers=16MB" -w start &&
            pgbench -h "$2" -i -q -s "$3" postgres && pgbench -h "$2" -n -c 4 -t 100 postgres
            end=$?; pg_ctl -D "$1" -m fast -w stop && exit $end"#;
        let pgbench = self
            .row("postgres, pgbench", &["sh", "-c", pgbench, &path_str(&bin), &to, &path_str(self.lab.dir()), &scale]);
        rows.push(initdb.limited(POSTGRES).by_nobody());
        rows.push(pgbench.limited(POSTGRES).by_nobody().after(|bench| init_cluster(Path::new(&bench.file()))));
        for (name, format) in
            [("pg_dump -Fp", &["-Fp"][..]), ("pg_dump -Fc", &["-Fc", "-Z0"]), ("pg_dump -Fd", &["-Fd", "-Z0"])]
        {
            let (program, socket) = (tool("pg_dump"), path_str(self.lab.dir()));
            let words = [&[program.as_str(), "-h", &socket, "-f", &to][..], format, &["postgres"]].concat();
            rows.push(self.row(name, &words).by_nobody().after(|bench| bench.start_cluster()));
        }

        let (tree, git_dir) = (path_str(&self.tree), format!("--git-dir={to}"));
        let init = |bench: &Bench| drop(run("git", &["init", "--quiet", "--bare", &bench.file()]));
        let git = [
            "git",
            "-c",
            "core.bare=false",
            "-c",
            "core.compression=0",
            "-c",
            "gc.auto=0",
            &git_dir,
            "--work-tree",
            &tree,
        ];
        rows.push(self.row("git add", &[&git[..], &["add", "."]].concat()).after(init));
        rows
    }

    fn without_libc(&self) -> Vec<Row> {
        let (from, to) = (path_str(&self.source), self.file());
        let go = path_str(&programs::go_program(self.lab, "copy"));
        let cgo = path_str(&programs::cgo_program(self.lab, "cgo"));
        let dd = [format!("if={from}"), format!("of={to}")];
        vec![
            self.row("Go, writes", &[&go, "writes", &from, &to]),
            self.row("Go, io.Copy", &[&go, "kernel", &from, &to]),
            self.row("cgo, Go's writes", &[&cgo, "writes", &from, &to]),
            self.row("cgo, io.Copy", &[&cgo, "kernel", &from, &to]),
            self.row("cgo, libc's write", &[&cgo, "libc", &from, &to]),
            self.row("busybox dd", &["busybox", "dd", "bs=64k", &dd[0], &dd[1]]),
            self.row("busybox cp", &["busybox", "cp", &from, &to]),
        ]
    }

    /// A cluster in memory, outside of any group of ours, for [`Row`]s that read one.
    fn start_cluster(&self) {
        self.cluster.get_or_init(|| Cluster::start(self.lab.dir(), (self.bytes / MB / 10).max(1)));
    }

    /// Runs a row under the library.
    pub fn outcome(&self, row: &Row) -> Outcome {
        let warm = self.set_out(row);
        let report = self.lab.dir().join("report.json");
        let _ = fs::remove_file(&report);
        let mut command = self.told(row, freeboard::counting(&row.command, &report));
        let count = Count::start(self.lab, self.disk.device());
        let under = measure(self.lab, row.limit_bytes, &mut command);
        let Written { buffered, direct } = count.finish();
        let written = match row.kind {
            Kind::Calls => buffered,
            Kind::Queued => self.bytes,
            Kind::Mapped => fs::metadata(self.file()).map_or(0, |file| file.len()),
            Kind::Direct => direct,
        };
        drop(warm);
        self.clear();
        // a launcher that was killed leaves none
        let reported = |name| freeboard::reported_if_there(&report, name).map_or(0, |bytes| bytes as u64);
        let [seen, notified, swept] = ["written_bytes", "notified_bytes", "swept_bytes"].map(reported);
        Outcome { written, hooked: seen - notified, notified, swept, under }
    }

    /// Runs a row plainly, on the same disk without its write limit.
    pub fn plain(&self, row: &Row) -> Run {
        let warm = self.set_out(row);
        self.disk.full_speed();
        let mut again = Command::new(row.command.get_program());
        again.args(row.command.get_args());
        let plain = measure(self.lab, row.limit_bytes, &mut self.told(row, again));
        drop(warm);
        self.clear();
        plain
    }

    /// Makes the output's directory and what the row needs, on an idle disk, with the sources cached by nobody of the
    /// row's.
    fn set_out(&self, row: &Row) -> Vec<impl Drop> {
        self.disk.full_speed();
        fs::create_dir(&self.output).expect("cannot make the output directory");
        fs::set_permissions(&self.output, fs::Permissions::from_mode(0o777)).expect("cannot open a directory to all");
        if let Some(prepare) = &row.prepare {
            prepare(self);
        }
        self.disk.settle();
        let tree = fs::read_dir(&self.tree).expect("cannot list the tree").flatten().map(|file| file.path());
        tree.chain([self.source.clone(), self.text.clone()]).map(|file| truth::keep_warm(&file)).collect()
    }

    fn clear(&self) {
        self.disk.settle();
        self.disk.full_speed();
        fs::remove_dir_all(&self.output).expect("cannot remove the output");
        self.disk.slow_down();
    }

    /// The command as the row's user runs it.
    fn told(&self, row: &Row, command: Command) -> Command {
        if !row.by_nobody {
            return command;
        }
        let mut told = as_nobody(self.lab.dir());
        if command.get_program() == freeboard::program() {
            told.arg(self.lab.dir().join("freeboard"));
        } else {
            told.arg(command.get_program());
        }
        told.args(command.get_args());
        told
    }
}

/// `setpriv … env …`, to be followed by a command.
fn as_nobody(dir: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={NOBODY}"))
        .arg(format!("--regid={NOBODY}"))
        .args(["--clear-groups", "--inh-caps=-all"]);
    command.arg("env").arg(format!("TMPDIR={}", dir.display()));
    command
}

/// Where Debian keeps PostgreSQL's programs.
fn postgres_dir() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let bins = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists());
    bins.max().expect("PostgreSQL is not installed; `cargo xtask deps` installs it")
}

fn init_cluster(dir: &Path) {
    let mut initdb = as_nobody(Path::new("/tmp"));
    initdb.arg(postgres_dir().join("initdb")).args(["--auth=trust", "--no-sync", "--pgdata"]).arg(dir);
    succeed(&mut initdb);
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// A server with tables of pgbench's.
struct Cluster {
    dir: PathBuf,
}

impl Cluster {
    /// `scale`: in units of 10 MB of what pg_dump says of them.
    fn start(scratch: &Path, scale: u64) -> Cluster {
        let dir = scratch.join("cluster");
        init_cluster(&dir);
        let cluster = Cluster { dir };
        let settings = format!("-c unix_socket_directories={} -c listen_addresses= -c fsync=off", scratch.display());
        succeed(cluster.control().args(["-o", &settings, "-w", "start"]));
        let mut pgbench = as_nobody(scratch);
        pgbench.arg(postgres_dir().join("pgbench")).arg("-h").arg(scratch).args(["-i", "-q", "-s", &scale.to_string()]);
        succeed(pgbench.arg("postgres"));
        cluster
    }

    fn control(&self) -> Command {
        let mut control = as_nobody(&self.dir);
        control.arg(postgres_dir().join("pg_ctl")).arg("-D").arg(&self.dir).arg("-l").arg(self.dir.join("log"));
        control
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.control().args(["-m", "immediate", "-w", "stop"]).output();
    }
}
