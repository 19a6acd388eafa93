//! What a cluster can spare: no change of the voters and no restart leaves less than a majority or a partition without its other
//! replicas, whatever was read.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod fleet;

use std::collections::BTreeMap;

use fleet::{COMBINED, Fleet};
use gregor_operator_plan::identity::Identity;
use gregor_operator_plan::kafka::{KafkaSeen, PartitionSeen, QuorumSeen, ReplicaSeen};
use gregor_operator_plan::placement::{self, Layout};
use gregor_operator_plan::pods::{PodState, Refusal};
use gregor_operator_plan::quorum::{self, Next, VoterChange};
use gregor_operator_plan::roll::{self, Candidate, Turn};
use gregor_operator_plan::validate::ValidCluster;
use proptest::prelude::*;

/// Three combined nodes whose disks are recorded.
fn cluster() -> (Layout, Identity) {
    let fleet = Fleet::settled(COMBINED);
    let valid = ValidCluster::of(&fleet.cluster, &fleet::environment()).unwrap();
    let identity = fleet.identity().unwrap();
    (placement::layout(&valid, &identity).unwrap(), identity)
}

/// A voter: its node, whether with the directory that is recorded, and how far behind it is.
type Voter = (i32, bool, i64);

fn replica(identity: &Identity, (id, recorded, behind_ms): Voter) -> ReplicaSeen {
    let known = identity.nodes.get(&id).map(|node| node.directory_id.clone()).filter(|_| recorded);
    ReplicaSeen {
        id,
        directory_id: known.unwrap_or_else(|| "another".to_owned()),
        end_offset: if behind_ms <= 2_000 { 100 } else { 10 },
        behind_ms,
    }
}

fn behind() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0_i64), 1 => Just(2_000), 2 => Just(2_001), 1 => Just(i64::MAX)]
}

fn voters() -> impl Strategy<Value = Vec<Voter>> {
    // Node 7 belongs to nobody that the cluster knows.
    let voter = (prop_oneof![4 => 0..3_i32, 1 => Just(7)], prop::bool::weighted(0.7), behind());
    prop::collection::vec(voter, 1..6).prop_map(|mut voters| {
        voters.sort_unstable();
        voters.dedup_by_key(|voter| voter.0);
        voters
    })
}

fn level(voters: &[ReplicaSeen]) -> usize {
    voters.iter().filter(|voter| voter.behind_ms <= 2_000).count()
}

fn state() -> impl Strategy<Value = Option<PodState>> {
    prop_oneof![
        6 => Just(Some(PodState::Ready)),
        1 => Just(None),
        1 => Just(Some(PodState::Terminating)),
        1 => Just(Some(PodState::Starting)),
        1 => Just(Some(PodState::Running)),
        1 => Just(Some(PodState::Crashing(String::new()))),
        1 => Just(Some(PodState::Refused(Refusal::DiskLost(String::new())))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn voters_change_one_at_a_time_and_a_majority_stays_level(voters in voters(), observers in voters(), leader in prop::option::of(0..3_i32)) {
        thread_local!(static CLUSTER: (Layout, Identity) = cluster());
        CLUSTER.with(|(layout, identity)| {
            let voters: Vec<ReplicaSeen> = voters.into_iter().map(|voter| replica(identity, voter)).collect();
            let observers = observers.into_iter().map(|observer| replica(identity, observer)).collect();
            let seen = QuorumSeen { leader, high_watermark: 100, voters: voters.clone(), observers };
            match quorum::next(layout, identity, &seen) {
                Next::Change(VoterChange::Add { id, directory_id, .. }) => {
                    prop_assert!(leader.is_some());
                    prop_assert!(voters.iter().all(|voter| voter.id != id), "one vote for each node");
                    prop_assert_eq!(&directory_id, &identity.nodes[&id].directory_id);
                    let reads = seen.observers.iter().any(|seen| seen.id == id && seen.directory_id == directory_id && seen.behind_ms <= 2_000);
                    prop_assert!(reads, "it has read the metadata");
                    prop_assert!(level(&voters) > voters.len() / 2, "who decides now goes on to");
                    prop_assert!(level(&voters) + 1 > voters.len().div_ceil(2), "and so do those who decide then");
                }
                Next::Change(VoterChange::Remove { id, directory_id }) => {
                    prop_assert_ne!(Some(id), leader);
                    prop_assert_ne!(&directory_id, &identity.nodes[&id].directory_id, "what is recorded goes on voting");
                    let rest: Vec<ReplicaSeen> = voters.iter().filter(|voter| voter.id != id).cloned().collect();
                    prop_assert_eq!(rest.len() + 1, voters.len());
                    prop_assert_eq!(level(&rest), level(&voters), "who follows goes on voting");
                    prop_assert!(level(&rest) > voters.len() / 2);
                }
                Next::Wait(why) => prop_assert!(!why.is_empty()),
                Next::Done => {
                    prop_assert!(layout.controllers().all(|node| voters.iter().any(|voter| voter.id == node.id)));
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn who_runs_is_restarted_only_where_nothing_is_missed(
        states in prop::collection::vec((state(), any::<bool>(), any::<bool>()), 3),
        voters in voters(),
        leader in prop::option::of(0..3_i32),
        in_sync in prop::collection::vec(prop::bool::weighted(0.9), 3),
        blind in prop::bool::weighted(0.1),
    ) {
        thread_local!(static CLUSTER: (Layout, Identity) = cluster());
        CLUSTER.with(|(layout, identity)| {
            let states: BTreeMap<i32, _> = (0..3).zip(states).collect();
            let candidates: Vec<Candidate<'_>> = layout
                .nodes
                .values()
                .map(|node| {
                    let (state, outdated, begun) = &states[&node.id];
                    Candidate { node, state: state.as_ref(), outdated: *outdated, begun: *begun }
                })
                .collect();
            let voters: Vec<ReplicaSeen> = voters.into_iter().map(|voter| replica(identity, voter)).collect();
            let quorum = QuorumSeen { leader, high_watermark: 100, voters: voters.clone(), observers: Vec::new() };
            let in_sync: Vec<i32> = (0..3).zip(in_sync).filter(|(_, in_sync)| *in_sync).map(|(id, _)| id).collect();
            let partition = PartitionSeen { topic: "t".to_owned(), partition: 0, replicas: vec![0, 1, 2], in_sync: in_sync.clone() };
            let under_replicated = if in_sync.len() < 3 { vec![partition] } else { Vec::new() };
            let kafka = (!blind).then_some(KafkaSeen { quorum, under_replicated });
            let turn = roll::next(&candidates, kafka.as_ref());
            let outdated = states.values().any(|(state, outdated, _)| *outdated && *state != Some(PodState::Terminating));
            prop_assert_eq!(turn != Turn::Nobody, outdated);
            let newest = states.values().any(|(_, outdated, begun)| !outdated || *begun);
            let starting = states.values().any(|(state, ..)| *state == Some(PodState::Starting));
            prop_assert!(newest || !starting || matches!(turn, Turn::Take(_)), "who serves nothing does not wait for others that do not");
            let Turn::Take(id) = turn else { return Ok(()) };
            prop_assert!(states[&id].1, "who is up to date stays");
            let is_ready = |id: i32| states[&id].0 == Some(PodState::Ready);
            let serves = (0..3).any(|other| other != id && is_ready(other));
            let runs = is_ready(id) || (states[&id].0 == Some(PodState::Running) && serves);
            if !runs {
                return Ok(());
            }
            prop_assert!(!blind, "nobody who runs is touched unseen");
            prop_assert!(!is_ready(id) || (0..3).all(is_ready), "one away at a time");
            let spared = (!is_ready(id) && !in_sync.contains(&id)) || (0..3).all(|other| other == id || in_sync.contains(&other));
            prop_assert!(spared, "every other replica is in sync");
            let behind = |voter: &ReplicaSeen| voter.behind_ms > 2_000 && leader != Some(id) && !is_ready(id);
            if voters.iter().any(|voter| voter.id == id && !behind(voter)) {
                let others: Vec<ReplicaSeen> = voters.iter().filter(|voter| voter.id != id).cloned().collect();
                let majority = voters.len() / 2 + 1;
                prop_assert!(leader.is_some() && level(&others) >= majority.min(voters.len() - 1));
            }
            Ok(())
        })?;
    }
}
