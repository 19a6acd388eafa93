//! Certificates as they are made, read and shown: real keys, real handshakes over loopback.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

use std::collections::BTreeSet;
use std::sync::Arc;

use gregor_operator_api::names;
use gregor_operator_plan::certificates::{SecretChange, Served, ToMake, Trusted};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::write::content;
use super::{authority, look, node, seen};

/// From the start of 2026 on, for two thousand years.
const VALID: (i64, i64) = (1_767_225_600, 64_000_000_000);

fn to_make(serial: u8, subject: &str, issuer: &str, names: &[&str]) -> ToMake {
    ToMake {
        serial: [serial; 16],
        subject: subject.to_owned(),
        issuer: issuer.to_owned(),
        names: names.iter().map(ToString::to_string).collect(),
        not_before: VALID.0,
        not_after: VALID.1,
    }
}

fn changed(before: &Secret, change: &SecretChange, signer: Option<&Secret>) -> Result<Secret, String> {
    let data = content(change, before, signer, "making").map_err(|error| error.to_string())?;
    Ok(Secret { data: Some(data), ..before.clone() })
}

fn authority_secret(subject: &str) -> Secret {
    let certificate = to_make(0x41, subject, subject, &[]);
    changed(&Secret::default(), &SecretChange::Authority { certificate, trusted: Vec::new() }, None).unwrap()
}

fn node_secret(serial: u8, name: &str, signer: &Secret, trusted: Vec<Trusted>) -> Secret {
    let issuer = authority(signer).unwrap().current.subject;
    let certificate = to_make(serial, name, &issuer, &[&format!("{name}.example")]);
    let change = SecretChange::Node { authority: "authority".to_owned(), certificate, trusted };
    changed(&Secret::default(), &change, Some(signer)).unwrap()
}

fn bytes<'a>(secret: &'a Secret, key: &str) -> &'a [u8] {
    &secret.data.as_ref().unwrap()[key].0
}

fn roots(secret: &Secret) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bytes(secret, "ca.crt")) {
        roots.add(certificate.unwrap()).unwrap();
    }
    Arc::new(roots)
}

fn own(secret: &Secret) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let store = bytes(secret, "keystore.pem");
    let chain = CertificateDer::pem_slice_iter(store).collect::<Result<_, _>>().unwrap();
    (chain, PrivateKeyDer::from_pem_slice(store).unwrap())
}

fn server(secret: &Secret) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(secret), Arc::clone(&provider)).build().unwrap();
    let builder =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let (chain, key) = own(secret);
    Arc::new(builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap())
}

fn client(secret: &Secret) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let (chain, key) = own(secret);
    Arc::new(builder.with_root_certificates(roots(secret)).with_client_auth_cert(chain, key).unwrap())
}

/// Has one node dial another by a name, in memory.
fn shake(dials: &Secret, listens: &Secret, name: &str) -> Result<(), String> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client(dials), name).unwrap();
    let mut server = ServerConnection::new(server(listens)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().map_err(|error| format!("server: {error}"))?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().map_err(|error| format!("client: {error}"))?;
    }
    Ok(())
}

#[test]
fn nodes_of_one_authority_dial_each_other_by_name_and_nobody_else() {
    let (ours, theirs) = (authority_secret("ours"), authority_secret("theirs"));
    let trusted = |secret: &Secret| authority(secret).unwrap().trusted;
    let (one, two) = (node_secret(1, "one", &ours, trusted(&ours)), node_secret(2, "two", &ours, trusted(&ours)));
    let stranger = node_secret(3, "two", &theirs, trusted(&theirs));
    assert_eq!(shake(&one, &two, "two.example"), Ok(()));
    assert_eq!(shake(&two, &one, "one.example"), Ok(()));
    assert!(shake(&one, &two, "one.example").unwrap_err().starts_with("client: "), "two is not one");
    assert!(shake(&one, &stranger, "two.example").is_err());
    let intruder = node_secret(3, "two", &theirs, trusted(&ours));
    assert!(shake(&intruder, &one, "one.example").unwrap_err().starts_with("server: "), "who dials is asked, too");
}

#[test]
fn while_an_authority_follows_another_each_node_takes_certificates_of_both() {
    let before = authority_secret("before");
    let next = SecretChange::NextAuthority(to_make(0x42, "after", "after", &[]));
    let both = changed(&before, &next, None).unwrap();
    let seen = authority(&both).unwrap();
    assert_eq!((seen.current.subject.as_str(), seen.next.unwrap().subject.as_str()), ("before", "after"));
    let promoted = changed(&both, &SecretChange::Promote, None).unwrap();
    let seen = authority(&promoted).unwrap();
    assert_eq!((seen.current.subject.as_str(), seen.next.is_none(), seen.trusted.len()), ("after", true, 2));
    assert_eq!(promoted.data.as_ref().unwrap().len(), 3, "the key of the one before is forgotten");
    let old = node_secret(1, "old", &both, seen.trusted.clone());
    let new = node_secret(2, "new", &promoted, seen.trusted.clone());
    assert_eq!(shake(&old, &new, "new.example"), Ok(()));
    assert_eq!(shake(&new, &old, "old.example"), Ok(()));
    let after: Vec<Trusted> = seen.trusted.into_iter().filter(|trusted| trusted.subject == "after").collect();
    let forgetful = changed(&new, &SecretChange::Trust(after), None).unwrap();
    assert_eq!(bytes(&forgetful, "keystore.pem"), bytes(&new, "keystore.pem"), "its own certificate stays");
    assert!(shake(&forgetful, &old, "old.example").is_err());
}

#[test]
fn what_is_made_is_read_back_without_what_is_secret() {
    let ours = authority_secret("ours");
    let secret = node_secret(7, "one", &ours, authority(&ours).unwrap().trusted);
    let read = node(&secret).unwrap();
    assert_eq!(read.certificate.serial, "07".repeat(16));
    assert_eq!((read.certificate.subject.as_str(), read.certificate.issuer.as_str()), ("one", "ours"));
    assert_eq!(read.certificate.names, BTreeSet::from(["one.example".to_owned()]));
    assert_eq!((read.certificate.not_before, read.certificate.not_after), VALID);
    let told = format!("{read:?} {:?}", authority(&ours));
    assert!(!told.contains("PRIVATE"), "{told}");
}

#[test]
fn a_secret_that_cannot_be_used_says_why() {
    let (ours, theirs) = (authority_secret("ours"), authority_secret("theirs"));
    let with = |key: &str, value: Option<&[u8]>| {
        let mut secret = ours.clone();
        let data = secret.data.as_mut().unwrap();
        match value {
            Some(value) => drop(data.insert(key.to_owned(), ByteString(value.to_vec()))),
            None => drop(data.remove(key)),
        }
        authority(&secret).unwrap_err()
    };
    assert_eq!(with("tls.key", None), "it has no key tls.key");
    assert!(with("tls.key", Some(bytes(&theirs, "tls.key"))).contains("another certificate's key"));
    assert!(with("tls.crt", Some(b"nothing")).contains("no certificate in PEM"));
    assert!(with("tls.key", Some(b"\xff")).contains("no text"));
    let other = ToMake { issuer: "theirs".to_owned(), ..to_make(1, "one", "theirs", &[]) };
    let change = SecretChange::Node { authority: "authority".to_owned(), certificate: other, trusted: Vec::new() };
    assert!(changed(&Secret::default(), &change, Some(&ours)).unwrap_err().contains("another authority by now"));
}

#[test]
fn a_copy_of_a_secret_is_nobody_s_and_neither_is_one_that_somebody_else_made() {
    let ours = authority_secret("ours");
    let trusted = authority(&ours).unwrap().trusted;
    let named = |name: &str, metadata: serde_json::Value, secret: Secret| {
        let mut metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
        metadata.name = Some(name.to_owned());
        Secret { metadata, ..secret }
    };
    let label = json!({"labels": {names::CLUSTER_LABEL: "demo", names::NODE_ID_LABEL: "0"}});
    let owner = json!({"ownerReferences": [{"apiVersion": "v", "kind": "KafkaCluster", "name": "demo", "uid": "u"}]});
    let node = |serial: u8| node_secret(serial, "one", &ours, trusted.clone());
    let secrets = vec![
        named("demo-authority", owner.clone(), ours.clone()),
        named("demo-0-tls", label.clone(), node(1)),
        named("demo-0-tls-before", label.clone(), node(2)),
        named("demo-00-tls", label, node(3)),
        named("demo-1-tls", json!({"labels": {names::CLUSTER_LABEL: "another"}}), node(4)),
        named("demo-2-tls", json!({}), node(5)),
        named("demo-3-tls", owner, node(6)),
    ];
    let seen = seen(secrets, "demo");
    assert!(seen.authority.is_some(), "whoever takes a label off takes no authority away");
    let serials = seen.nodes.iter().map(|(id, seen)| (*id, seen.content.as_ref().unwrap().certificate.serial.as_str()));
    assert_eq!(serials.collect::<Vec<_>>(), [(0, "01".repeat(16).as_str()), (3, "06".repeat(16).as_str())]);
}

#[tokio::test]
async fn a_node_shows_its_certificate_and_whom_it_trusts_to_somebody_who_shows_nothing() {
    let before = authority_secret("before");
    let next = SecretChange::NextAuthority(to_make(0x42, "after", "after", &[]));
    let both = changed(&before, &next, None).unwrap();
    let secret = node_secret(9, "one", &both, authority(&both).unwrap().trusted);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(server(&secret));
    let accepting = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        acceptor.accept(socket).await.is_err()
    });
    let trusted = BTreeSet::from(["before".to_owned(), "after".to_owned()]);
    assert_eq!(look("127.0.0.1", port).await, Ok(Served { serial: "09".repeat(16), trusted }));
    assert!(accepting.await.unwrap(), "whoever looks is no node, and is let in nowhere");
    assert!(look("127.0.0.1", port).await.unwrap_err().contains("127.0.0.1"), "nobody listens any more");
}
