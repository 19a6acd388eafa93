//! Controllers as the metadata knows them: they register, are configured like brokers, and are taken out once they are gone.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, SET, alter, assert_error, topic};
use gregor_controller::{Effect, Effects, Input, RequestId};
use gregor_messages::{
    ControllerRegistrationRequest, ControllerRegistrationResponse, CreateTopicsRequest,
    IncrementalAlterConfigsResponse, UnregisterControllerRequest, UnregisterControllerResponse,
};
use gregor_metadata::{ConfigResource, ResourceType};
use gregor_types::{BrokerId, ErrorCode, Offset};

fn register(rig: &mut Rig, controller_id: i32) {
    let request = ControllerRegistrationRequest { controller_id, ..Default::default() };
    let response: ControllerRegistrationResponse = rig.ask(0, request);
    assert_eq!(response.error_code, 0, "{:?}", response.error_message);
}

fn unregister(rig: &mut Rig, controller_id: i32) -> UnregisterControllerResponse {
    rig.ask(0, UnregisterControllerRequest { controller_id, ..Default::default() })
}

#[track_caller]
fn refused(rig: &mut Rig, controller_id: i32, error: ErrorCode, words: &str) {
    let before = rig.log.len();
    let response = unregister(rig, controller_id);
    assert_error(response.error_code, response.error_message.as_ref(), error, words);
    assert_eq!(rig.log.len(), before);
}

#[test]
fn a_controller_that_is_gone_is_unregistered_once() {
    let mut rig = Rig::at(33);
    register(&mut rig, 1);
    register(&mut rig, 7);
    let response = unregister(&mut rig, 7);
    assert_eq!((response.error_code, response.error_message), (0, None));
    let left: Vec<_> = rig.image.cluster().controllers().map(|controller| controller.id).collect();
    assert_eq!(left, [BrokerId(1)]);
    refused(&mut rig, 7, ErrorCode::ControllerIdNotRegistered, "Controller ID 7 is not currently registered.");
    register(&mut rig, 7);
    assert_eq!(rig.image.cluster().controllers().count(), 2, "it may come back");
}

#[test]
fn who_decides_is_not_unregistered_nor_anybody_where_others_could_not_read_that() {
    let mut rig = Rig::at(33);
    register(&mut rig, 1);
    refused(&mut rig, 1, ErrorCode::InvalidRequest, "cannot unregister itself");
    let mut rig = Rig::at(32);
    register(&mut rig, 7);
    refused(&mut rig, 7, ErrorCode::UnsupportedVersion, "too old to support controller unregistration");
}

#[test]
fn a_controller_has_a_configuration_of_its_own() {
    let mut rig = Rig::at(30);
    let change = alter(4, "7", &[("log.retention.ms", SET, Some("1000"))]);
    let response: IncrementalAlterConfigsResponse = rig.ask(1, change.clone());
    let refused = &response.responses[0];
    let message = refused.error_message.as_ref();
    assert_error(refused.error_code, message, ErrorCode::BrokerIdNotRegistered, "No node with id 7 found.");
    register(&mut rig, 7);
    let response: IncrementalAlterConfigsResponse = rig.ask(1, change);
    assert_eq!(response.responses[0].error_code, 0);
    let resource = ConfigResource::new(ResourceType::Broker, "7");
    assert_eq!(rig.image.configs().get(&resource, "log.retention.ms").unwrap(), &"1000");
}

#[test]
fn a_broker_is_told_again_what_it_has_and_a_topic_is_not() {
    let mut rig = Rig::at(30).brokers(1);
    rig.create(vec![topic("t", 1, 1)]);
    let place = ("listener.name.plaintext.ssl.keystore.location", SET, Some("/keys/new.pem"));
    let retention = ("retention.ms", SET, Some("1000"));
    for (resource_type, name, operation, records) in [(4, "1", place, 1), (2, "t", retention, 0)] {
        let mut written = 0;
        for _ in 0..2 {
            let before = rig.log.len();
            let response: IncrementalAlterConfigsResponse = rig.ask(1, alter(resource_type, name, &[operation]));
            assert_eq!(response.responses[0].error_code, 0, "{response:?}");
            written = rig.log.len() - before;
        }
        assert_eq!(written, records, "the second time, as key stores may have been replaced in their places");
    }
}

#[test]
fn what_was_decided_and_not_appended_goes_with_the_leadership() {
    let mut rig = Rig::at(30).brokers(1);
    let mut effects = Effects::default();
    let (end, mut seed) = (Offset(rig.log.len() as i64), 0);
    let mut random = || {
        seed += 1;
        seed
    };
    let request = CreateTopicsRequest { topics: vec![topic("t", 1, 1)], ..Default::default() };
    let input = Input::Request { id: RequestId(1_000), version: 7, request: request.into() };
    rig.controller.step(input, end, rig.now, &mut random, &mut effects);
    rig.controller.step(Input::LeadershipLost, end, rig.now, &mut random, &mut effects);
    let left: Vec<_> = std::iter::from_fn(|| effects.pop()).collect();
    assert!(matches!(left.as_slice(), [Effect::Reply { to: RequestId(1_000), .. }]), "{left:?}");
}
