//! Which certificates there must be, and which of them is served.
//!
//! Each certificate has a CA of its own, whose key is forgotten as soon as it has signed. So there is one way for the
//! first certificate and for each that follows: it is made, its CA is put beside the one before, and when everybody who
//! asks has had the time to hear of that, it is served. The one before stays trusted until it expires, for there may be
//! a replica that has not heard.

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use time::OffsetDateTime;

const DAY_S: u64 = 24 * 60 * 60;
/// How long a certificate is good.
pub const LIFETIME_S: u64 = 30 * DAY_S;
/// What is left of the newest when the next is made.
pub const RENEWED_S: u64 = LIFETIME_S / 3;
/// From when a certificate's CA is published until it is served: replicas look every half minute, API servers hear at
/// once.
pub const SETTLED_S: u64 = 10 * 60;
/// An API server's clock may be behind.
const SKEW_S: u64 = 60 * 60;

/// A certificate with its key, and the CA that signed it.
#[derive(Clone)]
pub struct Pair {
    expires_s: u64,
    /// PEM: the certificate, then its CA's.
    chain: String,
    /// PEM.
    key: String,
    certified: Arc<CertifiedKey>,
}

impl Pair {
    /// A new one, for a DNS name.
    ///
    /// # Errors
    /// The name is none.
    fn make(dns_name: &str, now_s: u64) -> Result<Pair> {
        let expires_s = now_s + LIFETIME_S;
        let params = |subject: String, names: Vec<String>| -> Result<CertificateParams> {
            let mut params = CertificateParams::new(names).with_context(|| format!("{dns_name} is no DNS name"))?;
            params.not_before = OffsetDateTime::from_unix_timestamp(now_s.saturating_sub(SKEW_S).try_into()?)?;
            params.not_after = OffsetDateTime::from_unix_timestamp(expires_s.try_into()?)?;
            params.distinguished_name.push(DnType::CommonName, subject);
            Ok(params)
        };
        // two by one name would have to be told apart by their keys
        let mut authority = params(format!("freeboard-injector CA {expires_s}"), Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority_key = KeyPair::generate()?;
        let authority_certificate = authority.self_signed(&authority_key)?;
        let mut server = params("freeboard-injector".into(), vec![dns_name.into()])?;
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &Issuer::new(authority, authority_key))?;
        let chain = certificate.pem() + &authority_certificate.pem();
        Pair::read(expires_s, chain, key.serialize_pem(), dns_name, now_s)
    }

    /// What is in the Secret, if it is good now and until it says.
    fn read(expires_s: u64, chain: String, key: String, dns_name: &str, now_s: u64) -> Result<Pair> {
        let certificates = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let [certificate, authority] = &certificates[..] else {
            anyhow::bail!("not a certificate and its CA, but {} certificates", certificates.len());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
        let name = ServerName::try_from(dns_name)?;
        let is_good = |at_s: u64| {
            let at = UnixTime::since_unix_epoch(Duration::from_secs(at_s));
            verifier.verify_server_cert(certificate, &[], &name, &[], at).map(|_| ())
        };
        is_good(now_s)?;
        is_good(expires_s)?;
        ensure!(is_good(expires_s + 1).is_err(), "good for longer than its name says");
        let key_der = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let certified = CertifiedKey::from_der(certificates, key_der, &provider())?;
        Ok(Pair { expires_s, chain, key, certified: Arc::new(certified) })
    }

    /// Until when it is good, in seconds since 1970.
    pub fn expires_s(&self) -> u64 {
        self.expires_s
    }

    fn is_settled(&self, now_s: u64) -> bool {
        self.expires_s + SETTLED_S <= now_s + LIFETIME_S
    }

    /// Its CA's certificate, as PEM.
    fn authority(&self) -> &str {
        const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
        self.chain.rfind(BEGIN).map_or("", |begin| &self.chain[begin..])
    }
}

/// All that are good, by when they expire.
#[derive(Clone, Default)]
pub struct Pairs(BTreeMap<u64, Pair>);

impl Pairs {
    /// From a Secret's data: `EXPIRES.crt` and `EXPIRES.key`, in seconds since 1970. What is no good is left out, and
    /// said.
    pub fn from_data(data: &BTreeMap<String, Vec<u8>>, dns_name: &str, now_s: u64) -> (Pairs, Vec<String>) {
        let mut pairs = Pairs::default();
        let mut problems = Vec::new();
        for (name, chain) in data {
            let Some(expires_s) = name.strip_suffix(".crt").and_then(|name| name.parse().ok()) else { continue };
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let key = data.get(&format!("{expires_s}.key")).map_or(String::new(), |key| text(key));
            match Pair::read(expires_s, text(chain), key, dns_name, now_s) {
                Ok(pair) => {
                    pairs.0.insert(expires_s, pair);
                }
                // that one's time is over is as it must be
                Err(_) if expires_s < now_s => {}
                Err(error) => problems.push(format!("{name}: {error:#}")),
            }
        }
        (pairs, problems)
    }

    /// As it goes into a Secret.
    pub fn to_data(&self) -> BTreeMap<String, Vec<u8>> {
        let mut data = BTreeMap::new();
        for pair in self.0.values() {
            data.insert(format!("{}.crt", pair.expires_s), pair.chain.clone().into_bytes());
            data.insert(format!("{}.key", pair.expires_s), pair.key.clone().into_bytes());
        }
        data
    }

    /// With one more, if it is time.
    ///
    /// # Errors
    /// The DNS name is none.
    pub fn renewed(&self, dns_name: &str, now_s: u64) -> Result<Pairs> {
        let mut pairs = self.clone();
        if self.0.keys().all(|expires_s| *expires_s < now_s + RENEWED_S) {
            let pair = Pair::make(dns_name, now_s)?;
            pairs.0.insert(pair.expires_s, pair);
        }
        Ok(pairs)
    }

    /// The one to serve: the newest that everybody has heard of, else the oldest.
    pub fn pick(&self, now_s: u64) -> Option<&Pair> {
        let mut newest_first = self.0.values().rev();
        newest_first.find(|pair| pair.is_settled(now_s)).or_else(|| self.0.values().next())
    }

    /// All CAs, as PEM.
    pub fn bundle(&self) -> String {
        self.0.values().rev().map(Pair::authority).collect()
    }
}

/// What TLS serves. It can be changed at any time; what is connected stays so.
#[derive(Default)]
pub struct Served(RwLock<Option<Arc<CertifiedKey>>>);

impl Served {
    /// From now on this.
    pub fn set(&self, pair: &Pair) {
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(pair.certified.clone());
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Served")
    }
}

/// The only one that is built in.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "freeboard-injector.freeboard.svc";
    const START_S: u64 = 1_800_000_000;

    fn expiries(pairs: &Pairs) -> Vec<u64> {
        pairs.0.keys().copied().collect()
    }

    /// Half a minute at a time, for half a year, as a replica does.
    #[test]
    fn there_is_always_one_that_is_good_and_trusted() {
        let mut data = BTreeMap::new();
        let mut made = 0;
        let mut published: BTreeMap<String, u64> = BTreeMap::new();
        let mut now_s = START_S;
        while now_s < START_S + 180 * DAY_S {
            let (there, problems) = Pairs::from_data(&data, NAME, now_s);
            assert_eq!(problems, Vec::<String>::new());
            let pairs = there.renewed(NAME, now_s).unwrap();
            made += usize::from(expiries(&pairs) != expiries(&there));
            assert!(expiries(&pairs).len() <= 2);
            let pair = pairs.pick(now_s).unwrap();
            assert!(pair.expires_s > now_s + RENEWED_S - SETTLED_S - 6 * 3600, "served for too long");
            for one in pairs.0.values() {
                published.entry(one.authority().into()).or_insert(now_s);
            }
            assert!(published[pair.authority()] + SETTLED_S <= now_s || made == 1, "served before anybody heard");
            data = pairs.to_data();
            // fine steps where something happens, coarse ones else
            let is_near = made == 0 || expiries(&pairs).iter().any(|it| !pairs.0[it].is_settled(now_s));
            now_s += if is_near { 30 } else { 6 * 3600 };
        }
        assert_eq!(made, 9);
    }

    #[test]
    fn what_is_no_good_is_made_anew() {
        let good = Pairs::default().renewed(NAME, START_S).unwrap();
        let data = good.to_data();
        let (expires_s, other) = (expiries(&good)[0], Pairs::default().renewed(NAME, START_S).unwrap().to_data());
        let [crt, key] = [format!("{expires_s}.crt"), format!("{expires_s}.key")];
        let with = |changes: &[(&str, &[u8])]| {
            let mut data = data.clone();
            data.extend(changes.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())));
            data
        };
        let renamed = BTreeMap::from([
            (format!("{}.crt", expires_s - 9), data[&crt].clone()),
            (format!("{}.key", expires_s - 9), data[&key].clone()),
        ]);
        for (what, bad, name, now_s) in [
            ("empty", with(&[(&crt, b"")]), NAME, START_S),
            ("no PEM", with(&[(&crt, b"\xff")]), NAME, START_S),
            ("no key", with(&[(&key, b"")]), NAME, START_S),
            ("another's key", with(&[(&key, &other[&key])]), NAME, START_S),
            ("another name", data.clone(), "other.freeboard.svc", START_S),
            ("not good yet", data.clone(), NAME, START_S - 2 * SKEW_S),
            ("good for longer", renamed, NAME, START_S),
        ] {
            let (pairs, problems) = Pairs::from_data(&bad, name, now_s);
            assert!(pairs.0.is_empty() && problems.len() == 1, "{what}: {problems:?}");
            assert_eq!(pairs.renewed(NAME, START_S).unwrap().0.len(), 1, "{what}");
        }
        let (pairs, problems) = Pairs::from_data(&data, NAME, expires_s + 1);
        assert!(pairs.0.is_empty() && problems.is_empty(), "an old one is no problem: {problems:?}");
        let (pairs, problems) = Pairs::from_data(&with(&[("notes", b"mine")]), NAME, START_S);
        assert_eq!((pairs.to_data(), problems), (data, Vec::new()));
        assert!(Pairs::default().renewed("no name", START_S).is_err());
    }
}
