//! Where a group's coordinator is: asked for once, remembered until it says that it is another one.

use std::future::Future;

use gregor_messages::{FindCoordinatorRequest, FindCoordinatorResponse};
use gregor_types::{BrokerId, ErrorCode, KString};

use crate::{BrokerError, Client, ClientError};

/// The first version that asks for several groups at a time.
const BATCHED: i16 = 4;

impl Client {
    /// Calls `attempt` with the group's coordinator, again where it has moved or is still loading.
    pub(crate) async fn with_coordinator<T, F>(
        &self,
        group: &KString,
        attempt: impl Fn(BrokerId) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let attempt = &attempt;
        self.retry(|| async {
            let coordinator = self.coordinator(group).await?;
            let outcome = attempt(coordinator).await;
            if let Err(error) = &outcome {
                self.forget_coordinator_on(group, error);
            }
            outcome
        })
        .await
    }

    /// The group's coordinator.
    pub(crate) async fn coordinator(&self, group: &KString) -> Result<BrokerId, ClientError> {
        let known = self.coordinators().get(group).copied();
        if let Some(known) = known.filter(|known| self.cluster().brokers.contains_key(known)) {
            return Ok(known);
        }
        let build = |version| {
            if version >= BATCHED {
                FindCoordinatorRequest { coordinator_keys: vec![group.clone()], ..Default::default() }
            } else {
                FindCoordinatorRequest { key: group.clone(), ..Default::default() }
            }
        };
        let (version, response) =
            self.call_any::<FindCoordinatorRequest>(0..=6, self.options().request_timeout, build).await?;
        let (code, node, message) = answer(&response, version);
        let refused = |code| BrokerError::new(format!("group {group}"), code).with_message(message.clone());
        code.ok().map_err(refused)?;
        if !self.cluster().brokers.contains_key(&node) {
            self.refresh_topics(&[], false).await?;
        }
        self.coordinators().insert(group.clone(), node);
        Ok(node)
    }

    /// After an error that may mean that the coordinator moved, asks anew the next time.
    pub(crate) fn forget_coordinator_on(&self, group: &KString, error: &ClientError) {
        let moved = match error {
            ClientError::Broker(error) => {
                matches!(error.code, ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable)
            }
            ClientError::Channel(_) | ClientError::NoSuchBroker(_) => true,
            _ => false,
        };
        if moved {
            self.coordinators().remove(group);
        }
    }
}

fn answer(response: &FindCoordinatorResponse, version: i16) -> (ErrorCode, BrokerId, Option<KString>) {
    if version < BATCHED {
        return (response.error_code.into(), BrokerId(response.node_id), response.error_message.clone());
    }
    match response.coordinators.first() {
        Some(row) => (row.error_code.into(), BrokerId(row.node_id), row.error_message.clone()),
        None => (ErrorCode::CoordinatorNotAvailable, BrokerId::NONE, None),
    }
}
