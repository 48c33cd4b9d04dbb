//! The listeners. A request is answered or let go in time, whatever comes; nothing that is asked for here is refused.

use crate::certificates::{Served, provider};
use crate::events::Events;
use crate::metrics::Metrics;
use crate::review::{self, Answer, Failure, Outcome, Rules};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// The API server itself takes no more of an object than 3 MiB.
pub const MOST_BYTES: usize = 4 << 20;
/// Requests that are read at a time, so that their memory is bounded.
const MOST_AT_A_TIME: usize = 8;
/// Less than the configuration's timeoutSeconds, so that the answer is heard.
const DEADLINE: Duration = Duration::from_secs(3);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The API server lets go of an idle connection after 90 s. It must be the one to do so: what it sends on one that is
/// being closed is lost.
const IDLE: Duration = Duration::from_secs(150);

/// What requests share.
pub struct Shared {
    /// Which pods get what.
    pub rules: Rules,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Tells owners.
    pub events: Events,
    /// Whether requests should come here.
    pub ready: watch::Receiver<bool>,
}

/// How TLS is spoken.
pub struct Tls(TlsAcceptor);

impl Tls {
    /// With the certificate that is served at the time of each connection.
    pub fn new(served: Arc<Served>) -> Tls {
        let builder = rustls::ServerConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().expect("ring knows TLS 1.2 and 1.3");
        let mut config = builder.with_no_client_auth().with_cert_resolver(served);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Tls(TlsAcceptor::from(Arc::new(config)))
    }
}

/// `POST /mutate`.
pub fn webhook(shared: Arc<Shared>) -> Router {
    let turns = Arc::new(Semaphore::new(MOST_AT_A_TIME));
    Router::new().route("/mutate", post(mutate)).with_state((shared, turns))
}

/// `/healthz`, `/readyz`, `/metrics`.
pub fn plain(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shared)
}

async fn readyz(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if *shared.ready.borrow() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no certificate that the cluster knows, or about to end; mend: see the log\n")
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shared.metrics.text()).into_response()
}

async fn mutate(State((shared, turns)): State<(Arc<Shared>, Arc<Semaphore>)>, request: Request) -> Response {
    let mut body = Vec::new();
    let work = async {
        let _turn = turns.acquire().await;
        match read(request.into_body(), &mut body).await {
            Some(failure) => Err(failure),
            None => Ok(review::answer(&body, &shared.rules)),
        }
    };
    let done = timeout(DEADLINE, work).await.unwrap_or(Err((
        Failure::TimedOut,
        "it did not come whole within 3 s; mend: see what is between the API server and here",
    )));
    let answer = done.unwrap_or_else(|(failure, what)| review::failed(&body, failure, what));
    shared.metrics.count(answer.outcome);
    tell(&answer, &shared);
    ([(header::CONTENT_TYPE, "application/json")], answer.body).into_response()
}

/// Reads a body to its end, so that whoever sends it hears the answer.
async fn read(mut body: Body, into: &mut Vec<u8>) -> Option<(Failure, &'static str)> {
    let mut is_too_large = false;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Some((Failure::Malformed, "it broke off; mend: see what is between the API server and here"));
        };
        if let Ok(data) = frame.into_data() {
            is_too_large |= into.len() + data.len() > MOST_BYTES;
            if !is_too_large {
                into.extend_from_slice(&data);
            }
        }
    }
    is_too_large.then_some((Failure::TooLarge, "more than 4 MiB; mend: make the pod smaller"))
}

fn tell(answer: &Answer, shared: &Shared) {
    match answer.outcome {
        Outcome::NotAsked => tracing::debug!("a pod that nobody asked for"),
        Outcome::Failed(_) => tracing::warn!("{}", answer.said),
        _ => tracing::info!("{}", answer.said),
    }
    if let Some((namespace, owner)) = &answer.owner {
        shared.events.tell(namespace, owner, answer.outcome, &answer.said);
    }
}

/// Serves until the end is asked for, and then what has been asked before it.
pub async fn serve(listener: TcpListener, tls: Option<Tls>, router: Router, mut ended: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // out of descriptors, most likely: some come back
                    tracing::warn!("cannot take a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = asked(&mut ended) => break,
        };
        let (router, watcher) = (router.clone(), graceful.watcher());
        match &tls {
            None => {
                tokio::spawn(connection(stream, router, watcher));
            }
            Some(Tls(acceptor)) => {
                let handshake = acceptor.accept(stream);
                tokio::spawn(async move {
                    match timeout(HANDSHAKE, handshake).await {
                        Ok(Ok(stream)) => connection(stream, router, watcher).await,
                        Ok(Err(error)) => tracing::debug!("a handshake failed: {error}"),
                        Err(_) => tracing::debug!("a handshake took too long"),
                    }
                });
            }
        }
    }
    drop(listener);
    // what is under way ends by itself within the deadline
    if timeout(DEADLINE + HANDSHAKE, graceful.shutdown()).await.is_err() {
        tracing::warn!("a connection was still open at the end");
    }
}

async fn asked(ended: &mut watch::Receiver<bool>) {
    // nobody there to ask any more is the same
    let _ = ended.wait_for(|ended| *ended).await;
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, router: Router, watcher: Watcher) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!("a connection ended badly: {error}");
    }
}
