//! Eligible leader replicas (KIP-966): when fewer are in sync than an acknowledgement needs, who left last with everything may still
//! lead, and who may have lost something may not.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{DELETE, Rig, SECOND, SET, alter, alter_isr, assert_error, assigned, ids};
use gregor_messages::{
    IncrementalAlterConfigsResponse, UnregisterBrokerRequest, UnregisterBrokerResponse, UpdateFeaturesRequest,
    UpdateFeaturesResponse, update_features_request::FeatureUpdateKey,
};
use gregor_metadata::{LeaderRecoveryState, Partition};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{BrokerId, ErrorCode};

/// Three brokers, and a partition on all of them that needs two in sync.
fn settled() -> Rig {
    let mut rig = Rig::with_elr(30, "min.insync.replicas=2\n").brokers(3);
    rig.create(vec![assigned("t", &[(0, &[1, 2, 3])])]);
    rig
}

fn fence(rig: &mut Rig, ids: &[i32]) {
    for id in ids {
        rig.heartbeat(*id, |request| request.want_fence = true);
    }
}

/// A new process of a fenced broker registers, which knows what its predecessor was only if that one stopped in peace.
fn restart(rig: &mut Rig, id: i32, in_peace: bool) {
    rig.now += 10 * SECOND;
    let previous = if in_peace { rig.epoch(id) } else { -1 };
    let incarnation = u128::from(rig.now) + u128::from(id.unsigned_abs());
    let response = rig.register_with(id, incarnation, |request| request.previous_broker_epoch = previous);
    assert_eq!(response.error_code, 0);
}

/// The same with a second partition on brokers 2 and 3, which are away; nobody leads that one when the feature is given up.
fn without_the_feature_since_nobody_leads_u() -> Rig {
    let mut rig = settled();
    rig.create(vec![assigned("u", &[(0, &[2, 3])])]);
    fence(&mut rig, &[3, 2]);
    assert_eq!(state(&rig).1, ids(&[2]));
    let off = FeatureUpdateKey {
        feature: "eligible.leader.replicas.version".into(),
        max_version_level: 0,
        upgrade_type: 2,
        ..Default::default()
    };
    let request = UpdateFeaturesRequest { feature_updates: vec![off], ..Default::default() };
    let response: UpdateFeaturesResponse = rig.ask(2, request);
    assert_eq!(response.error_code, 0, "{response:?}");
    rig
}

/// In sync, eligible, who led last, and who leads.
fn state(rig: &Rig) -> (Vec<BrokerId>, Vec<BrokerId>, Vec<BrokerId>, Option<i32>) {
    let Partition { isr, elr, last_known_elr, leader, .. } = rig.partition("t", 0);
    (isr, elr, last_known_elr, leader.map(BrokerId::value))
}

#[test]
fn who_leaves_when_too_few_are_in_sync_stays_eligible_until_there_are_enough() {
    let mut rig = settled();
    fence(&mut rig, &[3]);
    assert_eq!(
        state(&rig),
        (ids(&[1, 2]), vec![], vec![], Some(1)),
        "two are enough: the third may miss records from now on"
    );
    fence(&mut rig, &[2]);
    assert_eq!(state(&rig), (ids(&[1]), ids(&[2]), vec![], Some(1)));
    fence(&mut rig, &[1]);
    assert_eq!(state(&rig), (vec![], ids(&[1, 2]), ids(&[1]), None));

    // The third was not in sync when the others still acknowledged.
    rig.heartbeat(3, |_| ());
    assert_eq!(state(&rig), (vec![], ids(&[1, 2]), ids(&[1]), None));
    rig.heartbeat(2, |_| ());
    assert_eq!(state(&rig), (ids(&[2]), ids(&[1]), vec![], Some(2)));
    assert_eq!(rig.partition("t", 0).leader_recovery, LeaderRecoveryState::Recovered);
    rig.heartbeat(1, |_| ());
    assert_eq!(alter_isr(&mut rig, |_| ()).0, ErrorCode::None);
    assert_eq!(state(&rig), (ids(&[1, 2]), vec![], vec![], Some(2)), "enough again: nobody else is needed");
}

#[test]
fn a_leader_that_shrinks_its_isr_leaves_the_others_eligible() {
    let mut rig = settled();
    assert_eq!(alter_isr(&mut rig, |_| ()).0, ErrorCode::None);
    assert_eq!(alter_isr(&mut rig, |data| data.new_isr_with_epochs.truncate(1)).0, ErrorCode::None);
    assert_eq!(state(&rig), (ids(&[1]), ids(&[2]), vec![], Some(1)));
}

#[test]
fn who_stopped_in_peace_stays_eligible_and_who_died_does_not() {
    for in_peace in [true, false] {
        let mut rig = settled();
        fence(&mut rig, &[3, 2, 1]);
        restart(&mut rig, 2, in_peace);
        let eligible = if in_peace { ids(&[1, 2]) } else { ids(&[1]) };
        assert_eq!(state(&rig), (vec![], eligible, ids(&[1]), None));
        rig.heartbeat(2, |_| ());
        assert_eq!(state(&rig).3, in_peace.then_some(2));
    }
}

#[test]
fn a_broker_that_died_in_the_isr_is_not_in_sync_when_it_is_back() {
    let mut rig = settled();
    rig.now += 10 * SECOND;
    let response = rig.register(1, 99);
    assert_eq!(response.error_code, 0);
    assert_eq!(state(&rig), (ids(&[2, 3]), vec![], vec![], Some(2)));
    let mut alone = Rig::with_elr(30, "").brokers(2);
    alone.create(vec![assigned("t", &[(0, &[1])])]);
    alone.now += 10 * SECOND;
    alone.register(1, 99);
    assert_eq!(state(&alone), (vec![], vec![], ids(&[1]), None), "it may have lost records that were acknowledged");
    alone.heartbeat(1, |_| ());
    assert_eq!(state(&alone), (ids(&[1]), vec![], vec![], Some(1)), "nobody else has more");
    assert_eq!(alone.partition("t", 0).leader_recovery, LeaderRecoveryState::Recovering);
}

#[test]
fn the_last_leader_leads_when_nobody_is_eligible_and_nobody_else_does() {
    let mut rig = settled();
    fence(&mut rig, &[3, 2, 1]);
    restart(&mut rig, 1, false);
    restart(&mut rig, 2, false);
    assert_eq!(state(&rig), (vec![], vec![], ids(&[1]), None));
    rig.heartbeat(2, |_| ());
    rig.heartbeat(3, |_| ());
    assert_eq!(state(&rig).3, None);
    rig.heartbeat(1, |_| ());
    assert_eq!(state(&rig), (ids(&[1]), vec![], vec![], Some(1)));
    assert_eq!(rig.partition("t", 0).leader_recovery, LeaderRecoveryState::Recovering);
}

#[test]
fn an_unclean_leader_makes_nobody_eligible() {
    let mut rig = settled();
    let allow = alter(2, "t", &[("unclean.leader.election.enable", SET, Some("true"))]);
    let _: IncrementalAlterConfigsResponse = rig.ask(1, allow);
    fence(&mut rig, &[3, 2]);
    rig.heartbeat(3, |_| ());
    fence(&mut rig, &[1]);
    assert_eq!(state(&rig), (ids(&[3]), vec![], vec![], Some(3)));
    assert_eq!(rig.partition("t", 0).leader_recovery, LeaderRecoveryState::Recovering);
}

#[test]
fn a_broker_that_is_gone_for_good_is_not_eligible() {
    let mut rig = settled();
    fence(&mut rig, &[3, 2, 1]);
    let response: UnregisterBrokerResponse = rig.ask(0, UnregisterBrokerRequest { broker_id: 2, ..Default::default() });
    assert_eq!(response.error_code, 0);
    assert_eq!(state(&rig), (vec![], ids(&[1]), ids(&[1]), None));
}

#[test]
fn who_is_eligible_is_forgotten_when_another_number_has_to_be_in_sync() {
    let mut rig = settled();
    fence(&mut rig, &[3, 2]);
    assert_eq!(state(&rig).1, ids(&[2]));
    let before = rig.partition("t", 0);
    let change = alter(2, "t", &[("min.insync.replicas", SET, Some("1"))]);
    let _: IncrementalAlterConfigsResponse = rig.ask(1, change);
    let after = rig.partition("t", 0);
    assert_eq!(after.partition_epoch, before.partition_epoch + 1, "it is a change like any other");
    assert_eq!(after.leader_epoch, before.leader_epoch);
    assert_eq!(state(&rig), (ids(&[1]), vec![], vec![], Some(1)));
    let last = &rig.log.last().unwrap().record;
    assert!(matches!(last, MetadataRecord::ClearElr(clear) if clear.topic_name == "t"), "{last:?}");

    let mut refused = |name: &str, operation: i8, words: &str| {
        let change = alter(4, name, &[("min.insync.replicas", operation, Some("3"))]);
        let response: IncrementalAlterConfigsResponse = rig.ask(1, change);
        let response = &response.responses[0];
        assert_error(response.error_code, response.error_message.as_ref(), ErrorCode::InvalidConfig, words);
    };
    let all = alter(4, "", &[("min.insync.replicas", SET, Some("3"))]);
    refused("1", SET, "Broker-level min.insync.replicas cannot be altered while ELR is enabled.");
    let response: IncrementalAlterConfigsResponse = rig.ask(1, all);
    assert_eq!(response.responses[0].error_code, 0);
    let last = &rig.log.last().unwrap().record;
    assert!(matches!(last, MetadataRecord::ClearElr(clear) if clear.topic_name.is_empty()), "{last:?}");
    let remove = alter(4, "", &[("min.insync.replicas", DELETE, None)]);
    let response: IncrementalAlterConfigsResponse = rig.ask(1, remove);
    let response = &response.responses[0];
    let words = "Cluster-level min.insync.replicas cannot be removed while ELR is enabled.";
    assert_error(response.error_code, response.error_message.as_ref(), ErrorCode::InvalidConfig, words);
}

#[test]
fn who_may_lead_what_nobody_leads_is_not_forgotten_when_another_number_has_to_be_in_sync() {
    for (resource_type, name) in [(2, "t"), (4, "")] {
        let mut rig = settled();
        fence(&mut rig, &[3, 2, 1]);
        let before = (vec![], ids(&[1, 2]), ids(&[1]), None);
        assert_eq!(state(&rig), before);
        for value in ["3", "1"] {
            let change = alter(resource_type, name, &[("min.insync.replicas", SET, Some(value))]);
            let response: IncrementalAlterConfigsResponse = rig.ask(1, change);
            assert_eq!(response.responses[0].error_code, 0);
            assert_eq!(state(&rig), before, "nothing was acknowledged meanwhile");
        }
        rig.heartbeat(2, |_| ());
        assert_eq!(state(&rig), (ids(&[2]), vec![], vec![], Some(2)));
    }
}

#[test]
fn who_is_eligible_is_forgotten_with_the_feature_but_where_nobody_leads() {
    let mut rig = without_the_feature_since_nobody_leads_u();
    assert_eq!(state(&rig), (ids(&[1]), vec![], vec![], Some(1)), "nobody would keep them up to date");
    let leaderless = rig.partition("u", 0);
    assert_eq!((leaderless.isr, leaderless.elr, leaderless.leader), (vec![], ids(&[2, 3]), None));
    rig.heartbeat(3, |_| ());
    let led = rig.partition("u", 0);
    let nobody = (vec![], vec![]);
    assert_eq!((led.isr, led.leader, (led.elr, led.last_known_elr)), (ids(&[3]), Some(BrokerId(3)), nobody));
}

#[test]
fn who_led_last_may_lead_without_the_feature_too_what_had_nobody_in_sync_then() {
    let mut rig = without_the_feature_since_nobody_leads_u();
    restart(&mut rig, 3, false);
    restart(&mut rig, 2, false);
    rig.heartbeat(3, |_| ());
    let leaderless = rig.partition("u", 0);
    assert_eq!((leaderless.elr, leaderless.leader, leaderless.last_known_elr), (vec![], None, ids(&[2])));
    rig.heartbeat(2, |_| ());
    let led = rig.partition("u", 0);
    assert_eq!((led.isr, led.leader_recovery), (ids(&[2]), LeaderRecoveryState::Recovering));
}

#[test]
fn without_the_feature_nobody_is_eligible_and_the_last_in_sync_replica_stays() {
    let mut rig = Rig::with(30, "min.insync.replicas=2\n").brokers(3);
    rig.create(vec![assigned("t", &[(0, &[1, 2, 3])])]);
    fence(&mut rig, &[3, 2, 1]);
    assert_eq!(state(&rig), (ids(&[1]), vec![], vec![], None));
    restart(&mut rig, 1, false);
    rig.heartbeat(1, |_| ());
    assert_eq!(state(&rig), (ids(&[1]), vec![], vec![], Some(1)));
}
