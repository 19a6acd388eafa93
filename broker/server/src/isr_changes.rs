//! Changes of in-sync replicas that this broker's leaders ask the controller for (`AlterPartition`).
//!
//! A partition puts its proposal here under its lock, and one task sends what there is. What goes into a request, and when, is decided in
//! `gregor_node`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gregor_node::{IsrAnswers, Nanos, alter_partition, alter_partition_answers};
use gregor_replication::{IsrProposal, ProposalAnswer, ProposalOutcome};
use gregor_types::BrokerId;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::{
    clock::now, control::ControlHandle, controller_link::ControllerLink, metrics::ReplicationMetrics,
    partition::Partition,
};

/// How long the controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a partition's leader wants.
pub(crate) type Proposed = gregor_node::Proposed<Arc<Partition>>;

/// The proposals of this broker's leaders.
#[derive(Debug)]
pub(crate) struct IsrChanges {
    queue: Mutex<gregor_node::IsrChanges<Arc<Partition>>>,
    arrived: Notify,
    /// Where leaders count how their in-sync replicas change.
    pub(crate) metrics: ReplicationMetrics,
}

/// The way to the active controller.
pub(crate) trait AlterPartition: Send + Sync + 'static {
    /// Asks for in-sync replicas of partitions, each named once; `None` where nothing was said of any.
    fn alter(&self, proposed: &[Proposed]) -> impl Future<Output = Option<IsrAnswers>> + Send;
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

    /// A leader proposes.
    pub(crate) fn propose(&self, partition: &Arc<Partition>, proposal: IsrProposal) {
        let id = (partition.topic_id, partition.index);
        self.lock().propose(Proposed { id, partition: Arc::clone(partition), proposal });
        self.arrived.notify_one();
    }

    /// Sends what is proposed, until the task is dropped.
    pub(crate) async fn run<A: AlterPartition>(self: Arc<Self>, controller: Arc<A>) {
        let begun = Instant::now();
        let elapsed = || begun.elapsed().as_nanos() as Nanos;
        loop {
            let (batch, next) = {
                let mut queue = self.lock();
                (queue.take(elapsed()), queue.next_time())
            };
            let Some(mut batch) = batch else {
                let arrived = self.arrived.notified();
                match next {
                    None => arrived.await,
                    // Either is a reason to look.
                    Some(next) => drop(timeout_at(begun + Duration::from_nanos(next), arrived).await),
                }
                continue;
            };
            // Not under the queue's lock, which a partition takes under its own.
            batch.retain(|proposed| proposed.partition.stands(&proposed.proposal));
            let answers = if batch.is_empty() { Some(IsrAnswers::new()) } else { controller.alter(&batch).await };
            match answers {
                None => self.lock().unanswered(batch, elapsed()),
                Some(answers) => {
                    batch.retain(|proposed| !self.is_settled(proposed, &answers));
                    self.lock().answered(batch, elapsed());
                }
            }
        }
    }

    /// Has the partition hear what was said of its proposal; false where it is to be sent again.
    fn is_settled(&self, proposed: &Proposed, answers: &IsrAnswers) -> bool {
        let Proposed { id, partition, proposal } = proposed;
        let Some(answer) = answers.get(id) else {
            tracing::warn!(partition = %partition.name(), "the controller did not answer for in-sync replicas that it was asked for");
            return false;
        };
        tracing::debug!(partition = %partition.name(), ?answer, "in-sync replicas were proposed");
        if matches!(answer, ProposalAnswer::Refused(_)) {
            self.metrics.failed_isr_updates.inc();
        }
        partition.on_proposal_answered(proposal, answer, now()) != ProposalOutcome::Retry
    }

    fn lock(&self) -> MutexGuard<'_, gregor_node::IsrChanges<Arc<Partition>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AlterPartition for Asking {
    async fn alter(&self, proposed: &[Proposed]) -> Option<IsrAnswers> {
        let request = alter_partition(self.node_id, self.control.broker_epoch(), proposed);
        let response = match self.link.ask(request, PATIENCE).await {
            Ok(response) => response,
            Err(error) => {
                tracing::info!(%error, partitions = proposed.len(), "in-sync replicas are asked for again");
                return None;
            }
        };
        match alter_partition_answers(&response) {
            Ok(answers) => Some(answers),
            Err(error) => {
                tracing::warn!(%error, partitions = proposed.len(), "the controller refused a request for in-sync replicas");
                None
            }
        }
    }
}
