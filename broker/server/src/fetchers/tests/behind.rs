//! Partitions that are far behind beside those that are in sync.

use super::*;

/// Two partitions, at the leader and at the follower: one of which the follower lacks much, and one that is in sync. What is fetched
/// for those that are behind is held up, and broker 2 is cut off.
async fn begin(world: &World) -> ([Arc<Partition>; 2], [Arc<Partition>; 2]) {
    *locked(&world.cluster.holds_alterations) = true;
    locked(&world.cluster.partition).isr = vec![1];
    world.cut_off(2);
    let [behind_at_leader, behind] = world.publish().await;
    let text = "far behind ".repeat(6_000);
    for _ in 0..50 {
        append(&behind_at_leader, &text, false).unwrap();
    }
    {
        let mut partition = locked(&world.cluster.partition);
        (partition.partition_id, partition.isr) = (1, BROKERS.to_vec());
    }
    world.publish().await;
    let in_sync = BROKERS.map(|id| locked(&world.cluster.brokers)[&id].get("t", 1).unwrap());
    *locked(&world.cluster.holds_others) = true;
    ([behind_at_leader, behind], in_sync)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_in_sync_does_not_wait_for_those_that_are_behind() {
    let world = World::new(1);
    let ([behind_at_leader, behind], [leader, follower]) = begin(&world).await;
    world.heal();
    for number in 0..20 {
        if let Some(awaits) = append(&leader, "in sync", true).unwrap().awaits {
            until("the follower has it", || is_committed(&leader, awaits)).await;
        }
        assert!(end_of(&follower) > number);
    }
    until("the other begins to catch up", || end_of(&behind) > 0).await;
    assert!(end_of(&behind) < end_of(&behind_at_leader), "its records are fetched apart, which is held up");
    *locked(&world.cluster.holds_others) = false;
    until("it has caught up", || end_of(&behind) == end_of(&behind_at_leader)).await;
    // From here on it is fetched with the others again, whatever holds up those that are behind.
    let deadline = Instant::now() + DEADLINE;
    loop {
        *locked(&world.cluster.holds_others) = true;
        append(&behind_at_leader, "more", false).unwrap();
        let is_fetched = until("it is there", || end_of(&behind) == end_of(&behind_at_leader));
        let is_fetched = tokio::time::timeout(Duration::from_millis(200), is_fetched).await.is_ok();
        *locked(&world.cluster.holds_others) = false;
        if is_fetched {
            break;
        }
        assert!(Instant::now() < deadline, "it is not fetched with the others again");
    }
    assert_eq!(bytes_of(&behind_at_leader), bytes_of(&behind));
    assert_eq!(bytes_of(&leader), bytes_of(&follower));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_caught_up_is_fetched_on_while_the_request_of_those_in_sync_waits() {
    let world = World::new(1);
    let ([behind_at_leader, behind], _) = begin(&world).await;
    world.heal();
    until("it is fetched apart", || end_of(&behind) > 0).await;
    *locked(&world.cluster.holds_fetches) = true;
    until("the request of the others waits", || *locked(&world.cluster.held) > 0).await;
    *locked(&world.cluster.holds_others) = false;
    for _ in 0..5 {
        until("it has all", || end_of(&behind) == end_of(&behind_at_leader)).await;
        append(&behind_at_leader, "more", false).unwrap();
    }
    until("it has the last, too", || end_of(&behind) == end_of(&behind_at_leader)).await;
    assert!(*locked(&world.cluster.holds_fetches));
    *locked(&world.cluster.holds_fetches) = false;
    assert_eq!(bytes_of(&behind_at_leader), bytes_of(&behind));
}
