//! A small API server: objects by their paths, with what the injector relies on in the real one. Names are unique, a
//! write of an older version than the one that is there is a conflict, a merge patch is RFC 7386. It keeps a record of
//! what it was asked.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use freeboard_injector::certificates::{Pairs, Served};
use freeboard_injector::server::{Tls, serve};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub(crate) const SECRET: &str = "/api/v1/namespaces/freeboard/secrets/freeboard-injector";
pub(crate) const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/freeboard-injector";

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<String, Value>,
    /// Verb, group, resource, name where one was given.
    pub(crate) calls: BTreeSet<[String; 4]>,
    /// Status codes of writes.
    pub(crate) writes: Vec<u16>,
    /// Times that somebody looked at the Secret.
    pub(crate) looks: usize,
    /// Minor version, as it says it.
    pub(crate) minor: &'static str,
    /// What the others give as the token.
    pub(crate) token: Option<&'static str>,
    /// Answers nothing but errors.
    pub(crate) is_down: bool,
    version: u64,
}

#[derive(Clone)]
pub(crate) struct Api {
    state: Arc<Mutex<Store>>,
    pub(crate) address: SocketAddr,
}

impl Api {
    /// With the webhook's configuration as deploy/ has it.
    pub(crate) async fn start() -> Api {
        Api::serve(None).await
    }

    /// The same over TLS, as every real one: the names of its own, and its CA.
    pub(crate) async fn start_tls() -> (Api, &'static str, String) {
        let name = "kubernetes.default.svc";
        let now_s = freeboard_injector::clock()();
        let pairs = Pairs::default().renewed(name, now_s).unwrap();
        let served = Arc::new(Served::default());
        served.set(pairs.pick(now_s).unwrap());
        (Api::serve(Some(Tls::new(served))).await, name, pairs.bundle())
    }

    async fn serve(tls: Option<Tls>) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Api { state: Arc::default(), address: listener.local_addr().unwrap() };
        let hook = |name: &str| json!({"name": name, "clientConfig": {"service": {"name": "s"}}, "newer": [1]});
        let configuration = json!({"metadata": {"name": "freeboard-injector"}, "webhooks": [hook("a"), hook("b")]});
        api.state().put(CONFIGURATION, configuration);
        let router = Router::new().fallback(answer).with_state(api.clone());
        api.state().minor = "33";
        tokio::spawn(async move {
            let (_end, ended) = watch::channel(false);
            serve(listener, tls, router, ended).await;
        });
        api
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, Store> {
        self.state.lock().unwrap()
    }

    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::try_from(kube::Config::new(format!("http://{}", self.address).parse().unwrap())).unwrap()
    }

    /// The CAs that an API server would trust.
    pub(crate) fn bundle(&self) -> Option<String> {
        use base64::Engine;
        let state = self.state();
        let webhooks = state.objects[CONFIGURATION]["webhooks"].as_array().unwrap();
        let bundles: BTreeSet<_> = webhooks.iter().map(|one| one["clientConfig"]["caBundle"].as_str()).collect();
        assert_eq!(bundles.len(), 1, "each webhook has the same");
        let bytes = base64::engine::general_purpose::STANDARD.decode(bundles.first().unwrap().as_ref()?).unwrap();
        Some(String::from_utf8(bytes).unwrap())
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        let state = self.state();
        let events = state.objects.iter().filter(|(path, _)| path.contains("/events/"));
        events.map(|(_, event)| event.clone()).collect()
    }
}

impl Store {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path.into(), object.clone());
        object
    }

    /// Whether a write is of another version than the one that is there.
    fn is_stale(&self, path: &str, written: &Value) -> bool {
        let version = &written["metadata"]["resourceVersion"];
        !version.is_null() && *version != self.objects[path]["metadata"]["resourceVersion"]
    }

    fn act(&mut self, method: &Method, path: &str, body: &Value) -> Result<Value, (u16, &'static str)> {
        if self.is_down {
            return Err((500, "InternalError"));
        }
        if *method == Method::POST {
            let metadata = &body["metadata"];
            let generated = metadata["generateName"].as_str().map(|prefix| format!("{prefix}{}", self.version));
            let name = metadata["name"].as_str().map(str::to_owned).or(generated).ok_or((422, "Invalid"))?;
            let path = format!("{path}/{name}");
            return if self.objects.contains_key(&path) {
                Err((409, "AlreadyExists"))
            } else {
                Ok(self.put(&path, body.clone()))
            };
        }
        let mut object = self.objects.get(path).cloned().ok_or((404, "NotFound"))?;
        if *method == Method::GET {
            return Ok(object);
        }
        if self.is_stale(path, body) {
            return Err((409, "Conflict"));
        }
        if *method == Method::PATCH {
            json_patch::merge(&mut object, body);
        } else {
            object = body.clone();
        }
        Ok(self.put(path, object))
    }
}

/// Verb, group, resource and name, as RBAC has them.
fn call(method: &Method, path: &str) -> [String; 4] {
    let mut parts = path.trim_start_matches('/').split('/').collect::<Vec<_>>();
    let group = if parts.remove(0) == "apis" { parts.remove(0) } else { "" };
    parts.remove(0);
    if parts[0] == "namespaces" {
        parts.drain(..2);
    }
    let verb = match method.as_str() {
        "GET" if parts.len() == 1 => "list",
        "GET" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        other => panic!("{other}"),
    };
    let name = parts.get(1).copied().unwrap_or_default();
    [verb, group, parts[0], name].map(str::to_owned)
}

async fn answer(State(api): State<Api>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let body = serde_json::from_slice(&body).unwrap_or_default();
    if method == Method::PATCH {
        assert_eq!(headers[header::CONTENT_TYPE], "application/merge-patch+json");
    }
    // as between machines: what another replica does comes in between
    tokio::task::yield_now().await;
    let mut state = api.state();
    if let Some(token) = state.token {
        assert_eq!(headers[header::AUTHORIZATION], format!("Bearer {token}"));
    }
    // everybody may ask for it
    if uri.path() == "/version" {
        let version = ["gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"];
        let mut version: Value = version.iter().map(|key| (key.to_string(), json!(""))).collect();
        version["major"] = json!("1");
        version["minor"] = json!(state.minor);
        return version.to_string().into_response();
    }
    state.looks += usize::from(method == Method::GET && uri.path() == SECRET);
    state.calls.insert(call(&method, uri.path()));
    let done = state.act(&method, uri.path(), &body);
    let code = done.as_ref().err().map_or(200, |(code, _)| *code);
    if method != Method::GET && !uri.path().ends_with("/events") {
        state.writes.push(code);
    }
    let text = match done {
        Ok(object) => object,
        Err((code, reason)) => {
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code})
        }
    };
    (StatusCode::from_u16(code).unwrap(), [(header::CONTENT_TYPE, "application/json")], text.to_string())
        .into_response()
}
