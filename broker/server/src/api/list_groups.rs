//! ListGroups: the groups that this broker coordinates.

use gregor_coordinators::group::GroupRequest;
use gregor_messages::{ListGroupsRequest, ListGroupsResponse, list_groups_response::ListedGroup};
use gregor_types::ErrorCode;

use super::Context;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: ListGroupsRequest, _version: i16) -> ListGroupsResponse {
    let list = || GroupRequest::List { states: request.states_filter.clone(), types: request.types_filter.clone() };
    match context.broker.groups.ask_all::<Vec<ListedGroup>>(list).await {
        Ok(shards) => ListGroupsResponse { groups: shards.into_iter().flatten().collect(), ..Default::default() },
        Err(error) => {
            let error: ErrorCode = error;
            ListGroupsResponse { error_code: error.code(), ..Default::default() }
        }
    }
}
