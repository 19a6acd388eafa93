//! Consumers that read from followers (KIP-392): what they are shown, and when they are sent to whom.

use super::*;

/// A consumer's read of this replica.
fn read(
    from: &Arc<Partition>,
    offset: i64,
    leader_epoch: i32,
    of_any_replica: bool,
) -> Result<(usize, i64), ErrorCode> {
    let read = from.read(&Query {
        from: Offset(offset),
        current_leader_epoch: LeaderEpoch(leader_epoch),
        last_fetched_epoch: LeaderEpoch::NONE,
        max_bytes: 1 << 20,
        min_one_batch: true,
        isolation: Isolation::ReadUncommitted,
        of_any_replica,
        near: &[],
        follower: None,
    })?;
    Ok((read.plan.read_all().unwrap().len(), read.marks.high_watermark.value()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_shows_consumers_what_it_knows_to_be_committed() {
    let world = World::new(1);
    let [leader, follower] = world.publish().await;
    append(&leader, "one", true).unwrap();
    until("the follower knows what is committed", || follower.high_watermark() == Offset(1)).await;
    let committed = bytes_of(&follower).len();
    assert_eq!(read(&follower, 0, 0, true), Ok((committed, 1)));
    assert_eq!(read(&follower, 1, 0, true), Ok((0, 1)), "there is no more yet");
    assert_eq!(read(&follower, 2, 0, true), Err(ErrorCode::OffsetOutOfRange), "the leader is to be asked for that");
    assert_eq!(read(&follower, 0, 0, false), Err(ErrorCode::NotLeaderOrFollower), "an old client reads from leaders");
    assert_eq!(read(&follower, 0, 1, true), Err(ErrorCode::UnknownLeaderEpoch));
    world.elect(1).await;
    assert_eq!(read(&follower, 0, 0, true), Err(ErrorCode::FencedLeaderEpoch));
    assert_eq!(read(&follower, 0, 1, true), Ok((committed, 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_waits_at_a_follower_wakes_when_more_is_committed_there() {
    let world = World::new(1);
    let [leader, follower] = world.publish().await;
    let waiter = Waiter::new(1);
    follower.lock_waiters().add_fetch(&waiter);
    append(&leader, "one", true).unwrap();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    assert_eq!(waiter.wait_until(deadline).await, crate::waiters::Waited::Woken);
    assert_eq!(read(&follower, 0, 0, true).unwrap().1, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_sends_a_consumer_to_the_replica_in_its_rack() {
    let world = World::new(1);
    let [leader, follower] = world.publish().await;
    append(&leader, "one", true).unwrap();
    until("both have it", || leader.high_watermark() == Offset(1)).await;
    let preferred = |replica: &Arc<Partition>, near: &[i32]| {
        let near: Vec<_> = near.iter().copied().map(BrokerId).collect();
        let read = replica.read(&Query {
            from: Offset(0),
            current_leader_epoch: LeaderEpoch::NONE,
            last_fetched_epoch: LeaderEpoch::NONE,
            max_bytes: 1 << 20,
            min_one_batch: true,
            isolation: Isolation::ReadUncommitted,
            of_any_replica: true,
            near: &near,
            follower: None,
        });
        let read = read.unwrap();
        assert_eq!(read.plan.is_empty(), read.preferred.is_some(), "who is sent elsewhere gets nothing here");
        read.preferred.map(BrokerId::value)
    };
    assert_eq!(preferred(&leader, &[2]), Some(2));
    assert_eq!(preferred(&leader, &[1, 2]), None);
    assert_eq!(preferred(&leader, &[3]), None);
    until("the follower knows what is committed", || follower.high_watermark() == Offset(1)).await;
    assert_eq!(preferred(&follower, &[1]), None, "only leaders send consumers away");
}
