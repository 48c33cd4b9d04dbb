//! `freeboard sidecar`: the service alone, until it is told to end.

use crate::cli::Sidecar;
use crate::service::{self, Service};
use crate::{library, metrics, signals};
use anyhow::{Context, Result};
use freeboard_config::Workload;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;

/// Runs until SIGTERM, SIGINT or SIGHUP. The region's files stay: processes that mapped them see the heartbeat stand
/// still and go by their own group.
///
/// # Errors
/// What kept the service from starting.
pub fn sidecar(flags: &Sidecar) -> Result<()> {
    // before any thread starts, so that all of them leave these signals to the descriptor
    let mut end = signals::EndRequest::watch().context("cannot watch for signals")?;
    let workload = flags.config.as_deref().map(Workload::load).transpose()?.unwrap_or_default();
    if let Some(dir) = &flags.install_lib {
        library::install(dir)?;
    }
    // Every container takes about ten descriptors, and the soft limit is often 1024.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let service = Arc::new(Service::start(&flags.region, &flags.socket, &workload, service::IDLE)?);
    let metrics = flags.metrics.map(|address| metrics::Server::start(address, service.clone())).transpose()?;
    end.wait()?;
    drop(metrics);
    drop(service);
    Ok(())
}
