//! Records with what stands in front of them, as they are in Kafka's own topics.

use bytes::Bytes;
use gregor_state_records::{
    RecordError,
    group::{GroupRecordKey, GroupRecordValue, OffsetCommitKey, OffsetCommitValue},
    metadata::{FeatureLevelRecord, MetadataRecord, TopicRecord},
    remote_log::RemoteLogRecord,
    share::ShareRecordKey,
    transaction::{TransactionLogKey, TransactionRecordKey},
};
use gregor_types::Uuid;

#[test]
fn a_metadata_record_stands_behind_its_frame_version_type_and_version() {
    let record = MetadataRecord::from(TopicRecord { name: "letters".into(), topic_id: Uuid(7), ..Default::default() });
    let bytes = record.encode_framed(0).unwrap();
    assert_eq!(&bytes[..11], b"\x01\x02\x00\x08letters");
    assert_eq!(MetadataRecord::decode_versioned(bytes), Ok((record.clone(), 0)));
    assert_eq!((record.name(), record.api_key(), record.versions()), ("TopicRecord", 2, 0..=0));
}

#[test]
fn frames_of_version_0_are_read_too_and_later_ones_are_not() {
    let record = MetadataRecord::from(FeatureLevelRecord { name: "x".into(), feature_level: 3, ..Default::default() });
    let mut bytes = record.encode_framed(0).unwrap().to_vec();
    bytes[0] = 0;
    assert_eq!(MetadataRecord::decode_framed(bytes.clone().into()), Ok(record));
    bytes[0] = 2;
    assert!(matches!(MetadataRecord::decode_framed(bytes.into()), Err(RecordError::Malformed(_))));
}

#[test]
fn a_record_of_a_later_kafka_is_named_as_unknown_and_not_as_broken() {
    assert_eq!(MetadataRecord::decode_framed(Bytes::from_static(&[1, 99, 0])), Err(RecordError::UnknownType(99)));
    assert_eq!(RemoteLogRecord::decode_framed(Bytes::from_static(&[1, 9, 0])), Err(RecordError::UnknownType(9)));
    assert_eq!(GroupRecordKey::decode(Bytes::from_static(&[0, 77, 1])), Err(RecordError::UnknownType(77)));
}

#[test]
fn bytes_behind_a_record_are_an_error() {
    let mut bytes = MetadataRecord::from(TopicRecord::default()).encode_framed(0).unwrap().to_vec();
    bytes.push(0);
    assert!(matches!(MetadataRecord::decode_framed(bytes.into()), Err(RecordError::Malformed(_))));
}

#[test]
fn an_offset_commit_has_its_type_in_the_key_and_its_version_in_the_value() {
    let key = OffsetCommitKey { group: "g".into(), topic: "t".into(), partition: 2, ..Default::default() };
    let key = GroupRecordKey::OffsetCommit(key);
    assert_eq!(&key.encode().unwrap()[..], b"\x00\x01\x00\x01g\x00\x01t\x00\x00\x00\x02");
    assert_eq!(GroupRecordKey::decode(key.encode().unwrap()), Ok(key.clone()));

    let value =
        GroupRecordValue::OffsetCommit(OffsetCommitValue { offset: 5, commit_timestamp: 9, ..Default::default() });
    let bytes = value.encode(3).unwrap();
    assert_eq!(&bytes[..10], [0, 3, 0, 0, 0, 0, 0, 0, 0, 5]);
    assert_eq!(GroupRecordValue::decode_versioned(key.record_type(), bytes), Ok((value, 3)));
}

#[test]
fn keys_of_the_other_coordinators_have_their_types_in_front() {
    let key =
        TransactionRecordKey::TransactionLog(TransactionLogKey { transactional_id: "t".into(), ..Default::default() });
    assert_eq!(&key.encode().unwrap()[..], b"\x00\x00\x00\x01t");
    assert_eq!(
        ShareRecordKey::decode(Bytes::from_static(&[0, 1])).map_err(|error| matches!(error, RecordError::Malformed(_))),
        Err(true)
    );
}
