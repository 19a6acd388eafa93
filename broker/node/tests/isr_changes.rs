//! One request for in-sync replicas at a time, and again what it did not settle.

use gregor_messages::{AlterPartitionResponse, alter_partition_response};
use gregor_node::{IsrChanges, Proposed, alter_partition, alter_partition_answers};
use gregor_replication::{IsrProposal, ProposalAnswer};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, Uuid};

const MILLISECOND: u64 = 1_000_000;

fn proposed(index: i32) -> Proposed<()> {
    let isr = vec![(BrokerId(1), BrokerEpoch(10)), (BrokerId(2), BrokerEpoch(20))];
    let proposal = IsrProposal { isr, leader_epoch: LeaderEpoch(3), partition_epoch: 7 };
    Proposed { id: (Uuid(1), PartitionIndex(index)), partition: (), proposal }
}

fn take(changes: &mut IsrChanges<()>, now: u64) -> Vec<Proposed<()>> {
    changes.take(now).unwrap_or_default()
}

fn indexes(batch: &[Proposed<()>]) -> Vec<i32> {
    batch.iter().map(|one| one.id.1.value()).collect()
}

#[test]
fn what_is_proposed_while_a_request_is_under_way_is_the_next_one() {
    let mut changes = IsrChanges::default();
    assert_eq!(changes.next_time(), None);
    changes.propose(proposed(0));
    assert_eq!(changes.next_time(), Some(0));
    assert_eq!(indexes(&take(&mut changes, 1)), [0]);
    changes.propose(proposed(1));
    changes.propose(proposed(2));
    assert_eq!(changes.next_time(), None, "a request is under way");
    assert!(take(&mut changes, 2).is_empty(), "a request is under way");
    changes.answered(Vec::new(), 3);
    assert_eq!(indexes(&take(&mut changes, 4)), [1, 2]);
}

#[test]
fn what_was_not_settled_waits_before_it_is_asked_again_and_nothing_else_does() {
    let mut changes = IsrChanges::default();
    changes.propose(proposed(0));
    let batch = take(&mut changes, 0);
    changes.answered(batch, 10 * MILLISECOND);
    assert_eq!(changes.next_time(), Some(60 * MILLISECOND));
    assert!(take(&mut changes, 59 * MILLISECOND).is_empty());
    changes.propose(proposed(1));
    assert_eq!(indexes(&take(&mut changes, 59 * MILLISECOND)), [1]);
    changes.answered(Vec::new(), 60 * MILLISECOND);
    assert_eq!(indexes(&take(&mut changes, 60 * MILLISECOND)), [0]);
}

#[test]
fn after_a_request_that_nobody_answered_all_wait() {
    let mut changes = IsrChanges::default();
    changes.propose(proposed(0));
    let batch = take(&mut changes, 0);
    changes.propose(proposed(1));
    changes.unanswered(batch, 10 * MILLISECOND);
    assert_eq!(changes.next_time(), Some(60 * MILLISECOND));
    assert!(take(&mut changes, 59 * MILLISECOND).is_empty());
    assert_eq!(indexes(&take(&mut changes, 60 * MILLISECOND)), [1, 0]);
}

#[test]
fn a_request_names_no_more_partitions_than_a_batch_of_the_controller_has() {
    let mut changes = IsrChanges::default();
    (0..10_001).for_each(|index| changes.propose(proposed(index)));
    assert_eq!(take(&mut changes, 0).len(), 10_000);
    changes.answered(Vec::new(), 0);
    assert_eq!(indexes(&take(&mut changes, 0)), [10_000]);
}

#[test]
fn a_request_has_the_epochs_that_were_seen() {
    let request = alter_partition(BrokerId(1), BrokerEpoch(10), &[proposed(4), proposed(5)]);
    assert_eq!((request.broker_id, request.broker_epoch), (1, 10));
    let [topic] = &request.topics[..] else { panic!("{:?}", request.topics) };
    assert_eq!(topic.topic_id, Uuid(1));
    let partition = &topic.partitions[1];
    assert_eq!((partition.partition_index, partition.leader_epoch, partition.partition_epoch), (5, 3, 7));
    let members = partition.new_isr_with_epochs.iter().map(|member| (member.broker_id, member.broker_epoch));
    assert_eq!(members.collect::<Vec<_>>(), [(1, 10), (2, 20)]);
}

#[test]
fn an_answer_says_of_each_partition_what_it_is_now_or_why_it_stays() {
    let partition = |index, error: ErrorCode| alter_partition_response::PartitionData {
        partition_index: index,
        error_code: error.code(),
        leader_epoch: 3,
        isr: vec![1, 2],
        partition_epoch: 7,
        ..Default::default()
    };
    let topic =
        |topic_id, partitions| alter_partition_response::TopicData { topic_id, partitions, ..Default::default() };
    let of_first = vec![partition(0, ErrorCode::None), partition(1, ErrorCode::FencedLeaderEpoch)];
    let mut response = AlterPartitionResponse {
        topics: vec![topic(Uuid(1), of_first), topic(Uuid(2), vec![partition(0, ErrorCode::InvalidUpdateVersion)])],
        ..Default::default()
    };
    let accepted = ProposalAnswer::Accepted {
        isr: vec![BrokerId(1), BrokerId(2)],
        leader_epoch: LeaderEpoch(3),
        partition_epoch: 7,
    };
    let said = alter_partition_answers(&response).unwrap();
    let of = |topic, index| said.get(&(Uuid(topic), PartitionIndex(index)));
    assert_eq!(of(1, 0), Some(&accepted));
    assert_eq!(of(1, 1), Some(&ProposalAnswer::Refused(ErrorCode::FencedLeaderEpoch)));
    assert_eq!(of(2, 0), Some(&ProposalAnswer::Refused(ErrorCode::InvalidUpdateVersion)));
    assert_eq!(of(2, 1), None);

    response.error_code = ErrorCode::StaleBrokerEpoch.code();
    assert_eq!(alter_partition_answers(&response), Err(ErrorCode::StaleBrokerEpoch));
}
