//! Quotas and credentials that another Kafka has left in the metadata: they can be taken out, and none can be added, as nothing here
//! would act on it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, assert_error};
use gregor_controller::Refusal;
use gregor_messages::{
    AlterClientQuotasRequest, AlterClientQuotasResponse, AlterUserScramCredentialsRequest,
    AlterUserScramCredentialsResponse,
    alter_client_quotas_request::{EntityData, EntryData, OpData},
    alter_user_scram_credentials_request::{ScramCredentialDeletion, ScramCredentialUpsertion},
};
use gregor_metadata::VersionedRecord;
use gregor_state_records::metadata::{
    ClientQuotaRecord, MetadataRecord, UserScramCredentialRecord, client_quota_record,
};
use gregor_types::ErrorCode;

const RATE: &str = "producer_byte_rate";
const OTHER_RATE: &str = "consumer_byte_rate";

/// An entity, as pairs of types and names.
type Entity<'a> = &'a [(&'a str, Option<&'a str>)];
/// Keys, and whether they are to be removed.
type Operations<'a> = &'a [(&'a str, bool)];

/// A controller that takes over a log in which these records are.
fn taken_over(records: Vec<MetadataRecord>) -> Rig {
    let mut rig = Rig::at(30);
    rig.lose();
    let level = rig.level();
    rig.log.extend(records.into_iter().map(|record| VersionedRecord::at(level, record).unwrap()));
    rig.win();
    rig.commit();
    rig
}

fn quota(user: &str, key: &str) -> MetadataRecord {
    let part = client_quota_record::EntityData {
        entity_type: "user".into(),
        entity_name: Some(user.into()),
        ..Default::default()
    };
    MetadataRecord::ClientQuota(ClientQuotaRecord {
        entity: vec![part],
        key: key.into(),
        value: 10.0,
        ..Default::default()
    })
}

fn entry(entity: Entity<'_>, operations: Operations<'_>) -> EntryData {
    let part = |(entity_type, name): &(&str, Option<&str>)| EntityData {
        entity_type: (*entity_type).into(),
        entity_name: name.map(Into::into),
        ..Default::default()
    };
    let operation =
        |(key, remove): &(&str, bool)| OpData { key: (*key).into(), value: 1.0, remove: *remove, ..Default::default() };
    EntryData {
        entity: entity.iter().map(part).collect(),
        ops: operations.iter().map(operation).collect(),
        ..Default::default()
    }
}

fn alter_quotas(rig: &mut Rig, entries: Vec<EntryData>, validate_only: bool) -> AlterClientQuotasResponse {
    rig.ask(1, AlterClientQuotasRequest { entries, validate_only, ..Default::default() })
}

#[test]
fn quotas_are_removed_and_none_is_set() {
    let mut rig = taken_over(vec![quota("alice", RATE), quota("alice", OTHER_RATE), quota("bob", RATE)]);
    let count = |rig: &Rig| rig.image.client_quotas().iter().count();
    let alice = [("user", Some("alice"))];
    let both = [(RATE, true), (OTHER_RATE, true), ("request_percentage", true)];
    let response = alter_quotas(&mut rig, vec![entry(&alice, &both)], true);
    assert_eq!((response.entries[0].error_code, count(&rig)), (0, 3), "only asked");
    let set = entry(&[("user", Some("bob"))], &[(RATE, true), (OTHER_RATE, false)]);
    let response = alter_quotas(&mut rig, vec![entry(&alice, &both), set], false);
    assert_eq!((response.entries[0].error_code, count(&rig)), (0, 1), "what is not there is no error");
    assert_eq!(response.entries[0].entity[0].entity_name.as_deref(), Some("alice"));
    let refused = &response.entries[1];
    let message = refused.error_message.as_ref();
    assert_error(refused.error_code, message, ErrorCode::UnsupportedVersion, "quotas are not enforced yet");
}

#[test]
fn an_entity_that_makes_no_sense_is_refused() {
    let mut rig = taken_over(vec![quota("alice", RATE)]);
    let alice = [("user", Some("alice"))];
    let cases: [(Entity<'_>, Operations<'_>, &str); 6] = [
        (&[], &[(RATE, true)], "Invalid empty client quota entity"),
        (&[("group", None)], &[(RATE, true)], "Unhandled client quota entity type: group"),
        (&[("user", Some(""))], &[(RATE, true)], "Empty user not supported"),
        (&[("user", None), ("user", None)], &[(RATE, true)], "duplicate entity entry user"),
        (&[("user", None), ("ip", None)], &[(RATE, true)], "IP entity should not be combined"),
        (&alice, &[(RATE, true), (RATE, true)], "Duplicate quota key producer_byte_rate"),
    ];
    let before = rig.log.len();
    for (entity, operations, words) in cases {
        let response = alter_quotas(&mut rig, vec![entry(entity, operations)], false);
        let refused = &response.entries[0];
        assert_error(refused.error_code, refused.error_message.as_ref(), ErrorCode::InvalidRequest, words);
    }
    assert_eq!(rig.log.len(), before);
    let twice = vec![entry(&alice, &[("a", true)]), entry(&alice, &[(RATE, true)])];
    let response = alter_quotas(&mut rig, twice, false);
    let refused = &response.entries[1];
    assert_error(refused.error_code, refused.error_message.as_ref(), ErrorCode::InvalidRequest, "duplicate entity");
}

/// What is wanted for users, with the codes of the answers by user.
fn alter_credentials(rig: &mut Rig, deletions: &[(&str, i8)], upsertions: &[(&str, i8)]) -> Vec<(String, ErrorCode)> {
    let deletion = |(name, mechanism): &(&str, i8)| ScramCredentialDeletion {
        name: (*name).into(),
        mechanism: *mechanism,
        ..Default::default()
    };
    let upsertion = |(name, mechanism): &(&str, i8)| ScramCredentialUpsertion {
        name: (*name).into(),
        mechanism: *mechanism,
        iterations: 4_096,
        ..Default::default()
    };
    let request = AlterUserScramCredentialsRequest {
        deletions: deletions.iter().map(deletion).collect(),
        upsertions: upsertions.iter().map(upsertion).collect(),
        ..Default::default()
    };
    let response: AlterUserScramCredentialsResponse = rig.ask(0, request);
    let results = response.results.into_iter();
    results.map(|one| (one.user.to_string(), ErrorCode::from_code(one.error_code).unwrap())).collect()
}

#[test]
fn credentials_are_deleted_and_none_is_taken() {
    let credential = |name: &str, mechanism| {
        let record =
            UserScramCredentialRecord { name: name.into(), mechanism, iterations: 4_096, ..Default::default() };
        MetadataRecord::UserScramCredential(record)
    };
    let mut rig = taken_over(vec![credential("alice", 1), credential("alice", 2), credential("bob", 1)]);
    let answers = alter_credentials(&mut rig, &[("alice", 1), ("bob", 2), ("bob", 1)], &[("carol", 1)]);
    let expected = [
        ("alice".to_owned(), ErrorCode::None),
        ("bob".to_owned(), ErrorCode::DuplicateResource),
        ("carol".to_owned(), ErrorCode::UnsupportedSaslMechanism),
    ];
    assert_eq!(answers, expected);
    let left: Vec<_> = rig.image.scram_credentials().iter().map(|one| (one.name.to_string(), one.mechanism)).collect();
    assert_eq!(left, [("bob".to_owned(), 1), ("alice".to_owned(), 2)]);
    let answers = alter_credentials(&mut rig, &[("", 1), ("alice", 1), ("bob", 3)], &[]);
    let expected = [
        (String::new(), ErrorCode::UnacceptableCredential),
        ("alice".to_owned(), ErrorCode::ResourceNotFound),
        ("bob".to_owned(), ErrorCode::UnsupportedSaslMechanism),
    ];
    assert_eq!(answers, expected);
}

#[test]
fn who_is_not_the_controller_refuses_each_by_name() {
    let refusal = Refusal::not_controller();
    let quotas = AlterClientQuotasRequest { entries: vec![entry(&[("user", None)], &[])], ..Default::default() };
    let mut rig = Rig::at(30);
    rig.lose();
    let response: AlterClientQuotasResponse = rig.ask(1, quotas);
    assert_eq!((response.entries.len(), response.entries[0].error_code), (1, refusal.number()));
    assert_eq!(
        alter_credentials(&mut rig, &[("alice", 1)], &[("bob", 1)]),
        [("alice".to_owned(), ErrorCode::NotController), ("bob".to_owned(), ErrorCode::NotController)]
    );
}
