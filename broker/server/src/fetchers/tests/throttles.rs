//! Throttles of replication (KIP-73): whom they hold back, and what they count.

use super::*;
use crate::{clock::steady, partition::Supply, throttles::Throttles};

/// What a leader has for broker 2 at the start of its log: how many bytes, and what beyond.
fn supplied(leader: &Arc<Partition>, is_over_quota: bool) -> (usize, Supply, bool) {
    let read = leader.read(&Query {
        from: Offset(0),
        current_leader_epoch: LeaderEpoch::NONE,
        last_fetched_epoch: LeaderEpoch::NONE,
        max_bytes: 1 << 20,
        min_one_batch: true,
        isolation: Isolation::LogEnd,
        of_any_replica: false,
        near: &[],
        follower: Some(FollowerReader {
            replica: BrokerId(2),
            broker_epoch: BrokerEpoch(102),
            log_start: Offset(0),
            registrations: &Image::default(),
            is_noted: false,
            is_over_quota,
        }),
    });
    let read = read.unwrap();
    (read.plan.read_all().unwrap().len(), read.supply, read.traffic.is_throttled)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_over_its_quota_gives_nothing_to_throttled_replicas_that_are_out_of_sync() {
    for (configs, is_throttled) in [(vec![("leader.replication.throttled.replicas", "0:1,7:1")], true), (vec![], false)]
    {
        let world = World::with(&configs);
        world.cut_off(2);
        let [leader, _] = world.publish().await;
        append(&leader, "one", false).unwrap();
        let bytes = bytes_of(&leader).len();
        let in_sync = supplied(&leader, true);
        assert_eq!(in_sync, (bytes, Supply::Open, is_throttled), "a throttle puts no replica out of sync");
        leader.drop_laggards(now().plus_ms(10 * 60_000));
        until("broker 2 is out of sync", || world.isr() == [1]).await;
        world.publish().await;
        until("the leader knows", || leader.in_sync() == Some(vec![BrokerId(1)])).await;
        assert_eq!(supplied(&leader, false), (bytes, Supply::Open, is_throttled));
        let held_back = if is_throttled { (0, Supply::HeldBack, true) } else { (bytes, Supply::Open, false) };
        assert_eq!(supplied(&leader, true), held_back);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_counts_what_it_takes_of_throttled_partitions() {
    let world = World::with(&[("follower.replication.throttled.replicas", "*")]);
    let [leader, follower] = world.publish().await;
    let throttles = locked(&world.cluster.brokers)[&2].clone();
    let throttles: &Throttles = throttles.throttles();
    let mut image = Image::default();
    image
        .apply(&MetadataRecord::Config(ConfigRecord {
            resource_type: 4,
            resource_name: "2".into(),
            name: "follower.replication.throttled.rate".into(),
            value: Some("1".into()),
            ..Default::default()
        }))
        .unwrap();
    throttles.set_rates(&image, BrokerId(2));
    assert_eq!(throttles.follower.exceeded_until(steady()), None);
    append(&leader, "one", false).unwrap();
    until("the follower has it", || end_of(&follower) == 1).await;
    assert!(throttles.follower.exceeded_until(steady()).is_some(), "it took more than a byte in a second");
    assert_eq!(throttles.leader.exceeded_until(now()), None);
    throttles.set_rates(&Image::default(), BrokerId(2));
    assert_eq!(throttles.follower.exceeded_until(steady()), None, "the rate was taken away");
}
