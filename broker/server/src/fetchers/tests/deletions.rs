//! Records that are deleted by request, at the leader and at its follower.

use gregor_state_records::metadata::BrokerRegistrationChangeRecord;

use super::*;

/// Deletes the leader's records before an offset.
fn delete_records(leader: &Arc<Partition>, before: Offset) {
    let deleted = leader.with_leader(LeaderEpoch::NONE, |log, leader| {
        log.advance_start(before)?;
        leader.on_log_start(before);
        Ok(())
    });
    deleted.unwrap();
}

fn append_batch_of_three(leader: &Arc<Partition>) {
    let mut builder = RecordBatchBuilder::new(BatchOptions::default());
    for text in ["one", "two", "three"] {
        builder.append(now(), None, Some(text.as_bytes()), &[]);
    }
    leader.append(&ValidatedBatch::trusted(&builder.build()).unwrap(), false, now()).unwrap();
}

fn start_of(partition: &Partition) -> Option<Offset> {
    partition.with_log(|log, _| log.start_offset())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_of_records_waits_for_the_follower() {
    let world = World::new(1);
    let [leader, follower] = world.publish().await;
    for _ in 0..3 {
        append(&leader, "to be deleted", true).unwrap();
    }
    until("both have it", || end_of(&follower) == 3 && leader.high_watermark() == Offset(3)).await;
    world.cut_off(2);
    delete_records(&leader, Offset(2));
    let mut deleted = Box::pin(leader.deleted_everywhere(Offset(2)));
    assert_eq!(deleted.as_mut().now_or_never(), None, "the follower still has them");
    world.heal();
    assert_eq!(tokio::time::timeout(DEADLINE, deleted).await, Ok(Ok(Offset(2))));
    assert_eq!(start_of(&follower), Some(Offset(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_catches_up_where_its_leaders_log_begins_inside_of_a_batch() {
    let world = World::new(1);
    world.cut_off(2);
    let [leader, follower] = world.publish().await;
    append_batch_of_three(&leader);
    delete_records(&leader, Offset(1));
    append(&leader, "four", false).unwrap();
    world.heal();
    until("the follower has all", || end_of(&follower) == 4).await;
    assert_eq!(start_of(&follower), Some(Offset(1)));
    assert_eq!(bytes_of(&leader), bytes_of(&follower));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_led_is_told_to_cut_its_log_before_the_batch_that_the_next_leaders_log_begins_inside_of() {
    let world = World::new(1);
    let [first, next] = world.publish().await;
    append(&first, "both have it", true).unwrap();
    until("both have it", || end_of(&next) == 1 && next.high_watermark() == Offset(1)).await;
    world.cut_off(2);
    for text in ["nobody", "is ever", "told of it"] {
        append(&first, text, false).unwrap();
    }
    world.elect(2).await;
    append_batch_of_three(&next);
    delete_records(&next, Offset(2));
    let query = Query {
        from: Offset(4),
        current_leader_epoch: LeaderEpoch::NONE,
        last_fetched_epoch: LeaderEpoch(0),
        max_bytes: 1_000,
        min_one_batch: true,
        isolation: Isolation::LogEnd,
        of_any_replica: false,
        near: &[],
        follower: None,
    };
    let diverging = next.read(&query).unwrap().diverging.map(|end| (end.leader_epoch, end.end_offset));
    assert_eq!(diverging, Some((LeaderEpoch(0), Offset(1))), "not to 2, which is inside of a batch");
    world.heal();
    until("who has led has all", || end_of(&first) == 4 && start_of(&first) == Some(Offset(2))).await;
    assert_eq!(bytes_of(&first), bytes_of(&next));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_of_records_waits_for_no_follower_that_is_gone_whatever_is_heard_of_last() {
    for fenced_first in [true, false] {
        let world = World::new(1);
        let [leader, follower] = world.publish().await;
        append(&leader, "to be deleted", true).unwrap();
        until("both have it", || end_of(&follower) == 1 && leader.high_watermark() == Offset(1)).await;
        world.cut_off(2);
        delete_records(&leader, Offset(1));
        let mut deleted = Box::pin(leader.deleted_everywhere(Offset(1)));
        assert_eq!(deleted.as_mut().now_or_never(), None, "the follower still has it");
        for fences in [fenced_first, !fenced_first] {
            if fences {
                let fenced =
                    BrokerRegistrationChangeRecord { broker_id: 2, broker_epoch: 102, fenced: 1, ..Default::default() };
                let change = MetadataRecord::BrokerRegistrationChange(fenced);
                world.publish_with(&change).await;
            } else {
                {
                    let mut partition = locked(&world.cluster.partition);
                    partition.isr = vec![1];
                    partition.partition_epoch += 1;
                }
                world.publish().await;
            }
        }
        assert_eq!(tokio::time::timeout(DEADLINE, deleted).await, Ok(Ok(Offset(1))));
    }
}
