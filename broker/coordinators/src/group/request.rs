//! What the group coordinator is asked and what it answers: Kafka's own messages, one group at a time where they name several.

use gregor_messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse, SyncGroupRequest,
    SyncGroupResponse, delete_groups_response::DeletableGroupResult, describe_groups_response::DescribedGroup,
    list_groups_response::ListedGroup, offset_fetch_request::OffsetFetchRequestGroup,
    offset_fetch_response::OffsetFetchResponseGroup,
};
use gregor_types::KString;

/// Who sent a request, as group descriptions show it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientInfo {
    /// The client id of the request's header.
    pub client_id: KString,
    /// The client's address with a slash in front, as Java prints it.
    pub client_host: KString,
}

/// A request to the shard that the group belongs to.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the fields are the request, its version and its sender")]
pub enum GroupRequest {
    /// JoinGroup; answered when the group's members have joined.
    Join { request: JoinGroupRequest, version: i16, client: ClientInfo },
    /// SyncGroup; answered when the leader has assigned.
    Sync(SyncGroupRequest),
    /// Heartbeat.
    Heartbeat(HeartbeatRequest),
    /// LeaveGroup.
    Leave { request: LeaveGroupRequest, version: i16 },
    /// OffsetCommit, with topics by name (and their ids, if the request gave them).
    OffsetCommit(OffsetCommitRequest),
    /// OffsetFetch of one group, with topics by name. `require_stable` leaves out what an open transaction may move.
    OffsetFetch { request: OffsetFetchRequestGroup, require_stable: bool },
    /// OffsetDelete.
    OffsetDelete(OffsetDeleteRequest),
    /// DescribeGroups of one group.
    Describe { group_id: KString, version: i16 },
    /// DeleteGroups of one group.
    Delete { group_id: KString },
    /// ListGroups: the groups of this shard.
    List { states: Vec<KString>, types: Vec<KString> },
    /// Topics were deleted: their offsets are of no more use.
    ForgetTopics(Vec<KString>),
}

/// The answer to a request of the same name.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names are the requests'")]
pub enum GroupResponse {
    Join(JoinGroupResponse),
    Sync(SyncGroupResponse),
    Heartbeat(HeartbeatResponse),
    Leave(LeaveGroupResponse),
    OffsetCommit(OffsetCommitResponse),
    OffsetFetch(OffsetFetchResponseGroup),
    OffsetDelete(OffsetDeleteResponse),
    Describe(DescribedGroup),
    Delete(DeletableGroupResult),
    List(Vec<ListedGroup>),
    ForgetTopics,
}

macro_rules! into {
    ($($variant:ident($type:ty)),*) => {
        $(impl TryFrom<GroupResponse> for $type {
            type Error = GroupResponse;

            fn try_from(response: GroupResponse) -> Result<Self, GroupResponse> {
                match response {
                    GroupResponse::$variant(response) => Ok(response),
                    other => Err(other),
                }
            }
        })*
    };
}

into!(
    Join(JoinGroupResponse),
    Sync(SyncGroupResponse),
    Heartbeat(HeartbeatResponse),
    Leave(LeaveGroupResponse),
    OffsetCommit(OffsetCommitResponse),
    OffsetFetch(OffsetFetchResponseGroup),
    OffsetDelete(OffsetDeleteResponse),
    Describe(DescribedGroup),
    Delete(DeletableGroupResult),
    List(Vec<ListedGroup>)
);
