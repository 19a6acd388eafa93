//! The way to a leader: over the network in a server, in process in a test.
//!
//! It sends one request at a time and never again: the fetcher decides what follows from a failure.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use gregor_channel::{Channel, ChannelOptions, Security};
use gregor_config::BrokerConfig;
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
    channel: Channel,
    patience: Duration,
}

impl Network {
    /// Connects to leaders by what their listener among brokers speaks.
    pub(crate) fn connector(config: &BrokerConfig, security: Security) -> Connect {
        let milliseconds = |ms: i32| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        let patience = milliseconds(config.replica_socket_timeout_ms) + milliseconds(config.replica_fetch_wait_max_ms);
        let options = ChannelOptions {
            client_id: format!("broker-{}-fetcher", config.node_id).as_str().into(),
            security,
            request_timeout: patience,
            in_flight_max: 1,
            frame_bytes_max: FRAME_BYTES_MAX,
            ..ChannelOptions::default()
        };
        Box::new(move |address| Arc::new(Self { channel: Channel::new(address, options.clone()), patience }))
    }
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
            match self.channel.call_with(FETCH_VERSIONS, self.patience, build).await {
                Ok((_, response)) => Some(response),
                Err(error) => {
                    tracing::info!(leader = self.channel.address(), %error, "a fetch from a leader failed");
                    None
                }
            }
        }
        .boxed()
    }

    fn list_offsets(&self, request: ListOffsetsRequest) -> BoxFuture<'_, Option<ListOffsetsResponse>> {
        async move {
            match self.channel.call(&request).await {
                Ok(response) => Some(response),
                Err(error) => {
                    tracing::info!(leader = self.channel.address(), %error, "a look at a leader's logs failed");
                    None
                }
            }
        }
        .boxed()
    }
}
