//! One table of what is served: API, listeners, versions, handler. What has no row is not advertised.
//!
//! `connection.rs` asks [`parse`] for the row and the context of a frame and then runs the row's handler. A key or version
//! that is not served closes the connection, as Kafka does; only ApiVersions answers an unknown version (KIP-511).

use std::{future::Future, ops::RangeInclusive, pin::Pin};

use bytes::Bytes;
use gregor_messages::{self as messages, ApiKey};
use gregor_wire::{Message, Reader, RequestHeader, Struct};
use tokio::time::Instant;

use crate::{
    api::{self, Context},
    close::Close,
    reply::Reply,
};

/// One API that is served.
pub(crate) struct Row {
    /// The API.
    pub(crate) key: ApiKey,
    /// Where it is served.
    pub(crate) listeners: Listeners,
    /// What ApiVersions says.
    pub(crate) advertised: RangeInclusive<i16>,
    /// What is really answered: Produce is advertised from version 0 and served from 3.
    pub(crate) served: RangeInclusive<i16>,
    /// Who answers.
    pub(crate) handler: Handler,
}

/// The kinds of listeners that serve an API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listeners {
    /// Those of the broker.
    Broker,
    /// Those of the controller.
    Controller,
    /// Both.
    Both,
}

/// Answers a request; what it awaits keeps the connection muted.
pub(crate) type Answer<'a> = Pin<Box<dyn Future<Output = Result<Reply, Close>> + Send + 'a>>;

/// How a request is handled.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    /// Appends at once and answers later, while the connection reads on.
    Produce,
    /// A barrier like any other; it has a way of its own, as its response is not copied and its memory is used again.
    Fetch,
    /// Waits for every earlier response, and is answered before the next request is read.
    Barrier(for<'a> fn(&'a Context, Bytes) -> Answer<'a>),
}

/// A row whose handler takes and returns the generated structs. An unstable last version is not served, as Apache has it.
macro_rules! row {
    ($key:ident, $listeners:ident, $request:ident, $handler:path) => {
        Row {
            key: ApiKey::$key,
            listeners: Listeners::$listeners,
            advertised: *messages::$request::VERSIONS.start()..=last_stable::<messages::$request>(ApiKey::$key),
            served: *messages::$request::VERSIONS.start()..=last_stable::<messages::$request>(ApiKey::$key),
            handler: Handler::Barrier(|context, body| {
                Box::pin(async move {
                    let request = messages::$request::decode(&mut Reader::new(body), context.api_version)?;
                    let response = $handler(context, request, context.api_version).await;
                    context.reply(&response)
                })
            }),
        }
    };
}

const fn last_stable<M: Message>(key: ApiKey) -> i16 {
    *M::VERSIONS.end() - key.latest_version_is_unstable() as i16
}

/// What this build serves.
pub(crate) static TABLE: &[Row] = &[
    Row {
        key: ApiKey::Produce,
        listeners: Listeners::Broker,
        // KAFKA-18659: librdkafka takes a minimum above 0 for a broker without compression.
        advertised: 0..=*messages::ProduceRequest::VERSIONS.end(),
        served: messages::ProduceRequest::VERSIONS,
        handler: Handler::Produce,
    },
    Row {
        key: ApiKey::Fetch,
        listeners: Listeners::Broker,
        advertised: messages::FetchRequest::VERSIONS,
        served: messages::FetchRequest::VERSIONS,
        handler: Handler::Fetch,
    },
    row!(ListOffsets, Broker, ListOffsetsRequest, api::list_offsets::handle),
    row!(Metadata, Broker, MetadataRequest, api::metadata::handle),
    row!(DescribeTopicPartitions, Broker, DescribeTopicPartitionsRequest, api::describe_topic_partitions::handle),
    row!(DescribeCluster, Both, DescribeClusterRequest, api::describe_cluster::handle),
    row!(DescribeQuorum, Both, DescribeQuorumRequest, api::describe_quorum::handle),
    row!(DescribeConfigs, Both, DescribeConfigsRequest, api::describe_configs::handle),
    row!(ListConfigResources, Broker, ListConfigResourcesRequest, api::list_config_resources::handle),
    row!(CreateTopics, Both, CreateTopicsRequest, api::forward::handle),
    row!(DeleteTopics, Both, DeleteTopicsRequest, api::forward::handle),
    row!(CreatePartitions, Both, CreatePartitionsRequest, api::forward::handle),
    row!(AlterConfigs, Both, AlterConfigsRequest, api::alter_configs::replace),
    row!(IncrementalAlterConfigs, Both, IncrementalAlterConfigsRequest, api::alter_configs::change),
    row!(AlterClientQuotas, Both, AlterClientQuotasRequest, api::forward::handle),
    row!(DescribeClientQuotas, Broker, DescribeClientQuotasRequest, api::describe_client_quotas::handle),
    row!(AlterUserScramCredentials, Both, AlterUserScramCredentialsRequest, api::forward::handle),
    row!(
        DescribeUserScramCredentials,
        Both,
        DescribeUserScramCredentialsRequest,
        api::describe_user_scram_credentials::handle
    ),
    row!(DescribeAcls, Both, DescribeAclsRequest, api::security::describe_acls),
    row!(CreateAcls, Both, CreateAclsRequest, api::security::create_acls),
    row!(DeleteAcls, Both, DeleteAclsRequest, api::security::delete_acls),
    row!(CreateDelegationToken, Both, CreateDelegationTokenRequest, api::security::create_token),
    row!(RenewDelegationToken, Both, RenewDelegationTokenRequest, api::security::renew_token),
    row!(ExpireDelegationToken, Both, ExpireDelegationTokenRequest, api::security::expire_token),
    row!(DescribeDelegationToken, Both, DescribeDelegationTokenRequest, api::security::describe_tokens),
    row!(SaslHandshake, Both, SaslHandshakeRequest, api::security::sasl_handshake),
    row!(SaslAuthenticate, Both, SaslAuthenticateRequest, api::security::sasl_authenticate),
    row!(ElectLeaders, Both, ElectLeadersRequest, api::elect_leaders::handle),
    row!(AlterPartitionReassignments, Both, AlterPartitionReassignmentsRequest, api::forward::handle),
    row!(ListPartitionReassignments, Both, ListPartitionReassignmentsRequest, api::forward::handle),
    row!(UnregisterBroker, Both, UnregisterBrokerRequest, api::forward::handle),
    row!(UnregisterController, Both, UnregisterControllerRequest, api::forward::handle),
    row!(UpdateFeatures, Both, UpdateFeaturesRequest, api::forward::handle),
    row!(Fetch, Controller, FetchRequest, api::quorum::fetch),
    row!(FetchSnapshot, Controller, FetchSnapshotRequest, api::quorum::fetch_snapshot),
    row!(Vote, Controller, VoteRequest, api::quorum::vote),
    row!(BeginQuorumEpoch, Controller, BeginQuorumEpochRequest, api::quorum::begin_epoch),
    row!(EndQuorumEpoch, Controller, EndQuorumEpochRequest, api::quorum::end_epoch),
    row!(AddRaftVoter, Both, AddRaftVoterRequest, api::quorum::add_voter),
    row!(RemoveRaftVoter, Both, RemoveRaftVoterRequest, api::quorum::remove_voter),
    row!(UpdateRaftVoter, Controller, UpdateRaftVoterRequest, api::quorum::update_voter),
    row!(BrokerRegistration, Controller, BrokerRegistrationRequest, api::forward::handle),
    row!(BrokerHeartbeat, Controller, BrokerHeartbeatRequest, api::forward::handle),
    row!(ControllerRegistration, Controller, ControllerRegistrationRequest, api::forward::handle),
    row!(AllocateProducerIds, Controller, AllocateProducerIdsRequest, api::forward::handle),
    row!(AlterPartition, Controller, AlterPartitionRequest, api::forward::handle),
    row!(AssignReplicasToDirs, Controller, AssignReplicasToDirsRequest, api::forward::handle),
    row!(Envelope, Controller, EnvelopeRequest, api::envelope::handle),
    row!(FindCoordinator, Broker, FindCoordinatorRequest, api::find_coordinator::handle),
    row!(JoinGroup, Broker, JoinGroupRequest, api::join_group::handle),
    row!(Heartbeat, Broker, HeartbeatRequest, api::heartbeat::handle),
    row!(LeaveGroup, Broker, LeaveGroupRequest, api::leave_group::handle),
    row!(SyncGroup, Broker, SyncGroupRequest, api::sync_group::handle),
    row!(OffsetCommit, Broker, OffsetCommitRequest, api::offset_commit::handle),
    row!(OffsetFetch, Broker, OffsetFetchRequest, api::offset_fetch::handle),
    row!(OffsetDelete, Broker, OffsetDeleteRequest, api::offset_delete::handle),
    row!(ListGroups, Broker, ListGroupsRequest, api::list_groups::handle),
    row!(DescribeGroups, Broker, DescribeGroupsRequest, api::describe_groups::handle),
    row!(DeleteGroups, Broker, DeleteGroupsRequest, api::delete_groups::handle),
    row!(InitProducerId, Broker, InitProducerIdRequest, api::init_producer_id::handle),
    row!(DeleteRecords, Broker, DeleteRecordsRequest, api::delete_records::handle),
    row!(OffsetForLeaderEpoch, Broker, OffsetForLeaderEpochRequest, api::offset_for_leader_epoch::handle),
    row!(AlterReplicaLogDirs, Broker, AlterReplicaLogDirsRequest, api::alter_replica_log_dirs::handle),
    row!(DescribeLogDirs, Broker, DescribeLogDirsRequest, api::describe_log_dirs::handle),
    row!(DescribeProducers, Broker, DescribeProducersRequest, api::describe_producers::handle),
    Row {
        key: ApiKey::ApiVersions,
        listeners: Listeners::Both,
        advertised: messages::ApiVersionsRequest::VERSIONS,
        served: messages::ApiVersionsRequest::VERSIONS,
        handler: Handler::Barrier(|context, body| Box::pin(async move { api::api_versions::handle(context, body) })),
    },
];

/// The row of an API on a kind of listener.
pub(crate) fn row(key: i16, controller_listener: bool) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.key.code() == key && row.listeners.include(controller_listener))
}

/// Reads the header of a frame into the connection's context, and finds who answers it and what follows the header.
pub(crate) fn parse(context: &mut Context, frame: Bytes, received_at: Instant) -> Result<(&'static Row, Bytes), Close> {
    let mut reader = Reader::new(frame);
    let mut ahead = reader.clone();
    let (key, version) = (ahead.i16()?, ahead.i16()?);
    let row = row(key, context.connection.listener.controller).ok_or(Close::UnknownApi(key))?;
    if !row.served.contains(&version) && row.key != ApiKey::ApiVersions {
        return Err(Close::UnknownVersion { key, version });
    }
    let header = RequestHeader::read(&mut reader, row.key.request_header_version(version))?;
    context.client_id = header.client_id;
    context.correlation_id = header.correlation_id;
    context.api_key = row.key;
    context.api_version = version;
    context.received_at = received_at;
    Ok((row, reader.rest()))
}

impl Listeners {
    /// Whether such a listener is among them.
    pub(crate) fn include(self, controller_listener: bool) -> bool {
        match self {
            Self::Both => true,
            Self::Broker => !controller_listener,
            Self::Controller => controller_listener,
        }
    }
}
