//! Asks as an API server does: over TLS, by the service's name, trusting the bundle of the webhook's configuration
//! alone.

use crate::{Time, names};
use axum::body::Body;
use axum::http::Request;
use freeboard_injector::certificates::provider;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) type Sender = http1::SendRequest<Body>;

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.now_s())
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now_s())))
    }
}

pub(crate) async fn tls(address: SocketAddr, bundle: &str, time: &Time) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(authority.unwrap()).unwrap();
    }
    let config = rustls::ClientConfig::builder_with_details(provider(), Arc::new(time.clone()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let name = ServerName::try_from(names().dns_name()).unwrap();
    connector.connect(name, TcpStream::connect(address).await?).await
}

pub(crate) async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Sender {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) async fn send(sender: &mut Sender, request: Request<Body>) -> (u16, Vec<u8>) {
    let response: axum::http::Response<Incoming> = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

pub(crate) fn post(body: impl Into<Body>) -> Request<Body> {
    Request::post("/mutate").header("host", "x").header("content-type", "application/json").body(body.into()).unwrap()
}

/// Without TLS.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut sender = http(TcpStream::connect(address).await.unwrap()).await;
    let (status, body) = send(&mut sender, Request::get(path).header("host", "x").body(Body::empty()).unwrap()).await;
    (status, String::from_utf8(body).unwrap())
}
