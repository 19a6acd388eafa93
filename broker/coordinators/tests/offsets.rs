//! Committed offsets: durable, in Kafka's formats, for as long as they are of use.

mod world;

use bytes::Bytes;
use gregor_coordinators::{LoggedRecord, Record, group::GroupRequest};
use gregor_messages::{
    OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
    offset_fetch_response::OffsetFetchResponseGroup,
};
use gregor_types::{ErrorCode, Offset, ProducerId};
use world::{GROUP, World, consumer, outsider, reads};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

#[test]
fn a_commit_is_acknowledged_and_read_only_once_it_is_committed() {
    let mut world = World::new();
    world.commits_at_once = false;
    let commit = world.send_commit(&outsider(), "orders", 5);
    let fetch = world.send_fetch("orders");
    assert_eq!(world.try_answer::<OffsetCommitResponse>(commit), None);
    assert_eq!(world.try_answer::<OffsetFetchResponseGroup>(fetch), None, "else a reader could see what is lost later");
    world.commit_log();
    assert_eq!(world.answer::<OffsetCommitResponse>(commit).topics[0].partitions[0].error_code, 0);
    assert_eq!(world.answer::<OffsetFetchResponseGroup>(fetch).topics[0].partitions[0].committed_offset, 5);
}

#[test]
fn a_commit_that_cannot_be_written_is_an_error_and_leaves_the_old_offset() {
    let mut world = World::new();
    world.commit(&outsider(), "orders", 5);
    for (append, told) in [
        (ErrorCode::NotEnoughReplicas, ErrorCode::CoordinatorNotAvailable),
        (ErrorCode::NotLeaderOrFollower, ErrorCode::NotCoordinator),
        (ErrorCode::KafkaStorageError, ErrorCode::NotCoordinator),
        (ErrorCode::MessageTooLarge, ErrorCode::InvalidCommitOffsetSize),
    ] {
        world.log.fails_with = Some(append);
        assert_eq!(world.commit(&outsider(), "orders", 6), told);
        world.log.fails_with = None;
        assert_eq!(world.fetch("orders"), 5);
    }
}

#[test]
fn records_are_those_that_kafka_writes() {
    let mut world = World::new();
    world.commit(&outsider(), "orders", 5);
    let Record { key, value } = world.log.records[0].clone();
    assert_eq!(key, &b"\0\x01\0\x07readers\0\x06orders\0\0\0\0"[..], "type 1: group, topic, partition");
    let mut expected = b"\0\x03\0\0\0\0\0\0\0\x05\xff\xff\xff\xff\0\x04note".to_vec();
    expected.extend_from_slice(&1_700_001_000_000_i64.to_be_bytes());
    assert_eq!(value.unwrap(), expected, "version 3: offset, leader epoch, metadata, time");
}

#[test]
fn too_much_metadata_refuses_that_partition_only() {
    let mut world =
        World::with(gregor_coordinators::group::GroupConfig { offset_metadata_bytes_max: 3, ..Default::default() });
    assert_eq!(world.commit(&outsider(), "orders", 5), ErrorCode::OffsetMetadataTooLarge);
    assert_eq!(world.fetch("orders"), -1);
    assert!(world.log.records.is_empty());
}

#[test]
fn offsets_outlive_their_group_by_the_retention_time() {
    let mut world = World::new();
    let players = world.stable_group(vec![consumer()]);
    world.commit(&players[0], "orders", 5);
    for _ in 0..(8 * DAY_MS / 9_000) {
        world.pass_ms(9_000);
        assert_eq!(world.heartbeat(&players[0]), ErrorCode::None);
    }
    assert_eq!(world.fetch("orders"), 5, "a group that lives keeps what it reads");
    world.leave(&players[0]);
    world.pass_ms(6 * DAY_MS);
    assert_eq!(world.fetch("orders"), 5);
    world.pass_ms(2 * DAY_MS);
    assert_eq!(world.fetch("orders"), -1);
    assert_eq!(world.state(), "none", "and the group goes with its last offset");
    assert_eq!(world.reloaded().shard.machine().durable_state(), Vec::<String>::new());
}

#[test]
fn offsets_of_a_topic_that_the_group_stopped_reading_expire_while_it_lives() {
    let mut world = World::new();
    world.commit(&outsider(), "old", 9);
    let players = world.stable_group(vec![reads(&["orders"])]);
    world.commit(&players[0], "orders", 5);
    for _ in 0..(8 * DAY_MS / 9_000) {
        world.pass_ms(9_000);
        world.heartbeat(&players[0]);
    }
    assert_eq!((world.fetch("old"), world.fetch("orders")), (-1, 5));
}

#[test]
fn offsets_of_a_topic_in_use_cannot_be_deleted() {
    let mut world = World::new();
    world.commit(&outsider(), "old", 9);
    let players = world.stable_group(vec![reads(&["orders"])]);
    world.commit(&players[0], "orders", 5);
    let topics = ["orders", "old"].map(|name| OffsetDeleteRequestTopic {
        name: name.into(),
        partitions: vec![OffsetDeleteRequestPartition::default()],
        ..Default::default()
    });
    let request = OffsetDeleteRequest { group_id: GROUP.into(), topics: topics.to_vec(), ..Default::default() };
    let token = world.ask(GroupRequest::OffsetDelete(request));
    let response: OffsetDeleteResponse = world.answer(token);
    let codes: Vec<ErrorCode> = response.topics.iter().map(|topic| topic.partitions[0].error_code.into()).collect();
    assert_eq!(codes, [ErrorCode::GroupSubscribedToTopic, ErrorCode::None]);
    assert_eq!((world.fetch("old"), world.fetch("orders")), (-1, 5));
}

#[test]
fn offsets_of_deleted_topics_are_forgotten() {
    let mut world = World::new();
    world.commit(&outsider(), "gone", 9);
    world.commit(&outsider(), "orders", 5);
    world.ask(GroupRequest::ForgetTopics(vec!["gone".into()]));
    assert_eq!((world.fetch("gone"), world.fetch("orders")), (-1, 5));
    assert_eq!(world.reloaded().fetch("gone"), -1);
}

#[test]
fn records_of_types_that_are_not_served_are_left_alone() {
    let mut world = World::new();
    world.commit(&outsider(), "orders", 5);
    for kind in [3_u8, 10, 17, 99] {
        // The rest of a newer type's key can be anything.
        let key = if kind == 99 { vec![0, kind, 1, 2, 3] } else { vec![0, kind, 0, 1, b'g', 0, 1, b'm'] };
        let key = if kind == 10 || kind == 99 { key } else { key[..5].to_vec() };
        world.log.records.push(Record { key: key.into(), value: Some(Bytes::from_static(b"\0\0 whatever")) });
    }
    assert_eq!(world.reloaded().fetch("orders"), 5);
}

#[test]
fn a_coordinator_that_takes_over_in_any_moment_comes_to_the_same_state() {
    let mut world = World::new();
    let mut players = Vec::new();
    // A linear congruential generator: the same story on every run.
    let mut seed = 42_u64;
    let mut roll = |sides: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % sides
    };
    for step in 0..400 {
        match roll(6) {
            0 => drop(world.commit(&outsider(), &format!("topic-{}", roll(4)), step)),
            1 if world.state() == "Empty" || world.state() == "none" => {
                players = world.stable_group(vec![consumer(); 1 + roll(4) as usize]);
            }
            1 | 2 if !players.is_empty() => {
                let at = roll(players.len() as u64) as usize;
                let player = players[at].clone();
                world.commit(&player, &format!("topic-{}", roll(4)), step);
            }
            3 => world.pass_ms(roll(3) * DAY_MS),
            4 => {
                for player in players.drain(..) {
                    world.leave(&player);
                }
            }
            _ => {
                world.ask(GroupRequest::ForgetTopics(vec![format!("topic-{}", roll(4)).into()]));
            }
        }
        if matches!(world.state(), "Stable" | "Empty" | "none") {
            assert_eq!(
                world.reloaded().shard.machine().durable_state(),
                world.shard.machine().durable_state(),
                "step {step}"
            );
        }
    }
}

/// The record of a commit, as it lies in the log.
/// Only a later Kafka knows their types; the log keeps them, and what is known counts as if they were not there.
#[test]
fn records_of_unknown_types_are_passed_over_when_a_coordinator_loads() {
    let of_type = |kind: i16, value: Option<&'static [u8]>| {
        let key = Bytes::from([&kind.to_be_bytes()[..], b"whatever"].concat());
        let record = Record { key, value: value.map(Bytes::from_static) };
        LoggedRecord { offset: Offset(0), transaction: None, record }
    };
    let mut world = World::loading(|shard| {
        shard.replay(of_type(4711, Some(b"of tomorrow"))).unwrap();
        shard.replay(logged(1, 5, None)).unwrap();
        shard.replay(of_type(i16::MAX, None)).unwrap();
        shard.replay(LoggedRecord { transaction: Some(ProducerId(7)), ..of_type(4711, Some(b"")) }).unwrap();
        shard.replay_end(ProducerId(7), true);
    });
    assert_eq!(world.fetch("orders"), 5);
    assert_eq!(world.shard.machine().durable_state().len(), 1, "{:?}", world.shard.machine().durable_state());
}

fn logged(at: i64, committed: i64, transaction: Option<i64>) -> LoggedRecord {
    let mut world = World::new();
    world.commit(&outsider(), "orders", committed);
    let record = world.log.records[0].clone();
    LoggedRecord { offset: Offset(at), transaction: transaction.map(ProducerId), record }
}

#[test]
fn an_offset_in_a_transaction_counts_once_the_transaction_is_committed() {
    let mut open = World::loading(|shard| {
        shard.replay(logged(0, 5, None)).unwrap();
        shard.replay(logged(1, 8, Some(1))).unwrap();
    });
    assert_eq!(open.fetch("orders"), 5);
    assert_eq!(open.fetch_stable("orders"), (-1, ErrorCode::UnstableOffsetCommit));
    assert_eq!(open.fetch_stable("others"), (-1, ErrorCode::None));
    for (committed, seen) in [(true, 8), (false, 5)] {
        let mut ended = World::loading(|shard| {
            shard.replay(logged(0, 5, None)).unwrap();
            shard.replay(logged(1, 8, Some(1))).unwrap();
            shard.replay_end(ProducerId(2), true);
            shard.replay_end(ProducerId(1), committed);
        });
        assert_eq!(ended.fetch_stable("orders"), (seen, ErrorCode::None));
    }
}

#[test]
fn the_later_record_of_two_commits_stands_whichever_ends_first() {
    let mut plain_is_later = World::loading(|shard| {
        shard.replay(logged(0, 8, Some(1))).unwrap();
        shard.replay(logged(1, 5, None)).unwrap();
        shard.replay_end(ProducerId(1), true);
    });
    assert_eq!(plain_is_later.fetch("orders"), 5);
    let mut second_is_later = World::loading(|shard| {
        shard.replay(logged(0, 8, Some(1))).unwrap();
        shard.replay(logged(1, 9, Some(2))).unwrap();
        shard.replay_end(ProducerId(2), true);
        shard.replay_end(ProducerId(1), true);
    });
    assert_eq!(second_is_later.fetch_stable("orders"), (9, ErrorCode::None));
}

#[test]
fn a_group_is_there_though_all_that_it_committed_was_aborted() {
    let mut world = World::loading(|shard| {
        shard.replay(logged(0, 8, Some(1))).unwrap();
        shard.replay_end(ProducerId(1), false);
    });
    assert_eq!(world.fetch("orders"), -1);
    assert!(world.shard.machine().group(GROUP).is_some());
}
