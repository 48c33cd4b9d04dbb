//! Seccomp filters that kill for what the library would do. The programs under them cannot tell that it is there.

use freeboard_tests::cgroup::measure;
use freeboard_tests::lab::Lab;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, table, truth};
use std::fs;
use std::path::Path;
use std::process::Command;

const DISK: u64 = 30 * MIB;
const CACHESTAT: libc::c_long = 451;

fn filtered(program: &Path, forbidden: &[libc::c_long], source: &Path, copy: &Path) -> Command {
    let forbidden: Vec<_> = forbidden.iter().map(libc::c_long::to_string).collect();
    let mut command = Command::new(program);
    command.arg(forbidden.join(",")).args(["dd", "bs=64k", "status=none"]);
    command.arg(format!("if={}", source.display())).arg(format!("of={}", copy.display()));
    command
}

#[test]
fn it_does_without_what_a_filter_forbids() {
    let test = "under seccomp filters that kill";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let source = programs::random_file(&lab, 120 * MIB);
    let copy = disk.dir().join("copy");
    let filter = programs::c_program(&lab, "filtered");

    let cases: [(&str, &[libc::c_long]); 3] = [
        ("no cachestat", &[CACHESTAT]),
        ("no helper thread", &[libc::SYS_close_range, libc::SYS_fdatasync]),
        ("no sockets", &[libc::SYS_socket, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_process_vm_readv]),
    ];
    let mut runs = Vec::new();
    for (name, forbidden) in cases {
        let command = filtered(&filter, forbidden, &source, &copy);
        let run = measure(&lab, 100 * MB, &mut freeboard::under(&command, None));
        disk.settle();
        if run.status.success() {
            truth::assert_same(&copy, &source);
        }
        fs::remove_file(&copy).expect("nothing was written");
        runs.push((name, run));
    }
    let rows: Vec<_> = runs.iter().map(|(name, run)| (*name, run)).collect();
    table::print(test, &rows);
    for (name, run) in rows {
        run.assert_never_at_the_limit(name);
    }
}

/// Each system call in turn kills a program that writes and closes forty files: with the library it ends as without.
/// What the library cannot do without is known, and named in docs/limitations.md.
#[test]
fn no_filter_kills_a_program_for_what_the_library_does() {
    let test = "under a filter that kills for each call in turn";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 0);
    let archive = programs::archive_of_small_files(&lab, 40);
    let filter = programs::c_program(&lab, "filtered");
    let always = freeboard::workload(lab.dir(), "[writes]\nmode = \"always\"\nwindow = \"1MiB\"\n");
    let script = r#"ulimit -c 0
        for n in $(seq 0 470); do
            "$1" $n tar --extract --file "$2" --directory "$3" 2>/dev/null
            echo $n $?
        done"#;
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]).arg(&filter).arg(&archive).arg(disk.dir());
    let [plain, under] = [command.output(), freeboard::under(&command, Some(&always)).output()]
        .map(|output| String::from_utf8(output.expect("cannot start bash").stdout).expect("no text"));
    assert_eq!(plain.lines().count(), 471, "{plain}");
    let differ: Vec<_> = plain.lines().zip(under.lines()).filter(|(plain, under)| plain != under).collect();
    println!("{test}: plainly {} of 471 end well; other ends: {differ:?}", plain.matches(" 0\n").count());
    let needed = [libc::SYS_getpid, libc::SYS_clone, libc::SYS_madvise, libc::SYS_wait4];
    let needed = needed.map(|number| format!("{number} 0"));
    let killed: Vec<_> =
        differ.iter().map(|(plain, _)| (*plain).to_owned()).filter(|end| !needed.contains(end)).collect();
    assert!(killed.is_empty(), "{killed:?} without the library");
}

#[test]
fn it_stands_aside_where_too_much_is_forbidden() {
    let test = "under a seccomp filter that forbids flushing";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let source = programs::random_file(&lab, 16 * MIB);
    let copy = disk.dir().join("copy");
    let filter = programs::c_program(&lab, "filtered");

    let report = lab.dir().join("report.json");
    let command = filtered(&filter, &[libc::SYS_sync_file_range], &source, &copy);
    let mut run = Command::new(freeboard::program());
    run.args(["run", "--quiet", "--limit", "100M", "--report"]).arg(&report).arg("--");
    run.arg(command.get_program()).args(command.get_args());
    let output = run.output().expect("cannot start freeboard");
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    truth::assert_same(&copy, &source);
    let report = fs::read_to_string(&report).expect("no report");
    assert!(report.contains(r#""filtered": 1"#), "the report does not say that it stood aside: {report}");
}

#[test]
fn a_program_that_locks_itself_in_is_left_alone() {
    let test = "a program in seccomp's strict mode";
    let Some(lab) = Lab::shared(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    let source = programs::random_file(&lab, 64 * MIB);
    let copy = disk.dir().join("copy");
    let always = freeboard::workload(lab.dir(), "[writes]\nmode = \"always\"\nwindow = \"4MiB\"\n");

    let mut command = Command::new(programs::c_program(&lab, "sandboxed"));
    command.args([&source, &copy]);
    let run = measure(&lab, 600 * MB, &mut freeboard::under(&command, Some(&always)));
    run.assert_ok(test);
    truth::assert_same(&copy, &source);
}
