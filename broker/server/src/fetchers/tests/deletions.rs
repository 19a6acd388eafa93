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
    let mut builder = RecordBatchBuilder::new(BatchOptions::default());
    for text in ["one", "two", "three"] {
        builder.append(now(), None, Some(text.as_bytes()), &[]);
    }
    leader.append(&ValidatedBatch::trusted(&builder.build()).unwrap(), false, now()).unwrap();
    delete_records(&leader, Offset(1));
    append(&leader, "four", false).unwrap();
    world.heal();
    until("the follower has all", || end_of(&follower) == 4).await;
    assert_eq!(start_of(&follower), Some(Offset(1)));
    assert_eq!(bytes_of(&leader), bytes_of(&follower));
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
