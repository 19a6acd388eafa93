//! Why the controller does not do what was asked: an error code for the client's machinery, and words for its user.

use gregor_types::{ErrorCode, KString};

/// A refusal with Kafka's error code, and Kafka's words where it has some.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct Refusal {
    /// The code on the wire.
    pub code: ErrorCode,
    /// What to tell the user.
    pub message: String,
}

impl Refusal {
    /// A refusal with words of its own.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// This node does not lead the quorum; the client should look for the one that does.
    pub fn not_controller() -> Self {
        Self::new(ErrorCode::NotController, "This is not the correct controller for this cluster.")
    }

    /// More work waits for its commit than may.
    pub(crate) fn overloaded() -> Self {
        Self::new(ErrorCode::RequestTimedOut, "The controller has too many uncommitted requests; try again.")
    }

    /// The error code as a number.
    pub const fn number(&self) -> i16 {
        self.code as i16
    }

    /// The message as a response holds it.
    pub fn text(&self) -> Option<KString> {
        Some(KString::from(self.message.as_str()))
    }
}

/// The code of a result, 0 if it is good.
pub(crate) fn code_of<T>(result: &Result<T, Refusal>) -> i16 {
    result.as_ref().err().map_or(0, Refusal::number)
}

/// The message of a result, none if it is good.
pub(crate) fn text_of<T>(result: &Result<T, Refusal>) -> Option<KString> {
    result.as_ref().err().and_then(Refusal::text)
}
