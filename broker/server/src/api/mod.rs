//! One file per API, and what every one of them is given: the [`Context`] of a request and the [`Broker`] behind it.
//!
//! `dispatch.rs` calls `handle(context, request, version)` of the API's file. A handler answers with a response, always; an
//! error is a code in it. It may await (a commit, the controller); it holds no lock while it does.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use gregor_authentication::Principal;
use gregor_config::{BrokerConfig, ReplicationConfig};
use gregor_messages::ApiKey;
use gregor_metadata::{Image, MetadataImage};
use gregor_replication::Registration;
use gregor_types::{BrokerId, KString, LeaderEpoch, PartitionIndex, Timestamp, TopicId};
use gregor_wire::Message;
use tokio::{sync::watch, time::Instant};

use crate::{
    close::Close, control::ControlHandle, controller_link::ControllerLink, fetch_sessions::FetchSessions,
    groups::Groups, memory::MemoryPool, metrics::Metrics, partition::Registrations, partitions::Partitions,
    producer_ids::ProducerIds, reply::Reply, tls_dialing::Outwards, tls_listener::TlsListener,
};

pub(crate) mod alter_configs;
pub(crate) mod alter_replica_log_dirs;
pub(crate) mod api_versions;
pub(crate) mod delete_groups;
pub(crate) mod delete_records;
pub(crate) mod describe_client_quotas;
pub(crate) mod describe_cluster;
pub(crate) mod describe_configs;
pub(crate) mod describe_groups;
pub(crate) mod describe_log_dirs;
pub(crate) mod describe_producers;
pub(crate) mod describe_quorum;
pub(crate) mod describe_topic_partitions;
pub(crate) mod describe_user_scram_credentials;
pub(crate) mod elect_leaders;
pub(crate) mod envelope;
pub(crate) mod fetch;
pub(crate) mod find_coordinator;
pub(crate) mod forward;
pub(crate) mod heartbeat;
pub(crate) mod init_producer_id;
pub(crate) mod join_group;
pub(crate) mod leave_group;
pub(crate) mod list_config_resources;
pub(crate) mod list_groups;
pub(crate) mod list_offsets;
pub(crate) mod metadata;
pub(crate) mod nodes;
pub(crate) mod offset_commit;
pub(crate) mod offset_delete;
pub(crate) mod offset_fetch;
pub(crate) mod offset_for_leader_epoch;
pub(crate) mod produce;
pub(crate) mod quorum;
pub(crate) mod security;
pub(crate) mod sync_group;
#[cfg(test)]
pub(crate) mod test_image;
pub(crate) mod topic_creation;

/// Everything that the handlers of a node share.
pub(crate) struct Broker {
    /// This node.
    pub(crate) node_id: BrokerId,
    /// The cluster that it belongs to.
    pub(crate) cluster_id: KString,
    /// `server.properties`.
    pub(crate) config: Arc<BrokerConfig>,
    /// What it says of replication.
    pub(crate) replication: ReplicationConfig,
    /// The way to the quorum and to the metadata image.
    pub(crate) control: ControlHandle,
    /// The way of clients' requests to the active controller.
    pub(crate) forwarding: Arc<ControllerLink>,
    /// The way of this broker's own.
    pub(crate) controller: Arc<ControllerLink>,
    /// The partitions with a replica here.
    pub(crate) partitions: Arc<Partitions>,
    /// The group coordinator.
    pub(crate) groups: Arc<Groups>,
    /// Ids for idempotent producers.
    pub(crate) producer_ids: ProducerIds,
    /// Incremental fetch sessions (KIP-227).
    pub(crate) fetch_sessions: FetchSessions,
    /// The listeners that speak TLS.
    pub(crate) tls_listeners: Vec<Arc<TlsListener>>,
    /// How this node reaches others.
    pub(crate) outwards: Outwards,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// `socket.request.max.bytes`.
    pub(crate) frame_bytes_max: usize,
    /// `connections.max.idle.ms`.
    pub(crate) connection_idle: Duration,
    /// Where requests' bytes go while they arrive.
    pub(crate) request_memory: MemoryPool,
    /// Turns true when the node stops: what waits should answer.
    pub(crate) draining: watch::Receiver<bool>,
}

/// A listener as its connections know it.
#[derive(Debug)]
pub(crate) struct ListenerInfo {
    /// Its name, such as `PLAINTEXT`.
    pub(crate) name: String,
    /// Whether it is the controller's.
    pub(crate) controller: bool,
}

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct ConnectionInfo {
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// Where it came in.
    pub(crate) listener: Arc<ListenerInfo>,
    /// Who it belongs to.
    pub(crate) principal: Principal,
    /// Of what came in an envelope, with its client's address and principal above: set by who finds that this node is not the controller.
    pub(crate) not_controller: Option<Arc<AtomicBool>>,
}

/// A request's surroundings. A connection has one, which each request changes.
#[derive(Clone)]
pub(crate) struct Context {
    /// The node.
    pub(crate) broker: Arc<Broker>,
    /// The connection.
    pub(crate) connection: Arc<ConnectionInfo>,
    /// What the client calls itself.
    pub(crate) client_id: Option<KString>,
    /// Returned with the response.
    pub(crate) correlation_id: i32,
    /// The API.
    pub(crate) api_key: ApiKey,
    /// The version of the request, and so of its response.
    pub(crate) api_version: i16,
    /// When the whole request was there.
    pub(crate) received_at: Instant,
}

impl Broker {
    /// The newest committed metadata.
    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.control.image()
    }

    /// Ends once the node stops.
    pub(crate) async fn drained(&self) {
        let mut draining = self.draining.clone();
        // An error means that the node is gone, which is the end as well.
        let _ = draining.wait_for(|draining| *draining).await;
    }
}

impl Context {
    /// Whether appends to any log directory are slow.
    pub(crate) fn is_any_directory_slow(&self) -> bool {
        self.broker.partitions.storage().is_any_slow()
    }

    /// A connection's context before its first request.
    pub(crate) fn new(broker: Arc<Broker>, connection: Arc<ConnectionInfo>) -> Self {
        let (api_key, received_at) = (ApiKey::ApiVersions, Instant::now());
        Self { broker, connection, client_id: None, correlation_id: 0, api_key, api_version: 0, received_at }
    }

    /// The name of the listener that the request came in by.
    pub(crate) fn listener_name(&self) -> &str {
        &self.connection.listener.name
    }

    /// The client's address as Kafka shows it in groups: `/127.0.0.1`.
    pub(crate) fn client_host(&self) -> String {
        format!("/{}", self.connection.peer.ip().to_canonical())
    }

    /// The client's id; empty where it has none.
    pub(crate) fn client_id(&self) -> &str {
        self.client_id.as_deref().unwrap_or_default()
    }

    /// The time, for decisions that take it as an argument.
    #[allow(clippy::unused_self, reason = "handlers take the time from their context, so that it has one source")]
    pub(crate) fn now(&self) -> Timestamp {
        crate::clock::now()
    }

    /// Where a broker is reached by clients of this request's listener.
    pub(crate) fn endpoint_of(
        &self,
        image: &MetadataImage,
        broker: BrokerId,
    ) -> Option<(KString, u16, Option<KString>)> {
        let broker = image.cluster().broker(broker).filter(|broker| !broker.fenced)?;
        let endpoint = broker.endpoint(self.listener_name())?;
        Some((endpoint.host.clone(), endpoint.port, broker.rack.clone()))
    }

    /// A response in this request's version.
    pub(crate) fn reply<M: Message>(&self, response: &M) -> Result<Reply, Close> {
        let header_version = self.api_key.response_header_version(self.api_version);
        Reply::message(self.correlation_id, header_version, response, self.api_version)
    }
}

/// How the metadata knows a broker, as far as replication looks at it.
pub(crate) fn registration_of(image: &Image, broker: BrokerId) -> Option<Registration> {
    let cluster = image.cluster();
    cluster.broker(broker).map(|known| Registration { epoch: known.epoch, active: cluster.is_active(broker) })
}

impl Registrations for Image {
    fn registration(&self, broker: BrokerId) -> Option<Registration> {
        registration_of(self, broker)
    }
}

impl Registrations for Broker {
    fn registration(&self, broker: BrokerId) -> Option<Registration> {
        registration_of(&self.image(), broker)
    }
}

/// Who leads a partition, by the metadata: named by id where `topic` is empty.
pub(crate) fn leader_of(
    image: &MetadataImage,
    topic: &str,
    topic_id: TopicId,
    index: i32,
) -> Option<(BrokerId, LeaderEpoch)> {
    let topics = image.topics();
    let topic = if topic.is_empty() { topics.by_id(topic_id) } else { topics.by_name(topic) }?;
    let partition = topic.partition(PartitionIndex(index))?;
    Some((partition.leader?, partition.leader_epoch))
}
