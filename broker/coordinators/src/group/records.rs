//! Records of `__consumer_offsets`, in the formats that Kafka writes: an offset's in version 3, a group's in version 3; older and
//! newer ones are read too. Records of group types that are not served are left alone.

use bytes::Bytes;
use gregor_state_records::{
    RecordError,
    group::{
        GroupMetadataKey, GroupMetadataValue, GroupRecordKey, GroupRecordValue, OffsetCommitKey, OffsetCommitValue,
    },
};
use gregor_types::{ErrorCode, KString, LeaderEpoch, Offset, Timestamp};

use super::{ClassicGroup, CommittedOffset, Member};
use crate::{Record, ReplayError};

const GROUP_VERSION: i16 = 3;
const OFFSET_VERSION: i16 = 3;
/// The one version with a time of its own at which the offset expires (clients before 2.1 could ask for it).
const OFFSET_VERSION_WITH_EXPIRY: i16 = 1;

/// A record as the coordinator takes it in.
pub(super) enum Replayed {
    Offset {
        group: KString,
        topic: KString,
        partition: i32,
        committed: Option<CommittedOffset>,
    },
    Group {
        group: KString,
        value: Option<GroupMetadataValue>,
    },
    /// Of a type that is not served; the log keeps it.
    Other,
}

pub(super) fn decode(key: Bytes, value: Option<Bytes>) -> Result<Replayed, ReplayError> {
    let key = match GroupRecordKey::decode(key) {
        Ok(key) => key,
        Err(RecordError::UnknownType(_)) => return Ok(Replayed::Other),
        Err(error) => return Err(malformed("key", &error)),
    };
    let read = |name| {
        let decode = |bytes| GroupRecordValue::decode(key.record_type(), bytes);
        value.map(decode).transpose().map_err(|error| malformed(name, &error))
    };
    match &key {
        GroupRecordKey::OffsetCommit(at) => {
            let committed = match read("OffsetCommitValue")? {
                Some(GroupRecordValue::OffsetCommit(value)) => Some(CommittedOffset {
                    offset: Offset(value.offset),
                    leader_epoch: LeaderEpoch(value.leader_epoch),
                    metadata: value.metadata.compact(),
                    committed_at: Timestamp(value.commit_timestamp),
                    expires_at: (value.expire_timestamp >= 0).then_some(Timestamp(value.expire_timestamp)),
                }),
                _ => None,
            };
            let (group, topic) = (at.group.compact(), at.topic.compact());
            Ok(Replayed::Offset { group, topic, partition: at.partition, committed })
        }
        // Kafka 0.8.2 wrote offsets under this key; Apache's coordinator reads both alike.
        GroupRecordKey::LegacyOffsetCommit(at) => {
            let committed = match read("LegacyOffsetCommitValue")? {
                Some(GroupRecordValue::LegacyOffsetCommit(value)) => Some(CommittedOffset {
                    offset: Offset(value.offset),
                    leader_epoch: LeaderEpoch::NONE,
                    metadata: value.metadata.compact(),
                    committed_at: Timestamp(value.commit_timestamp),
                    expires_at: None,
                }),
                _ => None,
            };
            let (group, topic) = (at.group.compact(), at.topic.compact());
            Ok(Replayed::Offset { group, topic, partition: at.partition, committed })
        }
        GroupRecordKey::GroupMetadata(at) => {
            let value = match read("GroupMetadataValue")? {
                Some(GroupRecordValue::GroupMetadata(value)) => Some(value),
                _ => None,
            };
            Ok(Replayed::Group { group: at.group.compact(), value })
        }
        _ => Ok(Replayed::Other),
    }
}

/// The record of a group with the assignments that `assignment` gives.
pub(super) fn group(
    group: &ClassicGroup,
    assignment: impl Fn(&Member) -> Bytes,
    now: Timestamp,
) -> Result<Record, ErrorCode> {
    let value = GroupRecordValue::GroupMetadata(group.to_record(assignment, now));
    Ok(Record { key: group_key(&group.id)?, value: Some(value.encode(GROUP_VERSION).map_err(too_large)?) })
}

/// The record that a group is no more.
pub(super) fn no_group(group: &KString) -> Result<Record, ErrorCode> {
    Ok(Record { key: group_key(group)?, value: None })
}

/// The record of an offset; without one, that it is no more.
pub(super) fn offset(
    group: &KString,
    topic: &KString,
    partition: i32,
    committed: Option<&CommittedOffset>,
) -> Result<Record, ErrorCode> {
    let key = OffsetCommitKey { group: group.clone(), topic: topic.clone(), partition, ..Default::default() };
    let value = committed.map(|committed| {
        let value = OffsetCommitValue {
            offset: committed.offset.0,
            leader_epoch: committed.leader_epoch.0,
            metadata: committed.metadata.clone(),
            commit_timestamp: committed.committed_at.0,
            expire_timestamp: committed.expires_at.map_or(-1, |at| at.0),
            ..Default::default()
        };
        let version = if committed.expires_at.is_some() { OFFSET_VERSION_WITH_EXPIRY } else { OFFSET_VERSION };
        GroupRecordValue::OffsetCommit(value).encode(version)
    });
    let key = GroupRecordKey::OffsetCommit(key).encode().map_err(too_large)?;
    Ok(Record { key, value: value.transpose().map_err(too_large)? })
}

fn group_key(group: &KString) -> Result<Bytes, ErrorCode> {
    let key = GroupMetadataKey { group: group.clone(), ..Default::default() };
    GroupRecordKey::GroupMetadata(key).encode().map_err(too_large)
}

/// Names and metadata came in by requests whose limits are the records' too; so this is no error that a client can make.
fn too_large(_: gregor_wire::EncodeError) -> ErrorCode {
    ErrorCode::UnknownServerError
}

fn malformed(what: &str, error: &RecordError) -> ReplayError {
    ReplayError::Malformed { what: what.to_owned(), reason: error.to_string() }
}
