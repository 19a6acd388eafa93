//! Partitions that are far behind beside those that are in sync.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_in_sync_does_not_wait_for_those_that_are_behind() {
    let world = World::new(1);
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
    let [leader, follower] = BROKERS.map(|id| locked(&world.cluster.brokers)[&id].get("t", 1).unwrap());
    *locked(&world.cluster.holds_others) = true;
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
