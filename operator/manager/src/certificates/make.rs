//! Keys and certificates as the plan asks for them. Everything but the keys and the signatures is the plan's.

use std::time::Duration;

use gregor_operator_plan::certificates::ToMake;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, Error, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber,
};

/// A certificate and its private key, in PEM.
pub(super) struct Made {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// An authority that vouches for itself, and signs nothing but nodes' certificates.
pub(super) fn authority(make: &ToMake) -> Result<Made, Error> {
    let key = KeyPair::generate()?;
    let mut params = params(make)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(Made { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// A node's, with which it is server and client of others.
pub(super) fn node(make: &ToMake, authority_key: &str) -> Result<Made, Error> {
    let mut issuer = CertificateParams::new(Vec::new())?;
    issuer.distinguished_name = named(&make.issuer);
    issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = Issuer::new(issuer, KeyPair::from_pem(authority_key)?);
    let key = KeyPair::generate()?;
    let mut params = params(make)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(Made { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
}

fn params(make: &ToMake) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(make.names.clone())?;
    params.distinguished_name = named(&make.subject);
    params.serial_number = Some(SerialNumber::from_slice(&make.serial));
    let beginning = rcgen::date_time_ymd(1970, 1, 1);
    let at = |seconds: i64| beginning + Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    params.not_before = at(make.not_before);
    params.not_after = at(make.not_after);
    Ok(params)
}

fn named(subject: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, subject);
    name
}
