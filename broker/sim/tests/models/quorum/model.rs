//! A quorum as a model: where it begins, what is looked at in each state.

use stateright::{Model, Property};

use super::{Action, World};
use crate::checking::{self, Planted};

/// What is looked at in each state.
pub type Rule = Property<QuorumModel>;

/// See the module.
pub struct QuorumModel {
    pub starts: Vec<World>,
    pub properties: Vec<Rule>,
    /// A bug that the model has to find.
    pub planted: Planted,
}

impl Model for QuorumModel {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        self.starts.clone()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        checking::plant(self.planted);
        let mut world = world.clone();
        world.happen(action);
        Some(world)
    }

    fn properties(&self) -> Vec<Rule> {
        self.properties.clone()
    }
}

/// What holds of every quorum, whoever votes.
pub fn always() -> Vec<Rule> {
    vec![
        Rule::always("an epoch has one leader", |_, world: &World| !world.past.broken.two_leaders),
        Rule::always("a node votes once in an epoch", |_, world: &World| !world.past.broken.two_votes),
        Rule::always("a vote is on the disk before it is heard of", |_, world: &World| world.votes_are_kept()),
        Rule::always("what is committed stays as it is", |_, world: &World| {
            !world.past.broken.committed_differs && !world.past.broken.committed_cut
        }),
        Rule::always("what is known to be committed never gets less", |_, world: &World| {
            !world.past.broken.commit_went_back
        }),
        Rule::always("a leader has all that is committed", |_, world: &World| !world.past.broken.leader_lacks),
        Rule::always("logs that agree on an offset agree on all before it", |_, world: &World| world.logs_match()),
    ]
}
