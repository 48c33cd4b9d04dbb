//! Keeps the certificates in a Secret, and their CAs in the webhook's configuration. Any number of replicas do so at
//! once: who comes second to a change takes over what the first has written.

use crate::Clock;
use crate::certificates::{Pairs, Served};
use crate::metrics::Metrics;
use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use freeboard_inject::Mode;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, ObjectMeta};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How soon a first failure is tried again.
const SOON: Duration = Duration::from_millis(500);
/// Changes by others that are given way to before it is an error.
const MOST_CONFLICTS: usize = 5;

/// The first Kubernetes with native sidecars: before it, an init container that stays keeps its pod from starting.
const SIDECARS_SINCE: u32 = 29;

/// What belongs to the injector in the cluster.
#[derive(Clone, Debug)]
pub struct Names {
    /// Of the service and the secret.
    pub namespace: String,
    /// By which the API server asks.
    pub service: String,
    /// For the certificates.
    pub secret: String,
    /// The MutatingWebhookConfiguration.
    pub configuration: String,
}

impl Names {
    /// What the API server asks for.
    pub fn dns_name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

/// The injector's part of a cluster.
pub struct Cluster {
    secrets: Api<Secret>,
    configurations: Api<DynamicObject>,
    client: kube::Client,
    names: Names,
    mode: Mode,
    clock: Clock,
    served: Arc<Served>,
    metrics: Arc<Metrics>,
}

impl Cluster {
    /// Through a client; what is to be served goes to `served`.
    pub fn new(
        client: kube::Client,
        names: Names,
        mode: Mode,
        clock: Clock,
        served: Arc<Served>,
        metrics: Arc<Metrics>,
    ) -> Cluster {
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration");
        // untyped, so that what newer versions of Kubernetes have in it stays
        let configurations = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
        let secrets = Api::namespaced(client.clone(), &names.namespace);
        Cluster { secrets, configurations, client, names, mode, clock, served, metrics }
    }

    /// Looks for ever whether all is in place, and says when it first is.
    pub async fn keep(self, every: Duration, ready: watch::Sender<bool>) {
        let mut known = Pairs::default();
        let mut is_ready = false;
        let mut pause = SOON.min(every);
        loop {
            let done = match self.put_in_place(&mut known).await {
                Ok(()) if !is_ready => self.check_version().await,
                done => done,
            };
            match done {
                Ok(()) => {
                    is_ready = true;
                    pause = every;
                    self.metrics.cluster_seen.set((self.clock)() as i64);
                    if !ready.send_replace(true) {
                        tracing::info!("ready: the cluster knows {}", self.names.dns_name());
                    }
                }
                Err(error) => {
                    tracing::warn!("{error:#}");
                    // what is known goes on being served, each in its time
                    self.serve(&known);
                    pause = (2 * pause).min(every);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// # Errors
    /// The cluster is too old for what is to be put into pods.
    async fn check_version(&self) -> Result<()> {
        let version = self.client.apiserver_version().await;
        let version = version.map_err(|error| failed("the cluster does not say its version", error))?;
        // some say 29+
        let minor = version.minor.trim_end_matches('+').parse::<u32>().unwrap_or(u32::MAX);
        let is_old = version.major == "1" && minor < SIDECARS_SINCE;
        ensure!(
            self.mode != Mode::Sidecar || !is_old,
            "Kubernetes 1.{minor} has no native sidecars, and pods would not start; mend: give --library-only or --run"
        );
        Ok(())
    }

    async fn put_in_place(&self, known: &mut Pairs) -> Result<()> {
        for _ in 0..MOST_CONFLICTS {
            // In this order: whoever puts newer CAs in has written the Secret before, so that these are either read
            // here, or the configuration changes after it was read, and the patch is refused.
            let configuration = self.configurations.get_opt(&self.names.configuration).await;
            let Some(pairs) = self.certificates().await? else { continue };
            *known = pairs;
            self.serve(known);
            let name = &self.names.configuration;
            let configuration = configuration
                .map_err(|error| failed(&format!("MutatingWebhookConfiguration/{name} cannot be read"), error))?
                .with_context(|| format!("MutatingWebhookConfiguration/{name} is not there; mend: apply deploy/"))?;
            if self.publish(&configuration, &known.bundle()).await? {
                return Ok(());
            }
        }
        bail!("others change the Secret or the webhook's configuration all the time; mend: see who else writes them")
    }

    /// The certificates, made where there are none, renewed where it is time. `None`: somebody was faster.
    async fn certificates(&self) -> Result<Option<Pairs>> {
        let place = format!("Secret/{} in {}", self.names.secret, self.names.namespace);
        let now_s = (self.clock)();
        let dns_name = self.names.dns_name();
        let there = self.secrets.get_opt(&self.names.secret).await;
        let there = there.map_err(|error| failed(&format!("{place} cannot be read"), error))?;
        let data = there.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
        let data: BTreeMap<_, _> = data.into_iter().map(|(name, ByteString(bytes))| (name, bytes)).collect();
        let (read, problems) = Pairs::from_data(&data, &dns_name, now_s);
        let pairs = read.renewed(&dns_name, now_s)?;
        if pairs.to_data() == data {
            return Ok(Some(pairs));
        }
        for problem in problems {
            tracing::warn!("{place}: {problem}; it is made anew");
        }
        let bytes = pairs.to_data().into_iter().map(|(name, bytes)| (name, ByteString(bytes))).collect();
        let is_new = there.is_none();
        let metadata = ObjectMeta { name: Some(self.names.secret.clone()), ..ObjectMeta::default() };
        // with the version that was read: a change since then is a conflict
        let secret = there.unwrap_or_else(|| Secret { metadata, ..Secret::default() });
        let secret = Secret { data: Some(bytes), ..secret };
        let params = PostParams::default();
        let written = if is_new {
            self.secrets.create(&params, &secret).await
        } else {
            self.secrets.replace(&self.names.secret, &params, &secret).await
        };
        if is_conflict(&written) {
            return Ok(None);
        }
        written.map_err(|error| failed(&format!("{place} cannot be written"), error))?;
        tracing::info!("{place}: a certificate for {dns_name} is made");
        Ok(Some(pairs))
    }

    fn serve(&self, pairs: &Pairs) {
        if let Some(pair) = pairs.pick((self.clock)()) {
            self.served.set(pair);
            self.metrics.certificate_expiry.set(pair.expires_s() as i64);
        }
    }

    /// Puts the CAs into every webhook of the configuration. False: somebody was faster.
    async fn publish(&self, configuration: &DynamicObject, bundle: &str) -> Result<bool> {
        let bundle = Value::from(STANDARD.encode(bundle));
        let mut webhooks = configuration.data["webhooks"].clone();
        for webhook in webhooks.as_array_mut().into_iter().flatten() {
            webhook["clientConfig"]["caBundle"] = bundle.clone();
        }
        if webhooks == configuration.data["webhooks"] {
            return Ok(true);
        }
        let name = &self.names.configuration;
        let version = &configuration.metadata.resource_version;
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "webhooks": webhooks}));
        let written = self.configurations.patch(name, &PatchParams::default(), &patch).await;
        if is_conflict(&written) {
            return Ok(false);
        }
        written.map_err(|error| failed(&format!("MutatingWebhookConfiguration/{name} cannot be changed"), error))?;
        tracing::info!("MutatingWebhookConfiguration/{name}: the CA is put in");
        Ok(true)
    }
}

/// What the API server says, or what is in the way to it.
fn failed(what: &str, error: kube::Error) -> anyhow::Error {
    let why = match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => format!("{:#}", anyhow!(other)),
    };
    anyhow!("{what}: {why}; mend: apply deploy/ where a right is missing, else see to the API server")
}

fn is_conflict<T>(written: &kube::Result<T>) -> bool {
    matches!(written, Err(kube::Error::Api(status)) if status.code == 409)
}
