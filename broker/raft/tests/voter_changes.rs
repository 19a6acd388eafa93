//! Adding, removing and replacing voters (KIP-853), and who may not.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod cluster;

use cluster::{Cluster, Dice};
use gregor_messages::{
    AddRaftVoterRequest, RemoveRaftVoterRequest, UpdateRaftVoterRequest, add_raft_voter_request,
    update_raft_voter_request,
};
use gregor_raft::{ReplicaKey, Reply, Request};
use gregor_types::{BrokerId, ErrorCode, Uuid};

fn settled(size: i32, observers: i32, dynamic: bool, seed: u64) -> (Cluster, BrokerId) {
    let mut cluster = Cluster::with_observers(size, observers, dynamic, seed);
    cluster.run_until("a leader whom all follow", 20_000, Cluster::has_converged);
    let leader = cluster.leader().unwrap();
    (cluster, leader)
}

fn error(cluster: &Cluster, number: u64) -> Option<ErrorCode> {
    cluster.reply_to(number).map(|reply| match reply {
        Reply::AddRaftVoter(reply) => ErrorCode::from(reply.error_code),
        Reply::RemoveRaftVoter(reply) => ErrorCode::from(reply.error_code),
        Reply::UpdateRaftVoter(reply) => ErrorCode::from(reply.error_code),
        other => panic!("no answer to a change: {other:?}"),
    })
}

fn answered(cluster: &mut Cluster, number: u64) -> ErrorCode {
    cluster.run_until("an answer", 10_000, |cluster| error(cluster, number).is_some());
    error(cluster, number).unwrap()
}

fn voters(cluster: &Cluster, id: BrokerId) -> Vec<i32> {
    cluster.quorum(id).history().voters().iter().map(|voter| voter.key.id.value()).collect()
}

fn other_voter(cluster: &Cluster, leader: BrokerId) -> BrokerId {
    let voters = cluster.quorum(leader).history().voters().clone();
    voters.iter().map(|voter| voter.key.id).find(|id| *id != leader).unwrap()
}

#[test]
fn an_observer_finds_the_leader_by_the_bootstrap_servers_and_becomes_a_voter() {
    let (mut cluster, leader) = settled(1, 2, true, 1);
    for (id, expected) in [(2, vec![1, 2]), (3, vec![1, 2, 3])] {
        let number = cluster.add_voter(leader, BrokerId(id));
        assert_eq!(answered(&mut cluster, number), ErrorCode::None);
        cluster.run_until("all know", 5_000, Cluster::has_converged);
        assert!(cluster.ids().into_iter().all(|node| voters(&cluster, node) == expected));
    }
    cluster.kill(leader);
    cluster.run_until("the new voters elect", 10_000, |cluster| cluster.leader().is_some());
}

#[test]
fn an_add_is_answered_only_once_the_new_majority_has_it() {
    let (mut cluster, leader) = settled(1, 1, true, 2);
    let number = cluster.add_voter(leader, BrokerId(2));
    cluster.run_until("the record is written", 5_000, |cluster| voters(cluster, leader).len() == 2);
    cluster.kill(BrokerId(2));
    cluster.run(500);
    assert_eq!(error(&cluster, number), None, "one of two voters is no majority");
    cluster.start(BrokerId(2));
    assert_eq!(answered(&mut cluster, number), ErrorCode::None);
}

#[test]
fn a_change_that_is_not_committed_in_time_is_answered_so_and_the_next_one_waits_for_it() {
    let (mut cluster, leader) = settled(2, 1, true, 3);
    let other = other_voter(&cluster, leader);
    cluster.kill(other);
    let number = cluster.remove_voter(leader, cluster.key(leader));
    cluster.run(1_000);
    let second = cluster.add_voter(leader, BrokerId(3));
    assert_eq!(error(&cluster, second), Some(ErrorCode::RequestTimedOut), "one at a time");
    assert_eq!(answered(&mut cluster, number), ErrorCode::RequestTimedOut);
    let third = cluster.add_voter(leader, BrokerId(3));
    assert_eq!(error(&cluster, third), Some(ErrorCode::RequestTimedOut), "the last change is not committed");
}

#[test]
fn a_leader_that_is_removed_leads_until_that_is_committed_and_hands_over() {
    let (mut cluster, leader) = settled(3, 0, true, 4);
    let number = cluster.remove_voter(leader, cluster.key(leader));
    assert_eq!(answered(&mut cluster, number), ErrorCode::None);
    let took = cluster.run_until("another leader", 2_000, |cluster| cluster.leader().is_some_and(|id| id != leader));
    assert!(took < 400, "nobody waited for a timeout, but it took {took} ms");
    cluster.run_until("the old one follows as an observer", 10_000, Cluster::has_converged);
    assert_eq!(voters(&cluster, leader).len(), 2);
    cluster.run(30_000);
    assert_ne!(cluster.leader(), Some(leader));
}

#[test]
fn a_voter_that_was_removed_while_it_was_away_disturbs_nobody() {
    let (mut cluster, leader) = settled(3, 0, true, 5);
    let removed = other_voter(&cluster, leader);
    let epoch = cluster.quorum(leader).epoch();
    cluster.isolate(removed);
    let number = cluster.remove_voter(leader, cluster.key(removed));
    assert_eq!(answered(&mut cluster, number), ErrorCode::None);
    cluster.run(10_000);
    cluster.heal();
    cluster.run_until("it follows", 10_000, Cluster::has_converged);
    assert_eq!((cluster.leader(), cluster.quorum(leader).epoch()), (Some(leader), epoch));
}

#[test]
fn a_voter_on_a_new_disk_is_another_voter_and_takes_the_place_of_the_old_one() {
    let (mut cluster, leader) = settled(3, 0, true, 6);
    let replaced = other_voter(&cluster, leader);
    let old = cluster.key(replaced);
    cluster.replace_disk(replaced);
    cluster.start(replaced);
    cluster.run_until("it fetches all", 10_000, Cluster::has_converged);
    let number = cluster.add_voter(leader, replaced);
    assert_eq!(answered(&mut cluster, number), ErrorCode::DuplicateVoter, "the old one is a voter yet");
    let number = cluster.remove_voter(leader, cluster.key(replaced));
    assert_eq!(answered(&mut cluster, number), ErrorCode::VoterNotFound, "the new one is none yet");
    let number = cluster.remove_voter(leader, old);
    assert_eq!(answered(&mut cluster, number), ErrorCode::None);
    let number = cluster.add_voter(leader, replaced);
    assert_eq!(answered(&mut cluster, number), ErrorCode::None);
    cluster.run_until("all know", 5_000, Cluster::has_converged);
    assert!(cluster.quorum(replaced).history().voters().contains(cluster.key(replaced)));
}

#[test]
fn controllers_join_by_themselves_where_they_may_also_with_a_new_disk() {
    let mut cluster = Cluster::with_observers(1, 2, true, 7);
    cluster.auto_join = true;
    for id in [2, 3] {
        cluster.kill(BrokerId(id));
        cluster.start(BrokerId(id));
    }
    let all_vote = |cluster: &Cluster| cluster.has_converged() && voters(cluster, BrokerId(1)) == [1, 2, 3];
    cluster.run_until("all are voters", 60_000, all_vote);
    cluster.replace_disk(BrokerId(3));
    cluster.start(BrokerId(3));
    let key = cluster.key(BrokerId(3));
    cluster.run_until("the new disk is a voter", 60_000, |cluster| {
        cluster.has_converged() && cluster.quorum(BrokerId(1)).history().voters().contains(key)
    });
}

#[test]
fn a_change_that_a_lost_leader_began_is_taken_back() {
    let (mut cluster, leader) = settled(3, 0, true, 8);
    cluster.isolate(leader);
    let removed = other_voter(&cluster, leader);
    let number = cluster.remove_voter(leader, cluster.key(removed));
    assert_eq!(voters(&cluster, leader).len(), 2, "it counts before it is committed");
    assert!(matches!(answered(&mut cluster, number), ErrorCode::RequestTimedOut | ErrorCode::NotLeaderOrFollower));
    cluster.run_until("another leader", 20_000, |cluster| cluster.leader().is_some_and(|id| id != leader));
    cluster.heal();
    cluster.run_until("all agree", 20_000, Cluster::has_converged);
    assert!(cluster.ids().into_iter().all(|id| voters(&cluster, id).len() == 3));
}

#[test]
fn the_voters_of_a_static_quorum_are_not_changed() {
    let (mut cluster, leader) = settled(2, 1, false, 9);
    let number = cluster.add_voter(leader, BrokerId(3));
    assert_eq!(error(&cluster, number), Some(ErrorCode::UnsupportedVersion));
    let number = cluster.remove_voter(leader, cluster.key(leader));
    assert_eq!(error(&cluster, number), Some(ErrorCode::UnsupportedVersion));
}

#[test]
fn the_last_voter_is_not_removed() {
    let (mut cluster, leader) = settled(1, 0, true, 10);
    let number = cluster.remove_voter(leader, cluster.key(leader));
    assert_eq!(error(&cluster, number), Some(ErrorCode::VoterNotFound));
}

#[test]
fn a_replica_that_lags_or_is_not_there_does_not_become_a_voter() {
    let (mut cluster, leader) = settled(2, 1, true, 11);
    cluster.kill(BrokerId(3));
    let number = cluster.add_voter(leader, BrokerId(3));
    assert_eq!(answered(&mut cluster, number), ErrorCode::RequestTimedOut, "it did not answer");
    cluster.replace_disk(BrokerId(3));
    cluster.start(BrokerId(3));
    let number = cluster.add_voter(leader, BrokerId(3));
    assert_eq!(answered(&mut cluster, number), ErrorCode::RequestTimedOut, "nothing is known of this replica");
    assert_eq!(voters(&cluster, leader).len(), 2);
}

#[test]
fn no_change_is_begun_before_the_leader_has_committed_a_record_of_its_epoch() {
    let (mut cluster, leader) = settled(3, 0, true, 12);
    cluster.kill(leader);
    cluster.run_until("another leader", 10_000, |cluster| cluster.leader().is_some());
    let next = cluster.leader().unwrap();
    let number = cluster.remove_voter(next, cluster.key(leader));
    assert_eq!(error(&cluster, number), Some(ErrorCode::RequestTimedOut));
    cluster.run(200);
    let number = cluster.remove_voter(next, cluster.key(leader));
    assert_eq!(answered(&mut cluster, number), ErrorCode::None);
}

#[test]
fn requests_for_another_cluster_or_leader_or_without_a_voter_get_apaches_errors_and_change_nothing() {
    let (mut cluster, leader) = settled(3, 1, true, 13);
    let key = cluster.key(BrokerId(4));
    let listener = add_raft_voter_request::Listener { name: "CONTROLLER".into(), port: 4, ..Default::default() };
    let add = AddRaftVoterRequest {
        cluster_id: Some("cluster".into()),
        voter_id: 4,
        voter_directory_id: key.directory_or_zero(),
        listeners: vec![listener],
        ..Default::default()
    };
    let remove = RemoveRaftVoterRequest {
        cluster_id: Some("cluster".into()),
        voter_id: leader.value(),
        voter_directory_id: cluster.key(leader).directory_or_zero(),
        ..Default::default()
    };
    let listener = update_raft_voter_request::Listener { name: "CONTROLLER".into(), port: 4, ..Default::default() };
    let mut update = UpdateRaftVoterRequest {
        cluster_id: Some("cluster".into()),
        current_leader_epoch: cluster.quorum(leader).epoch().value(),
        voter_id: leader.value(),
        voter_directory_id: cluster.key(leader).directory_or_zero(),
        listeners: vec![listener.clone()],
        ..Default::default()
    };
    update.k_raft_version_feature.max_supported_version = 1;
    let epoch = update.current_leader_epoch;
    let wrong_add = |change: fn(&mut AddRaftVoterRequest)| {
        let mut request = add.clone();
        change(&mut request);
        Request::AddRaftVoter(request)
    };
    let wrong_update = |change: &dyn Fn(&mut UpdateRaftVoterRequest)| {
        let mut request = update.clone();
        change(&mut request);
        Request::UpdateRaftVoter(request)
    };
    let other = RemoveRaftVoterRequest { cluster_id: Some("other".into()), ..remove.clone() };
    let nobody = RemoveRaftVoterRequest { voter_directory_id: Uuid::ZERO, ..remove.clone() };
    let cases = [
        (wrong_add(|add| add.cluster_id = Some("other".into())), ErrorCode::InconsistentClusterId),
        (wrong_add(|add| add.voter_id = -1), ErrorCode::InvalidRequest),
        (wrong_add(|add| add.voter_directory_id = Uuid::ZERO), ErrorCode::InvalidRequest),
        (wrong_add(|add| add.listeners.clear()), ErrorCode::InvalidRequest),
        (wrong_add(|add| add.voter_id = 1), ErrorCode::DuplicateVoter),
        (Request::RemoveRaftVoter(other), ErrorCode::InconsistentClusterId),
        (Request::RemoveRaftVoter(nobody), ErrorCode::InvalidRequest),
        (wrong_update(&|update| update.cluster_id = Some("other".into())), ErrorCode::InconsistentClusterId),
        (wrong_update(&|update| update.current_leader_epoch = epoch - 1), ErrorCode::FencedLeaderEpoch),
        (wrong_update(&|update| update.current_leader_epoch = epoch + 1), ErrorCode::UnknownLeaderEpoch),
        (wrong_update(&|update| update.voter_directory_id = Uuid(9)), ErrorCode::VoterNotFound),
        (wrong_update(&|update| update.listeners.clear()), ErrorCode::InvalidRequest),
        (wrong_update(&|update| update.k_raft_version_feature.max_supported_version = 0), ErrorCode::InvalidRequest),
        (wrong_update(&|update| update.k_raft_version_feature.min_supported_version = -1), ErrorCode::InvalidRequest),
    ];
    let end = cluster.end(leader);
    for (request, expected) in cases {
        let number = cluster.request(leader, request.clone());
        assert_eq!(error(&cluster, number), Some(expected), "{request:?}");
    }
    let follower = other_voter(&cluster, leader);
    for request in
        [Request::AddRaftVoter(add), Request::RemoveRaftVoter(remove), Request::UpdateRaftVoter(update.clone())]
    {
        let number = cluster.request(follower, request);
        assert_eq!(error(&cluster, number), Some(ErrorCode::NotLeaderOrFollower));
    }
    cluster.run(1_000);
    assert_eq!(cluster.end(leader), end, "nothing was written");
    let number = cluster.request(leader, Request::UpdateRaftVoter(update));
    assert_eq!(error(&cluster, number), Some(ErrorCode::None), "an update is answered at once");
    assert_eq!(cluster.quorum(leader).history().voters().voter(leader).unwrap().endpoints[0].port, 4);
}

#[test]
fn a_voter_that_listens_elsewhere_now_tells_the_leader() {
    let (mut cluster, leader) = settled(3, 0, true, 14);
    let moved = other_voter(&cluster, leader);
    cluster.kill(moved);
    cluster.moved.insert(moved, 77);
    cluster.start(moved);
    cluster.run_until("the leader knows", 10_000, |cluster| {
        cluster.quorum(leader).history().voters().voter(moved).unwrap().endpoints[0].port == 77
    });
}

/// Voters come and go while everything goes wrong.
fn chaos(size: i32, seed: u64) -> (usize, usize, usize) {
    let mut cluster = Cluster::with_observers(size, 2, true, seed);
    cluster.auto_join = seed.is_multiple_of(3);
    let mut dice = Dice(seed.wrapping_mul(37));
    let ids = cluster.ids();
    let any = |dice: &mut Dice| ids[dice.below(ids.len() as u64) as usize];
    for _ in 0..150 {
        match dice.below(22) {
            0 => cluster.kill(any(&mut dice)),
            1 => ids.iter().for_each(|id| {
                if dice.percent(50) {
                    cluster.kill(*id);
                }
            }),
            2..=4 => ids.iter().for_each(|id| {
                if dice.percent(70) {
                    cluster.start(*id);
                }
            }),
            5 => cluster.cut(any(&mut dice), any(&mut dice)),
            6 => cluster.isolate(any(&mut dice)),
            7 => {
                cluster.loss_percent = dice.below(20);
                cluster.delay_ms = 1 + dice.below(200);
            }
            8 => cluster.disk_ms = 1 + dice.below(300),
            9 | 10 => cluster.heal(),
            11 => ids.iter().for_each(|id| cluster.snapshot(*id)),
            12 => cluster.clean(any(&mut dice)),
            13 => {
                // Once nothing is under way that would still make it a voter: a voter that is no more would be missing for ever.
                let id = any(&mut dice);
                cluster.kill(id);
                cluster.run(5_000);
                let others_are_up = ids.iter().all(|other| *other == id || cluster.is_up(*other));
                if others_are_up && cluster.leader().is_some() && !cluster.is_known_as_voter(id) {
                    cluster.replace_disk(id);
                }
                cluster.start(id);
            }
            14..=17 => {
                let (id, remove) = (any(&mut dice), dice.percent(40));
                let key: ReplicaKey = cluster.key(id);
                for leader in cluster.leaders() {
                    if remove {
                        cluster.remove_voter(leader, key);
                    } else {
                        cluster.add_voter(leader, id);
                    }
                }
            }
            _ => ids.iter().for_each(|id| cluster.append(*id)),
        }
        let longest = if dice.percent(50) { 50 } else { 1_500 };
        cluster.run(dice.below(longest));
    }
    cluster.heal();
    for id in &ids {
        cluster.start(*id);
    }
    cluster.run_until("all agree after all faults have ended", 60_000, Cluster::has_converged);
    let sizes: Vec<usize> = cluster.voter_sets.values().map(gregor_raft::VoterSet::len).collect();
    let count = |grew: bool| sizes.windows(2).filter(|pair| (pair[1] > pair[0]) == grew && pair[0] != pair[1]).count();
    (count(true), count(false), cluster.transfers)
}

#[test]
fn voters_come_and_go_and_nothing_committed_is_lost() {
    let seeds = std::env::var("GREGOR_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(25);
    let (mut added, mut removed, mut transfers) = (0, 0, 0);
    for seed in 0..seeds {
        for size in [1, 3] {
            let outcome = std::panic::catch_unwind(|| chaos(size, seed));
            let (grew, shrank, transferred) =
                outcome.unwrap_or_else(|_| panic!("seed {seed} with {size} voters at first"));
            added += grew;
            removed += shrank;
            transfers += transferred;
        }
    }
    assert!(added > 20 && removed > 20, "{added} voters came and {removed} went");
    assert!(transfers > 0, "some log was too far behind, and a snapshot took its place");
}
