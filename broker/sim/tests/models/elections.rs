//! Leader election of KRaft among three voters: whoever's patience ends whenever, whatever is lost, late or overtaken, and whoever loses
//! its power, also between what it did and what of it is on its disk.

use crate::{
    checking::{Effort, Planted, Trial, try_all},
    quorum::{
        Budget, NODES, Reach, World,
        model::{QuorumModel, Rule, always},
    },
};

fn trial(steps: usize, starts: Vec<World>, sometimes: Vec<Rule>, planted: Planted) -> Trial<QuorumModel> {
    let mut properties = always();
    properties.push(Rule::always("what is committed is on the disks of a majority", |_, world: &World| {
        world.committed_is_on_a_majority()
    }));
    properties.extend(sometimes);
    Trial { steps, model: QuorumModel { starts, properties, planted } }
}

/// Nodes that know nothing, of which the first has just lost its patience.
fn from_nothing(slow_disks: bool, left: Budget) -> Vec<World> {
    // The third node is as good as the second.
    [Reach::One(NODES[1]), Reach::All]
        .map(|reach| World::new(3, slow_disks).with_first_timeout(reach).with_budget(left))
        .to_vec()
}

/// A quorum at rest: node 1 leads, the others have all that it has.
fn at_rest(left: Budget) -> Vec<World> {
    let world = World::new(3, false).with_first_timeout(Reach::All).settled();
    assert!(world.is_level(), "{world:?}");
    vec![world.with_budget(left)]
}

fn is_succeeded() -> Rule {
    Rule::sometimes("a leader is elected after another", |_, world: &World| world.past.epochs_led() > 1)
}

/// The first leaders of a quorum, where messages are lost.
pub fn first_elections(planted: Planted) -> Trial<QuorumModel> {
    let (steps, timeouts, losses) = Effort::wanted().choose((12, 1, 0), (12, 2, 0), (10, 2, 1));
    let left = Budget { timeouts, losses, ..Budget::default() };
    let sometimes = vec![
        is_succeeded(),
        Rule::sometimes("two stand in one epoch", |_, world: &World| world.past.rivals()),
        Rule::sometimes("a node cuts its log", |_, world: &World| world.past.seen.cut),
        Rule::sometimes("two take themselves for leaders", |_, world: &World| world.leaders() > 1),
        Rule::sometimes("a leader gives way", |_, world: &World| world.has_resigned()),
    ];
    trial(steps, from_nothing(false, left), sometimes, planted)
}

/// The same where nodes lose their power.
pub fn losses_of_power(planted: Planted) -> Trial<QuorumModel> {
    // Two of each take more than 16 GB after eight events.
    let (steps, timeouts, crashes) = Effort::wanted().choose((5, 1, 1), (10, 1, 1), (10, 1, 1));
    let left = Budget { timeouts, crashes, ..Budget::default() };
    let gives_way = Rule::sometimes("a leader gives way", |_, world: &World| world.has_resigned());
    trial(steps, from_nothing(false, left), vec![is_succeeded(), gives_way], planted)
}

/// Leaders that follow each other, and what each appends.
pub fn successions(planted: Planted) -> Trial<QuorumModel> {
    let (steps, timeouts, appends) = Effort::wanted().choose((9, 2, 1), (13, 2, 1), (16, 2, 2));
    let left = Budget { timeouts, appends, ..Budget::default() };
    let mut sometimes = vec![
        is_succeeded(),
        Rule::sometimes("what two leaders appended is committed", |_, world: &World| world.past.epochs_committed() > 1),
    ];
    if Effort::wanted() > Effort::Little {
        sometimes.push(Rule::sometimes("a node cuts its log", |_, world: &World| world.past.seen.cut));
    }
    trial(steps, at_rest(left), sometimes, planted)
}

/// Elections among nodes that hear others while their own votes are on the way to their disks.
pub fn slow_disks(planted: Planted) -> Trial<QuorumModel> {
    let (steps, timeouts, crashes) = Effort::wanted().choose((12, 1, 0), (20, 1, 0), (18, 1, 1));
    let left = Budget { timeouts, crashes, ..Budget::default() };
    let sometimes =
        vec![is_succeeded(), Rule::sometimes("two stand in one epoch", |_, world: &World| world.past.rivals())];
    trial(steps, from_nothing(true, left), sometimes, planted)
}

#[test]
fn whatever_happens_while_the_first_leaders_are_elected_an_epoch_has_one() {
    try_all("first elections", first_elections(None));
}

#[test]
fn whoever_loses_its_power_keeps_its_vote_and_what_it_said_it_has() {
    try_all("elections and losses of power", losses_of_power(None));
}

#[test]
fn what_a_leader_committed_its_successors_have() {
    try_all("successions", successions(None));
}

#[test]
fn a_vote_that_is_not_on_the_disk_yet_is_given_to_nobody_else() {
    try_all("elections on slow disks", slow_disks(None));
}
