//! What Prometheus reads: the kernel's numbers, and every name that the alerts and the dashboard use.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};
use support::*;

const MIB: u64 = 1 << 20;

/// An address on which nobody listens now.
fn address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Status line and body.
fn get(address: SocketAddr, path: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), body.to_owned()))
}

/// The value of a series.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

/// All words that begin as our metrics do.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words.filter(|word| word.starts_with("freeboard_")).collect()
}

#[test]
fn a_scrape_tells_what_the_kernel_says() {
    if !can_make_cgroups("a_scrape_tells_what_the_kernel_says") {
        return;
    }
    let address = address();
    let sidecar = Sidecar::start(&["--metrics", &address.to_string()]);
    eventually("it answers", || get(address, "/healthz").is_some_and(|(status, _)| status == "HTTP/1.1 200 OK"));
    assert_eq!(get(address, "/readyz").unwrap().0, "HTTP/1.1 200 OK");
    assert_eq!(get(address, "/").unwrap().0, "HTTP/1.1 404 Not Found");

    let group = CgroupDir::make("metrics").unwrap();
    group.limit(64 * MIB);
    greet(&sidecar.socket(), &group.0).unwrap();
    let (_, text) = get(address, "/metrics").unwrap();
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&group.0).unwrap());
    let of_group = |name: &str| value(&text, &format!("freeboard_{name}{{cgroup=\"{id}\"}}"));
    assert_eq!(of_group("limit_bytes"), (64 * MIB) as f64);
    assert_eq!(of_group("target_bytes"), (64 * MIB * 4 / 5) as f64);
    assert_eq!(of_group("limit_hits_total"), 0.0);
    assert_eq!(of_group("written_bytes_total"), 0.0);
    assert_eq!(value(&text, "freeboard_containers"), 1.0);
    assert_eq!(value(&text, "freeboard_sweep_dropped_bytes_total"), 0.0);
    assert!(value(&text, "freeboard_heartbeat_age_seconds") < 1.0);
    assert!(text.ends_with("# EOF\n"), "cut off");
}

#[test]
fn alerts_and_dashboard_name_what_there_is() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let address = address();
    let sidecar = Sidecar::start(&["--metrics", &address.to_string()]);
    greet(&sidecar.socket(), &freeboard_sidecar::cgroup::own_directory().unwrap().1).unwrap();
    eventually("it answers", || get(address, "/metrics").is_some());
    let (_, text) = get(address, "/metrics").unwrap();
    // families without a value now are told of all the same
    let mut there = names(&text);
    let totals: Vec<String> = there.iter().map(|name| format!("{name}_total")).collect();
    there.extend(totals.iter().map(String::as_str));
    for file in ["prometheus/alerts.yaml", "grafana/freeboard.json"] {
        let used = std::fs::read_to_string(deploy.join(file)).unwrap();
        let used = names(&used);
        assert!(used.len() > 4, "{file} uses {used:?}");
        let strange: Vec<_> = used.difference(&there).collect();
        assert!(strange.is_empty(), "{file} uses {strange:?}, and there is {there:?}");
    }
}

#[test]
fn nobody_who_reaches_the_port_can_harm_it() {
    let address = address();
    let _sidecar = Sidecar::start(&["--metrics", &address.to_string()]);
    eventually("it answers", || get(address, "/healthz").is_some());
    let send = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(bytes); // it may have hung up already
        stream
    };
    let lengths = [2000, u64::MAX].map(|length| format!("POST /metrics HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"));
    let silent = [lengths[0].as_bytes(), lengths[1].as_bytes(), b"GET /metr", b"", &[b'x'; 100_000]].map(send);
    let start = Instant::now();
    assert_eq!(get(address, "/healthz").unwrap().0, "HTTP/1.1 200 OK");
    assert!(start.elapsed() < Duration::from_secs(20), "held up for {:?}", start.elapsed());
    drop(silent);
}

#[test]
fn an_address_that_is_taken_is_an_error() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let (region, socket) = (dir.path().to_str().unwrap(), dir.path().join("socket"));
    let arguments = ["sidecar", "--region", region, "--socket", socket.to_str().unwrap(), "--metrics", &address];
    let output = freeboard(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains(&format!("cannot listen on {address}")), "{}", stderr(&output));
}
