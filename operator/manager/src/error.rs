//! What can go wrong while an object is worked on. The variant decides what is said and when it is tried again.

use std::time::Duration;

use gregor_operator_plan::topic::BrokerError;

/// A reconcile that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do what it was asked.
    #[error("{doing}: {source}")]
    Kubernetes {
        /// What was being done.
        doing: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// An object that does not have the shape of its kind.
    #[error("{doing}: {source}")]
    Shape {
        /// What was being done.
        doing: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A certificate that cannot be made, or a Secret that is not what it was when it was planned.
    #[error("{doing}: {said}")]
    Certificate {
        /// What was being done.
        doing: String,
        /// What is wrong. No secret is in it.
        said: String,
    },
    /// An answer did not come: whoever should give it may be gone without a word.
    #[error("no answer within {seconds} s: the connection to the API server may be dead")]
    Late {
        /// How long it was waited for.
        seconds: u64,
    },
    /// Another operator leads, or may by now.
    #[error("this operator does not lead by the Lease {lease}: {said}")]
    NotLeading {
        /// The Lease.
        lease: String,
        /// What it says.
        said: String,
    },
    /// The brokers did not do what they were asked.
    #[error("{doing}: {source}")]
    Broker {
        /// What was being done.
        doing: String,
        /// What they said.
        source: BrokerError,
    },
}

impl Error {
    /// An error of the API server.
    pub fn kubernetes(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Kubernetes { doing, source: Box::new(source) }
    }

    /// An object of another shape.
    pub fn shape(doing: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Shape { doing, source }
    }

    /// A certificate that cannot be made.
    pub fn certificate(doing: impl Into<String>) -> impl FnOnce(rcgen::Error) -> Self {
        let doing = doing.into();
        move |error| Self::Certificate { doing, said: error.to_string() }
    }

    /// A Secret with other content than it should have.
    pub fn secret(doing: impl Into<String>) -> impl FnOnce(String) -> Self {
        let doing = doing.into();
        move |said| Self::Certificate { doing, said }
    }

    /// The API server's own words, without ours.
    pub fn api_message(&self) -> Option<&str> {
        match self {
            Self::Kubernetes { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(&status.message),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the object has changed since it was read: looking again is all that is needed.
    pub fn is_outdated(&self) -> bool {
        self.api(kube::core::response::Status::is_conflict)
    }

    /// Whether the API server refuses the content.
    pub fn is_invalid(&self) -> bool {
        self.api(kube::core::response::Status::is_invalid)
    }

    /// Whether an object of this name exists already.
    pub fn is_already_exists(&self) -> bool {
        self.api(kube::core::response::Status::is_already_exists)
    }

    /// Whether the rights, a quota or an admission policy stand in the way.
    pub fn is_forbidden(&self) -> bool {
        self.api(kube::core::response::Status::is_forbidden)
    }

    fn api(&self, question: impl FnOnce(&kube::core::response::Status) -> bool) -> bool {
        match self {
            Self::Kubernetes { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => question(status),
                _ => false,
            },
            _ => false,
        }
    }

    /// The word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Kubernetes { .. } => "kubernetes",
            Self::Shape { .. } => "shape",
            Self::Certificate { .. } => "certificate",
            Self::Late { .. } => "late",
            Self::NotLeading { .. } => "not_leading",
            Self::Broker { .. } => "broker",
        }
    }

    /// How long to wait before attempt number `attempt` (from 1) is followed by the next.
    pub fn back_off(attempt: u32) -> Duration {
        Duration::from_secs(1 << attempt.min(6)).min(Duration::from_mins(1))
    }
}
