//! What a user of this crate can choose, with the defaults of Kafka's own clients.

use std::time::Duration;

use gregor_channel::{ChannelOptions, Security};
use gregor_types::KString;

pub use gregor_wire::compression::{Compression, CompressionType};

/// Choices that hold for everything made from one client.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Told to brokers with each request.
    pub client_id: KString,
    /// What connections speak below Kafka's protocol.
    pub security: Security,
    /// How long a connection may take with its TLS handshake.
    pub connect_timeout: Duration,
    /// How long one request may wait for its response.
    pub request_timeout: Duration,
    /// How long a call may take with all its tries; then the last error is returned.
    pub api_timeout: Duration,
    /// The first pause between tries.
    pub retry_backoff: Duration,
    /// The longest pause between tries.
    pub retry_backoff_max: Duration,
    /// How old what is known of leaders may grow before it is asked for again.
    pub metadata_max_age: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            client_id: KString::from_static("gregor"),
            security: Security::Plaintext,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            api_timeout: Duration::from_mins(1),
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
            metadata_max_age: Duration::from_mins(5),
        }
    }
}

impl ClientOptions {
    /// The same with another client id.
    #[must_use]
    pub fn with_client_id(mut self, client_id: impl Into<KString>) -> Self {
        self.client_id = client_id.into();
        self
    }

    /// The same over connections of another kind.
    #[must_use]
    pub fn with_security(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// The same, giving up after `timeout`.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.api_timeout = timeout;
        self.request_timeout = self.request_timeout.min(timeout);
        self.connect_timeout = self.connect_timeout.min(timeout);
        self
    }

    pub(crate) fn channel(&self, in_flight_max: usize) -> ChannelOptions {
        ChannelOptions {
            client_id: self.client_id.clone(),
            security: self.security.clone(),
            connect_timeout: self.connect_timeout,
            request_timeout: self.request_timeout,
            in_flight_max,
            ..ChannelOptions::default()
        }
    }
}

/// When a broker acknowledges what was produced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acks {
    /// Never: sent and forgotten.
    None,
    /// Once the leader has it.
    Leader,
    /// Once every in-sync replica has it.
    #[default]
    All,
}

impl Acks {
    pub(crate) const fn wire(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Leader => 1,
            Self::All => -1,
        }
    }
}

/// Choices of a producer.
#[derive(Debug, Clone)]
pub struct ProducerOptions {
    /// When a record counts as written.
    pub acks: Acks,
    /// With it, a record that is sent again is stored once. It needs [`Acks::All`].
    pub idempotent: bool,
    /// How batches are compressed.
    pub compression: Compression,
    /// How long a record may wait for others to share its batch.
    pub linger: Duration,
    /// How many bytes of records make a batch full.
    pub batch_bytes: usize,
    /// How many bytes of records may wait or be on their way; then `send` waits.
    pub buffer_bytes: usize,
    /// How long a record may take from `send` to its acknowledgement, with all tries.
    pub delivery_timeout: Duration,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            idempotent: true,
            compression: Compression::default(),
            linger: Duration::from_millis(5),
            batch_bytes: 16 << 10,
            buffer_bytes: 32 << 20,
            delivery_timeout: Duration::from_mins(2),
        }
    }
}

/// Choices of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// The group to be a member of, or whose offsets to use; none for a consumer on its own.
    pub group_id: Option<KString>,
    /// A name that outlives restarts (static membership, KIP-345).
    pub group_instance_id: Option<KString>,
    /// Where to start where the group has no offset, or the offset is gone.
    pub offset_reset: crate::OffsetReset,
    /// Commit what was returned by `poll` every so often; none to commit by hand.
    pub auto_commit: Option<Duration>,
    /// A member that is silent for so long is taken for dead.
    pub session_timeout: Duration,
    /// How often a member says that it lives.
    pub heartbeat_interval: Duration,
    /// How long a member may take to rejoin in a rebalance.
    pub rebalance_timeout: Duration,
    /// How long a fetch may wait at the broker for `fetch_min_bytes`.
    pub fetch_max_wait: Duration,
    /// How many bytes make a fetch worth answering.
    pub fetch_min_bytes: i32,
    /// How many bytes a fetch may return.
    pub fetch_max_bytes: i32,
    /// How many bytes of one partition a fetch may return.
    pub partition_max_bytes: i32,
    /// How many records one `poll` returns at most.
    pub poll_records_max: usize,
    /// Leave out records of transactions that are open or were aborted.
    pub read_committed: bool,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            group_id: None,
            group_instance_id: None,
            offset_reset: crate::OffsetReset::Latest,
            auto_commit: Some(Duration::from_secs(5)),
            session_timeout: Duration::from_secs(45),
            heartbeat_interval: Duration::from_secs(3),
            rebalance_timeout: Duration::from_mins(5),
            fetch_max_wait: Duration::from_millis(500),
            fetch_min_bytes: 1,
            fetch_max_bytes: 50 << 20,
            partition_max_bytes: 1 << 20,
            poll_records_max: 500,
            read_committed: false,
        }
    }
}
