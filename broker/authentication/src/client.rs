//! TLS of a side that dials: Kafka's client properties to a configuration of rustls.
//!
//! Called by whoever opens channels: programs with such properties, and nodes that dial each other by the keys of a listener. A
//! configuration holds what was in the files when it was made.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use crate::{Parameters, StoreFiles, StoreSettings, TlsError};

/// Whether names are checked, by `ssl.endpoint.identification.algorithm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// `https`, which is the default: the certificate must be for the host that is dialed.
    Checked,
    /// Empty: any name will do.
    Any,
}

/// The `ssl.*` keys of a side that dials.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    stores: StoreSettings,
    parameters: Parameters,
    names: Names,
}

/// Reads `security.protocol` and the `ssl.*` keys of a client, and the files that they name: none for PLAINTEXT, which is
/// Kafka's default. Without a trust store the authorities of the operating system are trusted, as Java trusts its own.
pub fn client_config<'a>(
    lookup: impl Fn(&str) -> Option<&'a str> + Copy,
) -> Result<Option<Arc<ClientConfig>>, TlsError> {
    match lookup("security.protocol").map(|name| name.trim().to_uppercase()).as_deref() {
        None | Some("" | "PLAINTEXT") => return Ok(None),
        Some("SSL") => {}
        Some(other) => {
            let allowed = "PLAINTEXT, SSL".to_owned();
            return Err(TlsError::Value { key: "security.protocol", value: other.to_owned(), allowed });
        }
    }
    let settings = ClientSettings::from_lookup(lookup)?;
    let files = settings.stores.read_files()?;
    let verifier = settings.verifier(&files)?;
    if verifier.roots.is_empty() {
        return Err(TlsError::Contradiction(
            "security.protocol=SSL needs to know whom to trust, and this system has no certificates of authorities: set \
             ssl.truststore.location to a PEM file and ssl.truststore.type=PEM",
        ));
    }
    settings.trusting(verifier, &files).map(Some)
}

impl ClientSettings {
    /// Reads the keys, named without a listener's prefix, and refuses those that do not go together. Files are not looked at.
    pub fn from_lookup<'a>(lookup: impl Fn(&str) -> Option<&'a str>) -> Result<Self, TlsError> {
        if lookup("ssl.engine.factory.class").is_some_and(|class| !class.trim().is_empty()) {
            return Err(TlsError::Contradiction(
                "ssl.engine.factory.class names a class of Java, which cannot be loaded here: remove it",
            ));
        }
        let names = match lookup("ssl.endpoint.identification.algorithm").map(str::trim) {
            None => Names::Checked,
            Some("") => Names::Any,
            Some(name) if name.eq_ignore_ascii_case("https") => Names::Checked,
            Some(other) => {
                return Err(TlsError::Value {
                    key: "ssl.endpoint.identification.algorithm",
                    value: other.to_owned(),
                    allowed: "https, or nothing to take a certificate of any name".to_owned(),
                });
            }
        };
        Ok(Self { stores: StoreSettings::from_lookup(&lookup)?, parameters: Parameters::from_lookup(&lookup)?, names })
    }

    /// Where the certificates are.
    pub fn stores(&self) -> &StoreSettings {
        &self.stores
    }

    /// What connections are made with, of the stores as they are in `files`. Without a trust store, on a system that trusts nobody,
    /// no server is trusted: a node that dials no other needs none.
    pub fn config(&self, files: &StoreFiles) -> Result<Arc<ClientConfig>, TlsError> {
        self.trusting(self.verifier(files)?, files)
    }

    fn verifier(&self, files: &StoreFiles) -> Result<Verifier, TlsError> {
        match self.stores.trust_store(files)? {
            Some(trusted) => Verifier::of_store(trusted.certificates, self.names, &self.parameters),
            None => Ok(Verifier::of_system(self.names, &self.parameters)),
        }
    }

    fn trusting(&self, verifier: Verifier, files: &StoreFiles) -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(self.parameters.provider()))
            .with_protocol_versions(self.parameters.versions())
            .map_err(|source| TlsError::Tls {
                what: "ssl.enabled.protocols and ssl.cipher.suites do not go together",
                source,
            })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match self.stores.key_store(files)? {
            Some(own) => builder.with_client_auth_cert(own.certificates, own.key).map_err(|source| TlsError::Tls {
                what: "the key store's certificate and key cannot be used",
                source,
            })?,
            None => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}

/// Checks a server's certificate as Java's PKIX does with a trust store: a chain to one of its certificates, or one of them
/// itself. The latter is what rustls' own verifier refuses where the certificate may sign others, as those do that
/// `openssl req -x509` makes.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    itself: Vec<CertificateDer<'static>>,
    names: Names,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn of_store(
        trusted: Vec<CertificateDer<'static>>,
        names: Names,
        parameters: &Parameters,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            roots.add(certificate.clone()).map_err(|source| TlsError::Tls {
                what: "a certificate of ssl.truststore.location or ssl.truststore.certificates cannot be used",
                source,
            })?;
        }
        Ok(Self { roots, itself: trusted, names, provider: Arc::clone(parameters.provider()) })
    }

    fn of_system(names: Names, parameters: &Parameters) -> Self {
        let mut roots = RootCertStore::empty();
        // A system's bundle may hold certificates that no verifier here can read; the others count.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Self { roots, itself: Vec::new(), names, provider: Arc::clone(parameters.provider()) }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !self.itself.contains(end_entity) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        }
        match self.names {
            Names::Checked => verify_server_name(&certificate, server_name)?,
            Names::Any => {}
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails where it stands")]
mod tests {
    use std::collections::HashMap;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{CertificateError, ClientConnection, ServerConfig, ServerConnection, pki_types::PrivateKeyDer};

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority(names: &[&str]) -> Authority {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn signed(authority: &Authority, name: &str) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, authority).unwrap().pem(), key)
    }

    fn configured(properties: &[(&str, &str)]) -> Result<Option<Arc<ClientConfig>>, TlsError> {
        let properties: HashMap<_, _> = properties.iter().copied().collect();
        client_config(|key| properties.get(key).copied())
    }

    fn trusting<'a>(pem: &'a str, more: &[(&'a str, &'a str)]) -> Arc<ClientConfig> {
        let mut properties =
            vec![("security.protocol", "SSL"), ("ssl.truststore.type", "PEM"), ("ssl.truststore.certificates", pem)];
        properties.extend(more);
        configured(&properties).unwrap().unwrap()
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        use rustls::pki_types::pem::PemObject;
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    /// Plays a handshake in memory, as if `name` had been dialed.
    fn shake(client: Arc<ClientConfig>, name: &str, certificate: &str, key: &KeyPair) -> Result<(), Error> {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let server =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![der(certificate)], key).unwrap();
        let mut client = ClientConnection::new(client, name.to_owned().try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            let mut slice = bytes.as_slice();
            while !slice.is_empty() {
                server.read_tls(&mut slice).unwrap();
                server.process_new_packets().unwrap();
            }
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            let mut slice = bytes.as_slice();
            while !slice.is_empty() {
                client.read_tls(&mut slice).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(())
    }

    #[test]
    fn without_security_protocol_nothing_is_encrypted() {
        assert!(configured(&[]).unwrap().is_none());
        assert!(configured(&[("security.protocol", "plaintext")]).unwrap().is_none());
    }

    #[test]
    fn a_server_is_trusted_by_its_authority_and_under_its_name_only() {
        let mine = authority(&[]);
        let (certificate, key) = signed(&mine, "kafka.example");
        shake(trusting(&mine.pem(), &[]), "kafka.example", &certificate, &key).unwrap();
        let other_name = shake(trusting(&mine.pem(), &[]), "other.example", &certificate, &key).unwrap_err();
        let named = matches!(
            other_name,
            Error::InvalidCertificate(
                CertificateError::NotValidForNameContext { .. } | CertificateError::NotValidForName
            )
        );
        assert!(named, "{other_name}");
        let stranger = shake(trusting(&authority(&[]).pem(), &[]), "kafka.example", &certificate, &key).unwrap_err();
        // Another authority of the same name did not sign it.
        assert_eq!(stranger, Error::InvalidCertificate(CertificateError::BadSignature));
    }

    #[test]
    fn an_empty_identification_algorithm_takes_any_name_and_still_no_stranger() {
        let mine = authority(&[]);
        let (certificate, key) = signed(&mine, "kafka.example");
        let any = [("ssl.endpoint.identification.algorithm", "")];
        shake(trusting(&mine.pem(), &any), "other.example", &certificate, &key).unwrap();
        assert!(shake(trusting(&authority(&[]).pem(), &any), "other.example", &certificate, &key).is_err());
    }

    #[test]
    fn a_self_signed_server_is_trusted_by_its_own_certificate_and_under_its_name_only() {
        let server = authority(&["kafka.example"]);
        shake(trusting(&server.pem(), &[]), "kafka.example", &server.pem(), server.key()).unwrap();
        assert!(shake(trusting(&server.pem(), &[]), "other.example", &server.pem(), server.key()).is_err());
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_what_to_do() {
        for (properties, said) in [
            (vec![("security.protocol", "SASL_SSL")], "PLAINTEXT, SSL"),
            (vec![("ssl.endpoint.identification.algorithm", "ldaps")], "https"),
            (vec![("ssl.engine.factory.class", "com.example.Factory")], "remove it"),
            (vec![("ssl.enabled.protocols", "TLSv1")], "TLSv1.2"),
            (vec![("ssl.truststore.location", "trust.jks")], "keytool"),
            (vec![("ssl.truststore.location", "/nowhere.pem"), ("ssl.truststore.type", "PEM")], "/nowhere.pem"),
        ] {
            let mut with_ssl = vec![("security.protocol", "SSL")];
            with_ssl.extend(properties);
            let error = configured(&with_ssl).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
