//! The way to a leader: over the network in a server, in process in a test.
//!
//! It sends one request at a time and never again: the fetcher decides what follows from a failure.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use gregor_authentication::{TlsError, client_config};
use gregor_channel::{Channel, ChannelOptions, Security};
use gregor_config::{BrokerConfig, SecurityProtocol};
use gregor_messages::{
    FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse, fetch_request::ReplicaState,
};

use super::Connect;

/// Versions of Fetch: those that name topics by id. What version 18 adds is for the metadata log.
const FETCH_VERSIONS: std::ops::RangeInclusive<i16> = 13..=17;
/// From this version on the broker's epoch goes along (KIP-903).
const FIRST_VERSION_WITH_EPOCH: i16 = 15;
/// An answer's frame may be larger than `replica.fetch.response.max.bytes` by its first batch, and by what describes partitions.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// A leader as a fetcher asks it; `None` where no answer came.
pub(crate) trait Leader: Send + Sync {
    /// Asks for records.
    fn fetch(&self, request: FetchRequest) -> BoxFuture<'_, Option<FetchResponse>>;
    /// Asks where logs end or start.
    fn list_offsets(&self, request: ListOffsetsRequest) -> BoxFuture<'_, Option<ListOffsetsResponse>>;
}

/// A leader at the other end of a connection.
pub(crate) struct Network {
    address: String,
    config: Arc<BrokerConfig>,
    /// Made with the first request that the files of TLS allow.
    channel: OnceLock<Channel>,
}

impl Network {
    /// Connects to leaders as this broker's own inter-broker listener is.
    pub(crate) fn connector(config: &Arc<BrokerConfig>) -> Connect {
        let config = Arc::clone(config);
        Box::new(move |address| {
            Arc::new(Self { address: address.to_owned(), config: Arc::clone(&config), channel: OnceLock::new() })
        })
    }

    fn patience(&self) -> Duration {
        let milliseconds = |ms: i32| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        milliseconds(self.config.replica_socket_timeout_ms) + milliseconds(self.config.replica_fetch_wait_max_ms)
    }

    fn channel(&self) -> Option<&Channel> {
        if let Some(channel) = self.channel.get() {
            return Some(channel);
        }
        let security = security(&self.config).inspect_err(|error| {
            tracing::error!(leader = self.address, %error, "a leader cannot be reached by TLS");
        });
        let options = ChannelOptions {
            client_id: format!("broker-{}-fetcher", self.config.node_id).as_str().into(),
            security: security.ok()?,
            request_timeout: self.patience(),
            in_flight_max: 1,
            frame_bytes_max: FRAME_BYTES_MAX,
            ..ChannelOptions::default()
        };
        Some(self.channel.get_or_init(|| Channel::new(self.address.as_str(), options)))
    }
}

/// What the inter-broker listener speaks, with its own keys: a broker shows another the certificate that it shows its clients.
fn security(config: &BrokerConfig) -> Result<Security, TlsError> {
    let name = &config.inter_broker_listener_name;
    let listener = config.listeners.iter().find(|listener| listener.bind.name == *name);
    let protocol = listener.map_or(SecurityProtocol::Plaintext, |listener| listener.protocol);
    if protocol == SecurityProtocol::Plaintext {
        return Ok(Security::Plaintext);
    }
    let lookup = |key: &str| match key {
        "security.protocol" => Some("SSL"),
        key => config.listener_value(name, key),
    };
    Ok(client_config(lookup)?.map_or(Security::Plaintext, Security::Tls))
}

impl Leader for Network {
    fn fetch(&self, request: FetchRequest) -> BoxFuture<'_, Option<FetchResponse>> {
        let build = |version| {
            if version >= FIRST_VERSION_WITH_EPOCH {
                return request;
            }
            let replica_id = request.replica_state.replica_id;
            FetchRequest { replica_id, replica_state: ReplicaState::default(), ..request }
        };
        async move {
            match self.channel()?.call_with(FETCH_VERSIONS, self.patience(), build).await {
                Ok((_, response)) => Some(response),
                Err(error) => {
                    tracing::info!(leader = self.address, %error, "a fetch from a leader failed");
                    None
                }
            }
        }
        .boxed()
    }

    fn list_offsets(&self, request: ListOffsetsRequest) -> BoxFuture<'_, Option<ListOffsetsResponse>> {
        async move {
            match self.channel()?.call(&request).await {
                Ok(response) => Some(response),
                Err(error) => {
                    tracing::info!(leader = self.address, %error, "a look at a leader's logs failed");
                    None
                }
            }
        }
        .boxed()
    }
}
