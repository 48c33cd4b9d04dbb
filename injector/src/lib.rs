//! `freeboard-injector`: the admission webhook that puts Freeboard into pods as they are created. It never refuses one:
//! whatever goes wrong, the pod is let through as it is, with a warning.
//!
//! | module | job |
//! | --- | --- |
//! | [`cli`] | the flags |
//! | [`review`] | from an AdmissionReview to its answer. Pure |
//! | [`server`] | the listeners: the webhook over TLS; health and metrics |
//! | [`certificates`] | which certificates there must be, and which of them is served. Pure |
//! | [`cluster`] | keeps them in a Secret, and the webhook's configuration in step |
//! | [`events`] | tells the pods' owners |
//! | [`metrics`] | what an operator watches |

pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod events;
pub mod metrics;
pub mod review;
pub mod server;

use cluster::{Cluster, Names};
use metrics::Metrics;
use review::Rules;
use server::{Shared, Tls};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Seconds since 1970. Tests set their own.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The machine's.
pub fn clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// What the injector needs.
pub struct Parts {
    /// Where the API server asks, over TLS.
    pub webhook: TcpListener,
    /// For health and metrics, without it.
    pub plain: TcpListener,
    /// The cluster's API.
    pub client: kube::Client,
    /// What belongs to the injector there.
    pub names: Names,
    /// Which pods get what.
    pub rules: Rules,
    /// For the certificates.
    pub clock: Clock,
    /// How often the cluster is asked whether all is still in place.
    pub every: Duration,
    /// How long requests are still taken after the end was asked for: until every API server has heard of it.
    pub linger: Duration,
}

/// Serves until `stop` is there and what was asked before then is answered.
pub async fn run(parts: Parts, stop: impl Future<Output = ()>) {
    let Parts { webhook, plain, client, names, rules, clock, every, linger } = parts;
    let metrics = Arc::new(Metrics::default());
    let served = Arc::new(certificates::Served::default());
    let (set_ready, ready) = watch::channel(false);
    let events = events::start(client.clone(), metrics.clone());
    let mode = rules.options.mode;
    let shared = Arc::new(Shared { rules, metrics: metrics.clone(), events, ready });
    let cluster = Cluster::new(client, names, mode, clock, served.clone(), metrics);
    let mut keeping = tokio::spawn(cluster.keep(every, set_ready.clone()));
    let (end, ended) = watch::channel(false);
    let serving = async {
        tokio::join!(
            server::serve(webhook, Some(Tls::new(served)), server::webhook(shared.clone()), ended.clone()),
            server::serve(plain, None, server::plain(shared.clone()), ended.clone()),
        )
    };
    let stopping = async {
        tokio::select! {
            // by a fault: what is started in its place may do better
            _ = &mut keeping => {}
            () = stop => {}
        }
        keeping.abort();
        tracing::info!("asked to end: requests are taken for {} ms more", linger.as_millis());
        set_ready.send_replace(false);
        tokio::time::sleep(linger).await;
        end.send_replace(true);
    };
    tokio::join!(serving, stopping);
}
