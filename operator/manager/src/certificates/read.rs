//! What Secrets with certificates say. Private keys are looked at only to see whether they are the certificates' own.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use gregor_operator_api::names;
use gregor_operator_plan::certificates::{
    AuthoritySeen, Certificate, CertificatesSeen, NodeCertificateSeen, SecretSeen, Trusted, authority_secret,
    node_secret,
};
use gregor_operator_plan::properties::{KEY_STORE, TRUST_STORE};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use x509_cert::der::{Decode as _, Encode as _, Tag, Tagged as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

/// The keys of an authority's Secret, as those of type `kubernetes.io/tls` are named.
pub(super) const CERTIFICATE: &str = "tls.crt";
pub(super) const KEY: &str = "tls.key";
/// The same of the authority that is to follow.
pub(super) const NEXT_CERTIFICATE: &str = "next.crt";
pub(super) const NEXT_KEY: &str = "next.key";

/// A bundle holds at most so many authorities. The operator's own have one or two; who wrote more has to look at it.
const TRUSTED_MAX: usize = 64;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// What the Secrets of a cluster say. One that has the name of ours and is somebody else's counts as none: making ours is refused
/// then, and nothing is overwritten.
pub fn seen(secrets: Vec<Secret>, cluster: &str) -> CertificatesSeen {
    let mut seen = CertificatesSeen::default();
    for secret in secrets.into_iter().filter(|secret| is_of(secret, cluster)) {
        let name = secret.name_any();
        if name == authority_secret(cluster) {
            seen.authority = Some(SecretSeen { content: authority(&secret), metadata: metadata(secret) });
        } else if let Some(id) = node_id(&name, cluster) {
            seen.nodes.insert(id, SecretSeen { content: node(&secret), metadata: metadata(secret) });
        }
    }
    seen
}

/// Whether a Secret says that it belongs to a KafkaCluster of this name: by its label, which somebody may have taken off, or by its
/// owner, which a restored one may not have.
fn is_of(secret: &Secret, cluster: &str) -> bool {
    let is_owner = |owner: &OwnerReference| owner.kind == "KafkaCluster" && owner.name == cluster;
    secret.labels().get(names::CLUSTER_LABEL).is_some_and(|label| label == cluster)
        || secret.owner_references().iter().any(is_owner)
}

/// Whose Secret this is, by its name.
fn node_id(name: &str, cluster: &str) -> Option<i32> {
    let id = name.strip_prefix(cluster)?.strip_prefix('-')?.strip_suffix("-tls")?.parse().ok()?;
    (node_secret(cluster, id) == name).then_some(id)
}

fn metadata(secret: Secret) -> Value {
    let mut metadata = secret.metadata;
    metadata.managed_fields = None;
    serde_json::to_value(metadata).expect("metadata is JSON")
}

/// What the Secret of an authority says.
pub fn authority(secret: &Secret) -> Result<AuthoritySeen, String> {
    let current = own(secret, CERTIFICATE, KEY)?;
    let has_next = secret.data.as_ref().is_some_and(|data| data.contains_key(NEXT_CERTIFICATE));
    let next = has_next.then(|| own(secret, NEXT_CERTIFICATE, NEXT_KEY)).transpose()?;
    Ok(AuthoritySeen { current, next, trusted: bundle(text(secret, TRUST_STORE)?)? })
}

/// What the Secret of a node says.
pub fn node(secret: &Secret) -> Result<NodeCertificateSeen, String> {
    let certificate = certificate(text(secret, KEY_STORE)?).map_err(|why| format!("{KEY_STORE}: {why}"))?;
    Ok(NodeCertificateSeen { certificate, trusted: bundle(text(secret, TRUST_STORE)?)? })
}

/// An authority's certificate, if it signs with the key beside it and is one of those that the operator makes.
fn own(secret: &Secret, certificate_key: &str, private_key: &str) -> Result<Certificate, String> {
    let pem = text(secret, certificate_key)?;
    let say = |why: &str| format!("{certificate_key}: {why}");
    let parsed = parse(pem).map_err(|why| say(&why))?;
    let key = KeyPair::from_pem(text(secret, private_key)?)
        .map_err(|_| format!("{private_key}: it is no private key in PEM"))?;
    let public = parsed.tbs_certificate().subject_public_key_info().to_der();
    if public.ok() != Some(key.subject_public_key_info()) {
        return Err(say(&format!("{private_key} is another certificate's key")));
    }
    let read = read(&parsed).map_err(|why| say(&why))?;
    if read.subject != read.issuer || !is_one_common_name(parsed.tbs_certificate().subject()) {
        return Err(say("the operator did not make it"));
    }
    Ok(read)
}

/// Certificates that are signed name their authority letter for letter, so its name has to be of the one form that we write.
fn is_one_common_name(name: &Name) -> bool {
    let mut attributes = name.iter();
    let first = attributes.next();
    first.is_some_and(|attribute| attribute.oid.to_string() == COMMON_NAME && attribute.value.tag() == Tag::Utf8String)
        && attributes.next().is_none()
}

pub(super) fn text<'a>(secret: &'a Secret, key: &str) -> Result<&'a str, String> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or_else(|| format!("it has no key {key}"))?;
    std::str::from_utf8(&bytes.0).map_err(|_| format!("{key} is no text"))
}

fn bundle(text: &str) -> Result<Vec<Trusted>, String> {
    let mut trusted = BTreeMap::new();
    for section in text.split_inclusive(END) {
        let Some(at) = section.find(BEGIN) else { continue };
        let pem = format!("{}\n", &section[at..]);
        let certificate = certificate(&pem).map_err(|why| format!("{TRUST_STORE}: {why}"))?;
        let Certificate { subject, not_after, .. } = certificate;
        trusted.insert(subject.clone(), Trusted { subject, not_after, pem });
        if trusted.len() > TRUSTED_MAX {
            return Err(format!("{TRUST_STORE} holds more than {TRUSTED_MAX} certificates"));
        }
    }
    Ok(trusted.into_values().collect())
}

fn parse(pem: &str) -> Result<x509_cert::Certificate, String> {
    let der =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| "no certificate in PEM is in it".to_owned())?;
    x509_cert::Certificate::from_der(&der).map_err(|error| format!("its certificate cannot be read: {error}"))
}

/// The first certificate in a text.
fn certificate(pem: &str) -> Result<Certificate, String> {
    read(&parse(pem)?)
}

/// What a certificate says.
fn read(certificate: &x509_cert::Certificate) -> Result<Certificate, String> {
    let told = certificate.tbs_certificate();
    let names = told.get_extension::<SubjectAltName>().map_err(|_| "its names cannot be read".to_owned())?;
    let names = names.map(|(_, names)| names.0).unwrap_or_default();
    let dns = names.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        _ => None,
    });
    let seconds = |time: &x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    Ok(Certificate {
        serial: hexadecimal(told.serial_number().as_bytes()),
        subject: common_name(told.subject()).ok_or("its subject has no common name")?,
        issuer: common_name(told.issuer()).ok_or("its issuer has no common name")?,
        names: dns.collect(),
        not_before: seconds(&told.validity().not_before),
        not_after: seconds(&told.validity().not_after),
    })
}

const COMMON_NAME: &str = "2.5.4.3";

fn common_name(name: &Name) -> Option<String> {
    let attribute = name.iter().find(|attribute| attribute.oid.to_string() == COMMON_NAME)?;
    Some(String::from_utf8_lossy(attribute.value.value()).into_owned())
}

pub(super) fn common_name_of(der: &[u8]) -> Option<String> {
    common_name(&Name::from_der(der).ok()?)
}

/// The serial number of a certificate as it is shown in a handshake.
pub(super) fn serial_of(der: &[u8]) -> Option<String> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    Some(hexadecimal(certificate.tbs_certificate().serial_number().as_bytes()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
