//! Why a connection ended, as everybody is told who waits on it.

use std::io;

use crate::{ChannelError, TlsFailure, tls};

/// Why a connection ended.
#[derive(Clone)]
pub(crate) enum End {
    Tls(TlsFailure),
    Other(String),
}

impl End {
    /// What callers are told.
    pub(crate) fn error(self, address: &str) -> ChannelError {
        let address = address.to_owned();
        match self {
            Self::Tls(failure) => ChannelError::Tls { address, failure },
            Self::Other(reason) => ChannelError::Disconnected { address, reason },
        }
    }

    /// What a failed read or write means.
    pub(crate) fn of(error: &io::Error, address: &str) -> Self {
        match tls::failure(error, tls::host_of(address)) {
            Some(failure) => Self::Tls(failure),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Other("the peer closed it".to_owned()),
            None => Self::Other(error.to_string()),
        }
    }
}

impl From<&str> for End {
    fn from(reason: &str) -> Self {
        Self::Other(reason.to_owned())
    }
}
