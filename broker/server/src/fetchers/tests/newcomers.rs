//! Partitions that come to a fetcher while its request waits at the leader.

use gregor_replication::FollowerStep;

use super::*;
use crate::partition::{Assignment, NotFollowed};

fn hold_fetches(world: &World, holds: bool) {
    *locked(&world.cluster.holds_fetches) = holds;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_partition_does_not_wait_for_the_fetch_under_way() {
    let world = World::new(2);
    let [first, _] = world.publish().await;
    let one = append(&first, "one", true).unwrap().awaits.unwrap();
    until("the follower fetches", || is_committed(&first, one)).await;
    hold_fetches(&world, true);
    until("its request waits", || *locked(&world.cluster.held) > 0).await;
    locked(&world.cluster.partition).partition_id = 1;
    world.publish().await;
    let [leader, follower] = BROKERS.map(|id| locked(&world.cluster.brokers)[&id].get("t", 1).unwrap());
    for text in ["two", "three"] {
        if let Some(awaits) = append(&leader, text, true).unwrap().awaits {
            until("the follower has it all the same", || is_committed(&leader, awaits)).await;
        }
    }
    assert!(*locked(&world.cluster.holds_fetches) && end_of(&first) == 1);
    hold_fetches(&world, false);
    for text in ["four", "five"] {
        if let Some(awaits) = append(&leader, text, true).unwrap().awaits {
            until("the request that has all partitions goes on", || is_committed(&leader, awaits)).await;
        }
    }
    assert_eq!(bytes_of(&leader), bytes_of(&follower));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_fetcher_does_to_a_log_that_another_took_over_is_not_done() {
    let world = World::new(1);
    let [leader, follower] = world.publish().await;
    append(&leader, "one", true).unwrap();
    until("the follower has it", || end_of(&follower) == 1).await;
    let cut = |by| {
        let step = FollowerStep::Truncate { leader_epoch: LeaderEpoch(0), to: Offset(0) };
        follower.follow_step(step, by, &[], now()).unwrap().end
    };
    let (later, latest) = (Assignment { number: 1_000, turn: 9 }, Assignment { number: 1_001, turn: 0 });
    assert!(follower.followed_from(latest, now()).is_ok());
    assert_eq!(follower.followed_from(later, now()), Err(NotFollowed::Over), "a later one has it");
    assert_eq!(cut(later), Offset(1));
    assert_eq!(cut(latest), Offset(0));
}
