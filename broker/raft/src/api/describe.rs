//! DescribeQuorum: who leads, who votes, who watches, and how far each is (KIP-595, KIP-836, KIP-853).

use gregor_messages::{
    DescribeQuorumRequest, DescribeQuorumResponse, describe_quorum_request,
    describe_quorum_response::{Listener, Node, PartitionData, ReplicaState, TopicData},
};
use gregor_types::{ErrorCode, Offset, Timestamp};

use super::is_metadata;
use crate::{Now, Quorum, ReplicaKey, Role, leader::Progress, time::Age};

impl Quorum {
    pub(crate) fn on_describe(&self, request: &DescribeQuorumRequest, now: Now) -> DescribeQuorumResponse {
        let [topic] = request.topics.as_slice() else { return describe_nothing(request) };
        let [partition] = topic.partitions.as_slice() else { return describe_nothing(request) };
        if !is_metadata(&topic.topic_name, partition.partition_index) {
            return describe_nothing(request);
        }
        let data = match &self.role {
            Role::Leader(_) => self.describe_as_leader(now),
            _ => partition_error(0, ErrorCode::NotLeaderOrFollower),
        };
        let nodes = if data.error_code == 0 { self.nodes() } else { Vec::new() };
        let topic = TopicData { topic_name: topic.topic_name.clone(), partitions: vec![data], ..Default::default() };
        DescribeQuorumResponse { topics: vec![topic], nodes, ..Default::default() }
    }

    fn describe_as_leader(&self, now: Now) -> PartitionData {
        let Role::Leader(leader) = &self.role else { unreachable!("the caller checked") };
        let local = self.config.local.key.id;
        let progress =
            |key: ReplicaKey| leader.replicas().find(|(replica, _)| *replica == key).map(|(_, progress)| progress);
        let voters = self.voters().iter().map(|voter| {
            if voter.key.id == local {
                return state(voter.key, leader.end, now.wall, now.wall);
            }
            replica_state(voter.key, progress(voter.key), now)
        });
        let observers = leader
            .replicas()
            .filter(|(key, _)| !self.voters().contains(*key))
            .map(|(key, progress)| replica_state(key, Some(progress), now));
        PartitionData {
            partition_index: 0,
            leader_id: local.value(),
            leader_epoch: leader.epoch.value(),
            high_watermark: self.high_watermark.unwrap_or(Offset::NONE).value(),
            current_voters: voters.collect(),
            observers: observers.collect(),
            ..Default::default()
        }
    }

    fn nodes(&self) -> Vec<Node> {
        let local = &self.config.local;
        let node = |voter: &crate::Voter| {
            let endpoints = if voter.endpoints.is_empty() && voter.key.id == local.key.id {
                &local.endpoints
            } else {
                &voter.endpoints
            };
            let listeners = endpoints
                .iter()
                .map(|endpoint| Listener {
                    name: endpoint.name.clone(),
                    host: endpoint.host.clone(),
                    port: endpoint.port,
                    ..Default::default()
                })
                .collect();
            Node { node_id: voter.key.id.value(), listeners, ..Default::default() }
        };
        self.voters().iter().map(node).collect()
    }
}

/// The answer to who asks for anything but the metadata.
fn describe_nothing(request: &DescribeQuorumRequest) -> DescribeQuorumResponse {
    let topic = |topic: &describe_quorum_request::TopicData| {
        let unknown = |index: i32| partition_error(index, ErrorCode::UnknownTopicOrPartition);
        let partitions = topic.partitions.iter().map(|partition| unknown(partition.partition_index)).collect();
        TopicData { topic_name: topic.topic_name.clone(), partitions, ..Default::default() }
    };
    DescribeQuorumResponse { topics: request.topics.iter().map(topic).collect(), ..Default::default() }
}

fn partition_error(index: i32, error: ErrorCode) -> PartitionData {
    PartitionData { partition_index: index, error_code: error.code(), ..Default::default() }
}

fn replica_state(key: ReplicaKey, progress: Option<Progress>, now: Now) -> ReplicaState {
    let (end, fetched, caught_up) = progress.map_or((Offset::NONE, Age::NEVER, Age::NEVER), |progress| {
        (progress.end, progress.fetched, progress.caught_up)
    });
    state(key, end, fetched.at(now), caught_up.at(now))
}

fn state(key: ReplicaKey, end: Offset, fetched: Timestamp, caught_up: Timestamp) -> ReplicaState {
    ReplicaState {
        replica_id: key.id.value(),
        replica_directory_id: key.directory_or_zero(),
        log_end_offset: end.value(),
        last_fetch_timestamp: fetched.value(),
        last_caught_up_timestamp: caught_up.value(),
        ..Default::default()
    }
}
