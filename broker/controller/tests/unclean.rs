//! A replica that was not in sync leads as soon as somebody allows it, wherever that is said.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{DELETE, Rig, SECOND, SET, alter, assigned, ids, replace};
use gregor_messages::{AlterConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};
use gregor_metadata::LeaderRecoveryState;
use gregor_types::BrokerId;

const KEY: &str = "unclean.leader.election.enable";
const TOPIC: i8 = 2;
const BROKER: i8 = 4;

/// The one replica that had everything is away, and the other is up.
fn leaderless() -> Rig {
    leaderless_with("")
}

/// The same with further configuration.
fn leaderless_with(properties: &str) -> Rig {
    let mut rig = Rig::with(30, properties).brokers(2);
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    rig.heartbeat(2, |request| request.want_fence = true);
    rig.heartbeat(2, |_| ());
    rig.heartbeat(1, |request| request.want_fence = true);
    assert_eq!(rig.partition("t", 0).leader, None);
    rig
}

fn change(rig: &mut Rig, request: IncrementalAlterConfigsRequest) {
    let response: IncrementalAlterConfigsResponse = rig.ask(1, request);
    assert_eq!(response.responses[0].error_code, 0, "{:?}", response.responses[0].error_message);
}

/// Whether the other replica leads once the controller has done what is due now.
#[track_caller]
fn leads(rig: &mut Rig) -> bool {
    if rig.controller.next_deadline().is_some_and(|at| at <= rig.now) {
        rig.tick_after(0);
    }
    let partition = rig.partition("t", 0);
    let leads = partition.leader == Some(BrokerId(2));
    if leads {
        assert_eq!((partition.isr, partition.leader_recovery), (ids(&[2]), LeaderRecoveryState::Recovering));
    } else {
        assert_eq!((partition.leader, partition.isr), (None, ids(&[1])));
    }
    leads
}

#[test]
fn it_leads_at_once_when_its_topic_the_active_controllers_node_or_all_nodes_allow_it() {
    for (resource_type, name) in [(TOPIC, "t"), (BROKER, "1"), (BROKER, "")] {
        let mut rig = leaderless();
        change(&mut rig, alter(resource_type, name, &[(KEY, SET, Some("true"))]));
        assert!(leads(&mut rig), "resource {resource_type} {name:?}");
    }
    let mut rig = leaderless();
    let response: AlterConfigsResponse = rig.ask(1, replace(TOPIC, "t", &[(KEY, "TRUE")]));
    assert_eq!(response.responses[0].error_code, 0);
    assert!(leads(&mut rig), "the whole configuration says so");
}

#[test]
fn it_leads_at_once_when_its_topic_forbids_it_no_more() {
    let mut rig = leaderless();
    change(&mut rig, alter(TOPIC, "t", &[(KEY, SET, Some("false"))]));
    change(&mut rig, alter(BROKER, "", &[(KEY, SET, Some("true"))]));
    assert!(!leads(&mut rig), "the topic's own word counts");
    change(&mut rig, alter(TOPIC, "t", &[(KEY, DELETE, None)]));
    assert!(leads(&mut rig));
}

#[test]
fn it_does_not_lead_when_somebody_only_asks_or_allows_it_to_others() {
    let mut rig = leaderless();
    rig.create(vec![assigned("other", &[(0, &[2])])]);
    let only_asked = alter(TOPIC, "t", &[(KEY, SET, Some("true"))]);
    change(&mut rig, IncrementalAlterConfigsRequest { validate_only: true, ..only_asked });
    assert!(!leads(&mut rig));
    change(&mut rig, alter(TOPIC, "other", &[(KEY, SET, Some("true"))]));
    assert!(!leads(&mut rig));
    change(&mut rig, alter(BROKER, "2", &[(KEY, SET, Some("true"))]));
    assert!(!leads(&mut rig), "another node's configuration is not the active controller's");
}

#[test]
fn what_another_controller_did_not_come_to_is_done_once_the_interval_is_over() {
    const INTERVAL: &str = "unclean.leader.election.interval.ms";
    for (properties, seconds) in [(String::new(), 300), (format!("{INTERVAL}=7000\n"), 7)] {
        let mut rig = leaderless_with(&properties);
        change(&mut rig, alter(TOPIC, "t", &[(KEY, SET, Some("true"))]));
        // Who decided this leads no more before it could act on it.
        rig.lose();
        rig.win();
        rig.commit();
        let begin = rig.now;
        while rig.now < begin + (seconds - 1) * SECOND {
            // Who is not heard of is fenced.
            rig.heartbeat(2, |_| ());
            assert!(!leads(&mut rig), "{} s after another leads", (rig.now - begin) / SECOND);
            rig.tick_after(SECOND);
        }
        rig.heartbeat(2, |_| ());
        rig.tick_after(SECOND);
        assert!(leads(&mut rig), "{seconds} s are over");
    }
}
