//! The injector over real TLS, with reviews as an API server writes them, on an API of the tests' own.

mod admission;
mod api;
mod client;
mod manifests;
mod program;
mod replicas;

use freeboard_inject::{Options, pod};
use freeboard_injector::cluster::Names;
use freeboard_injector::review::Rules;
use freeboard_injector::{Clock, Parts, run};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A time that tests set.
#[derive(Clone)]
struct Time(Arc<AtomicU64>);

impl Default for Time {
    fn default() -> Time {
        Time(Arc::new(AtomicU64::new(1_800_000_000)))
    }
}

impl Time {
    fn now_s(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    fn clock(&self) -> Clock {
        let time = self.clone();
        Arc::new(move || time.now_s())
    }
}

/// An injector that runs.
struct Replica {
    webhook: SocketAddr,
    plain: SocketAddr,
    end: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Replica {
    async fn start(api: &api::Api, time: &Time, rules: Rules) -> Replica {
        let [webhook, plain] = [listener().await, listener().await];
        let addresses = [webhook.local_addr().unwrap(), plain.local_addr().unwrap()];
        let (end, ended) = oneshot::channel();
        let parts = Parts {
            webhook,
            plain,
            client: api.client(),
            names: names(),
            rules,
            clock: time.clock(),
            every: Duration::from_millis(20),
            linger: Duration::from_millis(300),
        };
        let running = tokio::spawn(run(parts, async { drop(ended.await) }));
        Replica { webhook: addresses[0], plain: addresses[1], end, running }
    }

    async fn ready(&self) {
        eventually("ready", async || client::get(self.plain, "/readyz").await.0 == 200).await;
    }

    /// Ends as on SIGTERM.
    fn end(self) -> JoinHandle<()> {
        self.end.send(()).unwrap();
        self.running
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn names() -> Names {
    let name = "freeboard-injector".to_owned();
    Names { namespace: "freeboard".into(), service: name.clone(), secret: name.clone(), configuration: name }
}

fn rules() -> Rules {
    Rules { options: Options::default(), with_cdi: false, inject: pod::inject }
}

/// Waits until it is so.
async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    for _ in 0..1000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not {what} within 10 s");
}
