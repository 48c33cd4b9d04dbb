//! What may be asked for.

use serde::Serialize;

/// How Freeboard comes into a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// With a native sidecar (Kubernetes 1.29), which watches the containers and brings the workload file.
    #[default]
    Sidecar,
    /// The library alone, which an init container puts there: for clusters without native sidecars.
    Library,
    /// Explicit commands started by `freeboard run`: for static programs, into which no library can be loaded.
    Run,
}

/// What to put into pods.
#[derive(Clone, Debug)]
pub struct Options {
    /// How.
    pub mode: Mode,
    /// The image with the program and the library.
    pub image: String,
    /// Names of the containers to serve; all if there are none.
    pub containers: Vec<String>,
    /// Name of a ConfigMap with a `workload.toml`.
    pub config_map: Option<String>,
    /// Pace stdio through its FILE tables, too.
    pub stdio: bool,
    /// Serve containers without a memory limit, too.
    pub without_limit: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            mode: Mode::default(),
            image: "freeboard".into(),
            containers: Vec::new(),
            config_map: None,
            stdio: false,
            without_limit: false,
        }
    }
}

/// Takes a reference to an image: `[host[:port]/]path[:tag][@algorithm:digest]`, as container engines read it.
///
/// # Errors
/// What is wrong with it.
pub fn image(text: &str) -> Result<String, String> {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    // a colon before the last slash is a port's
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let (path, tag) = match name[last..].split_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    if let Some(digest) = digest {
        let is_digest = digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        if !is_digest {
            return Err(format!("@{digest} is no digest; mend: write @sha256: and its 64 digits"));
        }
    }
    if let Some(tag) = tag {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let is_tag = tag.len() <= 128
            && tag.bytes().next().is_some_and(is_word)
            && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
        if !is_tag {
            return Err(format!(":{tag} is no tag; mend: write letters, digits, dots, dashes and underscores"));
        }
    }
    let mut parts = path.split('/').collect::<Vec<_>>();
    let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
    if parts.len() > 1 && is_host(parts[0]) {
        let host = parts.remove(0);
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':' | b'-' | b'[' | b']');
        if !host.bytes().all(is_name) {
            return Err(format!("{host} is no registry; mend: write HOST or HOST:PORT"));
        }
    }
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_part = |part: &&str| {
        let ends = [part.bytes().next(), part.bytes().last()];
        ends.iter().all(|end| end.is_some_and(is_inner))
            && part.bytes().all(|byte| is_inner(byte) || matches!(byte, b'.' | b'_' | b'-'))
    };
    match parts.iter().find(|part| !is_part(part)) {
        Some(part) => Err(format!(
            "{part:?} is no name in an image; mend: write small letters and digits, as in registry/name:tag"
        )),
        None => Ok(text.to_owned()),
    }
}

/// Takes the name of a ConfigMap: a DNS subdomain.
///
/// # Errors
/// It is none.
pub fn config_map(text: &str) -> Result<String, String> {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().last()];
        ends.iter().all(|end| end.is_some_and(is_inner)) && label.bytes().all(|byte| is_inner(byte) || byte == b'-')
    };
    if text.len() <= 253 && text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err("no name of a ConfigMap; mend: name one in the pod's namespace, with the file as its key workload.toml"
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_what_engines_take() {
        let digest = format!("freeboard@sha256:{}", "a".repeat(64));
        for text in ["freeboard", "freeboard:1.0", "a/b:1", "localhost:5000/a/b", "ghcr.io/x/y_z:v1.2-rc", &digest] {
            assert_eq!(image(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "Freeboard",
            "freeboard:",
            "a//b",
            "a b",
            "freeboard:-x",
            "freeboard@sha256:12",
            "/a",
            "a/",
            "http://a/b",
        ] {
            let error = image(text).unwrap_err();
            assert!(error.contains("mend: "), "{text}: {error}");
        }
    }

    #[test]
    fn config_maps_are_names() {
        assert_eq!(config_map("importer.v1").as_deref(), Ok("importer.v1"));
        for text in ["", "workload.toml/", "A", "a..b", "-a"] {
            assert!(config_map(text).is_err(), "{text}");
        }
    }
}
