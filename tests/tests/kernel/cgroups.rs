//! Cgroups as engines nest them: containers side by side under one pod's limit, and groups in which the kernel may not
//! kill.

use freeboard_budget::cgroup::Version;
use freeboard_budget::law::COUNTER_LAG;
use freeboard_tests::cgroup::Group;
use freeboard_tests::freeboard::{self, Sidecar};
use freeboard_tests::lab::{self, Lab};
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, programs, sys, table, truth};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};

/// A group below another, without a limit of its own; removed when dropped.
struct Below(PathBuf);

impl Below {
    fn new(parent: &Group, name: &str) -> Below {
        // only v2 has it, and only there a group must say what its children may do
        if parent.dir().join("cgroup.subtree_control").exists() {
            fs::write(parent.dir().join("cgroup.subtree_control"), "+memory").expect("cannot hand memory on");
        }
        let dir = parent.dir().join(name);
        fs::create_dir(&dir).expect("cannot make a group below another");
        Below(dir)
    }

    fn spawn(&self, command: &mut Command) -> Child {
        let procs = File::options().write(true).open(self.0.join("cgroup.procs")).expect("cannot open cgroup.procs");
        sys::enter_group_on_exec(command, procs);
        command.spawn().expect("cannot start the program")
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        freeboard_tests::cgroup::remove(&self.0).expect("cannot remove a group below another");
    }
}

#[test]
fn four_containers_share_their_pods_limit() {
    let test = "four containers under a pod's limit of 150 MB";
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file(&lab, 80 * MIB);
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 30 * MIB);
    let outputs: Vec<PathBuf> = (0..4).map(|number| disk.dir().join(number.to_string())).collect();
    let sidecar = Sidecar::start(&lab);
    let pod = Group::new(&lab, 150 * MB);
    let containers: Vec<Below> = (0..4).map(|number| Below::new(&pod, &number.to_string())).collect();
    let children: Vec<Child> = containers
        .iter()
        .zip(&outputs)
        .map(|(container, output)| {
            let mut dd = Command::new("dd");
            dd.arg(format!("if={}", source.display())).arg(format!("of={}", output.display())).arg("bs=1M");
            sidecar.serves(&mut dd);
            container.spawn(dd.arg("status=none"))
        })
        .collect();
    for mut child in children {
        assert!(child.wait().expect("cannot wait for a writer").success(), "a writer failed");
    }
    let figures = pod.figures();
    println!(
        "{test}: {} limit hits, {} kills, peak usage {} MiB, peak unwritten {} MiB",
        figures.limit_hits,
        figures.oom_kills,
        figures.peak_usage_bytes / MIB,
        figures.peak_unwritten_bytes / MIB
    );
    disk.settle();
    outputs.iter().for_each(|output| truth::assert_same(output, &source));
    assert_eq!((figures.limit_hits, figures.oom_kills), (0, 0));
    // four calls of 1 MiB, what the kernel counts late, and what the disk writes in 5 ms
    assert!(
        figures.peak_usage_bytes <= 120 * MB + 5 * MIB + 2 * COUNTER_LAG,
        "peak usage {}",
        figures.peak_usage_bytes
    );
    drop(containers);
}

#[test]
fn where_the_kernel_may_not_kill_nobody_is_stopped_at_the_limit() {
    let test = "oom_kill_disable, limit 100 MB";
    let Some(lab) = Lab::shared(test) else { return };
    let source = programs::random_file(&lab, 250 * MIB);
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, 30 * MIB);
    let output = disk.dir().join("output");
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", source.display())).arg(format!("of={}", output.display())).arg("bs=1M");
    let group = Group::new(&lab, 100 * MB);
    if !group.dir().join(Version::V1.usage_file()).exists() {
        return lab::skip(test, "cgroup v2 has no such switch");
    }
    fs::write(group.dir().join("memory.oom_control"), "1").expect("cannot turn killing off");
    let run = group.run(&mut freeboard::under(&dd, None));
    table::print(test, &[("paced", &run)]);
    run.assert_never_at_the_limit(test);
    disk.settle();
    truth::assert_same(&output, &source);
}
