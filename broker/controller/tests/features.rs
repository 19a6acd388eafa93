//! Finalized feature levels go up as far as every node serves them, and down as far as nothing is lost.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, SET, alter, assert_error, assigned};
use gregor_controller::{Input, Refusal};
use gregor_messages::{
    ControllerRegistrationRequest, ControllerRegistrationResponse, IncrementalAlterConfigsResponse,
    UpdateFeaturesRequest, UpdateFeaturesResponse, broker_registration_request, controller_registration_request,
    update_features_request::FeatureUpdateKey,
};
use gregor_metadata::{ConfigResource, Image, MetadataVersion};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{ErrorCode, Uuid};

const UPGRADE: i8 = 1;
const SAFE: i8 = 2;
const UNSAFE: i8 = 3;
const METADATA: &str = "metadata.version";
const KRAFT: &str = "kraft.version";
const ELR: &str = "eligible.leader.replicas.version";

fn update(rig: &mut Rig, version: i16, updates: &[(&str, i16, i8)], validate_only: bool) -> UpdateFeaturesResponse {
    let key = |(feature, level, upgrade_type): &(&str, i16, i8)| FeatureUpdateKey {
        feature: (*feature).into(),
        max_version_level: *level,
        upgrade_type: *upgrade_type,
        ..Default::default()
    };
    let feature_updates = updates.iter().map(key).collect();
    rig.ask(version, UpdateFeaturesRequest { feature_updates, validate_only, ..Default::default() })
}

#[track_caller]
fn refused(rig: &mut Rig, update_of: (&str, i16, i8), words: &str) {
    let before = rig.log.len();
    let response = update(rig, 2, &[update_of], false);
    let message = response.error_message.as_ref();
    assert_error(response.error_code, message, ErrorCode::InvalidUpdateVersion, words);
    assert_error(response.error_code, message, ErrorCode::InvalidUpdateVersion, "The update failed for all features");
    assert_eq!(rig.log.len(), before);
}

#[test]
fn metadata_version_goes_up_and_records_follow_it() {
    let mut rig = Rig::at(16).brokers(1);
    let response = update(&mut rig, 1, &[(METADATA, 30, UPGRADE)], true);
    assert_eq!((response.error_code, rig.level().level()), (0, 16), "only asked whether it would work");
    let response = update(&mut rig, 1, &[(METADATA, 30, UPGRADE)], false);
    assert_eq!((response.error_code, response.results.len(), rig.level().level()), (0, 1, 30));
    rig.register(2, 2);
    let registration = rig.log.iter().rev().find(|one| matches!(one.record, MetadataRecord::RegisterBroker(_)));
    assert_eq!(registration.unwrap().version, 4);
    let before = rig.log.len();
    let response = update(&mut rig, 2, &[(METADATA, 30, UPGRADE)], false);
    assert_eq!((response.error_code, response.results.len(), rig.log.len()), (0, 0, before), "it is there already");
}

#[test]
fn metadata_version_goes_down_only_as_far_as_nothing_is_lost() {
    let mut rig = Rig::at(29).brokers(1);
    refused(&mut rig, (METADATA, 28, UPGRADE), "Can't downgrade the version of this feature without setting");
    refused(&mut rig, (METADATA, 30, SAFE), "Can't downgrade to a newer version.");
    refused(
        &mut rig,
        (METADATA, 22, SAFE),
        "Unsupported metadata.version downgrade from 29 to 22. Refusing to perform",
    );
    refused(&mut rig, (METADATA, 22, UNSAFE), "Unsafe metadata downgrade is not supported in this version.");
    refused(&mut rig, (METADATA, 6, SAFE), "Local controller 1 only supports versions 7-33");
    refused(&mut rig, (METADATA, -1, SAFE), "A feature version cannot be less than 0.");
    refused(&mut rig, (METADATA, 28, 7), "The controller does not support the given upgrade type.");
    let response = update(&mut rig, 2, &[(METADATA, 23, SAFE)], false);
    assert_eq!((response.error_code, rig.level().level()), (0, 23), "23 itself holds what it brought");
}

/// Controller 7 serves levels up to this one.
fn register_controller(rig: &mut Rig, max_supported_version: i16) {
    let feature = controller_registration_request::Feature {
        name: METADATA.into(),
        min_supported_version: 7,
        max_supported_version,
        ..Default::default()
    };
    let request = ControllerRegistrationRequest { controller_id: 7, features: vec![feature], ..Default::default() };
    let response: ControllerRegistrationResponse = rig.ask(0, request);
    assert_eq!(response.error_code, 0);
}

/// A cluster that has of everything that its level may hold and later ones brought.
fn with_everything(level: i16) -> Rig {
    let mut rig = if level >= 23 { Rig::with_elr(level, "min.insync.replicas=2\n") } else { Rig::at(level) };
    rig = rig.brokers(2);
    if level >= 15 {
        register_controller(&mut rig, 33);
    }
    let created = rig.create(vec![assigned("t", &[(0, &[1, 2]), (1, &[2, 1])])]);
    assert_eq!(created.topics[0].error_code, 0);
    rig.heartbeat(1, |request| request.cordoned_log_dirs = Some(vec![Uuid(1001)]));
    rig.heartbeat(2, |request| request.want_fence = true);
    let alteration = alter(16, "m", &[("metrics", SET, Some("a."))]);
    let response: IncrementalAlterConfigsResponse = rig.ask(1, alteration);
    assert_eq!(response.responses[0].error_code, 0);
    rig
}

#[test]
fn no_downgrade_leaves_anything_that_its_records_cannot_say() {
    let (mut done, mut refused) = (0, 0);
    let levels = || MetadataVersion::all().map(MetadataVersion::level).filter(|level| (7..=33).contains(level));
    for (from, to) in levels().flat_map(|from| levels().filter(move |to| *to < from).map(move |to| (from, to))) {
        let mut rig = with_everything(from);
        let before = rig.log.len();
        if update(&mut rig, 2, &[(METADATA, to, SAFE)], false).error_code != 0 {
            assert_eq!((rig.log.len(), rig.level().level()), (before, from));
            refused += 1;
            continue;
        }
        assert_eq!(rig.level().level(), to);
        let mut copy = Image::default();
        rig.image.write_snapshot(|record| {
            let bytes = record.record.encode_framed(record.version).unwrap();
            copy.apply(&MetadataRecord::decode_framed(bytes).unwrap()).unwrap();
        });
        assert_eq!(copy.topics(), rig.image.topics(), "from {from} to {to}");
        assert_eq!(copy.cluster(), rig.image.cluster(), "from {from} to {to}");
        assert_eq!(copy.configs(), rig.image.configs(), "from {from} to {to}");
        done += 1;
    }
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused");
}

#[test]
fn no_level_is_finalized_that_a_node_does_not_serve() {
    let mut rig = Rig::at(29).brokers(1);
    rig.register_with(2, 2, |request| request.features[0].max_supported_version = 30);
    refused(&mut rig, (METADATA, 31, UPGRADE), "Broker 2 only supports versions 7-30");
    register_controller(&mut rig, 29);
    refused(&mut rig, (METADATA, 30, UPGRADE), "Controller 7 only supports versions 7-29");
    register_controller(&mut rig, 30);
    assert_eq!(update(&mut rig, 2, &[(METADATA, 30, UPGRADE)], false).error_code, 0);
    refused(&mut rig, ("share.version", 1, UPGRADE), "Local controller 1 does not support this feature.");
    refused(&mut rig, (KRAFT, 1, UPGRADE), "Broker 1 does not support this feature.");
}

/// A cluster of one broker that serves both versions of the quorum.
fn with_kraft(level: i16) -> Rig {
    let mut rig = Rig::at(level);
    let feature = broker_registration_request::Feature {
        name: KRAFT.into(),
        min_supported_version: 0,
        max_supported_version: 1,
        ..Default::default()
    };
    assert_eq!(rig.register_with(1, 1, |request| request.features.push(feature)).error_code, 0);
    rig
}

#[test]
fn kraft_version_is_the_quorums_to_finalize_and_the_answer_waits_for_its_commit() {
    let mut rig = with_kraft(29);
    rig.quorum_says = Some(Ok(()));
    let before = rig.log.len();
    assert_eq!(update(&mut rig, 2, &[(KRAFT, 1, UPGRADE)], true).error_code, 0);
    assert_eq!(rig.log.len(), before, "only asked whether it would work");
    let key = |feature: &str, max_version_level| FeatureUpdateKey {
        feature: feature.into(),
        max_version_level,
        upgrade_type: UPGRADE,
        ..Default::default()
    };
    let feature_updates = vec![key(KRAFT, 1), key(METADATA, 30)];
    let id = rig.submit(2, UpdateFeaturesRequest { feature_updates, ..Default::default() });
    assert_eq!(rig.log.len(), before + 2, "the quorum's record, and the other feature's behind it");
    assert!(rig.replies.is_empty(), "nothing is committed yet");
    rig.commit();
    assert_eq!(rig.take::<UpdateFeaturesResponse>(id).error_code, 0);
    assert_eq!(rig.level().level(), 30);
    let id = rig.submit(2, UpdateFeaturesRequest { feature_updates: vec![key(KRAFT, 1)], ..Default::default() });
    assert!(rig.replies.is_empty(), "no metadata record, and yet something to wait for");
    rig.commit();
    assert_eq!(rig.take::<UpdateFeaturesResponse>(id).error_code, 0);
}

#[test]
fn the_quorum_is_asked_for_a_higher_kraft_version_only_and_where_all_else_is_well() {
    let mut rig = with_kraft(29);
    // Whoever asks the quorum in this test is caught by the rig.
    let response = update(&mut rig, 2, &[(KRAFT, 1, UPGRADE), ("share.version", 1, UPGRADE)], false);
    assert_eq!(ErrorCode::from(response.error_code), ErrorCode::InvalidUpdateVersion);
    refused(&mut rig, (KRAFT, 2, UPGRADE), "Local controller 1 only supports versions 0-1");
    refused(&mut rig, (KRAFT, 1, SAFE), "Can't downgrade to a newer version.");
    rig.step(Input::KRaftVersion(1));
    assert_eq!(update(&mut rig, 2, &[(KRAFT, 1, UPGRADE)], false).error_code, 0, "it is there already");
    refused(&mut rig, (KRAFT, 0, UPGRADE), "Can't downgrade the version of this feature without setting");
    refused(&mut rig, (KRAFT, 0, UNSAFE), "Can't downgrade the version of this feature.");
}

#[test]
fn what_the_quorum_says_against_an_upgrade_is_told() {
    let mut rig = with_kraft(29);
    rig.quorum_says = Some(Err(Refusal::new(ErrorCode::InvalidUpdateVersion, "voter 3 was not heard of")));
    refused(&mut rig, (KRAFT, 1, UPGRADE), "voter 3 was not heard of");
    let response = update(&mut rig, 2, &[(KRAFT, 1, UPGRADE), (METADATA, 30, UPGRADE)], false);
    assert_eq!(ErrorCode::from(response.error_code), ErrorCode::InvalidUpdateVersion);
    assert_eq!(rig.level().level(), 29, "all of them happen, or none");
}

#[test]
fn one_that_cannot_be_keeps_all_others_from_being() {
    let mut rig = Rig::at(29).brokers(1);
    let response = update(&mut rig, 2, &[(METADATA, 30, UPGRADE), ("share.version", 1, UPGRADE)], false);
    assert_error(
        response.error_code,
        response.error_message.as_ref(),
        ErrorCode::InvalidUpdateVersion,
        "Invalid update version 1 for feature share.version.",
    );
    assert_eq!(rig.level().level(), 29);
}

#[test]
fn a_new_cluster_with_eligible_leader_replicas_begins_with_one_number_for_all() {
    let rig = Rig::with_elr(30, "min.insync.replicas=2\n");
    let number = rig.image.configs().get(&ConfigResource::all_brokers(), "min.insync.replicas");
    assert_eq!(number.map(ToString::to_string).as_deref(), Some("2"));
    let [.., config, end] = &rig.log[..] else { panic!("{:?}", rig.log) };
    let as_one =
        matches!(config.record, MetadataRecord::Config(_)) && matches!(end.record, MetadataRecord::EndTransaction(_));
    assert!(as_one, "it comes with the feature or not at all: {:?}", rig.log);
    let rig = Rig::at(30);
    assert_eq!(rig.image.configs().get(&ConfigResource::all_brokers(), "min.insync.replicas"), None);
}

#[test]
fn eligible_leader_replicas_need_a_level_that_holds_them_and_one_number_for_all() {
    let mut rig = Rig::with(22, "min.insync.replicas=2\n").brokers(2);
    refused(&mut rig, (ELR, 1, UPGRADE), "could not be set to 1 because it depends on metadata.version level 23");
    let change = alter(4, "2", &[("min.insync.replicas", SET, Some("1"))]);
    let _: IncrementalAlterConfigsResponse = rig.ask(1, change);
    let response = update(&mut rig, 2, &[(METADATA, 23, UPGRADE), (ELR, 1, UPGRADE)], false);
    assert_eq!(response.error_code, 0, "{response:?}");
    assert!(rig.image.features().has_eligible_leader_replicas());
    let configs = rig.image.configs();
    assert_eq!(configs.get(&ConfigResource::all_brokers(), "min.insync.replicas").unwrap(), &"2");
    let own = ConfigResource::new(gregor_metadata::ResourceType::Broker, "2");
    assert_eq!(configs.get(&own, "min.insync.replicas"), None);
    assert_eq!(update(&mut rig, 2, &[(ELR, 0, SAFE)], false).error_code, 0);
    assert!(!rig.image.features().has_eligible_leader_replicas());
}
