//! Groups: list, describe, delete, and their committed offsets.

use std::collections::BTreeMap;

use bytes::Bytes;
use gregor_messages::{
    DeleteGroupsRequest, DescribeGroupsRequest, ListGroupsRequest, OffsetCommitRequest, OffsetDeleteRequest,
    OffsetFetchRequest, OffsetFetchResponse,
    offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
    offset_fetch_request::OffsetFetchRequestGroup,
};
use gregor_types::{ErrorCode, KString, LeaderEpoch, Offset, TopicPartition};
use gregor_wire::Message;

use super::{Admin, Outcomes, outcome, records::by_topic};
use crate::{BrokerError, ClientError, CommittedOffset, route::Purpose};

/// The first version of `OffsetFetch` that asks for several groups.
const BATCHED_FETCH: i16 = 8;
/// The newest versions that name topics rather than giving their ids.
const COMMIT_BY_NAME_MAX: i16 = 9;
const FETCH_BY_NAME_MAX: i16 = 9;

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupListing {
    /// The group's id.
    pub group_id: KString,
    /// `consumer` for consumers; empty for a group that only keeps offsets.
    pub protocol_type: KString,
    /// Its state in Kafka's words, such as `Stable`; empty from brokers before 2.6.
    pub state: KString,
    /// Its type, such as `classic`; empty from brokers before 3.8.
    pub group_type: KString,
}

/// A group with its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// The group's id.
    pub group_id: KString,
    /// Its state in Kafka's words, such as `Stable`.
    pub state: KString,
    /// `consumer` for consumers.
    pub protocol_type: KString,
    /// The assignor that the members agreed on.
    pub protocol: KString,
    /// Its members.
    pub members: Vec<GroupMember>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// The id the coordinator gave it.
    pub member_id: KString,
    /// The name it was given, if it is static.
    pub group_instance_id: Option<KString>,
    /// What the client calls itself.
    pub client_id: KString,
    /// Where it connects from.
    pub client_host: KString,
    /// What it is assigned, in its protocol's own form.
    pub assignment: Bytes,
}

impl Admin {
    /// Every group of every broker.
    pub async fn list_groups(&self) -> Result<Vec<GroupListing>, ClientError> {
        let cluster = self.client.retry(|| async { self.client.refresh_topics(&[], false).await }).await?;
        let mut groups = Vec::new();
        for broker in cluster.brokers.keys() {
            let response = self
                .client
                .retry(|| async {
                    let channel = self.client.broker(*broker, Purpose::General)?;
                    let response = channel.call(&ListGroupsRequest::default()).await?;
                    let refused = |code| BrokerError::new(format!("groups of broker {broker}"), code);
                    ErrorCode::from(response.error_code).ok().map_err(refused)?;
                    Ok(response)
                })
                .await?;
            groups.extend(response.groups.into_iter().map(|row| GroupListing {
                group_id: row.group_id.compact(),
                protocol_type: row.protocol_type.compact(),
                state: row.group_state.compact(),
                group_type: row.group_type.compact(),
            }));
        }
        groups.sort_by(|left, right| left.group_id.cmp(&right.group_id));
        Ok(groups)
    }

    /// A group with its members.
    pub async fn describe_group(&self, group: impl Into<KString>) -> Result<GroupDescription, ClientError> {
        let group = group.into();
        let group = &group;
        self.client
            .with_coordinator(group, |coordinator| async move {
                let request = DescribeGroupsRequest { groups: vec![group.clone()], ..Default::default() };
                let response = self.client.broker(coordinator, Purpose::General)?.call(&request).await?;
                let row = response.groups.into_iter().next().unwrap_or_default();
                let members = row.members.into_iter().map(|member| GroupMember {
                    member_id: member.member_id,
                    group_instance_id: member.group_instance_id,
                    client_id: member.client_id,
                    client_host: member.client_host,
                    assignment: member.member_assignment,
                });
                let description = GroupDescription {
                    group_id: group.clone(),
                    state: row.group_state,
                    protocol_type: row.protocol_type,
                    protocol: row.protocol_data,
                    members: members.collect(),
                };
                let named = format!("group {group}");
                Ok(outcome(named, row.error_code, row.error_message.as_ref(), description)?)
            })
            .await
    }

    /// Deletes groups that have no members, with their offsets.
    pub async fn delete_groups(&self, groups: &[KString]) -> Result<Outcomes<KString, ()>, ClientError> {
        let mut outcomes = BTreeMap::new();
        for group in groups {
            let deleted = self
                .client
                .with_coordinator(group, |coordinator| async move {
                    let request = DeleteGroupsRequest { groups_names: vec![group.clone()], ..Default::default() };
                    let response = self.client.broker(coordinator, Purpose::General)?.call(&request).await?;
                    let row = response.results.into_iter().next().unwrap_or_default();
                    Ok(outcome(format!("group {group}"), row.error_code, row.error_message.as_ref(), ())?)
                })
                .await;
            match deleted {
                Ok(()) => drop(outcomes.insert(group.clone(), Ok(()))),
                Err(ClientError::Broker(error)) => drop(outcomes.insert(group.clone(), Err(error))),
                Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    /// Every offset that a group has committed.
    pub async fn list_group_offsets(
        &self,
        group: impl Into<KString>,
    ) -> Result<BTreeMap<TopicPartition, CommittedOffset>, ClientError> {
        let group = group.into();
        let group = &group;
        self.client
            .with_coordinator(group, |coordinator| async move {
                let build = |version| {
                    if version >= BATCHED_FETCH {
                        let row =
                            OffsetFetchRequestGroup { group_id: group.clone(), topics: None, ..Default::default() };
                        OffsetFetchRequest { groups: vec![row], ..Default::default() }
                    } else {
                        OffsetFetchRequest { group_id: group.clone(), topics: None, ..Default::default() }
                    }
                };
                // Version 2 is the first that can ask for all topics.
                let channel = self.client.broker(coordinator, Purpose::General)?;
                let wait = self.client.options().request_timeout;
                let (version, response) =
                    channel.call_with::<OffsetFetchRequest>(2..=FETCH_BY_NAME_MAX, wait, build).await?;
                committed_offsets(group, version, response)
            })
            .await
    }

    /// Sets a group's offsets from outside. The group must have no members.
    pub async fn alter_group_offsets(
        &self,
        group: impl Into<KString>,
        offsets: &BTreeMap<TopicPartition, CommittedOffset>,
    ) -> Result<Outcomes<TopicPartition, ()>, ClientError> {
        let group = group.into();
        let group = &group;
        self.client
            .with_coordinator(group, |coordinator| async move {
                let request = commit_request(group, offsets);
                let channel = self.client.broker(coordinator, Purpose::General)?;
                let wait = self.client.options().request_timeout;
                let (_, response) = channel.call_with(2..=COMMIT_BY_NAME_MAX, wait, |_| request).await?;
                let mut outcomes = BTreeMap::new();
                for topic in response.topics {
                    for row in topic.partitions {
                        let partition = TopicPartition::new(topic.name.compact(), row.partition_index);
                        let result = outcome(format!("offset of {partition}"), row.error_code, None, ());
                        outcomes.insert(partition, result);
                    }
                }
                Ok(outcomes)
            })
            .await
    }

    /// Deletes a group's offsets of some partitions.
    pub async fn delete_group_offsets(
        &self,
        group: impl Into<KString>,
        partitions: &[TopicPartition],
    ) -> Result<Outcomes<TopicPartition, ()>, ClientError> {
        let group = group.into();
        let group = &group;
        self.client
            .with_coordinator(group, |coordinator| async move {
                let topics = by_topic(partitions).into_iter().map(|(name, indexes)| OffsetDeleteRequestTopic {
                    name,
                    partitions: indexes
                        .into_iter()
                        .map(|index| OffsetDeleteRequestPartition { partition_index: index.0, ..Default::default() })
                        .collect(),
                    ..Default::default()
                });
                let request =
                    OffsetDeleteRequest { group_id: group.clone(), topics: topics.collect(), ..Default::default() };
                let response = self.client.broker(coordinator, Purpose::General)?.call(&request).await?;
                outcome(format!("group {group}"), response.error_code, None, ())?;
                let mut outcomes = BTreeMap::new();
                for topic in response.topics {
                    for row in topic.partitions {
                        let partition = TopicPartition::new(topic.name.compact(), row.partition_index);
                        let result = outcome(format!("offset of {partition}"), row.error_code, None, ());
                        outcomes.insert(partition, result);
                    }
                }
                Ok(outcomes)
            })
            .await
    }
}

/// The offsets in a response; a partition without one is left out.
pub(crate) fn committed_offsets(
    group: &KString,
    version: i16,
    response: OffsetFetchResponse,
) -> Result<BTreeMap<TopicPartition, CommittedOffset>, ClientError> {
    let refused = |code| BrokerError::new(format!("offsets of group {group}"), code);
    let mut offsets = BTreeMap::new();
    let mut take = |topic: &KString, index: i32, code: i16, offset: i64, epoch: i32, metadata: Option<KString>| {
        ErrorCode::from(code).ok().map_err(refused)?;
        if offset >= 0 {
            let committed = CommittedOffset {
                offset: Offset(offset),
                leader_epoch: LeaderEpoch(epoch),
                metadata: metadata.unwrap_or_default().compact(),
            };
            offsets.insert(TopicPartition::new(topic.compact(), index), committed);
        }
        Ok::<(), ClientError>(())
    };
    if version >= BATCHED_FETCH {
        for row in response.groups {
            ErrorCode::from(row.error_code).ok().map_err(refused)?;
            for topic in row.topics {
                for at in topic.partitions {
                    let epoch = at.committed_leader_epoch;
                    take(&topic.name, at.partition_index, at.error_code, at.committed_offset, epoch, at.metadata)?;
                }
            }
        }
    } else {
        ErrorCode::from(response.error_code).ok().map_err(refused)?;
        for topic in response.topics {
            for at in topic.partitions {
                let epoch = at.committed_leader_epoch;
                take(&topic.name, at.partition_index, at.error_code, at.committed_offset, epoch, at.metadata)?;
            }
        }
    }
    Ok(offsets)
}

/// A commit from outside any group; a member fills in who it is.
pub(crate) fn commit_request(
    group: &KString,
    offsets: &BTreeMap<TopicPartition, CommittedOffset>,
) -> OffsetCommitRequest {
    let mut topics: BTreeMap<KString, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
    for (partition, committed) in offsets {
        topics.entry(partition.topic.clone()).or_default().push(OffsetCommitRequestPartition {
            partition_index: partition.partition.0,
            committed_offset: committed.offset.0,
            committed_leader_epoch: committed.leader_epoch.0,
            committed_metadata: Some(committed.metadata.clone()),
            ..Default::default()
        });
    }
    let topics = topics
        .into_iter()
        .map(|(name, partitions)| OffsetCommitRequestTopic { name, partitions, ..Default::default() })
        .collect();
    OffsetCommitRequest { group_id: group.clone(), topics, ..Default::default() }
}

const _: () = assert!(*OffsetCommitRequest::VERSIONS.end() >= COMMIT_BY_NAME_MAX);
