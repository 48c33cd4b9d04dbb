//! A program of ours that prints what became of it, case by case: plainly, and really paced. It must print the same.

use crate::cgroup::{Group, Run};
use crate::lab::Lab;
use crate::slow_disk::{Filesystem, SlowDisk};
use crate::{MB, MIB, freeboard, programs, table};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Unwritten bytes of a program that is paced with a window of 1 MiB, at most; without the library there are 12 MiB.
const PACED_WITHIN: u64 = 6 * MIB;
/// What the programs write, less what a disk of [`DISK`] takes meanwhile.
const PLAIN_AT_LEAST: u64 = 8 * MIB;
const DISK: u64 = 30 * MIB;
/// A call is let go when the disk makes no progress for so long, so whoever waits for what never comes takes longer.
const MAX_STALL: Duration = Duration::from_secs(10);

/// A program, and XFS on a slow disk.
#[derive(Debug)]
pub struct Cases<'lab> {
    lab: &'lab Lab,
    disk: SlowDisk<'lab>,
    program: PathBuf,
    always: PathBuf,
}

impl Cases<'_> {
    /// `program`: a C program of `tests/programs` that takes a case and a directory.
    pub fn new<'lab>(lab: &'lab Lab, program: &str) -> Cases<'lab> {
        let text = "[writes]\nmode = \"always\"\nwindow = \"1MiB\"\nmax_stall = \"10s\"\n\
                    [[rule]]\npath = \"/**\"\nreads = \"drop-behind\"\n";
        let always = freeboard::workload(lab.dir(), text);
        let disk = SlowDisk::new(lab, Filesystem::Xfs, DISK);
        Cases { lab, disk, program: programs::c_program(lab, program), always }
    }

    fn run(&self, case: &str, under: bool) -> Run {
        let dir = self.disk.dir().join("case");
        fs::create_dir(&dir).expect("cannot make a directory");
        let mut command = Command::new(&self.program);
        command.arg(case).arg(&dir);
        if under {
            command = freeboard::under(&command, Some(&self.always));
        }
        let run = Group::new(self.lab, 200 * MB).run(&mut command);
        fs::remove_dir_all(&dir).expect("cannot remove a directory");
        self.disk.write_out();
        run
    }

    /// Runs each case both ways. `unpaced`: those in which the library may not do its work, only no harm.
    ///
    /// # Panics
    /// Where a case gives something else under the library, or was not paced.
    pub fn compare(&self, name: &str, cases: &[&str], unpaced: &[&str]) {
        let mut rows = Vec::new();
        for &case in cases {
            rows.push((format!("{case}, plain"), self.run(case, false)));
            rows.push((format!("{case}, freeboard"), self.run(case, true)));
        }
        table::print(name, &rows.iter().map(|(name, run)| (name.as_str(), run)).collect::<Vec<_>>());
        for (pair, case) in rows.chunks(2).zip(cases) {
            let [(_, plain), (_, under)] = pair else { unreachable!("rows come in pairs") };
            plain.assert_ok(case);
            assert_eq!(plain.output, under.output, "{case}: plainly (left) and under the library");
            assert_eq!(plain.status, under.status, "{case}");
            assert!(under.wall < MAX_STALL, "{case}: {:?}: a call waited for nothing", under.wall);
            if !unpaced.contains(case) {
                let [plain, under] = [plain, under].map(|run| run.figures.peak_unwritten_bytes);
                assert!(plain > PLAIN_AT_LEAST, "{case}: {plain} bytes were unwritten plainly: this shows nothing");
                assert!(under < PACED_WITHIN, "{case}: {under} bytes were unwritten: it was not paced");
            }
        }
    }
}
