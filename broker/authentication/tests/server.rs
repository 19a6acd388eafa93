//! Handshakes without a socket: who is let in by `ssl.client.auth`, and who they are.

use std::{collections::BTreeMap, sync::Arc};

use gregor_authentication::{ServerSettings, StoreFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConnection, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A certificate and its key.
type Identity = (String, String);

fn named(names: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in names {
        name.push(kind.clone(), *value);
    }
    name
}

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&[(DnType::CommonName, "authority")]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("a certificate")
}

fn sign(authority: &Authority, names: &[(DnType, &str)]) -> Identity {
    let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    params.distinguished_name = named(names);
    let key = KeyPair::generate().expect("a key");
    (params.signed_by(&key, authority).expect("a certificate").pem(), key.serialize_pem())
}

fn settings(authority: &Authority, broker: &Identity, more: &[(&str, &str)]) -> ServerSettings {
    let trusted = authority.pem();
    let mut keys = BTreeMap::from([
        ("ssl.keystore.type", "PEM"),
        ("ssl.keystore.certificate.chain", broker.0.as_str()),
        ("ssl.keystore.key", broker.1.as_str()),
        ("ssl.truststore.type", "PEM"),
        ("ssl.truststore.certificates", trusted.as_str()),
    ]);
    keys.extend(more.iter().copied());
    ServerSettings::from_lookup(|key| keys.get(key).copied()).expect("the keys go together")
}

/// The peer's principal after a handshake, or what the server says against it.
fn principal(
    authority: &Authority,
    settings: &ServerSettings,
    version: &'static SupportedProtocolVersion,
    shown: Option<&Identity>,
) -> Result<Option<String>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.as_ref().der().clone()).expect("it is an authority");
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .expect("a version that there is")
        .with_root_certificates(roots);
    let config = match shown {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("they belong together")
        }
    };
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name)?;
    let config = settings.config(&StoreFiles::default()).expect("the stores can be used");
    let mut server = ServerConnection::new(config)?;
    for _ in 0..4 {
        carry(&mut client, &mut server)?;
        carry(&mut server, &mut client)?;
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    Ok(settings.rules().principal(server.peer_certificates()).map(|principal| principal.to_string()))
}

/// Takes all that one end has to say to the other.
fn carry<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Result<(), rustls::Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).expect("memory takes it");
    }
    let mut left = &bytes[..];
    while !left.is_empty() {
        to.read_tls(&mut left).expect("memory gives it");
        to.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn a_certificate_that_is_trusted_says_who_a_client_is() {
    let (authority, stranger) = (authority(), authority());
    let broker = sign(&authority, &[(DnType::CommonName, "broker")]);
    let names = [
        (DnType::CountryName, "DE"),
        (DnType::OrganizationName, "Gregor, Inc."),
        (DnType::OrganizationalUnitName, "clients"),
        (DnType::CommonName, "ann"),
    ];
    let (ann, eve) = (sign(&authority, &names), sign(&stranger, &names));
    let subject = r"User:CN=ann,OU=clients,O=Gregor\, Inc.,C=DE";
    for version in [&TLS12, &TLS13] {
        let asked = |how| settings(&authority, &broker, &[("ssl.client.auth", how)]);
        let of = |settings: &ServerSettings, shown| principal(&authority, settings, version, shown);
        for how in ["requested", "required"] {
            assert_eq!(of(&asked(how), Some(&ann)), Ok(Some(subject.to_owned())));
            assert!(of(&asked(how), Some(&eve)).is_err(), "{how}: nobody that is trusted has signed it");
        }
        assert_eq!(of(&asked("requested"), None), Ok(Some("User:ANONYMOUS".to_owned())));
        assert!(of(&asked("required"), None).is_err());
        assert_eq!(of(&asked("none"), Some(&ann)), Ok(Some("User:ANONYMOUS".to_owned())), "nobody asked");
        let rules = [("ssl.client.auth", "required"), ("ssl.principal.mapping.rules", "RULE:^CN=(.*?),.*$/$1/U")];
        assert_eq!(of(&settings(&authority, &broker, &rules), Some(&ann)), Ok(Some("User:ANN".to_owned())));
        let unfit = [("ssl.client.auth", "required"), ("ssl.principal.mapping.rules", "RULE:^CN=bob$/$0/")];
        assert_eq!(of(&settings(&authority, &broker, &unfit), Some(&ann)), Ok(None));
    }
}

#[test]
fn a_version_that_is_not_enabled_is_not_spoken() {
    let authority = authority();
    let broker = sign(&authority, &[(DnType::CommonName, "broker")]);
    for (enabled, spoken, other) in [("TLSv1.2", &TLS12, &TLS13), ("TLSv1.3", &TLS13, &TLS12)] {
        let settings = settings(&authority, &broker, &[("ssl.enabled.protocols", enabled)]);
        assert!(principal(&authority, &settings, spoken, None).is_ok());
        assert!(principal(&authority, &settings, other, None).is_err());
    }
}

#[test]
fn a_key_that_is_not_its_certificates_is_refused() {
    let authority = authority();
    let (one, other) = (sign(&authority, &[(DnType::CommonName, "a")]), sign(&authority, &[(DnType::CommonName, "b")]));
    let mixed = settings(&authority, &(one.0, other.1), &[]);
    let error = mixed.config(&StoreFiles::default()).expect_err("they do not belong together").to_string();
    assert!(error.contains("does not belong to its first certificate"), "{error}");
}
