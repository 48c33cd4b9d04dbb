//! What a sidecar takes for itself: memory, which is bounded here, and processor time, which is printed.

use freeboard_tests::MIB;
use freeboard_tests::freeboard::{self, Sidecar};
use freeboard_tests::lab::Lab;
use std::fs;
use std::io::PipeReader;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// A sum over the processes of the sidecar; there is one.
fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("cannot read the sidecar's status");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map_or_else(|| panic!("no VmRSS in\n{status}"), |kib: u64| kib << 10)
}

/// Processor time of all threads so far.
fn busy(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("cannot list the sidecar's threads").flatten();
    let of_thread = |text: String| text.split(' ').next().and_then(|word| word.parse().ok());
    let ns = threads.map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).expect("the kernel does not count time");
        of_thread(text).unwrap_or(0)
    });
    Duration::from_nanos(ns.sum())
}

/// A share of one processor, in per cent, over some seconds.
fn share(pid: u32) -> f64 {
    let span = Duration::from_secs(5);
    let before = busy(pid);
    std::thread::sleep(span);
    (busy(pid) - before).as_secs_f64() / span.as_secs_f64() * 100.0
}

/// A process that has written, and waits until `end` says so.
fn client(sidecar: &Sidecar, file: &Path, end: &PipeReader) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "echo written > \"$0\"; read line"]).arg(file);
    sidecar.serves(&mut command);
    command.stdin(end.try_clone().expect("cannot dup")).spawn().expect("cannot start a client")
}

/// It has mapped what the sidecar handed to it.
fn is_served(client: &Child) -> bool {
    let maps = fs::read_to_string(format!("/proc/{}/maps", client.id())).expect("cannot read a client's maps");
    maps.contains("/memfd:freeboard-counters")
}

fn wait_until_served(clients: &[Child]) {
    for client in clients {
        let mut looks = 0;
        while !is_served(client) {
            looks += 1;
            assert!(looks < 1000, "a client is not served");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn with_one_client_and_with_a_thousand() {
    let Some(lab) = Lab::with_own_disks("footprint") else { return };
    // tmpfs is left alone, and so nobody would ask for a sidecar
    let disk = tempdir();
    let sidecar = Sidecar::start(&lab);
    // one for all: a pipe for each could be more than a process may have
    let (waiting, end) = std::io::pipe().expect("cannot make a pipe");
    let mut clients = vec![client(&sidecar, &disk.join("0"), &waiting)];
    wait_until_served(&clients);
    std::thread::sleep(Duration::from_secs(2));
    let pid = sidecar.pid();
    let one = (resident_bytes(pid), share(pid));
    clients.extend((1..1000).map(|number| client(&sidecar, &disk.join(number.to_string()), &waiting)));
    wait_until_served(&clients);
    std::thread::sleep(Duration::from_secs(2));
    let thousand = (resident_bytes(pid), share(pid));
    drop(end);
    for mut client in clients {
        client.wait().expect("cannot wait for a client");
    }
    fs::remove_dir_all(&disk).expect("cannot remove the clients' files");
    for (clients, (resident, share)) in [("one client", one), ("1,000 clients", thousand)] {
        println!("footprint, {clients}: {:.2} MiB resident, {share:.3} % of a core", resident as f64 / MIB as f64);
    }
    assert!(one.0 <= 6 * MIB, "with one client {} bytes are resident", one.0);
    assert!(thousand.0 <= 12 * MIB, "with 1,000 clients {} bytes are resident", thousand.0);
}

/// On the disk that this was built on.
fn tempdir() -> std::path::PathBuf {
    let dir = freeboard::target_dir().join(format!("footprint-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("cannot make a directory");
    dir
}
