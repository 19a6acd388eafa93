//! Changes of in-sync replicas that this broker's leaders ask the controller for (`AlterPartition`), as Kafka's `AlterPartitionManager`
//! sends them: all that there are in one request, and the next one when that is answered.
//!
//! A partition puts its proposal here, at most one at a time. What is proposed, and what an answer means, is decided in
//! `gregor_replication`. An answer that may or may not have been the controller's last word is asked for again for as long as the
//! proposal stands.

use std::collections::{BTreeMap, HashMap};

use gregor_messages::{
    AlterPartitionRequest, AlterPartitionResponse,
    alter_partition_request::{BrokerState, PartitionData, TopicData},
};
use gregor_replication::{IsrProposal, ProposalAnswer};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, TopicId};

use crate::Nanos;

/// Partitions in one request: what a controller writes in one batch of its log.
const PARTITIONS_MAX: usize = 10_000;
/// Before what was not settled is sent again, as in Kafka.
const RETRY_PAUSE: Nanos = 50_000_000;

/// What the controller said, by partition.
pub type IsrAnswers = HashMap<(TopicId, PartitionIndex), ProposalAnswer>;

/// What a partition's leader wants.
#[derive(Debug, Clone)]
pub struct Proposed<P> {
    /// Which partition.
    pub id: (TopicId, PartitionIndex),
    /// What the shell needs of it.
    pub partition: P,
    /// What it is to be.
    pub proposal: IsrProposal,
}

/// The proposals of a broker, and when the next request of them is due.
#[derive(Debug)]
pub struct IsrChanges<P> {
    /// Those that nobody has sent yet. A partition's own limit of one proposal bounds it: what stands no more leaves it with the next
    /// request.
    waiting: Vec<Proposed<P>>,
    /// Those whose answer settled nothing, and when they are sent again.
    again: Vec<Proposed<P>>,
    again_at: Nanos,
    /// After a request that nobody answered, before when there is no other.
    not_before: Nanos,
    is_under_way: bool,
}

impl<P> Default for IsrChanges<P> {
    fn default() -> Self {
        Self { waiting: Vec::new(), again: Vec::new(), again_at: 0, not_before: 0, is_under_way: false }
    }
}

impl<P> IsrChanges<P> {
    /// A leader proposes.
    pub fn propose(&mut self, proposed: Proposed<P>) {
        self.waiting.push(proposed);
    }

    /// What the next request has, those that arrived first before the others; `None` while it is too early for one. Where the shell
    /// leaves out what stands no more, each partition is in it once. [`Self::answered`] or [`Self::unanswered`] is to follow.
    pub fn take(&mut self, now: Nanos) -> Option<Vec<Proposed<P>>> {
        if self.is_under_way || now < self.not_before {
            return None;
        }
        if self.again_at <= now {
            self.waiting.append(&mut self.again);
        }
        let rest = self.waiting.split_off(self.waiting.len().min(PARTITIONS_MAX));
        let batch = std::mem::replace(&mut self.waiting, rest);
        self.is_under_way = !batch.is_empty();
        self.is_under_way.then_some(batch)
    }

    /// When [`Self::take`] has something, as far as it is known now.
    pub fn next_time(&self) -> Option<Nanos> {
        if self.is_under_way || self.waiting.is_empty() && self.again.is_empty() {
            None
        } else if self.waiting.is_empty() {
            Some(self.again_at.max(self.not_before))
        } else {
            Some(self.not_before)
        }
    }

    /// The request is answered. `unsettled` are those of it that are to be sent again.
    pub fn answered(&mut self, unsettled: Vec<Proposed<P>>, now: Nanos) {
        self.is_under_way = false;
        if self.again.is_empty() {
            self.again_at = now + RETRY_PAUSE;
        }
        self.again.extend(unsettled);
    }

    /// Nothing was said of any that were in the request.
    pub fn unanswered(&mut self, batch: Vec<Proposed<P>>, now: Nanos) {
        self.is_under_way = false;
        self.waiting.extend(batch);
        self.not_before = now + RETRY_PAUSE;
    }
}

/// The request for in-sync replicas of partitions, each named once.
pub fn alter_partition<P>(
    broker: BrokerId,
    broker_epoch: BrokerEpoch,
    proposed: &[Proposed<P>],
) -> AlterPartitionRequest {
    let member = |(broker, epoch): &(BrokerId, BrokerEpoch)| BrokerState {
        broker_id: broker.value(),
        broker_epoch: epoch.value(),
        ..Default::default()
    };
    let mut topics: BTreeMap<TopicId, Vec<PartitionData>> = BTreeMap::new();
    for Proposed { id: (topic_id, index), proposal, .. } in proposed {
        topics.entry(*topic_id).or_default().push(PartitionData {
            partition_index: index.value(),
            leader_epoch: proposal.leader_epoch.value(),
            new_isr_with_epochs: proposal.isr.iter().map(member).collect(),
            partition_epoch: proposal.partition_epoch,
            ..Default::default()
        });
    }
    let topic = |(topic_id, partitions)| TopicData { topic_id, partitions, ..Default::default() };
    AlterPartitionRequest {
        broker_id: broker.value(),
        broker_epoch: broker_epoch.value(),
        topics: topics.into_iter().map(topic).collect(),
        ..Default::default()
    }
}

/// What the controller said of each partition, or what it has against the request: a broker epoch that is over among others, where the
/// next request has the new one.
pub fn alter_partition_answers(response: &AlterPartitionResponse) -> Result<IsrAnswers, ErrorCode> {
    let error = ErrorCode::from(response.error_code);
    if error != ErrorCode::None {
        return Err(error);
    }
    let mut answers = IsrAnswers::new();
    for topic in &response.topics {
        for partition in &topic.partitions {
            let answer = match ErrorCode::from(partition.error_code) {
                ErrorCode::None => ProposalAnswer::Accepted {
                    isr: partition.isr.iter().copied().map(BrokerId).collect(),
                    leader_epoch: LeaderEpoch(partition.leader_epoch),
                    partition_epoch: partition.partition_epoch,
                },
                error => ProposalAnswer::Refused(error),
            };
            answers.insert((topic.topic_id, PartitionIndex(partition.partition_index)), answer);
        }
    }
    Ok(answers)
}
