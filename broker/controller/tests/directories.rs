//! Log directories of brokers as the controller knows them: where replicas are, which directories failed, which are cordoned
//! (KIP-858, KIP-1066).

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, SECOND, SET, alter, alter_isr, assert_error, assigned, ids, topic};
use gregor_messages::{
    AssignReplicasToDirsRequest, AssignReplicasToDirsResponse, ElectLeadersRequest, ElectLeadersResponse,
    IncrementalAlterConfigsResponse, assign_replicas_to_dirs_request, elect_leaders_request,
};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{BrokerId, ErrorCode, Uuid};

/// A broker tells that it has partition 0 of a topic in a directory.
fn tell(rig: &mut Rig, broker: i32, topic_id: Uuid, directory: u128) {
    let partition = assign_replicas_to_dirs_request::PartitionData::default();
    let topic =
        assign_replicas_to_dirs_request::TopicData { topic_id, partitions: vec![partition], ..Default::default() };
    let directory = assign_replicas_to_dirs_request::DirectoryData {
        id: Uuid(directory),
        topics: vec![topic],
        ..Default::default()
    };
    let request = AssignReplicasToDirsRequest {
        broker_id: broker,
        broker_epoch: rig.epoch(broker),
        directories: vec![directory],
        ..Default::default()
    };
    let response: AssignReplicasToDirsResponse = rig.ask(0, request);
    assert_eq!(response.directories[0].topics[0].partitions[0].error_code, 0);
}

#[test]
fn a_broker_says_where_its_replicas_are_and_which_directories_failed() {
    let mut rig = Rig::at(30);
    rig.register_with(1, 1, |request| request.log_dirs = vec![Uuid(501), Uuid(502)]);
    rig.heartbeat(1, |_| ());
    rig.create(vec![topic("t", 2, 1)]);
    assert_eq!(rig.partition("t", 0).directories, [Uuid::DIRECTORY_UNASSIGNED], "the broker is to choose");
    let topic_id = rig.image.topics().by_name("t").unwrap().id;
    let directory = |id: u128, index: i32| assign_replicas_to_dirs_request::DirectoryData {
        id: Uuid(id),
        topics: vec![assign_replicas_to_dirs_request::TopicData {
            topic_id,
            partitions: vec![assign_replicas_to_dirs_request::PartitionData {
                partition_index: index,
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let request = AssignReplicasToDirsRequest {
        broker_id: 1,
        broker_epoch: rig.epoch(1),
        directories: vec![directory(501, 0), directory(502, 1), directory(502, 7)],
        ..Default::default()
    };
    let response: AssignReplicasToDirsResponse = rig.ask(0, request);
    let codes: Vec<_> =
        response.directories.iter().map(|directory| directory.topics[0].partitions[0].error_code).collect();
    assert_eq!(codes, [0, 0, ErrorCode::UnknownTopicOrPartition as i16]);
    assert_eq!(rig.partition("t", 0).directories, [Uuid(501)]);

    rig.heartbeat(1, |request| request.offline_log_dirs = vec![Uuid(502)]);
    assert_eq!(rig.image.cluster().broker(BrokerId(1)).unwrap().directories, [Uuid(501)]);
    assert_eq!((rig.partition("t", 0).leader, rig.partition("t", 1).leader), (Some(BrokerId(1)), None));
}

#[test]
fn what_lies_in_a_failed_directory_is_led_by_nobody_until_it_is_elsewhere() {
    let mut rig = Rig::at(30);
    rig.register_with(1, 1, |request| request.log_dirs = vec![Uuid(501), Uuid(502)]);
    rig.register_with(2, 2, |request| request.log_dirs = vec![Uuid(601)]);
    rig.heartbeat(1, |_| ());
    rig.heartbeat(2, |_| ());
    rig.create(vec![assigned("alone", &[(0, &[1])]), assigned("both", &[(0, &[1, 2])])]);
    let id = |rig: &Rig, name: &str| rig.image.topics().by_name(name).unwrap().id;
    let move_to = |rig: &mut Rig, topic, directory| tell(rig, 1, topic, directory);
    for name in ["alone", "both"] {
        let topic = id(&rig, name);
        move_to(&mut rig, topic, 502);
    }
    let before = rig.log.len();
    rig.heartbeat(1, |request| request.offline_log_dirs = vec![Uuid(502)]);
    let kinds: Vec<_> = rig.log[before..].iter().map(|record| record.record.clone()).collect();
    assert!(
        matches!(
            kinds[..],
            [
                MetadataRecord::PartitionChange(_),
                MetadataRecord::PartitionChange(_),
                MetadataRecord::BrokerRegistrationChange(_)
            ]
        ),
        "{kinds:?}"
    );
    assert_eq!((rig.partition("alone", 0).leader, rig.partition("both", 0).leader), (None, Some(BrokerId(2))));
    let before = rig.log.len();
    rig.heartbeat(1, |request| request.offline_log_dirs = vec![Uuid(502)]);
    assert_eq!(rig.log.len(), before, "it is known by now");

    // Neither time nor a wish makes a replica lead that lies in a directory that is gone.
    let elect = |rig: &mut Rig| {
        let partitions = vec![elect_leaders_request::TopicPartitions {
            topic: "alone".into(),
            partitions: vec![0],
            ..Default::default()
        }];
        let request = ElectLeadersRequest { topic_partitions: Some(partitions), ..Default::default() };
        let _: ElectLeadersResponse = rig.ask(2, request);
    };
    elect(&mut rig);
    for _ in 0..50 {
        rig.heartbeat(1, |request| request.offline_log_dirs = vec![Uuid(502)]);
        rig.heartbeat(2, |_| ());
        rig.tick_after(7 * SECOND);
    }
    assert_eq!((rig.partition("alone", 0).leader, rig.partition("both", 0).leader), (None, Some(BrokerId(2))));
    let alone = id(&rig, "alone");
    move_to(&mut rig, alone, 501);
    assert_eq!(rig.partition("alone", 0).leader, Some(BrokerId(1)), "at once");
}

#[test]
fn who_alone_is_in_sync_on_a_new_disk_leads_once_it_has_told_that_its_replica_is_there() {
    let mut rig = Rig::at(30);
    rig.register_with(1, 1, |request| request.log_dirs = vec![Uuid(501)]);
    rig.register_with(2, 2, |request| request.log_dirs = vec![Uuid(601)]);
    rig.heartbeat(1, |_| ());
    rig.heartbeat(2, |_| ());
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    // Another disk, and in sync again before the controller knows what is on it.
    rig.now += 10 * SECOND;
    rig.heartbeat(1, |_| ());
    rig.register_with(2, 3, |request| request.log_dirs = vec![Uuid(602)]);
    rig.heartbeat(2, |_| ());
    assert_eq!(rig.partition("t", 0).isr, ids(&[1]));
    assert_eq!(alter_isr(&mut rig, |_| ()).0, ErrorCode::None);
    rig.now += 10 * SECOND;
    rig.heartbeat(2, |_| ());
    rig.register_with(1, 4, |request| request.log_dirs = vec![Uuid(501)]);
    assert_eq!((rig.partition("t", 0).isr, rig.partition("t", 0).leader), (ids(&[2]), None));
    let topic = rig.image.topics().by_name("t").unwrap().id;
    tell(&mut rig, 2, topic, 602);
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(2)));
}

#[test]
fn cordoned_directories_come_with_the_first_heartbeat_and_keep_new_replicas_away() {
    let mut rig = Rig::at(30);
    rig.register_with(1, 1, |request| request.log_dirs = vec![Uuid(501), Uuid(502)]);
    let cordon = |rig: &mut Rig, directories: &[u128]| {
        let directories = directories.iter().copied().map(Uuid).collect();
        rig.heartbeat(1, |request| request.cordoned_log_dirs = Some(directories));
        rig.image.cluster().broker(BrokerId(1)).unwrap().cordoned_directories.clone()
    };
    assert_eq!(cordon(&mut rig, &[]), Some(Vec::new()), "what was not known is known to be nothing");
    let before = rig.log.len();
    cordon(&mut rig, &[]);
    assert_eq!(rig.log.len(), before);
    cordon(&mut rig, &[502, 501]);
    let before = rig.log.len();
    cordon(&mut rig, &[501, 502]);
    assert_eq!(rig.log.len(), before, "the order says nothing");
    let refused = rig.create(vec![assigned("t", &[(0, &[1])]), topic("u", 1, 1)]);
    assert_error(
        refused.topics[0].error_code,
        refused.topics[0].error_message.as_ref(),
        ErrorCode::InvalidReplicaAssignment,
        "The manual partition assignment includes broker 1, but all its log directories are cordoned.",
    );
    assert_eq!(refused.topics[1].error_code, ErrorCode::InvalidReplicationFactor as i16);
    cordon(&mut rig, &[501]);
    assert_eq!(rig.create(vec![topic("u", 1, 1)]).topics[0].error_code, 0);
    assert_eq!(rig.partition("u", 0).directories, [Uuid::DIRECTORY_UNASSIGNED], "the broker is to choose");

    let mut old = Rig::at(29).brokers(1);
    let before = old.log.len();
    old.heartbeat(1, |request| request.cordoned_log_dirs = Some(vec![Uuid(1001)]));
    assert_eq!(old.log.len(), before, "the level does not know of it");
}

#[test]
fn only_directories_that_there_are_can_be_cordoned() {
    let alter_one = |rig: &mut Rig, name: &str, value: &str| {
        let response: IncrementalAlterConfigsResponse =
            rig.ask(1, alter(4, name, &[("cordoned.log.dirs", SET, Some(value))]));
        let response = response.responses[0].clone();
        (ErrorCode::from(response.error_code), response.error_message.map(|text| text.to_string()).unwrap_or_default())
    };
    let mut rig = Rig::with(30, "log.dirs=/a,/b").brokers(2);
    assert_eq!(alter_one(&mut rig, "1", "/b").0, ErrorCode::None);
    assert_eq!(alter_one(&mut rig, "1", "*").0, ErrorCode::None);
    assert_eq!(alter_one(&mut rig, "2", "/elsewhere").0, ErrorCode::None, "another node knows its own");
    let (error, message) = alter_one(&mut rig, "1", "/a,/c");
    assert_eq!(error, ErrorCode::InvalidRequest);
    assert_eq!(
        message,
        "requirement failed: All entries in cordoned.log.dirs must be present in log.dirs or log.dir. Missing entries : /c"
    );
    assert_eq!(alter_one(&mut rig, "", "/a").0, ErrorCode::InvalidRequest, "each broker has directories of its own");
    let (error, message) = alter_one(&mut Rig::with(29, "log.dirs=/a,/b").brokers(1), "1", "/a");
    assert_eq!(error, ErrorCode::InvalidConfig);
    assert!(message.contains("requires metadata.version >= 4.3-IV0"), "{message}");
}
