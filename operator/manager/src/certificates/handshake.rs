//! What a node shows whoever comes to its port: the serial number of its certificate, and the authorities of which it takes
//! certificates. A handshake tells both before anybody has to say who he is; nothing is sent over the connection.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gregor_operator_plan::certificates::Served;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::read::{common_name_of, serial_of};

/// How long a node has to show what it has.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Shakes hands with a node and tells what it has shown.
pub async fn look(host: &str, port: u16) -> Result<Served, String> {
    let shaken = tokio::time::timeout(TIMEOUT, shake(host, port)).await;
    shaken.unwrap_or_else(|_| Err(format!("{host}:{port} shows no certificate in time")))
}

async fn shake(host: &str, port: u16) -> Result<Served, String> {
    let say = |error: &dyn std::fmt::Display| format!("{host}:{port}: {error}");
    let looker = Arc::new(Looker::new());
    let config = ClientConfig::builder_with_provider(Arc::clone(&looker.provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| say(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&looker) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(Arc::clone(&looker) as Arc<dyn ResolvesClientCert>);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| say(&error))?;
    let socket = TcpStream::connect((host, port)).await.map_err(|error| say(&error))?;
    // Whether the node ends it for want of a certificate is all the same by then.
    let outcome = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
    let shown = looker.shown.lock().expect("nothing panics while it holds this lock").clone();
    match (shown, outcome) {
        (Shown { serial: Some(serial), trusted: Some(trusted) }, _) => Ok(Served { serial, trusted }),
        (_, Err(error)) => Err(say(&error)),
        (_, Ok(_)) => Err(say(&"it asks nobody for a certificate")),
    }
}

/// What was shown so far.
#[derive(Debug, Default, Clone)]
struct Shown {
    serial: Option<String>,
    trusted: Option<BTreeSet<String>>,
}

/// Looks, and decides about nobody: nothing is said to whoever shows something.
#[derive(Debug)]
struct Looker {
    provider: Arc<CryptoProvider>,
    shown: Mutex<Shown>,
}

impl Looker {
    fn new() -> Self {
        Self { provider: Arc::new(aws_lc_rs::default_provider()), shown: Mutex::default() }
    }
}

impl ServerCertVerifier for Looker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.shown.lock().expect("nothing panics while it holds this lock").serial = serial_of(end_entity);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13))
    }

    /// Whoever shows a certificate has its key.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Looker {
    fn resolve(&self, authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let trusted = authorities.iter().filter_map(|name| common_name_of(name)).collect();
        self.shown.lock().expect("nothing panics while it holds this lock").trusted = Some(trusted);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}
