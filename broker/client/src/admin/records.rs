//! Offsets of partitions, and deleting records below one.

use std::collections::BTreeMap;

use gregor_messages::{
    DeleteRecordsRequest, ListOffsetsRequest,
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
    list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
};
use gregor_types::{ErrorCode, KString, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicPartition};

use super::{Admin, Outcomes};
use crate::{ClientError, route::Purpose};

/// Which offset of a partition is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first that is still there.
    Earliest,
    /// The end: where the next record that a consumer sees will be.
    Latest,
    /// That of the record with the greatest timestamp.
    MaxTimestamp,
    /// The first whose timestamp is at or after this time.
    At(Timestamp),
}

/// An offset as a leader tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset; [`Offset::NONE`] if no record fits.
    pub offset: Offset,
    /// The record's timestamp, where one was asked for by it.
    pub timestamp: Timestamp,
    /// The epoch in which that offset was written.
    pub leader_epoch: LeaderEpoch,
}

impl OffsetSpec {
    pub(crate) const fn wire(self) -> i64 {
        match self {
            Self::Earliest => -2,
            Self::Latest => -1,
            Self::MaxTimestamp => -3,
            Self::At(time) => time.0,
        }
    }
}

impl Admin {
    /// Offsets of partitions.
    pub async fn list_offsets(
        &self,
        partitions: &[(TopicPartition, OffsetSpec)],
        read_committed: bool,
    ) -> Result<Outcomes<TopicPartition, ListedOffset>, ClientError> {
        let specs: BTreeMap<_, _> = partitions.iter().cloned().collect();
        self.learn_topics(specs.keys()).await?;
        let specs = &specs;
        self.client
            .by_leader(specs.keys().cloned().collect(), |leader, partitions| async move {
                let topics = by_topic(&partitions).into_iter().map(|(name, indexes)| ListOffsetsTopic {
                    partitions: indexes
                        .into_iter()
                        .map(|index| ListOffsetsPartition {
                            partition_index: index.0,
                            timestamp: specs[&TopicPartition::new(name.clone(), index)].wire(),
                            ..Default::default()
                        })
                        .collect(),
                    name,
                    ..Default::default()
                });
                let request = ListOffsetsRequest {
                    replica_id: -1,
                    isolation_level: i8::from(read_committed),
                    topics: topics.collect(),
                    timeout_ms: self.server_wait_ms(),
                    ..Default::default()
                };
                let channel = self.client.broker(leader, Purpose::General)?;
                // Version 1 is the first with a single offset per partition; 2 the first that knows transactions.
                let (_, response) =
                    channel.call_with(1..=11, self.client.options().request_timeout, |_| request).await?;
                let mut rows = Vec::new();
                for topic in response.topics {
                    for row in topic.partitions {
                        let listed = ListedOffset {
                            offset: Offset(row.offset),
                            timestamp: Timestamp(row.timestamp),
                            leader_epoch: LeaderEpoch(row.leader_epoch),
                        };
                        let partition = TopicPartition::new(topic.name.compact(), row.partition_index);
                        rows.push((partition, ErrorCode::from(row.error_code).ok().map(|()| listed)));
                    }
                }
                Ok(rows)
            })
            .await
    }

    /// Deletes the records below an offset; [`Offset::NONE`] for all that consumers can see. Returns the new first offset.
    pub async fn delete_records(
        &self,
        before: &[(TopicPartition, Offset)],
    ) -> Result<Outcomes<TopicPartition, Offset>, ClientError> {
        let offsets: BTreeMap<_, _> = before.iter().cloned().collect();
        self.learn_topics(offsets.keys()).await?;
        let offsets = &offsets;
        self.client
            .by_leader(offsets.keys().cloned().collect(), |leader, partitions| async move {
                let topics = by_topic(&partitions).into_iter().map(|(name, indexes)| DeleteRecordsTopic {
                    partitions: indexes
                        .into_iter()
                        .map(|index| DeleteRecordsPartition {
                            partition_index: index.0,
                            offset: offsets[&TopicPartition::new(name.clone(), index)].0,
                            ..Default::default()
                        })
                        .collect(),
                    name,
                    ..Default::default()
                });
                let request = DeleteRecordsRequest {
                    topics: topics.collect(),
                    timeout_ms: self.server_wait_ms(),
                    ..Default::default()
                };
                let response = self.client.broker(leader, Purpose::General)?.call(&request).await?;
                let mut rows = Vec::new();
                for topic in response.topics {
                    for row in topic.partitions {
                        let partition = TopicPartition::new(topic.name.compact(), row.partition_index);
                        let low = Offset(row.low_watermark);
                        rows.push((partition, ErrorCode::from(row.error_code).ok().map(|()| low)));
                    }
                }
                Ok(rows)
            })
            .await
    }

    /// Makes sure that the topics of some partitions are known, so that their leaders are.
    async fn learn_topics(&self, partitions: impl Iterator<Item = &TopicPartition>) -> Result<(), ClientError> {
        let mut topics: Vec<KString> = partitions.map(|partition| partition.topic.clone()).collect();
        topics.dedup();
        for topic in topics {
            self.client.topic(&topic, false).await?;
        }
        Ok(())
    }
}

pub(crate) fn by_topic(partitions: &[TopicPartition]) -> BTreeMap<KString, Vec<PartitionIndex>> {
    let mut topics: BTreeMap<KString, Vec<PartitionIndex>> = BTreeMap::new();
    for partition in partitions {
        topics.entry(partition.topic.clone()).or_default().push(partition.partition);
    }
    topics
}
