//! Why a connection ends before its peer ends it.
//!
//! Said by whoever reads, answers or sends; `connection.rs` counts and reports it. It does nothing by itself.

use std::io;

use gregor_types::ErrorCode;
use gregor_wire::{DecodeError, EncodeError};

/// Why a connection ended before its peer ended it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Close {
    /// The socket failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// A frame's length is negative or above `socket.request.max.bytes`.
    #[error("a request claims {claimed} bytes; socket.request.max.bytes allows {limit}")]
    FrameSize {
        /// What the peer claims.
        claimed: i32,
        /// What is allowed.
        limit: usize,
    },
    /// The peer closed in the middle of a frame.
    #[error("the peer closed in the middle of a request")]
    HalfSent,
    /// A frame took too long to arrive.
    #[error("a request did not arrive in time")]
    FrameTime,
    /// Nothing came for `connections.max.idle.ms`.
    #[error("idle for longer than connections.max.idle.ms")]
    Idle,
    /// The peer reads nothing of its response.
    #[error("the peer does not read its response")]
    Stalled,
    /// The TLS handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[source] rustls::Error),
    /// The peer closed in the middle of the TLS handshake.
    #[error("the peer closed in the middle of the TLS handshake")]
    HandshakeEnded,
    /// The TLS handshake took too long.
    #[error("the TLS handshake was not done in time")]
    HandshakeTime,
    /// A TLS record is not what it should be.
    #[error("a TLS record cannot be read: {0}")]
    Tls(#[source] rustls::Error),
    /// Nobody can be made of the peer's certificate.
    #[error(
        "the peer's certificate has no subject that can be read, or no rule of ssl.principal.mapping.rules fits it"
    )]
    NoPrincipal,
    /// A header or a body is not what its version says.
    #[error("a request cannot be read: {0}")]
    Malformed(#[from] DecodeError),
    /// A key that does not exist, or that this listener does not serve.
    #[error("API key {0} is not served on this listener")]
    UnknownApi(i16),
    /// A version that is not served.
    #[error("version {version} of API key {key} is not served")]
    UnknownVersion {
        /// The API.
        key: i16,
        /// The version in the header.
        version: i16,
    },
    /// A Produce without acknowledgement failed; closing is the only answer there is.
    #[error("a produce request with acks=0 failed with {0}")]
    UnacknowledgedProduce(ErrorCode),
    /// A response that its version cannot carry: a fault of ours.
    #[error("a response cannot be written: {0}")]
    Response(#[from] EncodeError),
}

impl Close {
    /// A short word for the metric.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::FrameSize { .. } => "frame_size",
            Self::HalfSent => "half_sent",
            Self::FrameTime => "frame_time",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::Handshake(_) | Self::HandshakeEnded => "handshake",
            Self::HandshakeTime => "handshake_time",
            Self::Tls(_) => "tls",
            Self::NoPrincipal => "principal",
            Self::Malformed(_) => "malformed",
            Self::UnknownApi(_) => "unknown_api",
            Self::UnknownVersion { .. } => "unknown_version",
            Self::UnacknowledgedProduce(_) => "unacknowledged_produce",
            Self::Response(_) => "response",
        }
    }
}
