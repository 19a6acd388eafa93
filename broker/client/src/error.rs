//! What can go wrong for a user of this crate.

use gregor_channel::ChannelError;
use gregor_types::{ErrorCode, TopicPartition};

/// What a broker answered about one thing: a topic, a partition, a group, a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {code}{}", .message.as_deref().map(|text| format!(": {text}")).unwrap_or_default())]
pub struct BrokerError {
    /// What it is about, such as `topic orders`.
    pub what: String,
    /// Kafka's code.
    pub code: ErrorCode,
    /// The broker's own words, if it sent any.
    pub message: Option<String>,
}

impl BrokerError {
    pub(crate) fn new(what: impl Into<String>, code: ErrorCode) -> Self {
        Self { what: what.into(), code, message: None }
    }

    pub(crate) fn with_message(mut self, message: Option<impl AsRef<str>>) -> Self {
        self.message = message.map(|text| text.as_ref().to_owned()).filter(|text| !text.is_empty());
        self
    }
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A broker was asked and said no.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A request got no response.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// No broker could be asked at all.
    #[error("no broker answers at {bootstrap}: {last}")]
    NoBroker {
        /// The addresses that were tried.
        bootstrap: String,
        /// What the last one failed with.
        last: Box<ClientError>,
    },
    /// A partition has no leader, so it can be neither written nor read for now.
    #[error("{0} has no leader at the moment")]
    NoLeader(TopicPartition),
    /// A broker that metadata names is not among the brokers it lists.
    #[error("broker {0} is not up at the moment")]
    NoSuchBroker(i32),
    /// A value that cannot be used.
    #[error("{0}")]
    InvalidArgument(String),
    /// Records that a broker sent cannot be read.
    #[error("records of {partition} at offset {offset} cannot be read: {reason}")]
    CorruptRecords {
        /// Where.
        partition: TopicPartition,
        /// The offset that was asked for.
        offset: i64,
        /// What is wrong with them.
        reason: String,
    },
    /// A record was not acknowledged within its delivery timeout.
    #[error("a record of {0} was not acknowledged in time: {1}")]
    DeliveryTimedOut(TopicPartition, String),
    /// What this belongs to was closed.
    #[error("the {0} is closed")]
    Closed(&'static str),
}

impl ClientError {
    /// The broker's code, if a broker answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Broker(error) => Some(error.code),
            _ => None,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Broker(error) => error.code.is_retriable(),
            Self::Channel(error) => error.is_retriable(),
            Self::NoBroker { .. } | Self::NoLeader(_) | Self::NoSuchBroker(_) => true,
            _ => false,
        }
    }
}
