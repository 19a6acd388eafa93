//! An image built from records: what it says, what it refuses, and that a snapshot of it makes the same image again.

use gregor_metadata::{
    ApplyError, Changes, ConfigResource, Image, LeaderRecoveryState, MetadataVersion, ResourceType, VersionedRecord,
};
use gregor_state_records::metadata::{
    AbortTransactionRecord, AccessControlEntryRecord, BeginTransactionRecord, BrokerRegistrationChangeRecord,
    ClearElrRecord, ClientQuotaRecord, ConfigRecord, DelegationTokenRecord, EndTransactionRecord, FeatureLevelRecord,
    FenceBrokerRecord, MetadataRecord, NoOpRecord, PartitionChangeRecord, PartitionRecord, ProducerIdsRecord,
    RegisterBrokerRecord, RegisterControllerRecord, RemoveAccessControlEntryRecord, RemoveDelegationTokenRecord,
    RemoveTopicRecord, RemoveUserScramCredentialRecord, TopicRecord, UnfenceBrokerRecord, UnregisterBrokerRecord,
    UnregisterControllerRecord, UserScramCredentialRecord, ZkMigrationStateRecord,
    client_quota_record::EntityData,
    register_broker_record::{BrokerEndpoint, BrokerFeature},
    register_controller_record::ControllerEndpoint,
};
use gregor_types::{BrokerId, LeaderEpoch, PartitionIndex, ProducerId, Uuid};
use proptest::prelude::*;

fn image(records: impl IntoIterator<Item = MetadataRecord>) -> Image {
    let mut image = Image::default();
    for record in records {
        image.apply(&record).unwrap_or_else(|error| panic!("{record:?}: {error}"));
    }
    image
}

fn feature(name: &str, feature_level: i16) -> MetadataRecord {
    MetadataRecord::FeatureLevel(FeatureLevelRecord { name: name.into(), feature_level, ..Default::default() })
}

fn topic(name: &str, id: u128) -> MetadataRecord {
    MetadataRecord::Topic(TopicRecord { name: name.into(), topic_id: Uuid(id), ..Default::default() })
}

fn partition(id: u128, partition_id: i32) -> PartitionRecord {
    PartitionRecord {
        partition_id,
        topic_id: Uuid(id),
        replicas: vec![1, 2],
        isr: vec![1, 2],
        leader: 1,
        leader_epoch: 0,
        partition_epoch: 0,
        directories: vec![Uuid(201), Uuid(202)],
        ..Default::default()
    }
}

fn change(id: u128, partition_id: i32) -> PartitionChangeRecord {
    PartitionChangeRecord { partition_id, topic_id: Uuid(id), ..Default::default() }
}

fn broker(broker_id: i32, epoch: i64) -> RegisterBrokerRecord {
    RegisterBrokerRecord { broker_id, broker_epoch: epoch, ..Default::default() }
}

fn config(resource_type: i8, resource: &str, name: &str, value: Option<&str>) -> MetadataRecord {
    MetadataRecord::Config(ConfigRecord {
        resource_type,
        resource_name: resource.into(),
        name: name.into(),
        value: value.map(Into::into),
        ..Default::default()
    })
}

fn snapshot(image: &Image) -> Vec<VersionedRecord> {
    let mut records = Vec::new();
    image.write_snapshot(|record| records.push(record));
    records
}

#[test]
fn a_new_leader_raises_the_leader_epoch_and_any_change_the_partition_epoch() {
    let mut image = image([topic("t", 1), MetadataRecord::Partition(partition(1, 0))]);
    let unled = PartitionChangeRecord { isr: Some(vec![2]), ..change(1, 0) };
    image.apply(&MetadataRecord::PartitionChange(unled)).unwrap();
    let now = image.topics().partition(Uuid(1), PartitionIndex(0)).unwrap().clone();
    assert_eq!((now.leader, now.leader_epoch, now.partition_epoch), (Some(BrokerId(1)), LeaderEpoch(0), 1));

    let led = PartitionChangeRecord { leader: 2, leader_recovery_state: 1, ..change(1, 0) };
    image.apply(&MetadataRecord::PartitionChange(led)).unwrap();
    let now = image.topics().partition(Uuid(1), PartitionIndex(0)).unwrap().clone();
    assert_eq!((now.leader, now.leader_epoch, now.partition_epoch), (Some(BrokerId(2)), LeaderEpoch(1), 2));
    assert_eq!(now.leader_recovery, LeaderRecoveryState::Recovering);

    let leaderless = PartitionChangeRecord { leader: -1, ..change(1, 0) };
    image.apply(&MetadataRecord::PartitionChange(leaderless)).unwrap();
    let now = image.topics().partition(Uuid(1), PartitionIndex(0)).unwrap().clone();
    assert_eq!((now.leader, now.leader_epoch), (None, LeaderEpoch(2)));
}

#[test]
fn a_deleted_topic_takes_its_configuration_along() {
    let mut image = image([
        topic("t", 1),
        MetadataRecord::Partition(partition(1, 0)),
        config(2, "t", "retention.ms", Some("1")),
        config(2, "other", "retention.ms", Some("2")),
    ]);
    let before = image.clone();
    let mut changes = Changes::default();
    let remove = MetadataRecord::RemoveTopic(RemoveTopicRecord { topic_id: Uuid(1), ..Default::default() });
    changes.add(image.apply(&remove).unwrap());
    assert!(image.topics().by_name("t").is_none());
    assert_eq!(image.configs().resources().collect::<Vec<_>>(), [&ConfigResource::topic("other")]);
    assert_eq!(changes.topics_deleted[&Uuid(1)].partition_count(), 1);
    assert_eq!(changes, Changes::between(&before, &image));
}

#[test]
fn a_clone_does_not_see_later_changes() {
    let mut image = image([topic("t", 1), MetadataRecord::Partition(partition(1, 0))]);
    let before = image.clone();
    image.apply(&MetadataRecord::Partition(partition(1, 1))).unwrap();
    assert_eq!(before.topics().by_name("t").unwrap().partition_count(), 1);
    assert_eq!(image.topics().by_name("t").unwrap().partition_count(), 2);
}

#[test]
fn records_that_contradict_the_image_are_refused_and_change_nothing() {
    let start = image([topic("t", 1), MetadataRecord::RegisterBroker(broker(1, 5))]);
    let refused = |record: MetadataRecord| {
        let mut image = start.clone();
        let error = image.apply(&record).unwrap_err();
        assert_eq!(image, start, "{record:?}");
        error
    };
    assert_eq!(refused(topic("t", 2)), ApplyError::TopicExists("t".into()));
    assert_eq!(refused(topic("u", 1)), ApplyError::TopicIdTaken(Uuid(1)));
    assert_eq!(refused(MetadataRecord::Partition(partition(9, 0))), ApplyError::UnknownTopic(Uuid(9)));
    assert_eq!(
        refused(MetadataRecord::PartitionChange(change(1, 7))),
        ApplyError::UnknownPartition { topic: Uuid(1), index: PartitionIndex(7) }
    );
    let mismatched = PartitionRecord { directories: vec![Uuid(201)], ..partition(1, 0) };
    assert!(matches!(refused(MetadataRecord::Partition(mismatched)), ApplyError::DirectoriesMismatch { .. }));
    let stale = UnregisterBrokerRecord { broker_id: 1, broker_epoch: 4, ..Default::default() };
    assert!(matches!(refused(MetadataRecord::UnregisterBroker(stale)), ApplyError::OtherBrokerEpoch { .. }));
    let unknown = FenceBrokerRecord { id: 3, epoch: 1, ..Default::default() };
    assert_eq!(refused(MetadataRecord::FenceBroker(unknown)), ApplyError::UnknownBroker(BrokerId(3)));
    assert_eq!(refused(feature("metadata.version", 34)), ApplyError::UnknownMetadataVersion(34));
    let nothing = MetadataRecord::EndTransaction(EndTransactionRecord::default());
    assert_eq!(refused(nothing), ApplyError::NoTransaction);
    let acl = RemoveAccessControlEntryRecord { id: Uuid(77), ..Default::default() };
    assert_eq!(refused(MetadataRecord::RemoveAccessControlEntry(acl)), ApplyError::UnknownAcl(Uuid(77)));
}

#[test]
fn a_transaction_is_seen_when_it_ends_and_never_if_it_is_aborted() {
    let begin = || MetadataRecord::BeginTransaction(BeginTransactionRecord::default());
    let mut image = image([topic("before", 1), begin(), topic("inside", 2)]);
    assert!(image.in_transaction());
    assert!(image.visible().topics().by_name("inside").is_none());
    assert!(snapshot(&image).iter().all(|record| !matches!(record.record, MetadataRecord::BeginTransaction(_))));

    let mut aborted = image.clone();
    let mut changes = Changes::default();
    changes.add(gregor_metadata::Change::TransactionBegan);
    changes.add(gregor_metadata::Change::TopicCreated(Uuid(2)));
    changes.add(aborted.apply(&MetadataRecord::AbortTransaction(AbortTransactionRecord::default())).unwrap());
    assert!(aborted.topics().by_name("inside").is_none());
    assert!(changes.is_empty());

    image.apply(&MetadataRecord::EndTransaction(EndTransactionRecord::default())).unwrap();
    assert!(!image.in_transaction());
    assert!(image.visible().topics().by_name("inside").is_some());
}

#[test]
fn a_topic_that_came_and_went_between_two_images_is_not_told_to_listeners() {
    let mut image = Image::default();
    let mut changes = Changes::default();
    for record in [
        topic("t", 1),
        MetadataRecord::Partition(partition(1, 0)),
        config(2, "t", "retention.ms", Some("1")),
        MetadataRecord::RemoveTopic(RemoveTopicRecord { topic_id: Uuid(1), ..Default::default() }),
    ] {
        changes.add(image.apply(&record).unwrap());
    }
    assert!(changes.is_empty(), "{changes:?}");
}

#[test]
fn legacy_fencing_records_and_no_ops_replay() {
    let image = image([
        MetadataRecord::RegisterBroker(broker(1, 5)),
        MetadataRecord::UnfenceBroker(UnfenceBrokerRecord { id: 1, epoch: 5, ..Default::default() }),
        MetadataRecord::NoOp(NoOpRecord::default()),
        MetadataRecord::ZkMigrationState(ZkMigrationStateRecord::default()),
    ]);
    assert!(image.cluster().is_active(BrokerId(1)));
}

#[test]
fn finalized_levels_that_are_not_served_are_named() {
    let elr = feature("eligible.leader.replicas.version", 1);
    let served = image([feature("metadata.version", 30), feature("kraft.version", 1), elr]);
    assert_eq!(served.features().check_served(), Ok(()));
    let unserved = image([feature("metadata.version", 30), feature("transaction.version", 2)]);
    let error = unserved.features().check_served().unwrap_err().to_string();
    assert!(error.contains("transaction.version") && error.contains("level 2"), "{error}");
}

#[test]
fn a_snapshot_has_kafkas_order_with_metadata_version_first() {
    let image = image([
        topic("b", 2),
        topic("a", 1),
        MetadataRecord::Partition(partition(1, 0)),
        config(2, "a", "retention.ms", Some("1")),
        MetadataRecord::RegisterBroker(broker(1, 5)),
        feature("some.feature", 1),
        feature("metadata.version", 30),
        MetadataRecord::ProducerIds(ProducerIdsRecord { next_producer_id: 1000, ..Default::default() }),
    ]);
    let kinds: Vec<_> = snapshot(&image)
        .iter()
        .map(|record| match &record.record {
            MetadataRecord::FeatureLevel(record) => record.name.to_string(),
            MetadataRecord::RegisterBroker(_) => format!("broker v{}", record.version),
            MetadataRecord::Topic(record) => record.name.to_string(),
            MetadataRecord::Partition(_) => format!("partition v{}", record.version),
            MetadataRecord::Config(_) => "config".to_owned(),
            MetadataRecord::ProducerIds(_) => "producer ids".to_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        kinds,
        ["metadata.version", "some.feature", "broker v4", "a", "partition v2", "b", "config", "producer ids"]
    );
    assert_eq!(image.next_producer_id(), Some(ProducerId(1000)));
}

/// A record that a log at this level can hold, made from a few random numbers; it need not fit the image.
fn any_record(level: MetadataVersion, kind: u8, a: u8, b: u8) -> MetadataRecord {
    let directories = level.has_directory_assignment();
    let elr = level.has_eligible_leader_replicas();
    let (id, number) = (u128::from(a % 5) + 1, i32::from(b % 4));
    match kind % 24 {
        0 | 1 => topic(["a", "b.c", "d", "e_f", "g"][usize::from(a % 5)], id),
        2 | 3 => MetadataRecord::Partition(PartitionRecord {
            directories: if directories { vec![Uuid(201), Uuid(202)] } else { Vec::new() },
            eligible_leader_replicas: (elr && b.is_multiple_of(3)).then(|| vec![2]),
            last_known_elr: (elr && b.is_multiple_of(5)).then(|| vec![1]),
            leader: i32::from(b % 3) - 1,
            adding_replicas: if b.is_multiple_of(7) { vec![2] } else { Vec::new() },
            ..partition(id, number)
        }),
        4 | 5 => MetadataRecord::PartitionChange(PartitionChangeRecord {
            isr: b.is_multiple_of(2).then(|| vec![1]),
            leader: i32::from(b % 4) - 2,
            leader_recovery_state: if b.is_multiple_of(3) { 1 } else { -1 },
            removing_replicas: b.is_multiple_of(5).then(|| vec![1]),
            directories: (directories && b.is_multiple_of(7)).then(|| vec![Uuid(203), Uuid::DIRECTORY_LOST]),
            eligible_leader_replicas: (elr && b.is_multiple_of(3)).then(Vec::new),
            ..change(id, number)
        }),
        6 => MetadataRecord::RemoveTopic(RemoveTopicRecord { topic_id: Uuid(id), ..Default::default() }),
        7 | 8 => MetadataRecord::RegisterBroker(RegisterBrokerRecord {
            incarnation_id: Uuid(u128::from(b)),
            end_points: vec![BrokerEndpoint {
                name: "PLAINTEXT".into(),
                host: "h".into(),
                port: 9092,
                security_protocol: i16::from(b % 5),
                ..Default::default()
            }],
            features: vec![BrokerFeature {
                name: "metadata.version".into(),
                min_supported_version: 7,
                max_supported_version: 33,
                ..Default::default()
            }],
            rack: b.is_multiple_of(2).then(|| "r".into()),
            fenced: b.is_multiple_of(3),
            log_dirs: if directories { vec![Uuid(201)] } else { Vec::new() },
            cordoned_log_dirs: (level.has_cordoned_directories() && b.is_multiple_of(5)).then(|| vec![Uuid(201)]),
            ..broker(number, i64::from(a))
        }),
        9 => MetadataRecord::UnregisterBroker(UnregisterBrokerRecord {
            broker_id: number,
            broker_epoch: i64::from(a),
            ..Default::default()
        }),
        10 => MetadataRecord::BrokerRegistrationChange(BrokerRegistrationChangeRecord {
            broker_id: number,
            broker_epoch: i64::from(a),
            fenced: (b % 3) as i8 - 1,
            in_controlled_shutdown: (b % 2) as i8,
            log_dirs: if directories && b.is_multiple_of(2) { vec![Uuid(205)] } else { Vec::new() },
            ..Default::default()
        }),
        11 | 12 => {
            let name = ["a", "", "1"][usize::from(a % 3)];
            config([2, 4, 16, 32][usize::from(b % 4)], name, "key", (!b.is_multiple_of(5)).then_some("value"))
        }
        13 => MetadataRecord::ClientQuota(ClientQuotaRecord {
            entity: vec![EntityData {
                entity_type: "user".into(),
                entity_name: b.is_multiple_of(2).then(|| "u".into()),
                ..Default::default()
            }],
            key: "producer_byte_rate".into(),
            value: f64::from(a) / 3.0,
            remove: b.is_multiple_of(5),
            ..Default::default()
        }),
        14 => MetadataRecord::ProducerIds(ProducerIdsRecord { next_producer_id: i64::from(a), ..Default::default() }),
        15 | 16 => MetadataRecord::AccessControlEntry(AccessControlEntryRecord {
            id: Uuid(id + 300),
            resource_name: "r".into(),
            principal: "User:u".into(),
            host: "*".into(),
            operation: (b % 12) as i8,
            ..Default::default()
        }),
        17 => MetadataRecord::RemoveAccessControlEntry(RemoveAccessControlEntryRecord {
            id: Uuid(id + 300),
            ..Default::default()
        }),
        18 => MetadataRecord::UserScramCredential(UserScramCredentialRecord {
            name: "u".into(),
            mechanism: 1 + (a % 2) as i8,
            salt: vec![b].into(),
            iterations: 4096,
            ..Default::default()
        }),
        19 => MetadataRecord::RemoveUserScramCredential(RemoveUserScramCredentialRecord {
            name: "u".into(),
            mechanism: 1 + (a % 2) as i8,
            ..Default::default()
        }),
        20 => MetadataRecord::DelegationToken(DelegationTokenRecord {
            owner: "User:u".into(),
            renewers: vec!["User:r".into()],
            max_timestamp: i64::from(b),
            token_id: ["t", "s"][usize::from(a % 2)].into(),
            ..Default::default()
        }),
        21 => MetadataRecord::RemoveDelegationToken(RemoveDelegationTokenRecord {
            token_id: ["t", "s"][usize::from(a % 2)].into(),
            ..Default::default()
        }),
        22 => MetadataRecord::RegisterController(RegisterControllerRecord {
            controller_id: number,
            incarnation_id: Uuid(u128::from(b)),
            end_points: vec![ControllerEndpoint { name: "C".into(), port: 9093, ..Default::default() }],
            ..Default::default()
        }),
        _ if a.is_multiple_of(2) => MetadataRecord::UnregisterController(UnregisterControllerRecord {
            controller_id: number,
            ..Default::default()
        }),
        _ => MetadataRecord::ClearElr(ClearElrRecord::default()),
    }
}

proptest! {
    #[test]
    fn a_snapshot_makes_the_same_image_again(
        level in 7_i16..=33,
        numbers in proptest::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 0..120),
    ) {
        let level = MetadataVersion::from_level(level).unwrap();
        let mut original = image([feature("metadata.version", level.level()), feature("other.feature", 2)]);
        let start = original.clone();
        let mut changes = Changes::default();
        for (kind, a, b) in numbers {
            let record = any_record(level, kind, a, b);
            // What a level does not know is in no log of that level.
            if level.record_version(&record).is_some()
                && let Ok(change) = original.apply(&record)
            {
                changes.add(change);
            }
        }
        let mut again = Image::default();
        for VersionedRecord { record, version } in snapshot(&original) {
            let framed = record.encode_framed(version).unwrap();
            let decoded = MetadataRecord::decode_framed(framed).unwrap();
            prop_assert_eq!(&decoded, &record);
            again.apply(&decoded).unwrap();
        }
        prop_assert_eq!(&again, &original);

        // A listener that is told record by record hears of everything that a comparison finds.
        let compared = Changes::between(&start, &original);
        prop_assert_eq!(&changes.topics_created, &compared.topics_created);
        prop_assert!(changes.partitions.is_superset(&compared.partitions));
        prop_assert!(changes.configs.is_superset(&compared.configs));
        prop_assert!(changes.brokers.is_superset(&compared.brokers));
        prop_assert!(changes.acls || !compared.acls);
    }
}

#[test]
fn a_group_and_a_broker_of_one_name_have_configurations_of_their_own() {
    let image = image([config(4, "1", "k", Some("broker")), config(32, "1", "k", Some("group"))]);
    let of = |resource_type| image.configs().get(&ConfigResource::new(resource_type, "1"), "k").unwrap().to_string();
    assert_eq!((of(ResourceType::Broker), of(ResourceType::Group)), ("broker".to_owned(), "group".to_owned()));
}
