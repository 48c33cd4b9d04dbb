//! Tells a pod's controller what became of the pod, by an Event. Nobody waits for it, and none is worth a flood.

use crate::metrics::Metrics;
use crate::review::{Outcome, Owner};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const COMPONENT: &str = "freeboard-injector";
/// What was said to somebody is not said again within it.
const QUIET: Duration = Duration::from_secs(10 * 60);
/// Owners that are remembered.
const MOST_REMEMBERED: usize = 1024;
const MOST_WAITING: usize = 64;
/// Between two: a crowd of owners is told within minutes.
const PAUSE: Duration = Duration::from_millis(100);

struct Message {
    namespace: String,
    owner: Owner,
    is_injected: bool,
    said: String,
}

/// Where messages are left.
pub struct Events {
    waiting: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
}

/// Starts sending.
pub fn start(client: kube::Client, metrics: Arc<Metrics>) -> Events {
    let (waiting, messages) = mpsc::channel(MOST_WAITING);
    tokio::spawn(send(messages, client, metrics.clone()));
    Events { waiting, metrics }
}

impl Events {
    /// Leaves a message, if there is something to say and room for it.
    pub fn tell(&self, namespace: &str, owner: &Owner, outcome: Outcome, said: &str) {
        // the node that a static pod belongs to has no namespace
        let is_told = matches!(outcome, Outcome::Injected | Outcome::Skipped(_)) && owner.kind != "Node";
        let is_injected = outcome == Outcome::Injected;
        let message = Message { namespace: namespace.into(), owner: owner.clone(), is_injected, said: said.into() };
        if is_told && self.waiting.try_send(message).is_err() {
            self.metrics.count_event("dropped");
        }
    }
}

async fn send(mut messages: mpsc::Receiver<Message>, client: kube::Client, metrics: Arc<Metrics>) {
    let mut told = Told::default();
    while let Some(message) = messages.recv().await {
        if !told.is_news(&message, Instant::now()) {
            continue;
        }
        let api: Api<Event> = Api::namespaced(client.clone(), &message.namespace);
        let result = match api.create(&PostParams::default(), &event(message)).await {
            Ok(_) => "sent",
            Err(error) => {
                tracing::debug!("an Event was not taken: {error}");
                "failed"
            }
        };
        metrics.count_event(result);
        tokio::time::sleep(PAUSE).await;
    }
}

/// What was said to whom, and when.
#[derive(Default)]
struct Told(HashMap<(String, bool), Instant>);

impl Told {
    fn is_news(&mut self, message: &Message, now: Instant) -> bool {
        let is_old = |then: &Instant| now.duration_since(*then) >= QUIET;
        if self.0.len() >= MOST_REMEMBERED {
            self.0.retain(|_, then| !is_old(then));
        }
        let key = (message.owner.uid.clone(), message.is_injected);
        if self.0.get(&key).is_some_and(|then| !is_old(then)) || self.0.len() >= MOST_REMEMBERED {
            return false;
        }
        self.0.insert(key, now);
        true
    }
}

fn event(message: Message) -> Event {
    let Message { namespace, owner, is_injected, said } = message;
    let now = Some(Time(Timestamp::now()));
    Event {
        metadata: ObjectMeta {
            generate_name: Some("freeboard-".into()),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(owner.api_version),
            kind: Some(owner.kind),
            name: Some(owner.name),
            namespace: Some(namespace),
            uid: Some(owner.uid),
            ..ObjectReference::default()
        },
        type_: Some(if is_injected { "Normal" } else { "Warning" }.into()),
        reason: Some(if is_injected { "FreeboardInjected" } else { "FreeboardSkipped" }.into()),
        message: Some(said),
        source: Some(EventSource { component: Some(COMPONENT.into()), host: None }),
        first_timestamp: now.clone(),
        last_timestamp: now,
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nobody_hears_the_same_again_soon_nor_do_too_many_hear() {
        let owner = |uid: usize| {
            let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": uid.to_string()});
            serde_json::from_value::<Owner>(owner).unwrap()
        };
        let message =
            |uid, is_injected| Message { namespace: "a".into(), owner: owner(uid), is_injected, said: String::new() };
        let (mut told, start) = (Told::default(), Instant::now());
        assert!(told.is_news(&message(0, true), start));
        assert!(!told.is_news(&message(0, true), start + QUIET / 2));
        assert!(told.is_news(&message(0, false), start));
        assert!(told.is_news(&message(0, true), start + QUIET));
        let heard = (1..2 * MOST_REMEMBERED).filter(|uid| told.is_news(&message(*uid, true), start + QUIET)).count();
        assert_eq!((heard, told.0.len()), (MOST_REMEMBERED - 1, MOST_REMEMBERED));
        assert!(told.is_news(&message(1, true), start + 2 * QUIET));
    }
}
