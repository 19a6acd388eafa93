//! Listeners and endpoints: `NAME://host:port`.

use std::{collections::BTreeMap, fmt};

use crate::value::{ConfigError, split_list};

/// How a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "Kafka's names")]
pub enum SecurityProtocol {
    Plaintext,
    Ssl,
    SaslPlaintext,
    SaslSsl,
}

/// A host and a port under a listener's name. An empty host listens on every interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The listener's name, in capitals.
    pub name: String,
    /// Host name or address; empty for every interface.
    pub host: String,
    /// TCP port; 0 lets the operating system choose.
    pub port: u16,
}

/// A listener of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub bind: Endpoint,
    /// What clients are told; host and port of `bind` where nothing else is configured.
    pub advertised: Endpoint,
    /// How it speaks.
    pub protocol: SecurityProtocol,
    /// Whether it is one of `controller.listener.names`.
    pub controller: bool,
}

impl SecurityProtocol {
    /// The number of this protocol in Kafka's records (`SecurityProtocol.id`).
    pub const fn id(self) -> i16 {
        match self {
            Self::Plaintext => 0,
            Self::Ssl => 1,
            Self::SaslPlaintext => 2,
            Self::SaslSsl => 3,
        }
    }

    /// Why a listener of this protocol is refused, if it is.
    pub(crate) const fn not_served(self) -> Option<&'static str> {
        match self {
            Self::Plaintext | Self::Ssl => None,
            Self::SaslPlaintext | Self::SaslSsl => Some("SASL is not served yet; PLAINTEXT and SSL are."),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [
            ("PLAINTEXT", Self::Plaintext),
            ("SSL", Self::Ssl),
            ("SASL_PLAINTEXT", Self::SaslPlaintext),
            ("SASL_SSL", Self::SaslSsl),
        ]
        .into_iter()
        .find_map(|(name, protocol)| name.eq_ignore_ascii_case(text).then_some(protocol))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(formatter, "{}://{open}{}{close}:{}", self.name, self.host, self.port)
    }
}

/// The endpoints of a list such as `PLAINTEXT://:9092,CONTROLLER://[::1]:9093`, each name once.
pub(crate) fn parse_endpoints(key: &str, text: &str) -> Result<Vec<Endpoint>, ConfigError> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for item in split_list(text) {
        let endpoint = parse_endpoint(item).ok_or_else(|| ConfigError::Invalid {
            key: key.to_owned(),
            value: item.to_owned(),
            allowed: "expected NAME://host:port, such as PLAINTEXT://0.0.0.0:9092".to_owned(),
        })?;
        if endpoints.iter().any(|other| other.name == endpoint.name) {
            return Err(ConfigError::Contradiction(format!("{key} names the listener {} twice", endpoint.name)));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

fn parse_endpoint(item: &str) -> Option<Endpoint> {
    let (name, address) = item.split_once("://")?;
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (!name.is_empty() && name.bytes().all(legal)).then_some(())?;
    Some(Endpoint { name: name.to_ascii_uppercase(), host: host.to_owned(), port: port.parse().ok()? })
}

/// `listener.security.protocol.map`: the protocol of each name.
pub(crate) fn parse_protocol_map(text: &str) -> Result<BTreeMap<String, SecurityProtocol>, ConfigError> {
    split_list(text)
        .map(|item| {
            item.split_once(':')
                .and_then(|(name, protocol)| Some((name.to_ascii_uppercase(), SecurityProtocol::parse(protocol)?)))
                .ok_or_else(|| ConfigError::Invalid {
                    key: "listener.security.protocol.map".to_owned(),
                    value: item.to_owned(),
                    allowed: "expected NAME:PROTOCOL with PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL".to_owned(),
                })
        })
        .collect()
}
