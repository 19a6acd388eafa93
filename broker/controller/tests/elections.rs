//! Elections that a user asks for: what each partition is answered, and what a refusal of all of them looks like.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, assert_error, assigned, ids};
use gregor_messages::{ElectLeadersRequest, ElectLeadersResponse, elect_leaders_request::TopicPartitions};
use gregor_metadata::LeaderRecoveryState;
use gregor_types::{BrokerId, ErrorCode};

const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

fn fence(rig: &mut Rig, id: i32) {
    assert_eq!(rig.heartbeat(id, |request| request.want_fence = true).error_code, 0);
}

fn unfence(rig: &mut Rig, id: i32) {
    assert!(!rig.heartbeat(id, |_| ()).is_fenced);
}

fn of(topic: &str, partitions: &[i32]) -> TopicPartitions {
    TopicPartitions { topic: topic.into(), partitions: partitions.to_vec(), ..Default::default() }
}

fn elect(rig: &mut Rig, version: i16, election_type: i8, topics: Option<Vec<TopicPartitions>>) -> ElectLeadersResponse {
    rig.ask(version, ElectLeadersRequest { election_type, topic_partitions: topics, ..Default::default() })
}

/// Topic, partition and error of each result, and what is said to the user.
fn results(response: &ElectLeadersResponse) -> Vec<(String, i32, ErrorCode, Option<String>)> {
    let topics = response.replica_election_results.iter();
    topics
        .flat_map(|topic| {
            topic.partition_result.iter().map(|one| {
                let message = one.error_message.as_ref().map(ToString::to_string);
                (topic.topic.to_string(), one.partition_id, ErrorCode::from_code(one.error_code).unwrap(), message)
            })
        })
        .collect()
}

/// The answer for one partition.
fn elect_one(rig: &mut Rig, election_type: i8, topic: &str, partition: i32) -> (ErrorCode, Option<String>) {
    let response = elect(rig, 2, election_type, Some(vec![of(topic, &[partition])]));
    assert_eq!(response.error_code, 0);
    let mut results = results(&response);
    assert_eq!(results.len(), 1);
    let (named, index, error, message) = results.remove(0);
    assert_eq!((named.as_str(), index), (topic, partition));
    (error, message)
}

/// Brokers 3 and 4 are away, and 2 is not in sync: `t` is led by its first replica and `turned` by its second; nobody leads `lost`, whose
/// second is up, `behind`, whose first is, nor `gone`, of which nobody is.
fn stage() -> Rig {
    let mut rig = Rig::at(30).brokers(4);
    rig.create(vec![assigned("t", &[(0, &[1, 2])]), assigned("turned", &[(0, &[2, 1])])]);
    rig.create(vec![assigned("lost", &[(0, &[3, 2])]), assigned("gone", &[(0, &[3, 4])])]);
    rig.create(vec![assigned("behind", &[(0, &[2, 3])])]);
    // Broker 2 leaves the in-sync replicas of all it has, and comes back.
    fence(&mut rig, 2);
    unfence(&mut rig, 2);
    fence(&mut rig, 4);
    fence(&mut rig, 3);
    let leaders =
        ["t", "turned", "lost", "behind", "gone"].map(|topic| rig.partition(topic, 0).leader.map(BrokerId::value));
    assert_eq!(leaders, [Some(1), Some(1), None, None, None]);
    rig
}

fn said(error: ErrorCode, message: &str) -> (ErrorCode, Option<String>) {
    (error, Some(message.to_owned()))
}

#[test]
fn an_unclean_election_is_answered_by_what_became_of_each_partition() {
    let mut rig = stage();
    let needless = said(ErrorCode::ElectionNotNeeded, "Leader election not needed for topic partition.");
    let nobody = said(ErrorCode::EligibleLeadersNotAvailable, "Eligible topic partition leaders are not available.");
    let before = rig.log.len();
    assert_eq!(elect_one(&mut rig, UNCLEAN, "t", 0), needless, "somebody leads");
    assert_eq!(elect_one(&mut rig, UNCLEAN, "turned", 0), needless, "whoever that is");
    assert_eq!(elect_one(&mut rig, UNCLEAN, "gone", 0), nobody);
    let unknown = ErrorCode::UnknownTopicOrPartition;
    assert_eq!(elect_one(&mut rig, UNCLEAN, "nope", 0), said(unknown, "No such topic as nope"));
    assert_eq!(elect_one(&mut rig, UNCLEAN, "t", 7), said(unknown, "No such partition as t-7"));
    assert_eq!(rig.log.len(), before, "none of them changes anything");
    assert_eq!(elect_one(&mut rig, UNCLEAN, "lost", 0), (ErrorCode::None, None));
    let lost = rig.partition("lost", 0);
    assert_eq!((lost.leader, lost.isr), (Some(BrokerId(2)), ids(&[2])));
    assert_eq!(lost.leader_recovery, LeaderRecoveryState::Recovering);
    assert_eq!(elect_one(&mut rig, UNCLEAN, "lost", 0), needless);
}

#[test]
fn a_preferred_election_never_takes_who_was_not_in_sync() {
    let mut rig = stage();
    let before = rig.log.len();
    let needless = said(ErrorCode::ElectionNotNeeded, "Leader election not needed for topic partition.");
    let not_there = said(ErrorCode::PreferredLeaderNotAvailable, "The preferred leader was not available.");
    assert_eq!(elect_one(&mut rig, PREFERRED, "t", 0), needless);
    assert_eq!(elect_one(&mut rig, PREFERRED, "turned", 0), not_there, "it is up, and not in sync");
    assert_eq!(elect_one(&mut rig, PREFERRED, "lost", 0), not_there);
    assert_eq!(elect_one(&mut rig, PREFERRED, "behind", 0), not_there, "nobody leads, and yet");
    assert_eq!(elect_one(&mut rig, PREFERRED, "nope", 0).0, ErrorCode::UnknownTopicOrPartition);
    assert_eq!(rig.log.len(), before);
}

#[test]
fn who_names_no_partition_hears_of_those_alone_that_an_election_is_needed_for() {
    let mut rig = stage();
    let codes = |response: &ElectLeadersResponse| -> Vec<_> {
        results(response).into_iter().map(|(topic, _, error, _)| (topic, error)).collect()
    };
    let preferred = elect(&mut rig, 2, PREFERRED, None);
    let not_there = ErrorCode::PreferredLeaderNotAvailable;
    let expected = ["behind", "gone", "lost", "turned"].map(|topic| (topic.to_owned(), not_there));
    assert_eq!(codes(&preferred), expected);
    let unclean = elect(&mut rig, 2, UNCLEAN, None);
    let nobody = ErrorCode::EligibleLeadersNotAvailable;
    let expected = [("behind", ErrorCode::None), ("gone", nobody), ("lost", ErrorCode::None)];
    assert_eq!(codes(&unclean), expected.map(|(topic, error)| (topic.to_owned(), error)));
}

#[test]
fn version_0_knows_preferred_leaders_only() {
    let mut rig = stage();
    let response = elect(&mut rig, 0, UNCLEAN, Some(vec![of("lost", &[0])]));
    assert_eq!(results(&response)[0].2, ErrorCode::PreferredLeaderNotAvailable);
    assert_eq!(rig.partition("lost", 0).leader, None);
}

#[test]
fn what_refuses_all_partitions_stands_at_each() {
    let mut rig = stage();
    let asked = || Some(vec![of("t", &[0, 1]), of("lost", &[0])]);
    let unknown = elect(&mut rig, 2, 5, asked());
    rig.lose();
    let elsewhere = elect(&mut rig, 0, PREFERRED, asked());
    for (response, error, words) in [
        (unknown, ErrorCode::InvalidRequest, "Unknown election type 5"),
        (elsewhere, ErrorCode::NotController, "This is not the correct controller for this cluster."),
    ] {
        assert_eq!(response.error_code, error.code());
        let results: Vec<_> = results(&response).into_iter().map(|(topic, index, ..)| (topic, index)).collect();
        assert_eq!(results, [("t".to_owned(), 0), ("t".to_owned(), 1), ("lost".to_owned(), 0)]);
        for result in response.replica_election_results.iter().flat_map(|topic| &topic.partition_result) {
            assert_error(result.error_code, result.error_message.as_ref(), error, words);
        }
    }
}
