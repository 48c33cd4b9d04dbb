//! The HTTP side: `/metrics`, `/healthz` (it answers), `/readyz` (the heart beats). One short request a connection, and
//! nothing of a peer's is waited for longer than a second, or kept: whoever reaches the port may send what he likes.

use super::text;
use crate::service::Service;
use anyhow::{Context, Result};
use freeboard_budget::layout::STALE_MS;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Prometheus' text format.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
/// Longest head of a request.
const HEAD_BYTES: usize = 8 << 10;
/// Longest wait for a peer's request, and for it to take the answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers scrapes until dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    is_ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address`, and tells of `service`.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn start(address: SocketAddr, service: Arc<Service>) -> Result<Server> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address} for scrapes"))?;
        let address = listener.local_addr()?;
        let is_ending = Arc::new(AtomicBool::new(false));
        let ending = is_ending.clone();
        let serve = move || {
            for peer in listener.incoming() {
                if ending.load(Relaxed) {
                    break;
                }
                // whoever asked may be gone
                let _ = peer.and_then(|peer| answer(peer, &service));
            }
        };
        let thread = Builder::new().name("metrics".into()).spawn(serve).context("cannot start a thread")?;
        Ok(Server { address, is_ending, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_ending.store(true, Relaxed);
        // wakes it; where that fails it ends with the process
        if TcpStream::connect_timeout(&self.address, PATIENCE).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn answer(mut peer: TcpStream, service: &Service) -> io::Result<()> {
    peer.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut peer)?;
    let mut words = head.split(|byte| byte.is_ascii_whitespace());
    let (method, path) = (words.next().unwrap_or(b""), words.next().unwrap_or(b""));
    let (status, kind, body) = match path.split(|&byte| byte == b'?').next().unwrap_or(b"") {
        _ if method != b"GET" => ("405 Method Not Allowed", PLAIN, "only GET\n".to_owned()),
        b"/metrics" => ("200 OK", TEXT, text(service.snapshot())),
        b"/healthz" => ("200 OK", PLAIN, "ok\n".to_owned()),
        b"/readyz" => {
            let age = service.snapshot().heartbeat_age;
            if age <= Duration::from_millis(STALE_MS) {
                ("200 OK", PLAIN, "ok\n".to_owned())
            } else {
                let body = format!("the heart has not beaten for {:.1} s\n", age.as_secs_f64());
                ("503 Service Unavailable", PLAIN, body)
            }
        }
        _ => ("404 Not Found", PLAIN, "there are /metrics, /healthz and /readyz\n".to_owned()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    peer.write_all((head + &body).as_bytes())
}

/// Reads up to the empty line behind the head.
///
/// # Errors
/// The peer is too slow, or says too much.
fn read_head(peer: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    let deadline = Instant::now() + PATIENCE;
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = deadline.checked_duration_since(Instant::now()).ok_or(io::ErrorKind::TimedOut)?;
        peer.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let got = peer.read(&mut part)?;
        if got == 0 || head.len() + got > HEAD_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend(&part[..got]);
    }
    Ok(head)
}
