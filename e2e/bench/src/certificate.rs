//! A certificate for 127.0.0.1, made for one run, that both brokers show.
//!
//! It signs itself: the load generator trusts this one and no other.

use std::sync::Arc;

use anyhow::Result;
use rcgen::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, client::Resumption, crypto::aws_lc_rs, version::TLS13};

/// A certificate with its key.
pub struct Certificate(CertifiedKey<rcgen::KeyPair>);

impl Certificate {
    /// A new one, with a key on the curve P-256.
    pub fn new() -> Result<Self> {
        Ok(Self(rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?))
    }

    /// Key and certificate as Kafka reads them with ssl.keystore.type=PEM.
    pub fn key_store(&self) -> String {
        self.0.signing_key.serialize_pem() + &self.0.cert.pem()
    }

    /// A client's side of TLS 1.3: it offers the one suite that either broker would choose by itself, so that both encrypt
    /// alike, and resumes no session, so that each connection costs a whole handshake.
    pub fn trusted(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.cert.der().clone())?;
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}
