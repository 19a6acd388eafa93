//! InitProducerId: an id for an idempotent producer. Transactional producers are refused for good.

use gregor_messages::{InitProducerIdRequest, InitProducerIdResponse};
use gregor_types::{ErrorCode, ProducerEpoch, ProducerId};

use super::Context;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: InitProducerIdRequest, _version: i16) -> InitProducerIdResponse {
    let broker = &context.broker;
    let id = match request.transactional_id.as_deref() {
        None => {
            let epoch = broker.control.broker_epoch();
            broker.producer_ids.next(broker.node_id, epoch, &broker.controller).await
        }
        Some("") => Err(ErrorCode::InvalidRequest),
        // A client gets here only past FindCoordinator, which says why; this code ends it for good as well.
        Some(_) => Err(ErrorCode::TransactionalIdAuthorizationFailed),
    };
    match id {
        Ok(id) => InitProducerIdResponse { producer_id: id.value(), producer_epoch: 0, ..Default::default() },
        Err(error) => InitProducerIdResponse {
            error_code: error.code(),
            producer_id: ProducerId::NONE.value(),
            producer_epoch: ProducerEpoch::NONE.value(),
            ..Default::default()
        },
    }
}
