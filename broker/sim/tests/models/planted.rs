//! The models find bugs: each that is planted here breaks something that must hold, in a model that is well without it.
//!
//! `cargo xtask test sim` builds this with `--cfg gregor_planted`; any other build has no bugs to find.

use std::{fmt::Debug, hash::Hash};

use stateright::Model;

use crate::{
    checking::{Planted, Trial, broken},
    elections, partitions, voter_changes,
};

/// Asserts that a model finds a bug.
fn finds<M>(bug: &'static str, trial: fn(Planted) -> Trial<M>)
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Send + Sync + Clone + PartialEq + 'static,
    M::Action: Debug + Clone + PartialEq,
{
    let broken = broken(trial(Some(bug)));
    println!("{bug}: {broken:?}");
    assert!(!broken.is_empty(), "nothing is broken by {bug}");
}

#[test]
fn elections_show_a_vote_that_is_answered_before_it_is_on_the_disk() {
    finds("vote-before-persist", elections::losses_of_power);
}

#[test]
fn elections_show_two_votes_in_an_epoch() {
    finds("two-votes-in-an-epoch", elections::first_elections);
}

#[test]
fn elections_show_a_leader_that_half_of_the_voters_elect() {
    finds("half-elects", elections::first_elections);
}

#[test]
fn successions_show_a_leader_that_lacks_what_is_committed() {
    finds("shorter-log-elected", elections::successions);
}

#[test]
fn successions_show_a_log_that_is_no_part_of_its_leaders() {
    finds("metadata-divergence-unchecked", elections::successions);
}

#[test]
fn changes_of_voters_show_a_leader_that_half_of_the_voters_elect() {
    finds("half-elects", voter_changes::rivals);
}

#[test]
fn changes_of_voters_show_what_is_committed_by_one_voter() {
    finds("majority-not-awaited", voter_changes::rivals);
}

#[test]
fn partitions_show_a_follower_that_joins_though_it_is_behind() {
    finds("joins-while-behind", partitions::laggards);
}

#[test]
fn partitions_show_a_high_watermark_that_awaits_no_followers() {
    finds("followers-not-awaited", partitions::laggards);
}

#[test]
fn partitions_show_an_election_of_one_that_was_not_in_sync() {
    finds("unclean-election", partitions::deserted);
}

#[test]
fn partitions_show_a_leader_that_drops_a_follower_by_itself() {
    finds("shrinks-by-itself", partitions::laggards);
}
