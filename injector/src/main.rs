//! Starts the injector, and ends when it is asked to.

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use freeboard_injector::cli::Cli;
use freeboard_injector::{Parts, clock, run};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Two questions to the API server each time.
const EVERY: Duration = Duration::from_secs(30);
/// Within it every API server hears that the pod is going.
const LINGER: Duration = Duration::from_secs(5);
/// For an answer of the API server.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let flags = Cli::parse();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    // what the libraries have to say is said again, with its place
    let own = Targets::new().with_target("freeboard_injector", flags.log_level);
    tracing_subscriber::registry().with(lines).with(own).init();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{}; mend: report it", panic.to_string().replace('\n', " "));
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(start(flags))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(2)
        }
    }
}

async fn start(flags: Cli) -> Result<()> {
    let mut config = kube::Config::infer().await.map_err(|error| {
        let mend = "run this in a pod with a service account, or set KUBECONFIG to a file";
        anyhow!("no cluster to be found: {error}; mend: {mend}")
    })?;
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(PATIENCE);
    let names = flags.names(&config.default_namespace);
    let client = kube::Client::try_from(config).context("cannot talk to the cluster")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let parts = Parts {
        webhook: listen(flags.listen, "--listen").await?,
        plain: listen(flags.metrics, "--metrics").await?,
        client,
        names,
        rules: flags.rules(),
        clock: clock(),
        every: EVERY,
        linger: LINGER,
    };
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(parts, stop).await;
    Ok(())
}

async fn listen(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| anyhow!("{flag}: cannot listen on {address}: {error}; mend: name a free port of this machine"))
}
