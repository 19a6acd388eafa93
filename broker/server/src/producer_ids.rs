//! Ids for idempotent producers, handed out of blocks that the controller allocates.

use std::{sync::Mutex, time::Duration};

use gregor_messages::AllocateProducerIdsRequest;
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, ProducerId};

use crate::controller_link::ControllerLink;

/// How long the controller may take: as long as Kafka's clients wait for an id, and a little less.
const PATIENCE: Duration = Duration::from_secs(25);

/// What is left of this broker's block.
#[derive(Debug, Default)]
pub(crate) struct ProducerIds {
    block: Mutex<Block>,
    /// Held while a block is asked for, so that many producers need one.
    refill: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Block {
    next: i64,
    end: i64,
}

impl ProducerIds {
    /// An id that no producer of the cluster has had. An error is one that the client tries again on.
    pub(crate) async fn next(
        &self,
        node_id: BrokerId,
        epoch: BrokerEpoch,
        link: &ControllerLink,
    ) -> Result<ProducerId, ErrorCode> {
        if let Some(id) = self.take() {
            return Ok(id);
        }
        let _refill = self.refill.lock().await;
        if let Some(id) = self.take() {
            return Ok(id);
        }
        let request = AllocateProducerIdsRequest {
            broker_id: node_id.value(),
            broker_epoch: epoch.value(),
            ..Default::default()
        };
        // As Apache's broker, whose clients take this for "soon".
        let unavailable = ErrorCode::CoordinatorLoadInProgress;
        let response = link.ask(request, PATIENCE).await.map_err(|_| unavailable)?;
        ErrorCode::from(response.error_code).ok().map_err(|_| unavailable)?;
        let (start, length) = (response.producer_id_start, i64::from(response.producer_id_len));
        *self.lock() = Block { next: start, end: start.saturating_add(length) };
        self.take().ok_or(unavailable)
    }

    fn take(&self) -> Option<ProducerId> {
        let mut block = self.lock();
        let id = block.next;
        (id < block.end).then(|| {
            block.next += 1;
            ProducerId(id)
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Block> {
        self.block.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
