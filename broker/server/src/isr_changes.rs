//! Changes of in-sync replicas that this broker's leaders ask the controller for (`AlterPartition`).
//!
//! A partition puts its proposal here under its lock, at most one at a time. One task sends them: all that there are in one request,
//! and the next one when that is answered, as Kafka's `AlterPartitionManager` does. What is proposed, and what an answer means,
//! is decided in `gregor_replication`. An answer that may or may not have been the controller's last word is asked for again
//! for as long as the proposal stands.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gregor_messages::{
    AlterPartitionRequest, AlterPartitionResponse,
    alter_partition_request::{BrokerState, PartitionData, TopicData},
};
use gregor_replication::{IsrProposal, ProposalAnswer, ProposalOutcome};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, TopicId};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    clock::now, control::ControlHandle, controller_link::ControllerLink, metrics::ReplicationMetrics,
    partition::Partition,
};

/// Partitions in one request: what a controller writes in one batch of its log.
const PARTITIONS_MAX: usize = 10_000;
/// Before what was not settled is sent again, as in Kafka.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long the controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the controller said, by partition.
pub(crate) type Answers = HashMap<(TopicId, PartitionIndex), ProposalAnswer>;

/// The proposals that nobody has sent yet.
#[derive(Debug)]
pub(crate) struct IsrChanges {
    queue: Mutex<Vec<Proposed>>,
    arrived: Notify,
    /// Where leaders count how their in-sync replicas change.
    pub(crate) metrics: ReplicationMetrics,
}

/// What a partition's leader wants.
#[derive(Debug, Clone)]
pub(crate) struct Proposed {
    /// The partition.
    pub(crate) partition: Arc<Partition>,
    /// What it is to be.
    pub(crate) proposal: IsrProposal,
}

/// The way to the active controller.
pub(crate) trait AlterPartition: Send + Sync + 'static {
    /// Asks for in-sync replicas of partitions, each named once; `None` where nothing was said of any.
    fn alter(&self, proposed: &[Proposed]) -> impl Future<Output = Option<Answers>> + Send;
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
    /// Nothing is proposed.
    pub(crate) fn new(metrics: ReplicationMetrics) -> Self {
        Self { queue: Mutex::default(), arrived: Notify::new(), metrics }
    }

    /// A leader proposes. The partition's own limit of one proposal bounds the queue: what stands no more leaves it with the next
    /// request.
    pub(crate) fn propose(&self, partition: &Arc<Partition>, proposal: IsrProposal) {
        self.lock().push(Proposed { partition: Arc::clone(partition), proposal });
        self.arrived.notify_one();
    }

    /// Sends what is proposed, until the task is dropped.
    pub(crate) async fn run<A: AlterPartition>(self: Arc<Self>, controller: Arc<A>) {
        let mut again = Vec::new();
        let mut again_at = Instant::now();
        loop {
            if again_at <= Instant::now() {
                self.lock().append(&mut again);
            }
            let batch = self.take();
            if batch.is_empty() {
                let arrived = self.arrived.notified();
                if again.is_empty() {
                    arrived.await;
                } else {
                    // Either is a reason to look.
                    let _ = timeout_at(again_at, arrived).await;
                }
                continue;
            }
            let Some(answers) = controller.alter(&batch).await else {
                self.lock().extend(batch);
                sleep(RETRY_PAUSE).await;
                continue;
            };
            if again.is_empty() {
                again_at = Instant::now() + RETRY_PAUSE;
            }
            again.extend(batch.into_iter().filter(|proposed| !self.is_settled(proposed, &answers)));
        }
    }

    /// The next request's proposals, those that arrived first before the others. A partition has one that stands.
    fn take(&self) -> Vec<Proposed> {
        loop {
            let mut first = {
                let mut queue = self.lock();
                let end = queue.len().min(PARTITIONS_MAX);
                let rest = queue.split_off(end);
                std::mem::replace(&mut *queue, rest)
            };
            if first.is_empty() {
                return first;
            }
            // Not under the queue's lock, which a partition takes under its own.
            first.retain(|proposed| proposed.partition.stands(&proposed.proposal));
            if !first.is_empty() {
                return first;
            }
        }
    }

    /// Has the partition hear what was said of its proposal; false where it is to be sent again.
    fn is_settled(&self, proposed: &Proposed, answers: &Answers) -> bool {
        let Proposed { partition, proposal } = proposed;
        let Some(answer) = answers.get(&(partition.topic_id, partition.index)) else {
            tracing::warn!(partition = %partition.name(), "the controller did not answer for in-sync replicas that it was asked for");
            return false;
        };
        tracing::debug!(partition = %partition.name(), ?answer, "in-sync replicas were proposed");
        if matches!(answer, ProposalAnswer::Refused(_)) {
            self.metrics.failed_isr_updates.inc();
        }
        partition.on_proposal_answered(proposal, answer, now()) != ProposalOutcome::Retry
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Proposed>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AlterPartition for Asking {
    async fn alter(&self, proposed: &[Proposed]) -> Option<Answers> {
        let request = request(self.node_id, self.control.broker_epoch(), proposed);
        let response = match self.link.ask(request, PATIENCE).await {
            Ok(response) => response,
            Err(error) => {
                tracing::info!(%error, partitions = proposed.len(), "in-sync replicas are asked for again");
                return None;
            }
        };
        match ErrorCode::from(response.error_code) {
            ErrorCode::None => Some(answers(&response)),
            // A broker epoch that is over among others: the next request has the new one.
            error => {
                tracing::warn!(%error, partitions = proposed.len(), "the controller refused a request for in-sync replicas");
                None
            }
        }
    }
}

fn request(broker: BrokerId, broker_epoch: BrokerEpoch, proposed: &[Proposed]) -> AlterPartitionRequest {
    let member = |(broker, epoch): &(BrokerId, BrokerEpoch)| BrokerState {
        broker_id: broker.value(),
        broker_epoch: epoch.value(),
        ..Default::default()
    };
    let mut topics: HashMap<TopicId, Vec<PartitionData>> = HashMap::new();
    for Proposed { partition, proposal } in proposed {
        topics.entry(partition.topic_id).or_default().push(PartitionData {
            partition_index: partition.index.value(),
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

fn answers(response: &AlterPartitionResponse) -> Answers {
    let mut answers = Answers::new();
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
    answers
}

#[cfg(test)]
mod tests {
    use gregor_messages::alter_partition_response;

    use super::*;

    #[test]
    fn an_answer_says_of_each_partition_what_it_is_now_or_why_it_stays() {
        let partition = |index, error: ErrorCode| alter_partition_response::PartitionData {
            partition_index: index,
            error_code: error.code(),
            leader_epoch: 3,
            isr: vec![1, 2],
            partition_epoch: 7,
            ..Default::default()
        };
        let topic =
            |topic_id, partitions| alter_partition_response::TopicData { topic_id, partitions, ..Default::default() };
        let response = AlterPartitionResponse {
            topics: vec![
                topic(
                    gregor_types::Uuid(1),
                    vec![partition(0, ErrorCode::None), partition(1, ErrorCode::FencedLeaderEpoch)],
                ),
                topic(gregor_types::Uuid(2), vec![partition(0, ErrorCode::InvalidUpdateVersion)]),
            ],
            ..Default::default()
        };
        let accepted = ProposalAnswer::Accepted {
            isr: vec![BrokerId(1), BrokerId(2)],
            leader_epoch: LeaderEpoch(3),
            partition_epoch: 7,
        };
        let said = answers(&response);
        let of = |topic, index| said.get(&(gregor_types::Uuid(topic), PartitionIndex(index)));
        assert_eq!(of(1, 0), Some(&accepted));
        assert_eq!(of(1, 1), Some(&ProposalAnswer::Refused(ErrorCode::FencedLeaderEpoch)));
        assert_eq!(of(2, 0), Some(&ProposalAnswer::Refused(ErrorCode::InvalidUpdateVersion)));
        assert_eq!(of(2, 1), None);
    }
}
