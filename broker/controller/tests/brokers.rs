//! Brokers come, go and are lost; leadership and configuration follow them; nothing is answered that could still be undone.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, SECOND, SET, alter, alter_isr, assert_error, assigned, ids, replace, topic};
use gregor_controller::Input;
use gregor_messages::{
    AllocateProducerIdsRequest, AllocateProducerIdsResponse, AlterConfigsResponse, AlterPartitionRequest,
    AlterPartitionResponse, BrokerHeartbeatRequest, BrokerHeartbeatResponse, ControllerRegistrationRequest,
    ControllerRegistrationResponse, CreateTopicsRequest, CreateTopicsResponse, ElectLeadersRequest,
    ElectLeadersResponse, IncrementalAlterConfigsResponse, UnregisterBrokerRequest, UnregisterBrokerResponse,
    alter_partition_request::{BrokerState, PartitionData},
    elect_leaders_request,
};
use gregor_metadata::{ConfigResource, Image, LeaderRecoveryState};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, Uuid};
use proptest::prelude::*;

#[test]
fn the_first_leader_of_an_empty_log_writes_what_formatting_chose_in_one_transaction() {
    let rig = Rig::at(30);
    let kinds: Vec<_> = rig.log.iter().map(|record| &record.record).collect();
    assert!(
        matches!(
            kinds[..],
            [MetadataRecord::BeginTransaction(_), MetadataRecord::FeatureLevel(_), MetadataRecord::EndTransaction(_)]
        ),
        "{kinds:?}"
    );
    let old = Rig::at(7);
    assert!(matches!(old.log[0].record, MetadataRecord::FeatureLevel(_)), "3.3 knows no transactions");
    assert_eq!(old.log.len(), 1);
}

#[test]
fn a_brokers_epoch_is_the_offset_of_its_registration() {
    let mut rig = Rig::at(30).brokers(1);
    let offset = rig.log.len() as i64;
    let response = rig.register(2, 2);
    assert_eq!((response.error_code, response.broker_epoch), (0, offset));
    let broker = rig.image.cluster().broker(BrokerId(2)).unwrap();
    assert_eq!((broker.epoch, broker.fenced), (BrokerEpoch(offset), true));
    // The same process asking again keeps its epoch.
    assert_eq!(rig.register(2, 2).broker_epoch, offset);
}

#[test]
fn registrations_that_do_not_fit_get_kafkas_errors() {
    let mut rig = Rig::at(30).brokers(1);
    let code =
        |response: gregor_messages::BrokerRegistrationResponse| ErrorCode::from_code(response.error_code).unwrap();
    let response = rig.register_with(2, 2, |request| request.cluster_id = "other".into());
    assert_eq!(code(response), ErrorCode::InconsistentClusterId);
    let response = rig.register(1, 99);
    assert_eq!(code(response), ErrorCode::DuplicateBrokerRegistration);
    let response = rig.register_with(2, 2, |request| request.features.clear());
    assert_eq!(code(response), ErrorCode::InvalidRegistration);
    let response = rig.register_with(2, 2, |request| request.features[0].max_supported_version = 29);
    assert_eq!(code(response), ErrorCode::UnsupportedVersion);
    for log_dirs in [vec![], vec![Uuid(5)], vec![Uuid(500), Uuid(500)], vec![Uuid(1001)]] {
        let response = rig.register_with(2, 2, |request| request.log_dirs.clone_from(&log_dirs));
        assert_eq!(code(response), ErrorCode::InvalidRegistration, "{log_dirs:?}");
    }
    // After its session another incarnation may take the id over.
    rig.now += 10 * SECOND;
    assert_eq!(code(rig.register(1, 99)), ErrorCode::None);
}

#[test]
fn a_broker_is_unfenced_once_it_has_read_its_own_registration() {
    let mut rig = Rig::at(30);
    rig.register(1, 1);
    let epoch = rig.epoch(1);
    let response = rig.heartbeat(1, |request| request.current_metadata_offset = epoch - 1);
    assert!(response.is_fenced && !response.is_caught_up);
    let response = rig.heartbeat(1, |request| request.want_fence = true);
    assert!(response.is_fenced && response.is_caught_up);
    assert!(!rig.heartbeat(1, |_| ()).is_fenced);
    let response = rig.heartbeat(1, |request| request.broker_epoch = epoch + 1);
    assert_eq!(response.error_code, ErrorCode::StaleBrokerEpoch as i16);
}

#[test]
fn a_broker_that_falls_silent_is_fenced_and_others_lead_what_it_led() {
    let mut rig = Rig::at(30).brokers(2);
    rig.create(vec![assigned("t", &[(0, &[1, 2])]), assigned("alone", &[(0, &[1])])]);
    rig.now += 8 * SECOND;
    rig.heartbeat(2, |_| ());
    rig.tick_after(2 * SECOND);
    assert!(rig.image.cluster().broker(BrokerId(1)).unwrap().fenced);
    let partition = rig.partition("t", 0);
    assert_eq!((partition.leader, &partition.isr), (Some(BrokerId(2)), &ids(&[2])));
    // The last in-sync replica stays the last one: it alone has everything.
    let alone = rig.partition("alone", 0);
    assert_eq!((alone.leader, &alone.isr), (None, &ids(&[1])));

    assert!(!rig.heartbeat(1, |_| ()).is_fenced);
    assert_eq!(rig.partition("alone", 0).leader, Some(BrokerId(1)));
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(2)), "leadership is not torn away from who has it");
}

#[test]
fn brokers_whose_sessions_end_together_are_fenced_one_after_another_and_who_is_heard_of_meanwhile_is_not() {
    let mut rig = Rig::at(30).brokers(3);
    let fenced = |rig: &Rig| {
        let cluster = rig.image.cluster();
        (1..=3).filter(|id| cluster.broker(BrokerId(*id)).unwrap().fenced).collect::<Vec<_>>()
    };
    let end = rig.now + 9 * SECOND;
    // Nobody steps the controller but when it wants to be.
    while fenced(&rig).is_empty() {
        let due = rig.controller.next_deadline().unwrap().saturating_sub(rig.now);
        assert!(rig.now + due <= end, "nobody is fenced when the sessions end");
        rig.tick_after(due);
    }
    assert_eq!((rig.now, fenced(&rig)), (end, vec![1]));
    assert!(rig.controller.next_deadline().unwrap() <= rig.now, "the next is due at once");
    rig.heartbeat(2, |_| ());
    rig.tick_after(0);
    assert_eq!(fenced(&rig), [1, 3]);
    rig.tick_after(0);
    assert_eq!(fenced(&rig), [1, 3]);
    assert!(rig.controller.next_deadline().unwrap() > rig.now, "nobody else is silent");
}

#[test]
fn a_new_leader_of_the_quorum_gives_every_broker_a_whole_session() {
    let mut rig = Rig::at(30).brokers(1);
    rig.lose();
    rig.now += 60 * SECOND;
    rig.win();
    rig.tick_after(8 * SECOND);
    assert!(!rig.image.cluster().broker(BrokerId(1)).unwrap().fenced);
    rig.tick_after(2 * SECOND);
    assert!(rig.image.cluster().broker(BrokerId(1)).unwrap().fenced);
}

#[test]
fn a_node_that_decides_and_was_restarted_registers_as_a_broker_at_once() {
    let mut rig = Rig::at(30).brokers(1);
    rig.create(vec![topic("t", 1, 1)]);
    rig.lose();
    rig.win();
    assert_eq!(rig.register(1, 77).error_code, 0);
    assert_eq!(rig.partition("t", 0).leader, None);
    assert!(!rig.heartbeat(1, |_| ()).is_fenced);
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(1)));
}

#[test]
fn controlled_shutdown_moves_leadership_and_waits_until_the_others_know() {
    let mut rig = Rig::at(30).brokers(2);
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    let before = rig.log.len() as i64;
    let response = rig.heartbeat(1, |request| request.want_shut_down = true);
    assert!(!response.should_shut_down);
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(2)));
    rig.heartbeat(2, |request| request.current_metadata_offset = before - 1);
    assert!(!rig.heartbeat(1, |request| request.want_shut_down = true).should_shut_down, "broker 2 does not know yet");
    rig.heartbeat(2, |_| ());
    assert!(rig.heartbeat(1, |request| request.want_shut_down = true).should_shut_down);
    assert!(rig.image.cluster().broker(BrokerId(1)).unwrap().fenced);
}

#[test]
fn the_only_broker_may_stop_and_comes_back_to_what_it_led() {
    let mut rig = Rig::at(30).brokers(1);
    rig.create(vec![topic("t", 1, 1)]);
    assert!(!rig.heartbeat(1, |request| request.want_shut_down = true).should_shut_down);
    assert!(rig.heartbeat(1, |request| request.want_shut_down = true).should_shut_down);
    assert_eq!(
        rig.register(1, 2).error_code,
        0,
        "a broker that is on its way down may come back before its session ends"
    );
    rig.heartbeat(1, |_| ());
    let partition = rig.partition("t", 0);
    assert_eq!((partition.leader, partition.isr), (Some(BrokerId(1)), ids(&[1])));
}

#[test]
fn an_unclean_leader_is_elected_only_where_the_configuration_allows_it() {
    let mut rig = Rig::at(30).brokers(2);
    rig.create(vec![assigned("clean", &[(0, &[1, 2])]), assigned("unclean", &[(0, &[1, 2])])]);
    let _: IncrementalAlterConfigsResponse =
        rig.ask(1, alter(2, "unclean", &[("unclean.leader.election.enable", SET, Some("true"))]));
    rig.heartbeat(2, |request| request.want_fence = true);
    rig.heartbeat(2, |_| ());
    rig.heartbeat(1, |request| request.want_fence = true);
    assert_eq!(rig.partition("clean", 0).leader, None);
    let unclean = rig.partition("unclean", 0);
    assert_eq!((unclean.leader, &unclean.isr), (Some(BrokerId(2)), &ids(&[2])));
    assert_eq!(unclean.leader_recovery, LeaderRecoveryState::Recovering);
}

#[test]
fn a_leader_changes_its_isr_only_with_the_right_epochs_and_members() {
    let mut rig = Rig::at(30).brokers(2);
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    let (error, epoch) = alter_isr(&mut rig, |data| data.new_isr_with_epochs.truncate(1));
    assert_eq!((error, epoch), (ErrorCode::None, 1));
    assert_eq!(rig.partition("t", 0).isr, ids(&[1]));
    let error = |rig: &mut Rig, change: &dyn Fn(&mut PartitionData)| alter_isr(rig, change).0;
    assert_eq!(error(&mut rig, &|data| data.leader_epoch += 1), ErrorCode::NotController);
    assert_eq!(error(&mut rig, &|data| data.leader_epoch -= 1), ErrorCode::FencedLeaderEpoch);
    assert_eq!(error(&mut rig, &|data| data.partition_epoch -= 1), ErrorCode::InvalidUpdateVersion);
    assert_eq!(error(&mut rig, &|data| data.new_isr_with_epochs[1].broker_id = 9), ErrorCode::InvalidRequest);
    assert_eq!(
        error(&mut rig, &|data| {
            data.new_isr_with_epochs.remove(0);
        }),
        ErrorCode::InvalidRequest
    );
    assert_eq!(error(&mut rig, &|data| data.leader_recovery_state = 1), ErrorCode::InvalidRequest);
    assert_eq!(
        error(&mut rig, &|data| data.new_isr_with_epochs[1].broker_id = 1),
        ErrorCode::InvalidRequest,
        "nobody is in sync twice"
    );
    // KIP-903: the epoch of an incarnation that is gone.
    assert_eq!(error(&mut rig, &|data| data.new_isr_with_epochs[1].broker_epoch -= 1), ErrorCode::IneligibleReplica);
    assert_eq!(error(&mut rig, &|_| ()), ErrorCode::None);
    assert_eq!(rig.partition("t", 0).isr, ids(&[1, 2]));
}

#[test]
fn preferred_leaders_are_elected_when_asked_and_after_a_while_by_themselves() {
    let mut rig = Rig::at(30).brokers(2);
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    let fence_and_return = |rig: &mut Rig| {
        rig.heartbeat(1, |request| request.want_fence = true);
        rig.heartbeat(1, |_| ());
        assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(2)));
    };
    let elect = |rig: &mut Rig| -> i16 {
        let partitions =
            elect_leaders_request::TopicPartitions { topic: "t".into(), partitions: vec![0], ..Default::default() };
        let request = ElectLeadersRequest { topic_partitions: Some(vec![partitions]), ..Default::default() };
        let response: ElectLeadersResponse = rig.ask(2, request);
        response.replica_election_results[0].partition_result[0].error_code
    };
    assert_eq!(elect(&mut rig), ErrorCode::ElectionNotNeeded as i16);
    fence_and_return(&mut rig);
    assert_eq!(elect(&mut rig), ErrorCode::PreferredLeaderNotAvailable as i16, "it is not in sync yet");
    alter_isr(&mut rig, |_| ());
    assert_eq!(elect(&mut rig), 0);
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(1)));

    fence_and_return(&mut rig);
    alter_isr(&mut rig, |_| ());
    for _ in 0..50 {
        rig.heartbeat(1, |_| ());
        rig.heartbeat(2, |_| ());
        rig.tick_after(7 * SECOND);
    }
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(1)));
}

#[test]
fn only_brokers_that_are_up_and_stay_up_join_an_isr() {
    let mut rig = Rig::at(30).brokers(3);
    rig.create(vec![assigned("t", &[(0, &[1, 2])]), assigned("u", &[(0, &[2, 3])])]);
    alter_isr(&mut rig, |data| data.new_isr_with_epochs.truncate(1));
    rig.heartbeat(2, |request| request.want_fence = true);
    assert_eq!(alter_isr(&mut rig, |_| ()).0, ErrorCode::IneligibleReplica, "it is fenced");
    rig.heartbeat(2, |_| ());
    assert_eq!(alter_isr(&mut rig, |_| ()).0, ErrorCode::None);

    rig.heartbeat(2, |request| request.want_fence = true);
    rig.heartbeat(2, |_| ());
    let _: IncrementalAlterConfigsResponse =
        rig.ask(1, alter(2, "u", &[("unclean.leader.election.enable", SET, Some("true"))]));
    rig.heartbeat(3, |request| request.want_fence = true);
    assert_eq!(rig.partition("u", 0).leader, Some(BrokerId(2)));
    rig.heartbeat(2, |request| request.want_shut_down = true);
    let broker = rig.image.cluster().broker(BrokerId(2)).unwrap();
    assert!(broker.in_controlled_shutdown && !broker.fenced);
    assert_eq!(alter_isr(&mut rig, |_| ()).0, ErrorCode::IneligibleReplica, "it is on its way down");
    let sender = |rig: &Rig, id: i32, epoch: i64| AlterPartitionRequest {
        broker_id: id,
        broker_epoch: rig.epoch(1) + epoch,
        ..Default::default()
    };
    let stale = sender(&rig, 1, -1);
    let response: AlterPartitionResponse = rig.ask(3, stale);
    assert_eq!(response.error_code, ErrorCode::StaleBrokerEpoch as i16);
    let unknown = sender(&rig, 9, 0);
    let response: AlterPartitionResponse = rig.ask(3, unknown);
    assert_eq!(response.error_code, ErrorCode::StaleBrokerEpoch as i16);
}

#[test]
fn partitions_whose_preferred_leader_is_away_do_not_keep_others_from_theirs() {
    let mut rig = Rig::with(30, "leader.imbalance.check.interval.seconds=60\n").brokers(3);
    let many: Vec<(i32, &[i32])> = (0..1_500).map(|index| (index, &[1, 2][..])).collect();
    rig.create(vec![assigned("a", &many), assigned("t", &[(0, &[3, 2])])]);
    rig.heartbeat(1, |request| request.want_fence = true);
    rig.heartbeat(3, |request| request.want_fence = true);
    rig.heartbeat(3, |_| ());
    let member = |rig: &Rig, id: i32| BrokerState { broker_id: id, broker_epoch: rig.epoch(id), ..Default::default() };
    let members = vec![member(&rig, 2), member(&rig, 3)];
    assert_eq!(alter_isr(&mut rig, |data| data.new_isr_with_epochs = members).0, ErrorCode::None);
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(2)));
    for _ in 0..10 {
        rig.heartbeat(2, |_| ());
        rig.heartbeat(3, |_| ());
        rig.tick_after(7 * SECOND);
    }
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(3)));
}

#[test]
fn preferred_leaders_come_back_by_themselves_only_where_the_configuration_says_so() {
    let mut rig = Rig::with(30, "auto.leader.rebalance.enable=false\nleader.imbalance.check.interval.seconds=1\n");
    rig = rig.brokers(2);
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    rig.heartbeat(1, |request| request.want_fence = true);
    rig.heartbeat(1, |_| ());
    alter_isr(&mut rig, |_| ());
    for _ in 0..100 {
        rig.heartbeat(1, |_| ());
        rig.heartbeat(2, |_| ());
        rig.tick_after(7 * SECOND);
    }
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(2)));
}

#[test]
fn producer_id_blocks_never_overlap() {
    let mut rig = Rig::at(30).brokers(1);
    let mut next = 0;
    for _ in 0..3 {
        let request = AllocateProducerIdsRequest { broker_id: 1, broker_epoch: rig.epoch(1), ..Default::default() };
        let response: AllocateProducerIdsResponse = rig.ask(0, request);
        assert_eq!((response.error_code, response.producer_id_start, response.producer_id_len), (0, next, 1000));
        next += 1000;
        rig.lose();
        rig.win();
    }
    let stale = AllocateProducerIdsRequest { broker_id: 1, broker_epoch: 0, ..Default::default() };
    let response: AllocateProducerIdsResponse = rig.ask(0, stale);
    assert_eq!(response.error_code, ErrorCode::StaleBrokerEpoch as i16);
}

#[test]
fn an_unregistered_broker_is_gone() {
    let mut rig = Rig::at(30).brokers(2);
    rig.create(vec![assigned("t", &[(0, &[2, 1])])]);
    let response: UnregisterBrokerResponse = rig.ask(0, UnregisterBrokerRequest { broker_id: 2, ..Default::default() });
    assert_eq!(response.error_code, 0);
    assert!(rig.image.cluster().broker(BrokerId(2)).is_none());
    assert_eq!(rig.partition("t", 0).leader, Some(BrokerId(1)));
    let response: UnregisterBrokerResponse = rig.ask(0, UnregisterBrokerRequest { broker_id: 2, ..Default::default() });
    assert_error(
        response.error_code,
        response.error_message.as_ref(),
        ErrorCode::BrokerIdNotRegistered,
        "Broker ID 2 is not currently registered",
    );
}

#[test]
fn controllers_register_where_the_level_knows_it() {
    let register = |level| {
        let mut rig = Rig::at(level);
        let request = ControllerRegistrationRequest { controller_id: 1, ..Default::default() };
        let response: ControllerRegistrationResponse = rig.ask(0, request);
        (response.error_code, rig.image.cluster().controllers().count())
    };
    assert_eq!(register(15), (0, 1));
    assert_eq!(register(14), (ErrorCode::UnsupportedVersion as i16, 0));
}

#[test]
fn broker_configs_are_stored_for_one_or_all_unless_a_restart_is_needed() {
    let mut rig = Rig::at(30).brokers(1);
    let mut change = |name: &str, key: &str, value: &str| {
        let response: IncrementalAlterConfigsResponse = rig.ask(1, alter(4, name, &[(key, SET, Some(value))]));
        ErrorCode::from_code(response.responses[0].error_code).unwrap()
    };
    assert_eq!(change("1", "log.retention.ms", "1000"), ErrorCode::None);
    assert_eq!(change("", "log.retention.ms", "2000"), ErrorCode::None);
    assert_eq!(change("", "log.retention.ms", "soon"), ErrorCode::InvalidRequest);
    assert_eq!(change("1", "node.id", "7"), ErrorCode::InvalidRequest);
    assert_eq!(change("x", "log.retention.ms", "1"), ErrorCode::InvalidRequest);
    assert_eq!(change("-1", "log.retention.ms", "1"), ErrorCode::InvalidRequest);
    assert_eq!(change("7", "log.retention.ms", "1"), ErrorCode::BrokerIdNotRegistered);
    assert_eq!(rig.image.configs().get(&ConfigResource::all_brokers(), "log.retention.ms").unwrap(), &"2000");
    // The broker's own value comes before the one of all brokers, and both before the file.
    let response = rig.create(vec![topic("t", 1, 1)]);
    let configs = response.topics[0].configs.as_ref().unwrap();
    let retention = configs.iter().find(|config| config.name == "retention.ms").unwrap();
    assert_eq!((retention.value.as_ref().unwrap().as_str(), retention.config_source), ("1000", 2));
}

#[test]
fn alter_configs_replaces_everything() {
    let mut rig = Rig::at(30).brokers(1);
    rig.create(vec![topic("t", 1, 1)]);
    let _: AlterConfigsResponse = rig.ask(2, replace(2, "t", &[("retention.ms", "1"), ("segment.bytes", "2097152")]));
    let response: AlterConfigsResponse = rig.ask(2, replace(2, "t", &[("retention.bytes", "5")]));
    assert_eq!(response.responses[0].error_code, 0);
    let resource = ConfigResource::topic("t");
    let names: Vec<_> = rig.image.configs().of(&resource).map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["retention.bytes"]);
    let response: AlterConfigsResponse = rig.ask(2, replace(2, "nope", &[]));
    assert_eq!(response.responses[0].error_code, ErrorCode::UnknownTopicOrPartition as i16);
    let response: AlterConfigsResponse = rig.ask(2, replace(2, "", &[]));
    assert_eq!(response.responses[0].error_code, ErrorCode::InvalidRequest as i16);
}

#[test]
fn what_was_not_committed_when_leadership_went_is_refused_and_forgotten() {
    let mut rig = Rig::at(30).brokers(1);
    let request = CreateTopicsRequest { topics: vec![topic("t", 1, 1)], ..Default::default() };
    let id = rig.submit(7, request.clone());
    rig.lose();
    let response: CreateTopicsResponse = rig.take(id);
    assert_eq!(response.topics[0].error_code, ErrorCode::NotController as i16);
    let id = rig.submit(7, request.clone());
    let response: CreateTopicsResponse = rig.take(id);
    assert_eq!(response.topics[0].error_code, ErrorCode::NotController as i16, "a standby refuses at once");
    rig.win();
    let response: CreateTopicsResponse = rig.ask(7, request);
    assert_eq!(response.topics[0].error_code, 0);
}

#[test]
fn an_answer_that_rests_on_uncommitted_records_waits_for_them() {
    let mut rig = Rig::at(30).brokers(1);
    let request = CreateTopicsRequest { topics: vec![topic("t", 1, 1)], ..Default::default() };
    let first = rig.submit(7, request.clone());
    let second = rig.submit(7, request);
    assert!(rig.replies.is_empty());
    rig.commit();
    assert_eq!(rig.take::<CreateTopicsResponse>(first).topics[0].error_code, 0);
    let second = rig.take::<CreateTopicsResponse>(second);
    assert_eq!(second.topics[0].error_code, ErrorCode::TopicAlreadyExists as i16);
}

#[test]
fn an_idle_controller_writes_a_no_op_twice_a_second() {
    let mut rig = Rig::at(30);
    let before = rig.log.len();
    assert_eq!(rig.controller.next_deadline(), Some(SECOND / 2));
    rig.tick_after(SECOND / 4);
    assert_eq!(rig.log.len(), before);
    rig.tick_after(SECOND / 4);
    assert!(matches!(rig.log.last().unwrap().record, MetadataRecord::NoOp(_)));
}

proptest! {
    /// Whatever is asked, at whatever level, and whenever leadership goes: the log makes the controller's own image, and every request
    /// has one answer.
    #[test]
    fn the_committed_log_makes_the_image_that_the_controller_decides_on(
        level in 7_i16..=33,
        actions in proptest::collection::vec((0_u8..16, any::<u8>()), 1..60),
    ) {
        let mut rig = Rig::at(level).brokers(3);
        let mut asked = Vec::new();
        for (action, a) in actions {
            let name = ["t", "u", "v.w", "v_w"][usize::from(a % 4)];
            let id = i32::from(a % 3) + 1;
            match action {
                0..=3 => {
                    let request = CreateTopicsRequest {
                        topics: vec![topic(name, i32::from(a % 5), i16::from(a % 4))],
                        validate_only: a.is_multiple_of(9),
                        ..Default::default()
                    };
                    asked.push(rig.submit(7, request));
                }
                4 => {
                    let request = gregor_messages::DeleteTopicsRequest {
                        topic_names: vec![name.into()],
                        ..Default::default()
                    };
                    asked.push(rig.submit(5, request));
                }
                5 | 6 => asked.push(rig.submit(1, alter(2, name, &[("retention.ms", (a % 2) as i8, Some("7"))]))),
                7 => { rig.heartbeat(id, |request| request.want_fence = a.is_multiple_of(2)); }
                8 => { rig.heartbeat(id, |request| request.want_shut_down = a.is_multiple_of(2)); }
                9 => { rig.register(id, u128::from(a)); }
                10 => rig.tick_after(SECOND * u64::from(a % 16)),
                11 => { rig.lose(); rig.win(); }
                12 => asked.push(rig.submit(2, ElectLeadersRequest { topic_partitions: None, ..Default::default() })),
                _ => rig.commit(),
            }
        }
        rig.commit();
        prop_assert_eq!(rig.controller.image(), &rig.image);
        for id in asked {
            prop_assert!(rig.replies.contains_key(&id));
        }
        let mut again = Image::default();
        for record in &rig.log {
            again.apply(&record.record).unwrap();
            prop_assert!(rig.level().record_version(&record.record).is_some_and(|known| record.version <= known));
        }
        prop_assert_eq!(&again, &rig.image);
        for topic in again.topics().iter() {
            for (_, partition) in topic.partitions() {
                prop_assert!(!partition.isr.is_empty());
                if let Some(leader) = partition.leader {
                    prop_assert!(partition.isr.contains(&leader), "{:?}", partition);
                    prop_assert!(again.cluster().is_active(leader), "{:?}", partition);
                }
            }
        }
    }
}

#[test]
fn a_broker_that_leads_more_than_one_batch_holds_is_fenced_in_one_transaction_or_not_at_all() {
    let mut rig = Rig::at(30).brokers(2);
    for name in ["a", "b", "c"] {
        let partitions: Vec<(i32, &[i32])> = (0..5_000).map(|index| (index, &[1, 2][..])).collect();
        assert_eq!(rig.create(vec![assigned(name, &partitions)]).topics[0].error_code, 0);
    }
    let before = rig.log.len();
    let fence = BrokerHeartbeatRequest {
        broker_id: 1,
        broker_epoch: rig.epoch(1),
        current_metadata_offset: before as i64,
        want_fence: true,
        ..Default::default()
    };
    // The quorum takes the first batch only: its leader is lost then, and the next one gives up what is not whole.
    let id = rig.submit(1, fence.clone());
    rig.log.truncate(before + 10_000);
    rig.commit_without_telling();
    rig.lose();
    let response: BrokerHeartbeatResponse = rig.take(id);
    assert_eq!(response.error_code, ErrorCode::NotController as i16);
    assert!(rig.image.in_transaction());
    rig.win();
    rig.commit();
    assert!(matches!(rig.log.last().unwrap().record, MetadataRecord::AbortTransaction(_)));
    assert_eq!(rig.partition("a", 0).leader, Some(BrokerId(1)));
    assert!(!rig.image.cluster().broker(BrokerId(1)).unwrap().fenced);

    let before = rig.log.len();
    let response: BrokerHeartbeatResponse = rig.ask(1, fence);
    assert!(response.is_fenced);
    assert_eq!(rig.log.len() - before, 15_003);
    assert!(matches!(rig.log[before].record, MetadataRecord::BeginTransaction(_)));
    assert!(matches!(rig.log.last().unwrap().record, MetadataRecord::EndTransaction(_)));
    assert_eq!(rig.partition("c", 4_999).leader, Some(BrokerId(2)));
    assert!(rig.image.cluster().broker(BrokerId(1)).unwrap().fenced);
}

#[test]
fn a_registration_that_takes_several_batches_has_its_offset_for_an_epoch_all_the_same() {
    for level in [12, 30] {
        let mut rig = Rig::at(level).brokers(2);
        for name in ["a", "b", "c"] {
            let partitions: Vec<(i32, &[i32])> = (0..5_000).map(|index| (index, &[1, 2][..])).collect();
            rig.create(vec![assigned(name, &partitions)]);
        }
        let before = rig.log.len();
        rig.now += 10 * SECOND;
        let response = rig.register(1, 99);
        let begins = i64::from(level >= 13);
        assert_eq!(response.broker_epoch, before as i64 + begins, "older levels have no transactions");
        let at = usize::try_from(response.broker_epoch).unwrap();
        assert!(matches!(rig.log[at].record, MetadataRecord::RegisterBroker(_)));
        assert_eq!(rig.partition("c", 4_999).leader, Some(BrokerId(2)));
    }
}

#[test]
fn a_standby_ignores_time() {
    let mut rig = Rig::at(30);
    rig.lose();
    let before = rig.log.len();
    rig.now += 60 * SECOND;
    rig.step(Input::Tick);
    assert_eq!((rig.log.len(), rig.controller.next_deadline()), (before, None));
}
