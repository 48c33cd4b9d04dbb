//! The cgroup trees that Docker, containerd and podman make, as directories of files that read as the kernel's do.

use super::*;
use std::fs::{create_dir_all, write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const MIB: u64 = 1 << 20;
/// What v1 says where there is no limit (PAGE_COUNTER_MAX).
const V1_NONE: u64 = 9_223_372_036_854_771_712;
const NOBODY: Crowd = Crowd { writers: 0, owed_bytes: 0 };

/// A tree of groups in a directory of its own.
struct Tree {
    top: tempfile::TempDir,
    version: Version,
}

/// What one group holds, in bytes.
#[derive(Clone, Copy, Default)]
struct Holds {
    anon: u64,
    clean: u64,
    dirty: u64,
    /// Reclaimable slab.
    slab: u64,
}

impl Tree {
    fn new(version: Version) -> Tree {
        let tree = Tree { top: tempfile::tempdir().unwrap(), version };
        match version {
            Version::V1 => tree.write("", "release_agent", ""),
            Version::V2 => tree.write("", "memory.stat", "anon 0\nfile 0\n"),
        }
        tree
    }

    fn write(&self, group: &str, file: &str, text: impl ToString) {
        write(self.dir(group).join(file), text.to_string()).unwrap();
    }

    /// The hierarchy's root lies one below the directory, so that there is something that is no cgroup above it.
    fn dir(&self, group: &str) -> PathBuf {
        let dir = self.top.path().join("root").join(group);
        create_dir_all(&dir).unwrap();
        dir
    }

    /// Makes a group and sets its limit and what it and all below it hold.
    fn set(&self, group: &str, limit: Option<u64>, holds: Holds) {
        let Holds { anon, clean, dirty, slab } = holds;
        let (file, usage) = (clean + dirty, anon + clean + dirty + slab);
        match self.version {
            Version::V1 => {
                let limit = limit.unwrap_or(V1_NONE);
                self.write(group, "memory.limit_in_bytes", format!("{limit}\n"));
                self.write(group, "memory.usage_in_bytes", format!("{usage}\n"));
                self.write(group, "memory.failcnt", "7\n");
                self.write(group, "memory.use_hierarchy", "1\n");
                let stat = format!(
                    "cache 1\nrss 1\ntotal_cache {file}\ntotal_rss {anon}\ntotal_shmem 0\ntotal_dirty {dirty}\n\
                     total_writeback 0\nhierarchical_memory_limit {limit}\n"
                );
                self.write(group, "memory.stat", stat);
            }
            Version::V2 => {
                self.write(group, "cgroup.type", "domain\n");
                let limit = limit.map_or("max".into(), |limit| limit.to_string());
                self.write(group, "memory.max", format!("{limit}\n"));
                self.write(group, "memory.high", "max\n");
                self.write(group, "memory.current", format!("{usage}\n"));
                self.write(group, "memory.events", "low 0\nhigh 3\nmax 9\noom 0\noom_kill 0\n");
                let stat = format!(
                    "anon {anon}\nfile {file}\nshmem 0\nfile_dirty {dirty}\nfile_writeback 0\n\
                     slab_reclaimable {slab}\nkernel {slab}\n"
                );
                self.write(group, "memory.stat", stat);
            }
        }
    }

    /// Takes a group whose ancestors can be seen up to `top`.
    fn open_below(&self, top: &str, group: &str) -> Result<Group, String> {
        let dir = open_dir(CWD, self.dir(group).to_str().unwrap()).unwrap();
        let outside = std::fs::metadata(self.dir(top).join("..")).unwrap().ino();
        Group::walk(dir, |dir| (fstat(dir).unwrap().st_ino != outside).then_some(self.version))
    }

    fn open(&self, group: &str) -> Group {
        self.open_below("", group).unwrap()
    }

    fn id(&self, group: &str) -> u64 {
        std::fs::metadata(self.dir(group)).unwrap().ino()
    }
}

/// As a container that is alone is judged.
fn judged(group: &Group) -> Judgement {
    judge(&group.read().unwrap(), Target::Percent(80), None, NOBODY, |_| NOBODY).unwrap()
}

/// (engine and driver, version, the container's group).
const LAYOUTS: [(&str, Version, &str); 11] = [
    ("Docker, cgroupfs", Version::V1, "docker/1f0e"),
    ("Docker, systemd", Version::V1, "system.slice/docker-1f0e.scope"),
    ("Docker, cgroupfs", Version::V2, "docker/1f0e"),
    ("Docker, systemd", Version::V2, "system.slice/docker-1f0e.scope"),
    ("containerd, cgroupfs, burstable", Version::V1, "kubepods/burstable/pod7a/1f0e"),
    ("containerd, cgroupfs, guaranteed", Version::V1, "kubepods/pod7a/1f0e"),
    (
        "containerd, systemd, burstable",
        Version::V1,
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7a.slice/cri-containerd-1f0e.scope",
    ),
    (
        "containerd, systemd, burstable",
        Version::V2,
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7a.slice/cri-containerd-1f0e.scope",
    ),
    ("containerd, systemd, guaranteed", Version::V2, "kubepods.slice/kubepods-pod7a.slice/cri-containerd-1f0e.scope"),
    ("podman", Version::V2, "machine.slice/libpod-1f0e.scope/container"),
    (
        "podman without root",
        Version::V2,
        "user.slice/user-1000.slice/user@1000.service/user.slice/libpod-1f0e.scope/container",
    ),
];

#[test]
fn in_every_layout_each_limiting_level_counts_with_its_own_usage() {
    for (engine, version, path) in LAYOUTS {
        let tree = Tree::new(version);
        let levels: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]).collect();
        let usual = Holds { anon: 10 * MIB, ..Holds::default() };
        levels.iter().for_each(|level| tree.set(level, None, usual));
        let group = tree.open(path);
        assert!(group.rooted, "{engine}, {version:?}");
        assert_eq!(group.id, tree.id(path));
        assert_eq!(judged(&group).verdict, Verdict::UNLIMITED, "{engine}, {version:?}: no limit");

        tree.set(path, Some(200 * MIB), usual);
        for level in &levels[..levels.len() - 1] {
            // alone the container would be allowed 20 MiB; the level has 240 of 300, and 230 in use by others
            tree.set(level, Some(300 * MIB), Holds { anon: 230 * MIB, ..Holds::default() });
            let judgement = judged(&group);
            assert_eq!(judgement.ruling.limit, 300 * MIB, "{engine}, {version:?}: {level}");
            assert_eq!(judgement.verdict.allowed, 10 * MIB - law::COUNTER_LAG, "{engine}, {version:?}: {level}");
            // resized while it runs
            tree.set(level, Some(3000 * MIB), Holds { anon: 230 * MIB, ..Holds::default() });
            let judgement = judged(&group);
            assert_eq!((judgement.ruling.limit, judgement.verdict.allowed), (200 * MIB, 20 * MIB), "{level}");
            tree.set(level, None, usual);
        }
        // seen from inside, nothing is above it
        let alone = tree.open_below(path, path).unwrap();
        assert!(!alone.rooted, "{engine}, {version:?}");
        assert_eq!(judged(&alone).ruling.limit, 200 * MIB);
    }
}

#[test]
fn siblings_share_what_their_parent_allows() {
    for version in [Version::V1, Version::V2] {
        let tree = Tree::new(version);
        tree.set("pod", Some(300 * MIB), Holds { anon: 20 * MIB, dirty: 24 * MIB, ..Holds::default() });
        tree.set("pod/a", None, Holds { dirty: 6 * MIB, ..Holds::default() });
        let readings = tree.open("pod/a").read().unwrap();
        let pod = tree.id("pod");
        let judge = |mine: Crowd, others: Crowd| {
            let siblings = |id| if id == pod { others } else { panic!("{id} is no ancestor with a limit") };
            judge(&readings, Target::Percent(80), None, mine, siblings).unwrap()
        };
        let crowd = |writers, owed| Crowd { writers, owed_bytes: owed * MIB };
        // 30 MiB for all
        assert_eq!(judge(crowd(1, 6), NOBODY).verdict.allowed, 30 * MIB);
        assert_eq!(judge(crowd(1, 6), NOBODY).unowned, 18 * MIB);
        let one_of_three = judge(crowd(1, 6), crowd(2, 12));
        assert_eq!((one_of_three.verdict.allowed, one_of_three.unowned), (10 * MIB, 2 * MIB));
        assert_eq!(judge(crowd(2, 6), crowd(1, 6)).verdict.allowed, 20 * MIB);
        // newcomers take no more than the others leave, and not less than a quarter of their part
        assert_eq!(judge(crowd(1, 0), crowd(2, 24)).verdict.allowed, 6 * MIB);
        assert_eq!(judge(crowd(1, 0), crowd(1, 30)).verdict.allowed, 15 * MIB / 4);
    }
}

#[test]
fn an_ordinary_directory_is_not_a_cgroup() {
    let tree = Tree::new(Version::V1);
    tree.set("c", Some(1000), Holds::default());
    let error = open_path(&tree.dir("c")).unwrap_err();
    assert!(error.contains("not a directory of a cgroup filesystem"), "{error}");
    let file = std::fs::File::open(tree.dir("c").join("memory.stat")).unwrap();
    assert!(Group::open(file.into()).is_err());
}

#[test]
fn the_root_has_no_limit_and_is_not_read() {
    let tree = Tree::new(Version::V1);
    tree.set("", None, Holds { anon: 900 * MIB, ..Holds::default() });
    tree.set("pod", Some(300 * MIB), Holds::default());
    tree.set("pod/c", Some(200 * MIB), Holds::default());
    let readings = tree.open("pod/c").read().unwrap();
    assert_eq!(readings.len(), 2);
    assert_eq!(readings[0].limit_hits, 7);
}

#[test]
fn a_target_in_bytes_is_the_containers_and_not_its_ancestors() {
    let tree = Tree::new(Version::V1);
    tree.set("pod", Some(1_000_000_000), Holds { anon: 600_000_000, ..Holds::default() });
    tree.set("pod/c", Some(500_000_000), Holds { anon: 20_000_000, ..Holds::default() });
    let readings = tree.open("pod/c").read().unwrap();
    let judgement = judge(&readings, Target::Bytes(100_000_000), None, NOBODY, |_| NOBODY).unwrap();
    assert_eq!((judgement.ruling.target, judgement.verdict.allowed), (100_000_000, 20_000_000));
}

#[test]
fn an_unseen_ancestors_limit_is_taken_from_the_hierarchy() {
    let tree = Tree::new(Version::V1);
    tree.set("c", None, Holds { anon: 30 * MIB, ..Holds::default() });
    let stat = std::fs::read_to_string(tree.dir("c").join("memory.stat")).unwrap();
    let below = stat.replace(&V1_NONE.to_string(), &(100 * MIB).to_string());
    tree.write("c", "memory.stat", below);
    let group = tree.open_below("c", "c").unwrap();
    assert!(!group.rooted);
    assert_eq!(group.read().unwrap()[0].limit, 100 * MIB);
}

#[test]
fn before_linux_5_11_a_v1_group_may_not_count_what_is_below_it() {
    let tree = Tree::new(Version::V1);
    tree.set("pod", Some(100 * MIB), Holds { anon: 90 * MIB, ..Holds::default() });
    tree.set("pod/c", Some(200 * MIB), Holds::default());
    assert_eq!(judged(&tree.open("pod/c")).ruling.limit, 100 * MIB);
    tree.write("pod", "memory.use_hierarchy", "0\n");
    let group = tree.open("pod/c");
    assert!(group.rooted);
    assert_eq!(judged(&group).ruling.limit, 200 * MIB);
}

#[test]
fn what_lies_in_swap_takes_from_a_limit_of_memory_and_swap_together() {
    let tree = Tree::new(Version::V1);
    tree.set("c", Some(200 * MIB), Holds { anon: 20 * MIB, ..Holds::default() });
    let stat = std::fs::read_to_string(tree.dir("c").join("memory.stat")).unwrap();
    let swap = |together: u64, swap: u64| {
        tree.write("c", "memory.stat", format!("{stat}hierarchical_memsw_limit {together}\ntotal_swap {swap}\n"));
        tree.open("c").read().unwrap()[0].limit
    };
    assert_eq!(swap(V1_NONE, 150 * MIB), 200 * MIB);
    assert_eq!(swap(200 * MIB, 0), 200 * MIB);
    assert_eq!(swap(300 * MIB, 150 * MIB), 150 * MIB);
}

#[test]
fn on_v2_the_smaller_of_max_and_high_is_the_limit_and_both_are_met() {
    let tree = Tree::new(Version::V2);
    let cases = [("max", "max", u64::MAX), ("200", "max", 200), ("max", "150", 150), ("200", "300", 200)];
    for (max, high, want) in cases {
        tree.set("c", None, Holds { anon: 90, dirty: 10, ..Holds::default() });
        tree.write("c", "memory.max", max);
        tree.write("c", "memory.high", high);
        let reading = tree.open("c").read().unwrap()[0];
        assert_eq!((reading.limit, reading.limit_hits), (want, 12), "max {max}, high {high}");
    }
}

#[test]
fn on_v2_reclaimable_slab_takes_no_room() {
    let tree = Tree::new(Version::V2);
    tree.set("c", Some(200 * MIB), Holds { anon: 10 * MIB, clean: 20 * MIB, slab: 120 * MIB, ..Holds::default() });
    assert_eq!(judged(&tree.open("c")).verdict.allowed, 20 * MIB);
}

#[test]
fn on_v2_a_group_without_the_controller_is_its_ancestors() {
    let tree = Tree::new(Version::V2);
    tree.set("a", Some(1_000_000), Holds { anon: 5000, ..Holds::default() });
    tree.write("a/b", "cgroup.type", "domain\n");
    let group = tree.open("a/b");
    assert_eq!(group.read().unwrap()[0].limit, 1_000_000);
    assert_eq!(group.id, tree.id("a/b"));
    assert!(group.is_within(tree.id("a")));
    std::fs::remove_file(tree.dir("a").join("memory.stat")).unwrap();
    assert!(tree.open_below("a", "a/b").is_err());
}

#[test]
fn missing_keys_are_said_and_not_taken_for_zero() {
    let tree = Tree::new(Version::V1);
    tree.set("c", Some(1_000_000), Holds { anon: 5000, ..Holds::default() });
    let group = tree.open("c");
    tree.write("c", "memory.stat", "total_cache 5\ntotal_rss 5\n");
    assert_eq!(judge(&group.read().unwrap(), Target::Percent(80), None, NOBODY, |_| NOBODY), None);
    tree.write("c", "memory.usage_in_bytes", "what\n");
    assert!(matches!(group.read(), Err(Lost::Unreadable(_))));
}

/// A line of mountinfo.
fn mount(root: &str, point: &str, kind: &str, options: &str) -> String {
    format!("30 24 0:26 {root} {point} rw,nosuid shared:9 - {kind} {kind} {options}\n")
}

#[test]
fn a_process_finds_its_group_in_every_layout() {
    let v1 = |root: &str| mount(root, "/sys/fs/cgroup/memory", "cgroup", "rw,memory");
    let v2 = |root: &str| mount(root, "/sys/fs/cgroup", "cgroup2", "rw,nsdelegate");
    let unified = mount("/", "/sys/fs/cgroup/unified", "cgroup2", "rw");
    let named = mount("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,name=systemd");
    let cpu = mount("/docker/1f0e", "/sys/fs/cgroup/cpu", "cgroup", "rw,cpu,cpuacct");
    let hybrid = "5:memory:/user.slice/x\n1:name=systemd:/user.slice/x/y\n0::/user.slice/x/y\n";
    let cases: [(&str, &str, String, &str); 11] = [
        ("v1", "5:memory:/docker/1f0e\n", cpu.clone() + &v1("/docker/1f0e"), "/sys/fs/cgroup/memory"),
        ("v1, seen from the host", "5:memory:/docker/1f0e\n", v1("/"), "/sys/fs/cgroup/memory/docker/1f0e"),
        ("v1, with a namespace", "5:cpu,memory:/\n", v1("/"), "/sys/fs/cgroup/memory"),
        (
            "v1, a group made inside",
            "5:memory:/kubepods/pod7a/1f0e/job\n",
            v1("/kubepods/pod7a/1f0e"),
            "/sys/fs/cgroup/memory/job",
        ),
        ("v2", "0::/\n", v2("/"), "/sys/fs/cgroup"),
        (
            "v2, seen from the host",
            "0::/kubepods.slice/kubepods-pod7a.slice/cri-containerd-1f0e.scope\n",
            v2("/"),
            "/sys/fs/cgroup/kubepods.slice/kubepods-pod7a.slice/cri-containerd-1f0e.scope",
        ),
        ("hybrid", hybrid, named.clone() + &unified + &v1("/"), "/sys/fs/cgroup/memory/user.slice/x"),
        (
            "hybrid, memory on v2",
            "3:cpu:/a\n1:name=systemd:/a\n0::/a\n",
            named + &cpu + &unified,
            "/sys/fs/cgroup/unified/a",
        ),
        (
            "v2, the host's hierarchy beside its own",
            "0::/\n",
            mount("/../..", "/host/sys/fs/cgroup", "cgroup2", "rw") + &v2("/"),
            "/sys/fs/cgroup",
        ),
        (
            "v1, another group's beside its own",
            "5:memory:/docker/1f0e\n",
            mount("/docker/77", "/other", "cgroup", "rw,memory") + &v1("/docker/1f0e"),
            "/sys/fs/cgroup/memory",
        ),
        ("v1, in a group that no mount shows", "5:memory:/elsewhere\n", v1("/docker/1f0e"), "/sys/fs/cgroup/memory"),
    ];
    for (layout, memberships, mounts, want) in cases {
        let (_, dir) = locate(memberships.as_bytes(), mounts.as_bytes()).unwrap();
        assert_eq!(dir, Path::new(want), "{layout}");
    }
    assert!(locate(b"1:name=systemd:/x\n", v1("/").as_bytes()).is_err());
    assert!(locate(b"5:memory:/x\n", v2("/").as_bytes()).is_err());
}
