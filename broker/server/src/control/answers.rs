//! Who waits for which answer of the quorum or of the controller, and answers of the quorum put together.

use std::collections::HashMap;

use bytes::Bytes;
use gregor_controller::{ControllerResponse as Decision, RequestId as DecisionId};
use gregor_messages::{BrokerHeartbeatResponse, BrokerRegistrationResponse, UpdateFeaturesRequest};
use gregor_raft::{LogRead, LogView, Reply};
use gregor_types::ErrorCode;
use tokio::sync::oneshot;

use super::{
    ControllerResponse,
    metadata_log::{MetadataLog, MetadataLogError},
};

/// Who asked.
#[derive(Debug)]
pub(super) enum Asker {
    /// Somebody with a [`ControlHandle`](super::ControlHandle).
    Caller(oneshot::Sender<ControllerResponse>),
    /// This broker's lifecycle, for its registration or a heartbeat.
    Lifecycle,
    /// This controller's own registration.
    Registration,
    /// The controller, of the quorum, for a request that has a `kraft.version` among others.
    KRaftUpgrade { id: DecisionId, version: i16, request: UpdateFeaturesRequest },
}

/// What this node hears of itself.
#[derive(Debug)]
pub(super) enum LifecycleAnswer {
    Registered(BrokerRegistrationResponse),
    Heartbeat(BrokerHeartbeatResponse),
    ControllerRegistered(ErrorCode),
}

/// Requests under way, by number.
#[derive(Debug, Default)]
pub(super) struct Askers {
    next: u64,
    waiting: HashMap<u64, Asker>,
}

impl Askers {
    pub(super) fn add(&mut self, asker: Asker) -> u64 {
        let id = self.next;
        self.next += 1;
        self.waiting.insert(id, asker);
        id
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Asker> {
        self.waiting.remove(&id)
    }

    /// Gives a decision of the controller to who asked; what this node asked for itself is returned.
    pub(super) fn answer(&mut self, id: u64, decision: Decision) -> Option<LifecycleAnswer> {
        match self.remove(id)? {
            Asker::Caller(reply) => {
                // A caller that has gone needs no answer.
                let _ = reply.send(ControllerResponse::Controller(decision));
                None
            }
            Asker::Lifecycle => match decision {
                Decision::BrokerRegistration(response) => Some(LifecycleAnswer::Registered(response)),
                Decision::BrokerHeartbeat(response) => Some(LifecycleAnswer::Heartbeat(response)),
                _ => None,
            },
            Asker::Registration => {
                let Decision::ControllerRegistration(response) = decision else { return None };
                Some(LifecycleAnswer::ControllerRegistered(ErrorCode::from(response.error_code)))
            }
            // The quorum answers these.
            Asker::KRaftUpgrade { .. } => None,
        }
    }
}

/// Puts the bytes that an answer of the quorum promises into it.
pub(super) fn complete(
    reply: Reply,
    read: Option<LogRead>,
    log: &mut MetadataLog,
) -> Result<ControllerResponse, MetadataLogError> {
    Ok(match reply {
        Reply::Fetch(mut response) => {
            if let Some(read) = read {
                let end = log.end().offset;
                let records = log.read_bytes(read.from, end, read.max_bytes)?;
                let partition = response.responses.first_mut().and_then(|topic| topic.partitions.first_mut());
                if let Some(partition) = partition {
                    partition.records = Some(records);
                }
            }
            ControllerResponse::Fetch(response)
        }
        Reply::FetchSnapshot(mut response, read) => {
            let bytes = match read {
                Some(read) => log.read_snapshot_bytes(read.id, read.position, read.max_bytes)?,
                None => Bytes::new(),
            };
            if let Some(partition) = response.topics.first_mut().and_then(|topic| topic.partitions.first_mut()) {
                partition.unaligned_records = bytes;
            }
            ControllerResponse::FetchSnapshot(response)
        }
        Reply::Vote(response) => ControllerResponse::Vote(response),
        Reply::BeginQuorumEpoch(response) => ControllerResponse::BeginQuorumEpoch(response),
        Reply::EndQuorumEpoch(response) => ControllerResponse::EndQuorumEpoch(response),
        Reply::AddRaftVoter(response) => ControllerResponse::AddRaftVoter(response),
        Reply::RemoveRaftVoter(response) => ControllerResponse::RemoveRaftVoter(response),
        Reply::UpdateRaftVoter(response) => ControllerResponse::UpdateRaftVoter(response),
        Reply::DescribeQuorum(response) => ControllerResponse::DescribeQuorum(response),
    })
}
