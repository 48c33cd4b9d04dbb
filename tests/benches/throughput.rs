//! What the library costs programs that need no help: on a fast disk without pressure, and where the same bytes are
//! written again and again.

use freeboard_tests::cgroup::Group;
use freeboard_tests::freeboard::Sidecar;
use freeboard_tests::lab::{Lab, run};
use freeboard_tests::pairs::{self, Pairs};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, programs};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

/// Plain wall time over wall time under the library.
const AT_LEAST: f64 = 0.98;

const SQLITE: &str = "
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute('PRAGMA synchronous = FULL')
database.execute('CREATE TABLE readings (n INTEGER PRIMARY KEY, value TEXT)')
for n in range(1000):
    os.read(0, 1)
    database.execute('INSERT INTO readings VALUES (?, ?)', (n, 'x' * 200))
";

struct Bench<'lab> {
    /// Where the plain program runs, and where the other does: what one has unwritten is no pressure on the other.
    groups: [Group<'lab>; 2],
    sidecar: Sidecar,
}

impl<'lab> Bench<'lab> {
    fn new(lab: &'lab Lab, limit_bytes: u64) -> Bench<'lab> {
        Bench { groups: [0, 1].map(|_| Group::new(lab, limit_bytes)), sidecar: Sidecar::start(lab) }
    }

    /// Runs what `command` makes, in so many pairs, with an empty directory to write to and an idle disk. One run of a
    /// short case takes up to a tenth more or less than the next, so it is run often. In step, as below, two programs
    /// that sync would wait for one another's.
    fn ratio(&self, name: &str, pairs: usize, disk: &SlowDisk, command: impl Fn(&Path) -> Command) {
        if !is_wanted(name) {
            return;
        }
        let output = disk.dir().join("output");
        let wall = pairs::measure(pairs, |is_under| {
            fs::create_dir(&output).expect("cannot make a directory");
            let mut command = command(&output);
            if is_under {
                self.sidecar.serves(&mut command);
            }
            let input = File::open("/dev/zero").expect("no /dev/zero");
            let run = self.groups[usize::from(is_under)].spawn_with_input(&mut command, input).wait();
            run.assert_ok(name);
            fs::remove_dir_all(&output).expect("cannot remove a directory");
            disk.settle();
            run.wall.as_secs_f64()
        });
        print(name, pairs, &wall);
    }

    /// The same of what can be fed to two programs in step.
    fn ratio_in_step(
        &self,
        name: &str,
        pairs: usize,
        disk: &SlowDisk,
        (feed, slice_bytes): (&[u8], usize),
        command: impl Fn(&Path) -> Command,
    ) {
        if !is_wanted(name) {
            return;
        }
        let places = ["one", "other"].map(|name| disk.dir().join(name));
        let run = |in_first: usize| {
            let start = |place: usize| {
                fs::create_dir(&places[place]).expect("cannot make a directory");
                let mut command = command(&places[place]);
                let which = (place + in_first) % 2;
                if which == 1 {
                    self.sidecar.serves(&mut command);
                }
                let (input, feed) = std::io::pipe().expect("cannot make a pipe");
                (self.groups[which].spawn_with_input(&mut command, input), feed)
            };
            let [(one, to_one), (other, to_other)] = [0, 1].map(start);
            let mut took = pairs::in_step(feed, slice_bytes, [to_one, to_other]);
            for (member, place) in [one, other].into_iter().zip(&places) {
                member.wait().assert_ok(name);
                fs::remove_dir_all(place).expect("cannot remove a directory");
            }
            disk.settle();
            took.rotate_left(in_first);
            took.map(|took| took.as_secs_f64())
        };
        // where on the disk a directory lies, and who starts first, makes a tenth more or less: they change places
        let pair = |_| {
            let ([plain, under], [plain_there, under_there]) = (run(0), run(1));
            [plain + plain_there, under + under_there]
        };
        print(name, pairs, &Pairs::of((0..pairs).map(pair)));
    }
}

fn print(name: &str, pairs: usize, wall: &Pairs) {
    let [low, ratio, high] = wall.ratio;
    let verdict = if ratio >= AT_LEAST { "" } else { "  UNDER" };
    let interval = format!("{low:.3} to {high:.3}");
    println!(
        "{name:44}{pairs:6}{:10.3}{:12.3}{ratio:10.3}{interval:>18}{AT_LEAST:10.2}{verdict}",
        wall.plain, wall.under
    );
}

/// Is it named on the command line, or nothing is? `cargo bench … -- sqlite`.
fn is_wanted(name: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    words.peek().is_none() || words.any(|word| name.contains(&word))
}

fn main() {
    let Some(lab) = Lab::alone("throughput") else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Ext4, 0);
    let small_files = programs::archive_of_small_files(&lab, 20_000);
    let rewrite = programs::c_program(&lab, "rewrite");
    let python = run("python3", &["-c", "import sys; print(sys.executable)"]);

    println!("wall seconds, medians of so many pairs; of the ratio, with its 95 % interval");
    println!("{:44}{:>6}{:>10}{:>12}{:>10}{:>18}{:>10}", "", "pairs", "plain", "freeboard", "ratio", "", "at least");
    let without_pressure = Bench::new(&lab, 16_000 * MB);
    without_pressure.ratio("fast disk: 2 GiB, 1 MiB writes, fdatasync", 11, &disk, |output| {
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=1M", "count=2048", "conv=fdatasync"]).arg(format!("of={}/file", output.display()));
        dd
    });
    let archive = fs::read(&small_files).expect("cannot read the archive");
    let untar = "fast disk: untar of 20,000 small files";
    without_pressure.ratio_in_step(untar, 21, &disk, (&archive, 1 << 20), |output| {
        let mut untar = Command::new("tar");
        untar.arg("--extract").arg("--file=-").arg("--directory").arg(output);
        untar
    });
    let inserts = "fast disk: 1,000 sqlite inserts with fsync";
    without_pressure.ratio(inserts, 301, &disk, |output| {
        let mut insert = Command::new(&python);
        insert.args(["-c", SQLITE]).arg(output.join("database"));
        insert
    });
    drop(without_pressure);

    let slow = SlowDisk::new(&lab, Filesystem::Xfs, 30 * MIB);
    let small_limit = Bench::new(&lab, 200 * MB);
    let rewrites = "slow disk: one 8 MiB file written 40 times";
    small_limit.ratio(rewrites, 401, &slow, |output| {
        let mut command = Command::new(&rewrite);
        command.arg(output.join("file"));
        command
    });
}
