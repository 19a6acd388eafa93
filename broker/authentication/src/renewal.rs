//! What a certificate may change while the node runs (`ssl.allow.dn.changes`, `ssl.allow.san.changes`): a store that was
//! swapped by mistake must not turn a broker into another one. The server asks before it takes a new key store over; what a
//! node starts with is nobody's renewal.

use std::collections::BTreeSet;

use rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
    ext::pkix::SubjectAltName,
};

use crate::{TlsError, distinguished_name};

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    subject: String,
    /// Its subject alternative names, each as the certificate has it.
    alternatives: BTreeSet<Vec<u8>>,
}

/// What a renewal may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Renewal {
    /// `ssl.allow.dn.changes`.
    pub(crate) may_change_subject: bool,
    /// `ssl.allow.san.changes`.
    pub(crate) may_change_alternatives: bool,
}

impl Identity {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        Self::read(certificate).ok_or(TlsError::Contradiction(
            "the names in the certificate of the key store cannot be read, so nobody can tell whom it is for",
        ))
    }

    fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let subject = distinguished_name::subject(certificate)?;
        let certificate = Certificate::from_der(certificate).ok()?;
        let names = certificate.tbs_certificate().get_extension::<SubjectAltName>().ok()?;
        let names = names.map(|(_, names)| names.0).unwrap_or_default();
        let alternatives = names.iter().map(|name| name.to_der().ok()).collect::<Option<_>>()?;
        Some(Self { subject, alternatives })
    }
}

impl Renewal {
    /// Whether a certificate may take the place of another: it has the same subject, and at least the same alternative names,
    /// as Kafka's `SslFactory` asks for.
    pub(crate) fn check(self, old: &Identity, new: &Identity) -> Result<(), TlsError> {
        if !self.may_change_subject && old.subject != new.subject {
            let (old, new) = (old.subject.clone(), new.subject.clone());
            return Err(TlsError::OtherSubject { old, new });
        }
        if !self.may_change_alternatives && !new.alternatives.is_superset(&old.alternatives) {
            return Err(TlsError::Contradiction(
                "the new certificate of the key store lacks subject alternative names that the old one has. Add them, or \
                 set ssl.allow.san.changes=true and start the broker again",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Renewal = Renewal { may_change_subject: false, may_change_alternatives: false };

    fn identity(subject: &str, alternatives: &[&str]) -> Identity {
        let mut params =
            rcgen::CertificateParams::new(alternatives.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>())
                .unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, subject);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        Identity::of(certificate.der()).unwrap()
    }

    #[test]
    fn a_renewed_certificate_keeps_its_subject_unless_that_is_allowed() {
        let (old, new) = (identity("kafka", &["a"]), identity("other", &["a"]));
        assert!(STRICT.check(&old, &identity("kafka", &["a"])).is_ok());
        let refused = STRICT.check(&old, &new).unwrap_err().to_string();
        assert!(refused.contains("CN=other") && refused.contains("ssl.allow.dn.changes"), "{refused}");
        assert!(Renewal { may_change_subject: true, ..STRICT }.check(&old, &new).is_ok());
    }

    #[test]
    fn a_renewed_certificate_may_gain_names_and_loses_none_unless_that_is_allowed() {
        let (few, many) = (identity("kafka", &["a", "10.0.0.1"]), identity("kafka", &["a", "b", "10.0.0.1"]));
        assert!(STRICT.check(&few, &many).is_ok());
        let refused = STRICT.check(&many, &few).unwrap_err().to_string();
        assert!(refused.contains("ssl.allow.san.changes"), "{refused}");
        assert!(STRICT.check(&few, &identity("kafka", &["a", "10.0.0.2"])).is_err(), "another address");
        assert!(Renewal { may_change_alternatives: true, ..STRICT }.check(&many, &few).is_ok());
        assert!(STRICT.check(&identity("kafka", &[]), &few).is_ok());
    }
}
