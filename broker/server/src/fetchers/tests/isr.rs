//! How leaders ask the controller for other in-sync replicas.

use std::sync::atomic::{AtomicUsize, Ordering};

use gregor_replication::Registration;

use super::*;
use crate::partition::Registrations;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_sync_replicas_are_asked_for_until_the_controller_has_decided() {
    let world = World::new(1);
    let [leader, _] = world.publish().await;
    world.cut_off(2);
    append(&leader, "one", false).unwrap();
    *locked(&world.cluster.refusal) = Some(ErrorCode::NotController);
    leader.drop_laggards(now().plus_ms(10 * 60_000));
    until("broker 2 is out of sync all the same", || world.isr() == [1]).await;
    assert_eq!(*locked(&world.cluster.requests), [1, 1], "one request after the other, each for one partition");
    world.publish().await;
    until("the leader knows", || leader.in_sync() == Some(vec![BrokerId(1)])).await;
    let page = locked(&world.cluster.brokers)[&1].metrics().page();
    assert!(page.contains("\nkafka_server_replicamanager_isrshrinks_total 1\n"), "{page}");
    assert!(page.contains("\nkafka_server_replicamanager_failedisrupdates_total 1\n"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_proposed_while_a_request_is_under_way_goes_into_the_next_together() {
    let world = World::new(1);
    for index in 0..3 {
        locked(&world.cluster.partition).partition_id = index;
        world.publish().await;
    }
    let leaders = [0, 1, 2].map(|index| locked(&world.cluster.brokers)[&1].get("t", index).unwrap());
    world.cut_off(2);
    for leader in &leaders {
        append(leader, "one", false).unwrap();
    }
    *locked(&world.cluster.holds_alterations) = true;
    let requests = || locked(&world.cluster.requests).clone();
    leaders[0].drop_laggards(now().plus_ms(10 * 60_000));
    until("a request is under way", || requests() == [1]).await;
    leaders[1].drop_laggards(now().plus_ms(10 * 60_000));
    leaders[2].drop_laggards(now().plus_ms(10 * 60_000));
    *locked(&world.cluster.holds_alterations) = false;
    until("the others were asked for", || requests() == [1, 2]).await;
}

/// Says how a broker is registered, and sees to it that whoever asks holds the partition's lock.
struct Asked {
    partition: Arc<Partition>,
    times: AtomicUsize,
}

impl Registrations for Asked {
    fn registration(&self, broker: BrokerId) -> Option<Registration> {
        assert!(self.partition.try_lock().is_none(), "what comes in between would be undone");
        self.times.fetch_add(1, Ordering::Relaxed);
        Some(Registration { epoch: BrokerEpoch(100 + i64::from(broker.value())), active: true })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_a_follower_is_registered_is_asked_while_nobody_can_tell_the_leader_anything_newer() {
    let world = World::new(1);
    world.cut_off(2);
    let [leader, _] = world.publish().await;
    let asked = Asked { partition: Arc::clone(&leader), times: AtomicUsize::new(0) };
    let read = leader.read(&Query {
        from: Offset(0),
        current_leader_epoch: LeaderEpoch::NONE,
        last_fetched_epoch: LeaderEpoch::NONE,
        max_bytes: 1,
        min_one_batch: true,
        isolation: Isolation::LogEnd,
        of_any_replica: false,
        near: &[],
        follower: Some(FollowerReader {
            replica: BrokerId(2),
            broker_epoch: BrokerEpoch(102),
            log_start: Offset(0),
            registrations: &asked,
            is_noted: false,
            is_over_quota: false,
        }),
    });
    assert!(read.is_ok() && asked.times.load(Ordering::Relaxed) == 1);
}
