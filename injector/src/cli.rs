//! The flags.

use crate::cluster::Names;
use crate::review::Rules;
use clap::Parser;
use freeboard_inject::{Mode, Options, options, pod};
use std::net::SocketAddr;

/// Puts Freeboard into pods as they are created: those with the label freeboard.dev/inject: enabled.
#[derive(Debug, Parser)]
#[command(name = "freeboard-injector", version)]
pub struct Cli {
    /// Serve the webhook here, over TLS
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Serve metrics for Prometheus, /healthz and /readyz here
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9409")]
    pub metrics: SocketAddr,
    /// Namespace of the service and the secret; the pod's own if it is not given
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Service by which the API server asks
    #[arg(long, value_name = "SERVICE", default_value = "freeboard-injector")]
    pub service: String,
    /// Secret to keep the certificates in; it is made
    #[arg(long, value_name = "SECRET", default_value = "freeboard-injector")]
    pub secret: String,
    /// MutatingWebhookConfiguration to put the CA into; it must be there
    #[arg(long, value_name = "NAME", default_value = "freeboard-injector")]
    pub webhook_configuration: String,
    /// Image with freeboard and the library
    #[arg(long, value_name = "IMAGE", default_value = "freeboard", value_parser = options::image)]
    pub image: String,
    /// ConfigMap in the pods' namespaces with a workload file as its key workload.toml
    #[arg(long, value_name = "CONFIGMAP", value_parser = options::config_map)]
    pub config: Option<String>,
    /// Without a sidecar, for Kubernetes before 1.29: an init container brings the library
    #[arg(long, conflicts_with_all = ["config", "run"])]
    pub library_only: bool,
    /// Start explicit commands by `freeboard run`, for static programs
    #[arg(long)]
    pub run: bool,
    /// Pace stdio through glibc's FILE tables, too
    #[arg(long)]
    pub stdio: bool,
    /// Serve containers without a memory limit, too
    #[arg(long)]
    pub without_limit: bool,
    /// Inject importers of KubeVirt's CDI, too, by the labels that it gives them; freeboard.dev/inject: disabled leaves
    /// one out
    #[arg(long)]
    pub cdi: bool,
    /// Least weight of what is logged: error, warn, info or debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
}

impl Cli {
    /// What belongs to the injector in the cluster.
    pub fn names(&self, own_namespace: &str) -> Names {
        Names {
            namespace: self.namespace.clone().unwrap_or_else(|| own_namespace.into()),
            service: self.service.clone(),
            secret: self.secret.clone(),
            configuration: self.webhook_configuration.clone(),
        }
    }

    /// Which pods get what.
    pub fn rules(&self) -> Rules {
        let mode = match self {
            Cli { library_only: true, .. } => Mode::Library,
            Cli { run: true, .. } => Mode::Run,
            _ => Mode::Sidecar,
        };
        let options = Options {
            mode,
            image: self.image.clone(),
            containers: Vec::new(),
            config_map: self.config.clone(),
            stdio: self.stdio,
            without_limit: self.without_limit,
        };
        Rules { options, with_cdi: self.cdi, inject: pod::inject }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_table_is_consistent() {
        Cli::command().debug_assert();
        let flags = Cli::try_parse_from(["freeboard-injector", "--run", "--image=a/b:1"]).unwrap();
        assert_eq!((flags.rules().options.mode, flags.rules().options.image), (Mode::Run, "a/b:1".into()));
        assert_eq!(flags.names("here").namespace, "here");
        for wrong in ["--image=A", "--config=/", "--listen=x", "--log-level=loud", "extra"] {
            assert_eq!(Cli::try_parse_from(["freeboard-injector", wrong]).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }
}
