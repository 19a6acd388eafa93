//! Controllers whose network is cut, in both directions and in one, and broken: what a majority decides goes on, what a minority decides is
//! shown to nobody, and all is one again when the network is.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::{Duration, Instant};

use gregor_metadata::{ConfigResource, ResourceType};
use gregor_types::{ErrorCode, LeaderEpoch};
use support::{
    controllers::{Cluster, DEADLINE, KEY, OTHER_KEY, alteration, holds, until},
    network::Network,
};

/// So long that nobody who is connected loses sight of another on a busy machine.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

async fn three_that_all_follow() -> (Cluster, Network, i32, LeaderEpoch) {
    let (cluster, network) = Cluster::relayed(3, false).await;
    let mut cluster = cluster.with("controller.quorum.fetch.timeout.ms", "5000");
    assert_eq!(cluster.config(1).controller_quorum_fetch_timeout_ms, FETCH_TIMEOUT.as_millis() as i64);
    cluster.start_all().await;
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    let (leader, epoch) = cluster.leader().await;
    (cluster, network, leader, epoch)
}

fn others(of: i32) -> [i32; 2] {
    let others: Vec<_> = (1..=3).filter(|id| *id != of).collect();
    [others[0], others[1]]
}

fn isolate(network: &Network, node: i32) {
    for other in others(node) {
        network.cut_both(node, other);
    }
}

/// Has whoever leads among some commit a value; returns who that was.
async fn commit_among(cluster: &Cluster, nodes: &[i32], value: i32) -> i32 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < deadline, "none of {nodes:?} decides in time");
        let Some(leader) = nodes.iter().copied().find(|id| cluster.node(*id).control().is_active_controller()) else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let control = cluster.node(leader).control();
        // Who gives way meanwhile says so.
        let answer = tokio::time::timeout(DEADLINE, control.ask(1, alteration(KEY, value))).await;
        match ErrorCode::from(answer.expect("an answer").unwrap().responses[0].error_code) {
            ErrorCode::None => return leader,
            error => assert_eq!(error, ErrorCode::NotController),
        }
    }
}

fn epoch_of(cluster: &Cluster, id: i32) -> LeaderEpoch {
    cluster.node(id).control().quorum_leader().borrow().epoch
}

async fn stop_with_one_log(mut cluster: Cluster) {
    cluster.stop_all().await;
    let logs: Vec<_> = (1..=3).map(|id| cluster.log(id)).collect();
    let common = logs.iter().map(Vec::len).min().unwrap();
    assert!(common > 0 && logs.iter().all(|log| log[..common] == logs[0][..common]), "the logs differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_gives_way_and_what_it_decided_is_shown_to_nobody() {
    let (cluster, network, first, epoch) = three_that_all_follow().await;
    isolate(&network, first);
    let before = cluster.log(first).len();
    let control = cluster.node(first).control().clone();
    let undecided = tokio::spawn(async move { control.ask(1, alteration(OTHER_KEY, 1_002)).await });
    until("the lonely leader to append it", || holds(&cluster.log(first)[before..], "1002")).await;
    let second = commit_among(&cluster, &others(first), 1_003).await;
    assert!(epoch_of(&cluster, second) > epoch);
    // It says so while it is still cut off: whoever waits for it may ask another.
    let answer = tokio::time::timeout(DEADLINE, undecided).await.expect("it goes on to lead").unwrap().unwrap();
    assert_eq!(ErrorCode::from(answer.responses[0].error_code), ErrorCode::NotController);
    assert!(!cluster.node(first).control().is_active_controller());
    network.heal();
    cluster.all_see(1_003).await;
    cluster.commit(1_004).await;
    cluster.all_see(1_004).await;
    for node in cluster.running() {
        let image = node.control().image();
        assert_eq!(image.configs().get(&ConfigResource::new(ResourceType::Broker, ""), OTHER_KEY), None);
    }
    stop_with_one_log(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_gives_way_though_all_hear_it() {
    let (cluster, network, first, epoch) = three_that_all_follow().await;
    for other in others(first) {
        network.cut(other, first);
    }
    let second = commit_among(&cluster, &others(first), 1_002).await;
    assert!(epoch_of(&cluster, second) > epoch);
    network.heal();
    cluster.all_see(1_002).await;
    cluster.commit(1_003).await;
    cluster.all_see(1_003).await;
    stop_with_one_log(cluster).await;
}

/// Cuts a voter off for longer than it waits for its leader, and has it unseat nobody, then and when it is back.
async fn is_missed_by_nobody(cut: impl FnOnce(&Network, i32, i32)) {
    let (cluster, network, leader, epoch) = three_that_all_follow().await;
    let [away, third] = others(leader);
    cut(&network, away, leader);
    let (since, mut value) = (Instant::now(), 1_001);
    // It asks again and again whether it would be elected, and is told each time that the others follow somebody, if it hears that.
    while since.elapsed() < 3 * FETCH_TIMEOUT / 2 {
        value += 1;
        commit_among(&cluster, &[leader, third], value).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!holds(&cluster.log(away), &value.to_string()), "it is not cut off");
    assert_eq!(epoch_of(&cluster, away), epoch, "it began an epoch that nobody would follow");
    network.heal();
    cluster.all_see(value).await;
    assert_eq!(cluster.leader().await, (leader, epoch));
    stop_with_one_log(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_is_cut_off_from_all_unseats_no_leader() {
    is_missed_by_nobody(|network, away, _| isolate(network, away)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_hears_nobody_and_is_heard_by_all_unseats_no_leader() {
    is_missed_by_nobody(|network, away, _| {
        for other in others(away) {
            network.cut(other, away);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_is_cut_off_from_the_leader_alone_does_not_unseat_it() {
    is_missed_by_nobody(|network, away, leader| network.cut_both(leader, away)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_majority_nothing_is_decided_and_afterwards_all_goes_on() {
    let (cluster, network, first, _) = three_that_all_follow().await;
    for node in 1..=3 {
        isolate(&network, node);
    }
    let control = cluster.node(first).control();
    let answer = tokio::time::timeout(DEADLINE, control.ask(1, alteration(KEY, 1_002))).await;
    assert_eq!(ErrorCode::from(answer.unwrap().unwrap().responses[0].error_code), ErrorCode::NotController);
    until("nobody to lead any more", || cluster.running().all(|node| !node.control().is_active_controller())).await;
    cluster.all_see(1_001).await;
    network.heal();
    cluster.commit(1_003).await;
    cluster.all_see(1_003).await;
    stop_with_one_log(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_anywhere_in_what_they_carry_cost_time_and_nothing_else() {
    let (cluster, network, ..) = three_that_all_follow().await;
    network.end_connections_within(3_000);
    for value in 1_002..1_030 {
        commit_among(&cluster, &[1, 2, 3], value).await;
    }
    cluster.all_see(1_029).await;
    network.end_connections_within(0);
    cluster.commit(1_030).await;
    cluster.all_see(1_030).await;
    stop_with_one_log(cluster).await;
}
