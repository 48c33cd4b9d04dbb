//! Certificates, and several who keep them.

use crate::api::{Api, CONFIGURATION, SECRET};
use crate::{Replica, Time, client, eventually, rules};
use freeboard_inject::{Mode, Options};
use freeboard_injector::certificates::{LIFETIME_S, RENEWED_S, SETTLED_S};
use freeboard_injector::review::Rules;
use serde_json::{Value, json};

/// The certificate that a replica serves, to who trusts what the cluster knows.
async fn served(replica: &Replica, api: &Api, time: &Time) -> Vec<u8> {
    let stream = client::tls(replica.webhook, &api.bundle().unwrap(), time).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// How many certificates the Secret has.
fn kept(api: &Api) -> usize {
    let state = api.state();
    let data = state.objects[SECRET]["data"].as_object().unwrap();
    assert!(data.keys().all(|name| name.ends_with(".crt") || name.ends_with(".key")));
    data.len() / 2
}

/// Until every replica has looked, and done what it found to do.
async fn look_around(api: &Api) {
    let before = api.state().looks;
    eventually("looked", async || api.state().looks >= before + 8).await;
}

#[tokio::test]
async fn replicas_that_start_at_once_agree_on_one_certificate() {
    let mut conflicts = 0;
    for _ in 0..20 {
        let (api, time) = (Api::start().await, Time::default());
        let (one, two) = tokio::join!(Replica::start(&api, &time, rules()), Replica::start(&api, &time, rules()));
        tokio::join!(one.ready(), two.ready());
        assert_eq!(served(&one, &api, &time).await, served(&two, &api, &time).await);
        assert_eq!(kept(&api), 1);
        conflicts += api.state().writes.iter().filter(|code| **code == 409).count();
        one.end();
        two.end();
    }
    assert!(conflicts > 0, "nobody raced: this shows nothing");
}

#[tokio::test]
async fn certificates_are_renewed_without_anybody_noticing() {
    let (api, time) = (Api::start().await, Time::default());
    let replicas = [Replica::start(&api, &time, rules()).await, Replica::start(&api, &time, rules()).await];
    for replica in &replicas {
        replica.ready().await;
    }
    let each = async || [served(&replicas[0], &api, &time).await, served(&replicas[1], &api, &time).await];
    let all = async || {
        let [one, two] = each().await;
        assert!(one == two, "replicas serve different certificates");
        one
    };
    let first = all().await;
    let first_bundle = api.bundle().unwrap();
    time.pass(LIFETIME_S - RENEWED_S - 1);
    look_around(&api).await;
    assert_eq!((kept(&api), all().await == first), (1, true), "too early");

    time.pass(2);
    eventually("renewed", async || kept(&api) == 2 && api.bundle().unwrap() != first_bundle).await;
    look_around(&api).await;
    assert_eq!(all().await, first, "served before every API server has heard");
    assert!(api.bundle().unwrap().contains(&first_bundle));

    // one that hears of nothing any more goes over to the new one by itself, in its time
    api.state().is_down = true;
    look_around(&api).await;
    time.pass(SETTLED_S);
    eventually("served", async || !each().await.contains(&first)).await;
    let second = all().await;
    assert_ne!(second, first);
    // an API server that has an older bundle than that would have been lost
    assert!(client::tls(replicas[0].webhook, &first_bundle, &time).await.is_err());
    api.state().is_down = false;
    look_around(&api).await;
    assert!(api.bundle().unwrap().contains(&first_bundle), "not before the first expires");

    time.pass(RENEWED_S);
    eventually("forgotten", async || kept(&api) == 1).await;
    eventually("not trusted", async || !api.bundle().unwrap().contains(&first_bundle)).await;
    assert_eq!(all().await, second);
    let expiry =
        format!("certificate_expiry_timestamp_seconds {}", Time::default().now_s() + 2 * LIFETIME_S - RENEWED_S + 1);
    let (_, text) = client::get(replicas[1].plain, "/metrics").await;
    assert!(text.contains(&expiry), "{expiry} is not in {text}");
}

#[tokio::test]
async fn without_the_cluster_nobody_is_ready_and_with_it_everybody_is() {
    let (api, time) = (Api::start().await, Time::default());
    api.state().is_down = true;
    let replica = Replica::start(&api, &time, rules()).await;
    look_around(&api).await;
    assert_eq!(client::get(replica.plain, "/readyz").await.0, 503);
    assert_eq!(client::get(replica.plain, "/healthz").await.0, 200);
    api.state().is_down = false;
    replica.ready().await;
    // and stays so without it: it has all it needs
    api.state().is_down = true;
    look_around(&api).await;
    assert_eq!(client::get(replica.plain, "/readyz").await.0, 200);
    served(&replica, &api, &time).await;
}

#[tokio::test]
async fn without_its_configuration_it_says_so_and_waits() {
    let (api, time) = (Api::start().await, Time::default());
    let configuration = api.state().objects.remove(CONFIGURATION).unwrap();
    let replica = Replica::start(&api, &time, rules()).await;
    look_around(&api).await;
    assert_eq!(client::get(replica.plain, "/readyz").await.0, 503);
    assert_eq!(kept(&api), 1);
    api.state().objects.insert(CONFIGURATION.into(), configuration);
    replica.ready().await;
    served(&replica, &api, &time).await;
}

#[tokio::test]
async fn what_others_spoil_is_put_right_and_what_is_theirs_stays() {
    let (api, time) = (Api::start().await, Time::default());
    let mut secret =
        json!({"metadata": {"name": "freeboard-injector", "labels": {"kept": "yes"}, "resourceVersion": "1"}});
    secret["data"] = json!({"1.crt": "AAAA", "notes": "AAAA"});
    api.state().objects.insert(SECRET.into(), secret);
    let replica = Replica::start(&api, &time, rules()).await;
    replica.ready().await;
    let first = served(&replica, &api, &time).await;
    assert_eq!(api.state().objects[SECRET]["metadata"]["labels"]["kept"], "yes");
    assert_eq!(api.state().objects[CONFIGURATION]["webhooks"][1]["newer"], json!([1]), "newer fields stay");

    let bundle = api.bundle();
    api.state().objects.get_mut(CONFIGURATION).unwrap()["webhooks"][1]["clientConfig"]["caBundle"] = json!("AAAA");
    eventually("put back", async || {
        let state = api.state();
        let webhooks = &state.objects[CONFIGURATION]["webhooks"];
        webhooks[0]["clientConfig"]["caBundle"] == webhooks[1]["clientConfig"]["caBundle"]
    })
    .await;
    assert_eq!(api.bundle(), bundle);

    api.state().objects.get_mut(SECRET).unwrap()["data"] = Value::Null;
    eventually("made anew", async || {
        let has_data = !api.state().objects[SECRET]["data"].is_null();
        has_data && api.bundle() != bundle && served(&replica, &api, &time).await != first
    })
    .await;
}

/// Where there are no native sidecars, one would keep its pod from starting for ever.
#[tokio::test]
async fn a_cluster_too_old_for_sidecars_gets_none() {
    for (minor, mode, is_ready) in [
        ("28", Mode::Sidecar, false),
        ("28+", Mode::Sidecar, false),
        ("29+", Mode::Sidecar, true),
        ("27", Mode::Library, true),
        ("27", Mode::Run, true),
    ] {
        let (api, time) = (Api::start().await, Time::default());
        api.state().minor = minor;
        let options = Options { mode, ..Options::default() };
        let replica = Replica::start(&api, &time, Rules { options, ..rules() }).await;
        look_around(&api).await;
        assert_eq!(client::get(replica.plain, "/readyz").await.0 == 200, is_ready, "{minor} {mode:?}");
    }
}
