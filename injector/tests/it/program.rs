//! The program itself.

use crate::api::Api;
use crate::{client, eventually, listener};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_freeboard-injector");

/// Over TLS and with a token, as in a pod.
async fn cluster() -> (Api, PathBuf) {
    let (api, name, authority) = Api::start_tls().await;
    api.state().token = Some("a-token");
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kubeconfig-{}", api.address.port()));
    let cluster = json!({
        "server": format!("https://{}", api.address),
        "tls-server-name": name,
        "certificate-authority-data": STANDARD.encode(authority)
    });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "freeboard"}}],
        "users": [{"name": "test", "user": {"token": "a-token"}}]
    });
    fs::write(&file, config.to_string()).unwrap();
    (api, file)
}

fn program(config: &Path, arguments: &[String]) -> Command {
    let mut program = Command::new(PROGRAM);
    program.env("KUBECONFIG", config).args(arguments).stderr(Stdio::piped()).stdout(Stdio::piped());
    program
}

fn said(output: &Output) -> String {
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn it_serves_until_it_is_asked_to_end() {
    let (_api, config) = cluster().await;
    let [webhook, plain] = [listener().await, listener().await].map(|one| one.local_addr().unwrap());
    let arguments = [format!("--listen={webhook}"), format!("--metrics={plain}"), "--log-level=debug".into()];
    let child = program(&config, &arguments).spawn().unwrap();
    eventually("up", async || tokio::net::TcpStream::connect(plain).await.is_ok()).await;
    eventually("ready", async || client::get(plain, "/readyz").await.0 == 200).await;
    let pid = child.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for words in [
        "Secret/freeboard-injector in freeboard: a certificate for freeboard-injector.freeboard.svc is made",
        "MutatingWebhookConfiguration/freeboard-injector: the CA is put in",
        "ready: the cluster knows freeboard-injector.freeboard.svc",
        "asked to end: requests are taken for 5000 ms more",
    ] {
        assert_eq!(said.lines().filter(|line| line.contains(words)).count(), 1, "{words}: {said}");
    }
    assert!(!said.contains("PRIVATE KEY") && !said.contains("a-token"), "{said}");
}

#[tokio::test]
async fn what_is_in_the_way_is_said_in_a_line() {
    let (_api, config) = cluster().await;
    let taken = listener().await;
    let address = taken.local_addr().unwrap();
    for (config, arguments, words) in [
        (
            config.as_path(),
            vec![format!("--listen={address}")],
            format!("--listen: cannot listen on {address}: Address already in use"),
        ),
        (Path::new("/nowhere"), Vec::new(), "mend: run this in a pod with a service account".into()),
    ] {
        let mut program = program(config, &arguments);
        let output = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = said(&output);
        assert!(said.lines().last().unwrap().contains(&words), "{said}");
        assert!(said.lines().all(|line| line.contains(" ERROR ") || line.contains(" WARN ")), "{said}");
    }
}
