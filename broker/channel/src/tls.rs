//! TLS on an outgoing connection: whether it is wanted, the handshake, and why it failed in words that help.
//!
//! Called by the connection only. It reads no file and makes no configuration of rustls: whoever makes a channel brings one.

use std::{io, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, InvalidMessage, pki_types::ServerName,
};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// What an outgoing connection speaks below Kafka's protocol.
#[derive(Debug, Clone, Default)]
pub enum Security {
    /// TCP as it is: whoever is on the way can read and change everything.
    #[default]
    Plaintext,
    /// TLS. The configuration says whom to trust, what to show, and whether the certificate must name the host that is dialed
    /// (rustls' verifiers do; a verifier that does not is the configuration's own).
    Tls(Arc<ClientConfig>),
    /// TLS with the configuration that is the newest when a connection is made, as certificates are renewed while a node runs.
    Renewed(watch::Receiver<Arc<ClientConfig>>),
}

impl Security {
    /// What a connection that is made now does TLS with, if it does.
    pub(crate) fn now(&self) -> Option<Arc<ClientConfig>> {
        match self {
            Self::Plaintext => None,
            Self::Tls(config) => Some(Arc::clone(config)),
            Self::Renewed(newest) => Some(Arc::clone(&newest.borrow())),
        }
    }
}

/// Why the two sides do not agree on TLS, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFailure {
    /// The peer's certificate is signed by nobody who is trusted.
    #[error(
        "no authority that is trusted here signed its certificate: name the one that did in ssl.truststore.location, and \
         see that this is the right cluster"
    )]
    UnknownIssuer,
    /// The certificate is for other names than the one dialed.
    #[error(
        "its certificate is for {}, not for {dialed}: connect by a name that it has, or give it this one as a subject \
         alternative name (an empty ssl.endpoint.identification.algorithm trusts any name)",
        if .presented.is_empty() { "no name at all".to_owned() } else { .presented.join(", ") }
    )]
    OtherName {
        /// The host that was dialed.
        dialed: String,
        /// The subject alternative names in the certificate.
        presented: Vec<String>,
    },
    /// The certificate's time is over, or yet to come.
    #[error("its certificate is not valid now ({0}): renew it, or set the clock of this machine right")]
    NotValidNow(String),
    /// The certificate is refused for another reason.
    #[error("its certificate cannot be accepted: {0}")]
    BadCertificate(String),
    /// The peer answered with something that is no TLS.
    #[error("it does not speak TLS: use its TLS listener's port, or security.protocol=PLAINTEXT for this one")]
    NotTls,
    /// The peer ended the connection within the handshake, as a plaintext Kafka listener does when it is greeted in TLS.
    #[error(
        "it ended the connection within the TLS handshake: a listener without TLS does so (use the TLS listener's port, or \
         security.protocol=PLAINTEXT), and so does one that does not like what it was shown; its log says more"
    )]
    Ended,
    /// The peer ended the connection behind the handshake and before its first answer.
    #[error(
        "it ended the connection right after the TLS handshake: it asks for a client certificate (ssl.keystore.location) or \
         does not accept the one it was shown; its log says more"
    )]
    EndedAfterwards,
    /// The peer wants to see a certificate and was shown none.
    #[error("it asks for a client certificate: give one with ssl.keystore.location")]
    CertificateRequired,
    /// The peer was shown a certificate that it does not accept.
    #[error(
        "it does not accept this client's certificate ({0}): give one in ssl.keystore.location that its truststore knows"
    )]
    CertificateRefused(String),
    /// No version or cipher suite in common.
    #[error("no TLS version or cipher suite in common ({0}): see ssl.enabled.protocols on both sides")]
    NothingInCommon(String),
    /// The address holds no name that TLS could check.
    #[error("{0} is neither a host name nor an address that TLS can ask for")]
    BadName(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl TlsFailure {
    /// Whether it may be otherwise the next time: a broker that stops ends connections without a word too.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Ended | Self::EndedAfterwards)
    }
}

/// Shakes hands as a client. `address` is `host:port`; the host is the name asked for and checked.
pub(crate) async fn connect(
    config: &Arc<ClientConfig>,
    address: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, TlsFailure> {
    let host = host_of(address);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsFailure::BadName(host.to_owned()))?;
    TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
        .map_err(|error| failure(&error, host).unwrap_or_else(|| interrupted(&error)))
}

/// What TLS itself says of an error, if it is TLS's: with TLS 1.3 a peer refuses a client's certificate only after the client
/// has taken the handshake for done.
pub(crate) fn failure(error: &io::Error, host: &str) -> Option<TlsFailure> {
    let error = error.get_ref()?.downcast_ref::<TlsError>()?;
    Some(match error {
        TlsError::InvalidCertificate(reason) => bad_certificate(reason, host),
        TlsError::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        ) => TlsFailure::NotTls,
        TlsError::PeerIncompatible(reason) => TlsFailure::NothingInCommon(format!("{reason:?}")),
        TlsError::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => TlsFailure::CertificateRequired,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::DecryptError => TlsFailure::CertificateRefused(format!("{alert:?}")),
            AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity => TlsFailure::NothingInCommon(format!("{alert:?}")),
            other => TlsFailure::Other(format!("it ended the connection with the TLS alert {other:?}")),
        },
        other => TlsFailure::Other(other.to_string()),
    })
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn bad_certificate(reason: &CertificateError, host: &str) -> TlsFailure {
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsFailure::UnknownIssuer,
        CertificateError::NotValidForNameContext { presented, .. } => {
            TlsFailure::OtherName { dialed: host.to_owned(), presented: presented.clone() }
        }
        CertificateError::NotValidForName => TlsFailure::OtherName { dialed: host.to_owned(), presented: Vec::new() },
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => TlsFailure::NotValidNow(reason.to_string()),
        other => TlsFailure::BadCertificate(other.to_string()),
    }
}

fn interrupted(error: &io::Error) -> TlsFailure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => TlsFailure::Ended,
        _ => TlsFailure::Other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_is_checked_is_the_host_of_the_address() {
        assert_eq!(host_of("broker-1.kafka:9093"), "broker-1.kafka");
        assert_eq!(host_of("[::1]:9093"), "::1");
        assert_eq!(host_of("127.0.0.1:9093"), "127.0.0.1");
    }
}
