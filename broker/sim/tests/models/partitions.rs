//! A partition's leader, in-sync replicas and high watermark, while brokers read of changes late, fall behind, are fenced, die and come back.

use crate::{
    checking::{Effort, Planted, Trial, try_all},
    partition::{
        Budget, World,
        model::{PartitionModel, Rule, always},
    },
};

fn trial(steps: usize, start: World, further: Vec<Rule>, planted: Planted) -> Trial<PartitionModel> {
    let mut properties = always();
    properties.extend([
        Rule::sometimes("a record is acknowledged", |_, world: &World| world.past.has_acknowledged()),
        Rule::sometimes("a replica falls out of sync", |_, world: &World| world.past.seen.shrank),
        Rule::sometimes("one comes back into sync", |_, world: &World| world.past.seen.grew),
    ]);
    properties.extend(further);
    Trial { steps, model: PartitionModel { start, properties, planted } }
}

fn moves() -> Rule {
    Rule::sometimes("leadership moves", |_, world: &World| world.past.seen.moved)
}

/// Followers that fall behind and catch up, and a controller that is not always heard.
pub fn laggards(planted: Planted) -> Trial<PartitionModel> {
    let (steps, records, lags, silences) = Effort::wanted().choose((10, 1, 1, 0), (12, 2, 2, 1), (15, 2, 2, 1));
    let left = Budget { records, lags, silences, ..Budget::default() };
    trial(steps, World::new(false, left), Vec::new(), planted)
}

/// Leaders that are fenced, do not know it, and come back.
pub fn fenced_leaders(planted: Planted) -> Trial<PartitionModel> {
    let (steps, records, fences, lags) = Effort::wanted().choose((8, 1, 1, 0), (10, 1, 1, 1), (11, 2, 1, 1));
    let left = Budget { records, lags, fences, ..Budget::default() };
    let further = vec![
        moves(),
        Rule::sometimes("one leads on that was replaced", |_, world: &World| world.has_deposed_leader()),
        Rule::sometimes("a follower cuts its log", |_, world: &World| world.past.seen.cut),
    ];
    trial(steps, World::new(false, left), further, planted)
}

/// All that are in sync are fenced, and one is left that fell behind.
pub fn deserted(planted: Planted) -> Trial<PartitionModel> {
    let (steps, fences) = Effort::wanted().choose((5, 2), (8, 2), (10, 3));
    let start = World::new(false, Budget { fences, ..Budget::default() }).with_laggard();
    assert!(start.past.has_acknowledged() && start.past.seen.shrank, "{start:?}");
    let mut properties = always();
    properties.push(Rule::sometimes("nobody leads", |_, world: &World| world.is_leaderless()));
    Trial { steps, model: PartitionModel { start, properties, planted } }
}

/// A user moves leadership back, and nobody fails.
pub fn preferred_leaders(planted: Planted) -> Trial<PartitionModel> {
    let (steps, records, fences, preferences) = Effort::wanted().choose((7, 1, 1, 1), (12, 1, 1, 1), (14, 2, 1, 1));
    let left = Budget { records, fences, preferences, ..Budget::default() };
    trial(steps, World::new(false, left), vec![moves()], planted)
}

/// Processes that die and start again.
pub fn deaths(planted: Planted) -> Trial<PartitionModel> {
    let (steps, records, deaths, fences) = Effort::wanted().choose((6, 0, 1, 1), (9, 1, 1, 1), (9, 1, 2, 2));
    let left = Budget { records, fences, deaths, ..Budget::default() };
    trial(steps, World::new(false, left).with_record(), vec![moves()], planted)
}

/// A disk that is lost, where eligible replicas are kept.
pub fn lost_disk(planted: Planted) -> Trial<PartitionModel> {
    let (steps, records, fences) = Effort::wanted().choose((6, 0, 1), (8, 1, 1), (9, 1, 2));
    let left = Budget { records, fences, losses: 1, ..Budget::default() };
    trial(steps, World::new(true, left).with_record(), vec![moves()], planted)
}

/// All brokers are fenced, and come back in any order.
pub fn eligible_replicas(planted: Planted) -> Trial<PartitionModel> {
    let (steps, fences) = Effort::wanted().choose((5, 3), (7, 3), (8, 3));
    let left = Budget { fences, ..Budget::default() };
    let further = vec![
        Rule::sometimes("nobody leads", |_, world: &World| world.is_leaderless()),
        Rule::sometimes("an eligible replica leads", |_, world: &World| world.past.seen.eligible_led),
    ];
    trial(steps, World::new(true, left).with_record(), further, planted)
}

#[test]
fn whoever_falls_behind_and_catches_up_has_what_is_committed_while_it_counts_as_in_sync() {
    try_all("replicas that fall behind", laggards(None));
}

#[test]
fn whoever_is_fenced_while_it_leads_is_replaced_by_one_that_has_what_was_acknowledged() {
    try_all("leaders that are fenced", fenced_leaders(None));
}

#[test]
fn who_fell_behind_does_not_lead_though_nobody_else_is_left() {
    try_all("deserted partitions", deserted(None));
}

#[test]
fn leadership_goes_back_to_the_preferred_replica_and_nothing_acknowledged_is_lost() {
    try_all("preferred leaders", preferred_leaders(None));
}

#[test]
fn however_many_processes_die_nothing_acknowledged_is_lost() {
    try_all("processes that die", deaths(None));
}

#[test]
fn one_replica_may_lose_all_that_it_had_where_two_must_be_in_sync_and_eligible_ones_are_kept() {
    try_all("a disk that is lost", lost_disk(None));
}

#[test]
fn an_eligible_replica_leads_with_all_that_was_acknowledged() {
    try_all("eligible replicas", eligible_replicas(None));
}
