//! What can go wrong between a request and its response.

use std::{io, ops::RangeInclusive};

use gregor_types::ErrorCode;
use gregor_wire::{DecodeError, EncodeError};

use crate::TlsFailure;

/// A request that got no response. Errors that a broker answers with are in the response, not here.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The connection could not be made.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// `host:port`, as it was asked for.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The two sides do not agree on TLS.
    #[error("no TLS with {address}: {failure}")]
    Tls {
        /// `host:port` of the peer.
        address: String,
        /// What failed, and what to do.
        failure: TlsFailure,
    },
    /// The connection ended while a request was under way: whether the broker acted on it is unknown.
    #[error("the connection to {address} ended: {reason}")]
    Disconnected {
        /// `host:port` of the peer.
        address: String,
        /// Why, in words.
        reason: String,
    },
    /// No response in time: whether the broker acted on the request is unknown.
    #[error("{address} did not answer {api} in time")]
    TimedOut {
        /// `host:port` of the peer.
        address: String,
        /// The request's name.
        api: &'static str,
    },
    /// The peer does not serve this API, or no version of it that we can speak.
    #[error("{address} does not serve {api} in versions {wanted:?}; it serves {served:?}")]
    Unsupported {
        /// `host:port` of the peer.
        address: String,
        /// The request's name.
        api: &'static str,
        /// The versions that this side would use.
        wanted: RangeInclusive<i16>,
        /// The versions that the peer serves, if any.
        served: Option<RangeInclusive<i16>>,
    },
    /// The peer refused to say what it serves: it is no Kafka broker, or wants another security protocol.
    #[error("{address} refused the first request with {error}; is it a Kafka listener without SASL?")]
    Refused {
        /// `host:port` of the peer.
        address: String,
        /// What it answered.
        error: ErrorCode,
    },
    /// The request holds something that the agreed version cannot carry.
    #[error("{api} cannot be sent in version {version}: {source}")]
    Encode {
        /// The request's name.
        api: &'static str,
        /// The version agreed on.
        version: i16,
        /// What does not fit.
        source: EncodeError,
    },
    /// The response is not what its version says.
    #[error("the answer of {address} to {api} version {version} makes no sense: {source}")]
    Decode {
        /// `host:port` of the peer.
        address: String,
        /// The request's name.
        api: &'static str,
        /// The version agreed on.
        version: i16,
        /// Where it stops making sense.
        source: DecodeError,
    },
}

impl ChannelError {
    /// Whether the same request may succeed later, if it is safe to send twice.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Disconnected { .. } | Self::TimedOut { .. } => true,
            Self::Tls { failure, .. } => failure.may_pass(),
            Self::Unsupported { .. } | Self::Refused { .. } | Self::Encode { .. } | Self::Decode { .. } => false,
        }
    }
}
