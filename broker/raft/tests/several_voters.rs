//! Quorums of several voters: elections, replication, and what is committed, through everything that can go wrong.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod cluster;

use cluster::{Cluster, Dice};
use gregor_types::BrokerId;

/// A quorum with a leader that all follow.
fn settled(size: i32, dynamic: bool, seed: u64) -> (Cluster, BrokerId) {
    let mut cluster = Cluster::new(size, dynamic, seed);
    cluster.run_until("a leader whom all follow", 10_000, Cluster::has_converged);
    let leader = cluster.leader().unwrap();
    (cluster, leader)
}

fn other_than(cluster: &Cluster, id: BrokerId) -> BrokerId {
    cluster.ids().into_iter().find(|other| *other != id).unwrap()
}

#[test]
fn voters_elect_a_leader_and_take_over_its_log() {
    for (size, dynamic) in [(2, false), (3, false), (3, true), (5, true)] {
        let (mut cluster, leader) = settled(size, dynamic, 7);
        for _ in 0..50 {
            cluster.append(leader);
            cluster.run(5);
        }
        cluster.run_until("all is committed everywhere", 1_000, Cluster::has_converged);
        assert_eq!(cluster.leader(), Some(leader));
        assert_eq!(cluster.committed_end(), cluster.end(leader));
    }
}

#[test]
fn a_dead_leader_is_replaced_and_follows_when_it_is_back() {
    let (mut cluster, leader) = settled(3, true, 1);
    cluster.append(leader);
    cluster.kill(leader);
    cluster.run_until("another leader", 10_000, |cluster| cluster.leader().is_some());
    let next = cluster.leader().unwrap();
    cluster.append(next);
    cluster.start(leader);
    cluster.run_until("the old leader follows", 10_000, Cluster::has_converged);
    assert_eq!(cluster.leader(), Some(next));
}

#[test]
fn a_leader_that_stops_hands_over_at_once() {
    let (mut cluster, leader) = settled(3, false, 2);
    cluster.resign(leader);
    let took = cluster.run_until("another leader", 1_000, |cluster| cluster.leader().is_some());
    assert!(took < 200, "nobody waited for a timeout, but it took {took} ms");
}

#[test]
fn nothing_is_committed_without_a_majority() {
    let (mut cluster, leader) = settled(3, true, 3);
    for id in cluster.ids() {
        if id != leader {
            cluster.kill(id);
        }
    }
    let before = cluster.committed_end();
    cluster.append(leader);
    cluster.run(1_000);
    assert_eq!(cluster.committed_end(), before);
}

#[test]
fn a_voter_that_was_cut_off_disturbs_nobody_when_it_is_back() {
    let (mut cluster, leader) = settled(3, false, 4);
    let epoch = cluster.quorum(leader).epoch();
    let lost = other_than(&cluster, leader);
    cluster.isolate(lost);
    cluster.run(60_000);
    cluster.append(leader);
    cluster.heal();
    cluster.run_until("it follows again", 10_000, Cluster::has_converged);
    assert_eq!(cluster.quorum(leader).epoch(), epoch, "a node that could not win raised no epoch");
    assert_eq!(cluster.leader(), Some(leader));
}

#[test]
fn a_leader_without_followers_gives_way_and_its_uncommitted_end_is_cut_off() {
    let (mut cluster, leader) = settled(3, true, 5);
    cluster.isolate(leader);
    cluster.append(leader);
    cluster.append(leader);
    cluster
        .run_until("it notices that nobody follows", 4_000, |cluster| cluster.quorum(leader).next_offset().is_none());
    cluster
        .run_until("the others elect another", 10_000, |cluster| cluster.leader().is_some_and(|other| other != leader));
    let next = cluster.leader().unwrap();
    cluster.append(next);
    cluster.run(100);
    cluster.heal();
    cluster.run_until("it follows", 10_000, Cluster::has_converged);
    assert!(cluster.truncations > 0);
}

#[test]
fn a_follower_that_hears_its_leader_but_is_not_heard_brings_nobody_down() {
    let (mut cluster, leader) = settled(5, true, 6);
    let epoch = cluster.quorum(leader).epoch();
    let mute = other_than(&cluster, leader);
    for id in cluster.ids() {
        cluster.cut(mute, id);
    }
    cluster.run(30_000);
    assert_eq!((cluster.leader(), cluster.quorum(leader).epoch()), (Some(leader), epoch));
}

/// One life of a quorum with everything going wrong, then healed: it must converge with all that was committed.
fn chaos(size: i32, seed: u64) -> (usize, usize) {
    let mut cluster = Cluster::new(size, seed.is_multiple_of(2), seed);
    let mut dice = Dice(seed.wrapping_mul(31));
    let ids = cluster.ids();
    let any = |dice: &mut Dice| ids[dice.below(ids.len() as u64) as usize];
    for _ in 0..150 {
        match dice.below(16) {
            0 => cluster.kill(any(&mut dice)),
            1 => ids.iter().for_each(|id| {
                if dice.percent(70) {
                    cluster.kill(*id);
                }
            }),
            2 | 3 => ids.iter().for_each(|id| {
                if dice.percent(70) {
                    cluster.start(*id);
                }
            }),
            4 => cluster.cut(any(&mut dice), any(&mut dice)),
            5 => cluster.isolate(any(&mut dice)),
            6 => {
                cluster.loss_percent = dice.below(30);
                cluster.delay_ms = 1 + dice.below(400);
            }
            7 => cluster.disk_ms = 1 + dice.below(600),
            8 => cluster.heal(),
            9 => ids.iter().for_each(|id| cluster.snapshot(*id)),
            10 => cluster.clean(any(&mut dice)),
            _ => ids.iter().for_each(|id| cluster.append(*id)),
        }
        let longest = if dice.percent(50) { 50 } else { 1_500 };
        cluster.run(dice.below(longest));
    }
    cluster.heal();
    cluster.ids().into_iter().for_each(|id| cluster.start(id));
    cluster.run_until("all agree after all faults have ended", 60_000, Cluster::has_converged);
    (cluster.truncations, cluster.transfers)
}

#[test]
fn whatever_goes_wrong_nothing_committed_is_lost_and_all_agree_in_the_end() {
    let seeds = std::env::var("GREGOR_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    let (mut truncations, mut transfers) = (0, 0);
    for seed in 0..seeds {
        for size in [2, 3, 5] {
            let outcome = std::panic::catch_unwind(|| chaos(size, seed));
            let (cut, transferred) = outcome.unwrap_or_else(|_| panic!("seed {seed} with {size} voters"));
            truncations += cut;
            transfers += transferred;
        }
    }
    assert!(truncations > 0, "some log had to be cut off");
    assert!(transfers > 0, "some log was too far behind, and a snapshot took its place");
}
