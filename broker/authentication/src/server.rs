//! A listener's TLS, made of its keys: what the server accepts connections with, and who their peers are.

use std::sync::Arc;

use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};

use crate::{
    Identity, KeyStore, Parameters, PrincipalRules, StoreFiles, StoreSettings, TlsError, TrustStore, renewal::Renewal,
};

/// The `ssl.*` keys of a listener.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    stores: StoreSettings,
    client_auth: ClientAuth,
    parameters: Parameters,
    rules: PrincipalRules,
    renewal: Renewal,
}

/// `ssl.client.auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientAuth {
    None,
    /// A client may show a certificate; one that is shown has to be trusted.
    Requested,
    Required,
}

impl ServerSettings {
    /// Reads the keys, named without a listener's prefix, and refuses those that do not go together. Files are not looked at.
    pub fn from_lookup<'a>(lookup: impl Fn(&str) -> Option<&'a str>) -> Result<Self, TlsError> {
        let client_auth = match lookup("ssl.client.auth").unwrap_or("none").trim() {
            "" | "none" => ClientAuth::None,
            "requested" => ClientAuth::Requested,
            "required" => ClientAuth::Required,
            other => {
                return Err(TlsError::Value {
                    key: "ssl.client.auth",
                    value: other.to_owned(),
                    allowed: "required, requested, none".to_owned(),
                });
            }
        };
        let stores = StoreSettings::from_lookup(&lookup)?;
        if !stores.has_key_store() {
            return Err(NO_CERTIFICATE);
        }
        if client_auth != ClientAuth::None && !stores.has_trust_store() {
            return Err(NOTHING_TRUSTED);
        }
        let rules = lookup("ssl.principal.mapping.rules").map_or("DEFAULT", str::trim);
        Ok(Self {
            stores,
            client_auth,
            parameters: Parameters::from_lookup(&lookup)?,
            rules: PrincipalRules::parse(rules)?,
            renewal: Renewal {
                may_change_subject: is_true(lookup("ssl.allow.dn.changes")),
                may_change_alternatives: is_true(lookup("ssl.allow.san.changes")),
            },
        })
    }

    /// Where the certificates are.
    pub fn stores(&self) -> &StoreSettings {
        &self.stores
    }

    /// Who a peer is.
    pub fn rules(&self) -> &PrincipalRules {
        &self.rules
    }

    /// Whom the listener's own certificate is for.
    pub fn identity(&self, files: &StoreFiles) -> Result<Identity, TlsError> {
        let store = self.stores.key_store(files)?;
        let own = store.as_ref().and_then(|store| store.certificates.first()).ok_or(NO_CERTIFICATE)?;
        Identity::of(own)
    }

    /// Whether a certificate may take the place of one that was in use.
    pub fn check_renewal(&self, old: &Identity, new: &Identity) -> Result<(), TlsError> {
        self.renewal.check(old, new)
    }

    /// What connections are accepted with, of the stores as they are in `files`.
    pub fn config(&self, files: &StoreFiles) -> Result<Arc<ServerConfig>, TlsError> {
        let tls = |what| move |source| TlsError::Tls { what, source };
        let builder = ServerConfig::builder_with_provider(Arc::clone(self.parameters.provider()))
            .with_protocol_versions(self.parameters.versions())
            .map_err(tls("ssl.enabled.protocols and ssl.cipher.suites do not go together"))?;
        let trusted = self.stores.trust_store(files)?.map(roots).transpose()?;
        let builder = match (self.client_auth, trusted) {
            (ClientAuth::None, _) => builder.with_no_client_auth(),
            (_, None) => return Err(NOTHING_TRUSTED),
            (asked, Some(trusted)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(trusted),
                    Arc::clone(self.parameters.provider()),
                );
                let verifier = if asked == ClientAuth::Requested { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| TlsError::Pem {
                    key: "ssl.truststore",
                    what: format!("no verifier can be made of it: {error}"),
                })?)
            }
        };
        let Some(KeyStore { certificates, key }) = self.stores.key_store(files)? else {
            return Err(NO_CERTIFICATE);
        };
        let config = builder.with_single_cert(certificates, key).map_err(|source| match source {
            rustls::Error::InconsistentKeys(_) => TlsError::Contradiction(
                "the private key of the key store does not belong to its first certificate; a chain begins with the \
                 certificate of the key",
            ),
            source => TlsError::Tls { what: "the key store cannot be used", source },
        })?;
        Ok(Arc::new(config))
    }
}

fn is_true(value: Option<&str>) -> bool {
    value.is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
}

const NO_CERTIFICATE: TlsError = TlsError::Contradiction(
    "a TLS listener needs a certificate: set ssl.keystore.type=PEM and ssl.keystore.location to a PEM file with the private \
     key and its certificates",
);
const NOTHING_TRUSTED: TlsError = TlsError::Contradiction(
    "ssl.client.auth asks for certificates of clients, and nothing says which to trust: set ssl.truststore.type=PEM and \
     ssl.truststore.location (or ssl.truststore.certificates)",
);

/// The trusted certificates as the TLS library takes them; one that it cannot read is an error, not a silent gap.
fn roots(store: TrustStore) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in store.certificates {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Tls { what: "a certificate of the trust store cannot be used", source })?;
    }
    Ok(roots)
}
