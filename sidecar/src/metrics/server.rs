//! The HTTP side: `/metrics`, `/healthz` (it answers), `/readyz` (the heart beats).

use super::text;
use crate::service::Service;
use anyhow::{Context, Result};
use freeboard_budget::layout::STALE_MS;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use tiny_http::{Header, Request, Response};

/// Prometheus' text format.
const TEXT: &str = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "Content-Type: text/plain; charset=utf-8";

/// Answers scrapes until dropped.
#[derive(Debug)]
pub struct Server {
    http: Arc<Http>,
    thread: Option<JoinHandle<()>>,
}

/// A server without a picture of itself.
struct Http(tiny_http::Server);

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Http({:?})", self.0.server_addr())
    }
}

impl Server {
    /// Listens on `address`, and tells of `service`.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn start(address: SocketAddr, service: Arc<Service>) -> Result<Server> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address} for scrapes"))?;
        let http = tiny_http::Server::from_listener(listener, None)
            .map_err(|error| anyhow::anyhow!("cannot serve scrapes on {address}: {error}"))?;
        let http = Arc::new(Http(http));
        let server = http.clone();
        let serve = move || {
            // ends when told to
            for request in server.0.incoming_requests() {
                // whoever asked may be gone
                let _ = answer(request, &service);
            }
        };
        let thread = Builder::new().name("metrics".into()).spawn(serve).context("cannot start a thread")?;
        Ok(Server { http, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.http.0.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(request: Request, service: &Service) -> std::io::Result<()> {
    let (status, kind, body) = match request.url() {
        "/metrics" => (200, TEXT, text(service.snapshot())),
        "/healthz" => (200, PLAIN, "ok\n".to_owned()),
        "/readyz" => {
            let age = service.snapshot().heartbeat_age;
            if age <= Duration::from_millis(STALE_MS) {
                (200, PLAIN, "ok\n".to_owned())
            } else {
                (503, PLAIN, format!("the heart has not beaten for {:.1} s\n", age.as_secs_f64()))
            }
        }
        _ => (404, PLAIN, "there are /metrics, /healthz and /readyz\n".to_owned()),
    };
    let mut response = Response::from_string(body).with_status_code(status);
    if let Ok(header) = kind.parse::<Header>() {
        response.add_header(header);
    }
    request.respond(response)
}
