//! Changes of in-sync replicas that this broker's leaders ask the controller for (`AlterPartition`).
//!
//! A partition puts its proposal here under its lock, at most one at a time; a task sends them and brings back the answers. What is
//! proposed, and what an answer means, is decided in `gregor_replication`. An answer that may or may not have been the
//! controller's last word is asked for again for as long as the proposal stands.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gregor_messages::{
    AlterPartitionRequest,
    alter_partition_request::{BrokerState, PartitionData, TopicData},
};
use gregor_replication::{IsrProposal, ProposalAnswer, ProposalOutcome};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, TopicId};
use tokio::{sync::Notify, task::JoinSet, time::sleep};

use crate::{clock::now, control::ControlHandle, controller_link::ControllerLink, partition::Partition};

/// Requests under way at a time; the other proposals wait for one of them.
const UNDER_WAY_MAX: usize = 256;
/// Before a proposal is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long the controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The proposals that nobody has sent yet.
#[derive(Debug, Default)]
pub(crate) struct IsrChanges {
    queue: Mutex<Vec<(Arc<Partition>, IsrProposal)>>,
    arrived: Notify,
}

/// The way to the active controller.
pub(crate) trait AlterPartition: Send + Sync + 'static {
    /// Asks for in-sync replicas of a partition; `None` where no answer came.
    fn alter(
        &self,
        topic: TopicId,
        index: PartitionIndex,
        proposal: &IsrProposal,
    ) -> impl Future<Output = Option<ProposalAnswer>> + Send;
}

/// This broker as it asks the active controller.
pub(crate) struct Asking {
    /// This broker.
    pub(crate) node_id: BrokerId,
    /// Who knows this broker's epoch.
    pub(crate) control: ControlHandle,
    /// The way there.
    pub(crate) link: Arc<ControllerLink>,
}

impl IsrChanges {
    /// A leader proposes. The partition's own limit of one proposal bounds the queue.
    pub(crate) fn propose(&self, partition: &Arc<Partition>, proposal: IsrProposal) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push((Arc::clone(partition), proposal));
        self.arrived.notify_one();
    }

    fn take(&self) -> Vec<(Arc<Partition>, IsrProposal)> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends what is proposed, until the task is dropped.
    pub(crate) async fn run<A: AlterPartition>(self: Arc<Self>, controller: Arc<A>) {
        let mut under_way = JoinSet::new();
        loop {
            for (partition, proposal) in self.take() {
                while under_way.len() >= UNDER_WAY_MAX {
                    under_way.join_next().await;
                }
                under_way.spawn(settle(partition, proposal, Arc::clone(&controller)));
            }
            while under_way.try_join_next().is_some() {}
            self.arrived.notified().await;
        }
    }
}

/// Asks until the proposal is settled, or stands no more.
async fn settle<A: AlterPartition>(partition: Arc<Partition>, proposal: IsrProposal, controller: Arc<A>) {
    loop {
        let answer = controller.alter(partition.topic_id, partition.index, &proposal).await;
        let outcome = answer.map_or(ProposalOutcome::Retry, |answer| {
            tracing::debug!(partition = %partition.name(), ?answer, "in-sync replicas were proposed");
            partition.on_proposal_answered(&proposal, &answer, now())
        });
        if outcome != ProposalOutcome::Retry || !partition.stands(&proposal) {
            return;
        }
        sleep(RETRY_PAUSE).await;
    }
}

impl AlterPartition for Asking {
    async fn alter(&self, topic: TopicId, index: PartitionIndex, proposal: &IsrProposal) -> Option<ProposalAnswer> {
        let member = |(broker, epoch): &(BrokerId, gregor_types::BrokerEpoch)| BrokerState {
            broker_id: broker.value(),
            broker_epoch: epoch.value(),
            ..Default::default()
        };
        let partition = PartitionData {
            partition_index: index.value(),
            leader_epoch: proposal.leader_epoch.value(),
            new_isr_with_epochs: proposal.isr.iter().map(member).collect(),
            partition_epoch: proposal.partition_epoch,
            ..Default::default()
        };
        let request = AlterPartitionRequest {
            broker_id: self.node_id.value(),
            broker_epoch: self.control.broker_epoch().value(),
            topics: vec![TopicData { topic_id: topic, partitions: vec![partition], ..Default::default() }],
            ..Default::default()
        };
        let response = self.link.ask(request, PATIENCE).await.ok()?;
        if response.error_code != ErrorCode::None.code() {
            // Nothing was said of the partition: a controller that is not active, or a broker epoch that is over.
            return None;
        }
        let answered = response.topics.iter().flat_map(|topic| &topic.partitions);
        let answered = answered.into_iter().find(|answered| answered.partition_index == index.value())?;
        Some(match ErrorCode::from(answered.error_code) {
            ErrorCode::None => ProposalAnswer::Accepted {
                isr: answered.isr.iter().copied().map(BrokerId).collect(),
                leader_epoch: LeaderEpoch(answered.leader_epoch),
                partition_epoch: answered.partition_epoch,
            },
            error => ProposalAnswer::Refused(error),
        })
    }
}
