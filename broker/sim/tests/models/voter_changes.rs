//! Voters that are added and removed (KIP-853), one by one, while leaders come and go.

use crate::{
    checking::{Effort, Planted, Trial, try_all},
    quorum::{
        Budget, NODES, Reach, World,
        model::{QuorumModel, Rule, always},
    },
};

fn trial(steps: usize, start: World, sometimes: Vec<Rule>, planted: Planted) -> Trial<QuorumModel> {
    let mut properties = always();
    properties.push(Rule::always("majorities of sets that follow each other meet", |_, world: &World| {
        world.majorities_meet()
    }));
    properties.push(Rule::always("a change waits until the one before it is committed", |_, world: &World| {
        world.changes_come_one_by_one()
    }));
    properties.extend(sometimes);
    assert!(start.is_level(), "{start:?}");
    Trial { steps, model: QuorumModel { starts: vec![start], properties, planted } }
}

/// Node 1 leads, node 2 votes, and node 3 has found the leader and has all that it has.
fn two_voters_and_an_observer() -> World {
    let mut world = World::new(2, false).settled().with_first_timeout(Reach::All).settled();
    for _ in 0..2 {
        world = world.with_retry(NODES[2]);
    }
    world
}

/// All three vote, and node 1 leads.
fn three_voters() -> World {
    World::new(3, false).with_first_timeout(Reach::All).settled()
}

fn is_added() -> Rule {
    Rule::sometimes("a voter is added", |_, world: &World| world.has_committed_voter(NODES[2], true))
}

fn is_removed() -> Rule {
    Rule::sometimes("a voter is removed", |_, world: &World| world.has_committed_voter(NODES[1], false))
}

fn is_succeeded() -> Rule {
    Rule::sometimes("a leader is elected after another", |_, world: &World| world.past.epochs_led() > 1)
}

/// A voter more, and perhaps one less.
pub fn comings_and_goings(planted: Planted) -> Trial<QuorumModel> {
    let (steps, timeouts, changes) = Effort::wanted().choose((20, 0, 2), (12, 1, 2), (12, 2, 2));
    let left = Budget { timeouts, changes, ..Budget::default() };
    let leaves = Rule::sometimes("a leader removes itself, and gives way", |_, world: &World| world.has_left());
    trial(steps, two_voters_and_an_observer().with_budget(left), vec![is_added(), is_removed(), leaves], planted)
}

/// Changes that one leader after the other begins.
pub fn rivals(planted: Planted) -> Trial<QuorumModel> {
    let (steps, timeouts, changes) = Effort::wanted().choose((8, 2, 1), (12, 2, 1), (15, 2, 2));
    let left = Budget { timeouts, changes, ..Budget::default() };
    let mut sometimes = vec![is_removed(), is_succeeded()];
    if Effort::wanted() > Effort::Little {
        sometimes.push(Rule::sometimes("a change is taken back", |_, world: &World| world.past.seen.change_cut));
    }
    trial(steps, three_voters().with_budget(left), sometimes, planted)
}

/// A change while nodes lose their power.
pub fn losses_of_power(planted: Planted) -> Trial<QuorumModel> {
    let (steps, timeouts, changes, crashes) = Effort::wanted().choose((14, 0, 1, 1), (11, 1, 1, 1), (11, 1, 2, 1));
    let left = Budget { timeouts, crashes, changes, ..Budget::default() };
    trial(steps, two_voters_and_an_observer().with_budget(left), vec![is_added(), is_removed()], planted)
}

#[test]
fn a_voter_comes_and_another_goes_and_no_epoch_has_two_leaders() {
    try_all("a voter more, a voter less", comings_and_goings(None));
}

#[test]
fn changes_that_two_leaders_begin_never_lead_to_two_histories() {
    try_all("changes by several leaders", rivals(None));
}

#[test]
fn a_change_outlives_a_loss_of_power() {
    try_all("changes and losses of power", losses_of_power(None));
}
