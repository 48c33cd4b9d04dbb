//! Messages of real kernels (`fixtures/`), and of older ones as their sources print them.

use super::*;
use crate::explain::figures::Kind::{self, *};
use crate::explain::verdict::judge;

const MIB: u64 = 1 << 20;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("fixtures/", $name))
    };
}

#[track_caller]
fn last(log: &str) -> Message {
    messages(log).pop().expect("there is a message")
}

/// (log, messages in it, verdict of the last, its group, usage in kB, limit in kB, who was killed)
type Case = (&'static str, usize, Kind, &'static str, u64, u64, &'static str);

#[test]
fn real_messages() {
    let app = "/kubepods/pod1/app";
    let cases: [(&str, Case); 8] = [
        ("v1, 6.18", (fixture!("v1-6.18-unwritten.log"), 1, Unwritten, "/app", 97_644, 97_656, "busybox")),
        ("v1, 6.1", (fixture!("v1-6.1-tmpfs.log"), 1, Tmpfs, app, 40_960, 40_960, "dd")),
        ("v1, 6.1, two", (fixture!("v1-6.1-two.log"), 2, Tmpfs, app, 40_960, 40_960, "dd")),
        ("v2, 6.1", (fixture!("v2-6.1-anonymous.log"), 1, Anonymous, app, 40_960, 40_960, "tail")),
        ("v2, 6.1, dmesg -T", (fixture!("v2-6.1-two-T.log"), 2, Tmpfs, app, 40_960, 40_960, "dd")),
        ("v2, 6.12", (fixture!("v2-6.12-unwritten.log"), 1, Unwritten, app, 40_960, 40_960, "dd")),
        ("v2, 6.12", (fixture!("v2-6.12-anonymous.log"), 1, Anonymous, app, 40_960, 40_960, "tail")),
        ("v2, 7.3, dmesg --raw", (fixture!("v2-7.3-two-raw.log"), 2, Tmpfs, app, 40_960, 40_960, "dd")),
    ];
    for (what, (log, count, kind, group, usage, limit, killed)) in cases {
        assert_eq!(messages(log).len(), count, "{what}");
        let message = last(log);
        let verdict = judge(&message.figures, true);
        assert_eq!((verdict.kind, verdict.is_inferred), (kind, false), "{what}: {:?}", message.figures);
        assert!(message.is_of_group, "{what}");
        assert_eq!(message.group.as_deref(), Some(group), "{what}");
        assert_eq!(message.figures.usage.unwrap() >> 10, usage, "{what}");
        assert_eq!(message.figures.limit.unwrap() >> 10, limit, "{what}");
        assert_eq!(message.killed[0].name, killed, "{what}");
        assert!(message.tasks.iter().any(|task| task.name == killed), "{what}: {:?}", message.tasks);
        assert!(message.figures.kernel.is_some() && message.figures.inactive_file.is_some(), "{what}");
    }
}

#[test]
fn a_message_says_the_same_with_any_prefix() {
    for log in [fixture!("v2-6.12-unwritten.log"), fixture!("v1-6.18-unwritten.log"), fixture!("v2-6.1-anonymous.log")]
    {
        let want = messages(log);
        assert_eq!(want.len(), 1);
        let prefixed = |prefix: &str| log.lines().map(|line| format!("{prefix}{line}\n")).collect::<String>();
        assert_eq!(messages(&prefixed("Nov 21 23:40:59 node-7 kernel: ")), want);
        assert_eq!(messages(&prefixed("2026-11-21T23:40:59.123456+00:00 node-7 kernel[412]: ")), want);
        assert_eq!(messages(&prefixed("kern  :warn  : ")), want);
        let bare: String =
            log.lines().map(|line| line.split_once("] ").map_or(line, |(_, rest)| rest).to_owned() + "\r\n").collect();
        assert_eq!(messages(&bare), want);
    }
    // journald and syslog each have one record for what the kernel printed in one go
    let joined = fixture!("v2-6.1-anonymous.log").replace("\n               ", "#012");
    assert!(joined.contains("#012file "));
    assert_eq!(messages(&joined), messages(fixture!("v2-6.1-anonymous.log")));
}

#[test]
fn what_is_cut_off_or_strange_is_not_invented() {
    assert_eq!(messages(""), []);
    assert_eq!(messages("[1.0] all is well\n"), []);
    for log in [fixture!("v2-6.12-unwritten.log"), fixture!("v1-6.1-two.log")] {
        for (cut, _) in log.char_indices().step_by(97) {
            let (head, tail) = log.split_at(cut);
            for message in messages(head).iter().chain(&messages(tail)) {
                judge(&message.figures, true);
            }
        }
        // the end alone, as `dmesg | tail` gives it
        let tail: String = log
            .lines()
            .rev()
            .take(3)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .map(|line| line.to_owned() + "\n")
            .collect();
        assert_eq!(last(&tail).killed, last(log).killed);
    }
    let huge = "memory: usage 99999999999999999999kB, limit 18446744073709551615kB, failcnt x";
    let message = last(huge);
    assert_eq!((message.figures.usage, message.figures.limit, message.figures.limit_hits), (None, None, None));
}

#[test]
fn only_two_lines_are_left() {
    let log = "memory: usage 585936kB, limit 585936kB, failcnt 7392\n\
               Memory cgroup out of memory: Killed process 2210 (cdi-importer) total-vm:1400196kB, anon-rss:23032kB, file-rss:0kB, shmem-rss:0kB\n";
    let message = last(log);
    assert_eq!((message.figures.limit, message.figures.limit_hits), (Some(585_936 << 10), Some(7392)));
    assert_eq!(message.killed[0].name, "cdi-importer");
    let verdict = judge(&message.figures, true);
    assert_eq!((verdict.kind, verdict.is_inferred), (Unwritten, true));
}

#[test]
fn kernels_before_5_3() {
    // 4.19, cgroup v1: one line for each group below; a limit of an ancestor
    let log = "\
[ 1.0] java invoked oom-killer: gfp_mask=0x6000c0(GFP_KERNEL), nodemask=(null), order=0, oom_score_adj=984
[ 1.0] java cpuset=app mems_allowed=0
[ 1.0] Task in /kubepods/pod1/app killed as a result of limit of /kubepods/pod1
[ 1.0] memory: usage 204800kB, limit 204800kB, failcnt 1052
[ 1.0] memory+swap: usage 204800kB, limit 9007199254740988kB, failcnt 0
[ 1.0] kmem: usage 2400kB, limit 9007199254740988kB, failcnt 0
[ 1.0] Memory cgroup stats for /kubepods/pod1: cache:1024KB rss:201000KB rss_huge:0KB shmem:1000KB mapped_file:0KB dirty:4KB writeback:0KB inactive_anon:0KB active_anon:201000KB inactive_file:12KB active_file:12KB unevictable:0KB
[ 1.0] Memory cgroup stats for /kubepods/pod1/app: cache:0KB rss:99KB rss_huge:0KB shmem:0KB mapped_file:0KB dirty:0KB writeback:0KB inactive_anon:0KB active_anon:99KB inactive_file:0KB active_file:0KB unevictable:0KB
[ 1.0] Tasks state (memory values in pages):
[ 1.0] [  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
[ 1.0] [ 4242]  1000  4242   900000    50250  500000        0           984 java main
[ 1.0] Memory cgroup out of memory: Kill process 4242 (java main) score 1966 or sacrifice child
[ 1.0] Killed process 4242 (java main), UID 1000, total-vm:3600000kB, anon-rss:200900kB, file-rss:100kB, shmem-rss:0kB
";
    let message = last(log);
    assert_eq!(messages(log).len(), 1);
    assert_eq!(message.group.as_deref(), Some("/kubepods/pod1"));
    assert_eq!(message.figures.anonymous, Some(201_000 << 10));
    assert_eq!((message.figures.dirty, message.figures.kernel), (Some(4 << 10), Some(2400 << 10)));
    assert_eq!((message.tasks[0].name.as_str(), message.killed[0].anonymous_bytes), ("java main", Some(200_900 << 10)));
    assert_eq!(judge(&message.figures, true).kind, Anonymous);
    // 3.10: neither dirty nor shmem is counted
    let older =
        log.replace(" shmem:1000KB", "").replace(" dirty:4KB writeback:0KB", "").replace("rss:201000KB", "rss:9000KB");
    let older = older.replace("cache:1024KB", "cache:193000KB");
    let verdict = judge(&last(&older).figures, true);
    assert_eq!((verdict.kind, verdict.is_inferred), (Unwritten, true));
}

#[test]
fn a_kill_of_the_node_is_told_from_one_of_a_group() {
    let log = "\
[ 2.0] mysqld invoked oom-killer: gfp_mask=0x100cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0
[ 2.0] Mem-Info:
[ 2.0] oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=mysqld,pid=77,uid=0
[ 2.0] Out of memory: Killed process 77 (mysqld) total-vm:9000kB, anon-rss:8000kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:0kB oom_score_adj:0
";
    assert!(!last(log).is_of_group);
    assert_eq!(last(log).killed[0].pid, 77);
    let both = format!("{log}{}", fixture!("v2-6.12-unwritten.log"));
    assert_eq!(messages(&both).iter().map(|message| message.is_of_group).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn all_processes_of_a_group_that_is_killed_whole_are_of_one_message() {
    let log = fixture!("v2-6.12-anonymous.log").to_owned()
        + "[ 9.9] Tasks in /kubepods/pod1/app are going to be killed due to memory.oom.group set\n"
        + "[ 9.9] Memory cgroup out of memory: Killed process 161 (sh) total-vm:2584kB, anon-rss:0kB, file-rss:1300kB, shmem-rss:0kB, UID:0 pgtables:44kB oom_score_adj:0\n";
    assert_eq!(messages(&log).len(), 1);
    assert_eq!(last(&log).killed.iter().map(|task| task.pid).collect::<Vec<_>>(), [163, 161]);
    assert!(last(&log).figures.anonymous.unwrap() > 38 * MIB);
}
