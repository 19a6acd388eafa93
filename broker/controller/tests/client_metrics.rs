//! Client metrics subscriptions (KIP-714) as configurations: kept if every value may be, changed and gone like any other. And what has no
//! configuration that could be kept.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{APPEND, DELETE, Rig, SET, SUBTRACT, alter, assert_error, replace};
use gregor_messages::{AlterConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};
use gregor_metadata::{ConfigResource, ResourceType};
use gregor_types::ErrorCode;

const BROKER_LOGGER: i8 = 8;
const CLIENT_METRICS: i8 = 16;

fn subscription(name: &str) -> ConfigResource {
    ConfigResource::new(ResourceType::ClientMetrics, name)
}

/// What is kept of a subscription, as key=value.
fn kept(rig: &Rig, name: &str) -> Vec<String> {
    rig.image.configs().of(&subscription(name)).map(|(key, value)| format!("{key}={value}")).collect()
}

#[track_caller]
fn accepted(rig: &mut Rig, request: IncrementalAlterConfigsRequest) {
    let response: IncrementalAlterConfigsResponse = rig.ask(1, request);
    assert_eq!(response.responses[0].error_code, 0, "{:?}", response.responses[0].error_message);
}

#[track_caller]
fn refused(rig: &mut Rig, request: IncrementalAlterConfigsRequest, error: ErrorCode, words: &str) {
    let before = rig.log.len();
    let response: IncrementalAlterConfigsResponse = rig.ask(1, request);
    let answer = &response.responses[0];
    assert_error(answer.error_code, answer.error_message.as_ref(), error, words);
    assert_eq!(rig.log.len(), before, "nothing of it is kept");
}

#[test]
fn a_subscription_is_made_changed_and_gone() {
    let mut rig = Rig::at(30);
    let patterns = "client_software_name = apache-kafka-java, client_id=orders-[0-9]+";
    let values = [("interval.ms", SET, Some("100")), ("match", SET, Some(patterns)), ("metrics", SET, Some("*"))];
    accepted(&mut rig, alter(CLIENT_METRICS, "m", &values));
    assert_eq!(kept(&rig, "m"), ["interval.ms=100".to_owned(), format!("match={patterns}"), "metrics=*".to_owned()]);
    accepted(&mut rig, alter(CLIENT_METRICS, "m", &[("interval.ms", SET, Some("3600000")), ("match", DELETE, None)]));
    assert_eq!(kept(&rig, "m"), ["interval.ms=3600000", "metrics=*"]);
    accepted(&mut rig, alter(CLIENT_METRICS, "m", &[("metrics", SET, Some("a.,b."))]));
    accepted(&mut rig, alter(CLIENT_METRICS, "m", &[("metrics", APPEND, Some("c."))]));
    accepted(&mut rig, alter(CLIENT_METRICS, "m", &[("metrics", SUBTRACT, Some("a."))]));
    assert_eq!(kept(&rig, "m"), ["interval.ms=3600000", "metrics=b.,c."]);
    let whole: AlterConfigsResponse = rig.ask(2, replace(CLIENT_METRICS, "m", &[("metrics", "")]));
    assert_eq!(whole.responses[0].error_code, 0, "nothing may be asked for");
    assert_eq!(kept(&rig, "m"), ["metrics="]);
    let only_asked = alter(CLIENT_METRICS, "other", &[("metrics", SET, Some("a."))]);
    accepted(&mut rig, IncrementalAlterConfigsRequest { validate_only: true, ..only_asked });
    accepted(&mut rig, alter(CLIENT_METRICS, "m", &[("metrics", DELETE, None)]));
    assert_eq!(rig.image.configs().resources().count(), 0, "who has no values is not there");
}

#[test]
fn a_value_that_no_broker_could_use_is_refused() {
    use ErrorCode::{InvalidConfig, InvalidRequest};
    let mut rig = Rig::at(30);
    let cases = [
        ("push.interval", "1000", InvalidRequest, "Unknown client metrics configuration: push.interval"),
        (
            "interval.ms",
            "99",
            InvalidRequest,
            "Invalid value 99 for interval.ms, interval must be between 100 and 3600000",
        ),
        ("interval.ms", "3600001", InvalidRequest, "must be between 100 and 3600000 (1 hour)"),
        ("interval.ms", "often", InvalidConfig, "Invalid value often for configuration interval.ms"),
        ("metrics", "a.,,b.", InvalidConfig, "Configuration 'metrics' values must not be empty."),
        ("metrics", "a., a.", InvalidConfig, "Configuration 'metrics' values must not be duplicated."),
        ("match", "orders", InvalidConfig, "Illegal client matching pattern: orders."),
        ("match", "client_id=", InvalidConfig, "Illegal client matching pattern: client_id=."),
        ("match", "client_id=a=b", InvalidConfig, "Illegal client matching pattern: client_id=a=b."),
        (
            "match",
            "client_id=a,host=b",
            InvalidConfig,
            "Illegal client matching pattern: host=b. Give one of client_instance_id,",
        ),
        ("match", "client_id=(", InvalidConfig, "Illegal client matching pattern: client_id=(."),
        ("match", "client_id=(?=a)b", InvalidConfig, "Illegal client matching pattern"),
        ("match", "client_id=((x{1000}){1000}){1000}", InvalidConfig, "Illegal client matching pattern"),
    ];
    for (key, value, error, words) in cases {
        refused(&mut rig, alter(CLIENT_METRICS, "m", &[(key, SET, Some(value))]), error, words);
    }
    let no_list = alter(CLIENT_METRICS, "m", &[("interval.ms", APPEND, Some("1"))]);
    refused(&mut rig, no_list, InvalidConfig, "its type is not LIST");
    let nameless = alter(CLIENT_METRICS, "", &[("metrics", SET, Some("a."))]);
    refused(&mut rig, nameless, InvalidRequest, "Subscription name can't be empty");
    assert_eq!(kept(&rig, "m"), Vec::<String>::new());
}

#[test]
fn loggers_and_resources_that_nobody_knows_have_no_configuration_to_keep() {
    let mut rig = Rig::at(30).brokers(1);
    let level = alter(BROKER_LOGGER, "1", &[("root", SET, Some("DEBUG"))]);
    refused(&mut rig, level, ErrorCode::InvalidRequest, "start it with --log or GREGOR_LOG instead");
    let unknown = alter(9, "x", &[("key", SET, Some("value"))]);
    refused(&mut rig, unknown, ErrorCode::InvalidRequest, "Unknown resource type 9.");
}
