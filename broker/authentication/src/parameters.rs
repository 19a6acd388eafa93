//! Protocol versions and cipher suites, by the names that Kafka's keys use. Both ends of a connection are made with them.

use std::sync::Arc;

use rustls::{SupportedCipherSuite, SupportedProtocolVersion, crypto::CryptoProvider};

use crate::TlsError;

/// `ssl.enabled.protocols`, `ssl.protocol` and `ssl.cipher.suites`.
#[derive(Debug, Clone)]
pub struct Parameters {
    versions: Vec<&'static SupportedProtocolVersion>,
    provider: Arc<CryptoProvider>,
}

static VERSIONS: [(&str, &SupportedProtocolVersion); 2] =
    [("TLSv1.2", &rustls::version::TLS12), ("TLSv1.3", &rustls::version::TLS13)];

impl Parameters {
    /// Reads the keys, named without a listener's prefix; what is not set has Kafka's default. `ssl.protocol` is checked and
    /// decides nothing, as in Kafka where `ssl.enabled.protocols` has the last word.
    pub fn from_lookup<'a>(lookup: impl Fn(&str) -> Option<&'a str>) -> Result<Self, TlsError> {
        if let Some(protocol) = lookup("ssl.protocol").map(str::trim)
            && !protocol.is_empty()
            && protocol != "TLS"
        {
            version("ssl.protocol", protocol)?;
        }
        let enabled: Vec<_> = items(lookup("ssl.enabled.protocols").unwrap_or_default())
            .map(|name| version("ssl.enabled.protocols", name))
            .collect::<Result<_, _>>()?;
        let versions =
            if enabled.is_empty() { VERSIONS.iter().map(|(_, version)| *version).collect() } else { enabled };
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let suites: Vec<_> = items(lookup("ssl.cipher.suites").unwrap_or_default())
            .map(|name| suite(&provider, name))
            .collect::<Result<_, _>>()?;
        if !suites.is_empty() {
            provider.cipher_suites = suites;
        }
        if !provider.cipher_suites.iter().any(|suite| versions.contains(&suite.version())) {
            return Err(TlsError::Contradiction(
                "none of ssl.cipher.suites belongs to a version in ssl.enabled.protocols; name a suite for each version",
            ));
        }
        Ok(Self { versions, provider: Arc::new(provider) })
    }

    /// The versions that are offered or taken.
    pub fn versions(&self) -> &[&'static SupportedProtocolVersion] {
        &self.versions
    }

    /// The cryptography, with no other suites than the allowed.
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }
}

fn version(key: &'static str, name: &str) -> Result<&'static SupportedProtocolVersion, TlsError> {
    VERSIONS.iter().find(|(known, _)| *known == name).map(|(_, version)| *version).ok_or_else(|| TlsError::Value {
        key,
        value: name.to_owned(),
        allowed: VERSIONS.map(|(name, _)| name).join(", "),
    })
}

fn suite(provider: &CryptoProvider, name: &str) -> Result<SupportedCipherSuite, TlsError> {
    let all = &provider.cipher_suites;
    all.iter().find(|suite| suite_name(**suite) == name).copied().ok_or_else(|| TlsError::Value {
        key: "ssl.cipher.suites",
        value: name.to_owned(),
        allowed: all.iter().map(|suite| suite_name(*suite)).collect::<Vec<_>>().join(", "),
    })
}

/// A suite's name as IANA and Java have it.
fn suite_name(suite: SupportedCipherSuite) -> String {
    suite.suite().as_str().unwrap_or_default().replacen("TLS13_", "TLS_", 1)
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(keys: &[(&str, &'static str)]) -> Result<Parameters, String> {
        let lookup = |key: &str| keys.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        Parameters::from_lookup(lookup).map_err(|error| error.to_string())
    }

    #[test]
    fn both_versions_and_every_suite_are_there_without_keys() {
        let parameters = parameters(&[]).unwrap();
        assert_eq!(parameters.versions().len(), 2);
        assert!(parameters.provider().cipher_suites.len() >= 9);
    }

    #[test]
    fn suites_have_the_names_that_java_gives_them() {
        let named = "TLS_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        let suites = parameters(&[("ssl.cipher.suites", named)]).unwrap().provider().cipher_suites.clone();
        let names: Vec<_> = suites.into_iter().map(suite_name).collect();
        assert_eq!(names.join(", "), named);
        let error = parameters(&[("ssl.cipher.suites", "TLS_RSA_WITH_AES_128_CBC_SHA")]).unwrap_err();
        assert!(
            error.starts_with("ssl.cipher.suites has TLS_RSA_WITH_AES_128_CBC_SHA, which is not served"),
            "{error}"
        );
        assert!(error.contains("TLS_CHACHA20_POLY1305_SHA256"), "{error}");
    }

    #[test]
    fn an_old_protocol_is_refused_by_name() {
        let error = parameters(&[("ssl.enabled.protocols", "TLSv1.3,TLSv1.1")]).unwrap_err();
        assert_eq!(error, "ssl.enabled.protocols has TLSv1.1, which is not served; allowed are TLSv1.2, TLSv1.3");
        assert!(parameters(&[("ssl.protocol", "SSLv3")]).unwrap_err().starts_with("ssl.protocol has SSLv3"));
        assert!(parameters(&[("ssl.protocol", "TLS")]).is_ok());
    }

    #[test]
    fn suites_of_a_version_that_is_not_enabled_are_refused() {
        let keys = [("ssl.enabled.protocols", "TLSv1.2"), ("ssl.cipher.suites", "TLS_AES_128_GCM_SHA256")];
        assert!(parameters(&keys).unwrap_err().contains("name a suite for each version"));
    }
}
