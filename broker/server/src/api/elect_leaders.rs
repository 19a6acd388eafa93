//! ElectLeaders: the controller elects. What refuses a whole request stands in its answer once, and in each partition's result; version 0 has
//! room for the latter only.

use gregor_messages::{ElectLeadersRequest, ElectLeadersResponse};
use gregor_types::ErrorCode;

use super::{Context, forward};

/// Answers what the controller decided, as the version can say it.
pub(crate) async fn handle(context: &Context, request: ElectLeadersRequest, version: i16) -> ElectLeadersResponse {
    let mut response = forward::handle(context, request, version).await;
    if version == 0 {
        response.error_code = ErrorCode::None.code();
    }
    response
}
