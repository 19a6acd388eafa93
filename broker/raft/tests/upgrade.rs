//! A static quorum becomes a dynamic one (KIP-853): once all voters have said which replicas they are, and not before.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod cluster;

use cluster::{Cluster, Dice};
use gregor_raft::UpgradeError;
use gregor_types::BrokerId;

fn settled(size: i32, observers: i32, seed: u64) -> (Cluster, BrokerId) {
    let mut cluster = Cluster::with_observers(size, observers, false, seed);
    cluster.run_until("a leader whom all follow", 20_000, Cluster::has_converged);
    let leader = cluster.leader().unwrap();
    (cluster, leader)
}

#[test]
fn the_voters_get_into_the_log_once_all_have_said_who_they_are() {
    let (mut cluster, leader) = settled(3, 1, 1);
    assert!(matches!(cluster.upgrade(leader, 1, false), Err(UpgradeError::Voters { voters, .. }) if voters.len() == 2));
    cluster.run(5_000);
    let end = cluster.end(leader);
    assert_eq!(cluster.upgrade(leader, 1, true), Ok(()));
    assert_eq!(cluster.end(leader), end, "nothing is written where it is only asked");
    assert_eq!(cluster.upgrade(leader, 1, false), Ok(()));
    cluster.run_until("all know", 5_000, Cluster::has_converged);
    for id in cluster.ids() {
        let history = cluster.quorum(id).history();
        assert_eq!((history.kraft_version(), history.voters().len()), (1, 3));
        assert!((1..=3).all(|voter| history.voters().contains(cluster.key(BrokerId(voter)))));
    }
    assert_eq!(cluster.leader(), Some(leader), "nobody had to be elected anew");
    assert_eq!(cluster.upgrade(leader, 1, false), Ok(()), "it is done");
    assert_eq!(cluster.upgrade(leader, 0, false), Err(UpgradeError::Downgrade { present: 1, wanted: 0 }));
    let number = cluster.add_voter(leader, BrokerId(4));
    cluster.run_until("a fourth voter", 5_000, |cluster| cluster.reply_to(number).is_some());
    assert_eq!(cluster.quorum(leader).history().voters().len(), 4, "{:?}", cluster.reply_to(number));
}

#[test]
fn every_leader_is_told_anew_which_replicas_vote() {
    let (mut cluster, first) = settled(3, 0, 4);
    cluster.run(5_000);
    cluster.kill(first);
    cluster.run_until("another leader", 20_000, |cluster| cluster.leader().is_some());
    let second = cluster.leader().unwrap();
    cluster.run(5_000);
    // The one that is down has said nothing to this leader; what it said to itself counts for nobody.
    let refused = cluster.upgrade(second, 1, false);
    assert!(matches!(&refused, Err(UpgradeError::Voters { voters, .. }) if *voters == [first.value()]), "{refused:?}");
    cluster.start(first);
    cluster.run(8_000);
    let leader = cluster.leader().unwrap();
    assert_eq!(cluster.upgrade(leader, 1, false), Ok(()));
}

#[test]
fn an_upgrade_is_refused_for_a_version_that_is_not_known_or_by_who_does_not_lead() {
    let (mut cluster, leader) = settled(3, 0, 2);
    assert_eq!(cluster.upgrade(leader, 2, false), Err(UpgradeError::Unknown(2)));
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    assert!(matches!(cluster.upgrade(follower, 1, false), Err(UpgradeError::NotLeader(_))));
}

#[test]
fn an_upgrade_by_a_leader_that_is_lost_is_taken_back() {
    let (mut cluster, leader) = settled(3, 0, 3);
    cluster.run(5_000);
    cluster.isolate(leader);
    assert_eq!(cluster.upgrade(leader, 1, false), Ok(()));
    cluster.run_until("another leader", 20_000, |cluster| cluster.leader().is_some_and(|id| id != leader));
    cluster.heal();
    cluster.run_until("all agree", 20_000, Cluster::has_converged);
    assert_eq!(cluster.quorum(leader).history().kraft_version(), 0);
}

#[test]
fn an_upgrade_survives_whatever_goes_wrong() {
    let seeds = std::env::var("GREGOR_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(20);
    let mut upgraded = 0;
    for seed in 0..seeds {
        let mut cluster = Cluster::with_observers(3, 1, false, seed);
        let mut dice = Dice(seed.wrapping_mul(41));
        let ids = cluster.ids();
        let any = |dice: &mut Dice| ids[dice.below(ids.len() as u64) as usize];
        for _ in 0..100 {
            match dice.below(12) {
                0 => cluster.kill(any(&mut dice)),
                1..=3 => ids.iter().for_each(|id| cluster.start(*id)),
                4 => cluster.isolate(any(&mut dice)),
                5 | 6 => cluster.heal(),
                7 => cluster.snapshot(any(&mut dice)),
                8 => cluster.clean(any(&mut dice)),
                9 => {
                    for leader in cluster.leaders() {
                        // Refused as long as a voter has not said who it is.
                        let _ = cluster.upgrade(leader, 1, false);
                    }
                }
                _ => ids.iter().for_each(|id| cluster.append(*id)),
            }
            cluster.run(dice.below(1_500));
        }
        cluster.heal();
        for id in &ids {
            cluster.start(*id);
        }
        cluster.run_until("all agree after all faults have ended", 60_000, Cluster::has_converged);
        let versions: Vec<i16> = ids.iter().map(|id| cluster.quorum(*id).history().kraft_version()).collect();
        assert!(versions.iter().all(|version| *version == versions[0]), "{versions:?}");
        upgraded += usize::from(versions[0] == 1);
    }
    assert!(upgraded > 0, "some quorum became dynamic");
}
