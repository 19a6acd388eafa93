//! The metadata quorum: who leads, who votes, how far each is, and changes of who votes (KIP-595, KIP-853).
//!
//! Any broker is asked, and forwards it to the controller that leads.

use gregor_messages::{
    AddRaftVoterRequest, DescribeQuorumRequest, RemoveRaftVoterRequest, add_raft_voter_request,
    describe_quorum_request::{PartitionData, TopicData},
    describe_quorum_response,
};
use gregor_types::{BrokerId, DirectoryId, ErrorCode, KString, LeaderEpoch};

use super::Admin;
use crate::{BrokerError, ClientError};

/// The topic that stands for the metadata log.
const METADATA_TOPIC: &str = "__cluster_metadata";

/// The metadata quorum, as its leader describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumDescription {
    /// Who leads.
    pub leader: Option<BrokerId>,
    /// Since which epoch.
    pub leader_epoch: LeaderEpoch,
    /// The offset up to which the metadata is committed.
    pub high_watermark: i64,
    /// Who votes.
    pub voters: Vec<QuorumReplica>,
    /// Who only reads.
    pub observers: Vec<QuorumReplica>,
}

/// A replica of the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumReplica {
    /// The node.
    pub id: BrokerId,
    /// The directory that holds it; zero in a static quorum.
    pub directory: DirectoryId,
    /// The end of its log, or -1.
    pub log_end_offset: i64,
    /// When it last asked the leader for records, by the leader's clock in milliseconds, or -1.
    pub last_fetch_ms: i64,
    /// When it was last level with the leader, by the leader's clock in milliseconds, or -1.
    pub last_caught_up_ms: i64,
}

/// A controller that shall vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVoter {
    /// The node.
    pub id: BrokerId,
    /// The directory of its metadata log.
    pub directory: DirectoryId,
    /// Its controller listeners by name, the one that voters use first.
    pub listeners: Vec<(KString, KString, u16)>,
}

impl Admin {
    /// The metadata quorum.
    pub async fn describe_quorum(&self) -> Result<QuorumDescription, ClientError> {
        let partition = PartitionData { partition_index: 0, ..Default::default() };
        let topic = TopicData { topic_name: METADATA_TOPIC.into(), partitions: vec![partition], ..Default::default() };
        let request = DescribeQuorumRequest { topics: vec![topic], ..Default::default() };
        self.client
            .retry(|| async {
                let response = self.client.call(&request).await?;
                refused(response.error_code, response.error_message.as_ref())?;
                let partition = response.topics.first().and_then(|topic| topic.partitions.first());
                let Some(partition) = partition else { return Err(error(ErrorCode::UnknownServerError, None)) };
                refused(partition.error_code, partition.error_message.as_ref())?;
                Ok(QuorumDescription {
                    leader: (partition.leader_id >= 0).then_some(BrokerId(partition.leader_id)),
                    leader_epoch: LeaderEpoch(partition.leader_epoch),
                    high_watermark: partition.high_watermark,
                    voters: partition.current_voters.iter().map(replica).collect(),
                    observers: partition.observers.iter().map(replica).collect(),
                })
            })
            .await
    }

    /// Makes a controller a voter, and waits until that is committed. Any broker passes it on to the quorum's leader, whose listener
    /// may take nobody but nodes. Whether it happened all the same after an error, [`describe_quorum`](Self::describe_quorum) tells.
    pub async fn add_voter(&self, voter: &NewVoter) -> Result<(), ClientError> {
        let listeners = voter.listeners.iter().map(|(name, host, port)| add_raft_voter_request::Listener {
            name: name.clone(),
            host: host.clone(),
            port: *port,
            ..Default::default()
        });
        let request = AddRaftVoterRequest {
            cluster_id: self.client.cluster().cluster_id.clone(),
            timeout_ms: self.server_wait_ms(),
            voter_id: voter.id.0,
            voter_directory_id: voter.directory,
            listeners: listeners.collect(),
            ack_when_committed: true,
            ..Default::default()
        };
        let response = self.client.call(&request).await?;
        refused(response.error_code, response.error_message.as_ref())
    }

    /// Has a voter vote no more, and waits until that is committed; as [`add_voter`](Self::add_voter).
    pub async fn remove_voter(&self, id: BrokerId, directory: DirectoryId) -> Result<(), ClientError> {
        let request = RemoveRaftVoterRequest {
            cluster_id: self.client.cluster().cluster_id.clone(),
            voter_id: id.0,
            voter_directory_id: directory,
            ..Default::default()
        };
        let response = self.client.call(&request).await?;
        refused(response.error_code, response.error_message.as_ref())
    }
}

fn replica(state: &describe_quorum_response::ReplicaState) -> QuorumReplica {
    QuorumReplica {
        id: BrokerId(state.replica_id),
        directory: state.replica_directory_id,
        log_end_offset: state.log_end_offset,
        last_fetch_ms: state.last_fetch_timestamp,
        last_caught_up_ms: state.last_caught_up_timestamp,
    }
}

fn error(code: ErrorCode, message: Option<&str>) -> ClientError {
    BrokerError::new("metadata quorum", code).with_message(message).into()
}

fn refused(code: i16, message: Option<&KString>) -> Result<(), ClientError> {
    match ErrorCode::from(code) {
        ErrorCode::None => Ok(()),
        code => Err(error(code, message.map(KString::as_str))),
    }
}
