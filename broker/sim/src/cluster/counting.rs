//! Which questions and answers are of interest by themselves: they are counted, so that many worlds can be asked whether all that may
//! happen did.

use gregor_controller::ControllerResponse as Decision;
use gregor_messages::{FetchResponse, FetchSnapshotResponse};
use gregor_server::control::ControllerResponse;

use super::{
    ledger::Ledger,
    letters::{Answer, Question},
};

impl Question {
    /// It arrives.
    pub(super) fn count(&self, ledger: &mut Ledger) {
        match self.name() {
            "FetchSnapshot" => ledger.count("snapshot asked for"),
            "BrokerRegistration" => ledger.count("registration"),
            "ListOffsets" => ledger.count("look-up of offsets"),
            _ => {}
        }
    }
}

impl Answer {
    /// It is given.
    pub(super) fn count(&self, ledger: &mut Ledger) {
        let Self::Control(response) = self else { return };
        match response {
            ControllerResponse::Fetch(response) if has_parted(response) => ledger.count("metadata truncation"),
            ControllerResponse::FetchSnapshot(response) if is_last_piece(response) => {
                ledger.count("snapshot transferred");
            }
            ControllerResponse::Controller(Decision::AlterPartition(response)) if response.error_code == 0 => {
                ledger.count("in-sync replicas changed");
            }
            _ => {}
        }
    }
}

/// Whether a node is told that its metadata log is not the leader's.
fn has_parted(response: &FetchResponse) -> bool {
    let part = response.responses.first().and_then(|topic| topic.partitions.first());
    part.is_some_and(|part| part.error_code == 0 && part.diverging_epoch.epoch >= 0)
}

/// Whether a snapshot is whole with this piece.
fn is_last_piece(response: &FetchSnapshotResponse) -> bool {
    let part = response.topics.first().and_then(|topic| topic.partitions.first());
    part.is_some_and(|part| part.error_code == 0 && part.position + part.unaligned_records.len() as i64 >= part.size)
}
