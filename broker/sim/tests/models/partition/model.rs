//! A partition as a model: where it begins, what is looked at in each state.

use stateright::{Model, Property};

use super::{Event, World};
use crate::checking::{self, Planted};

/// What is looked at in each state.
pub type Rule = Property<PartitionModel>;

/// See the module.
pub struct PartitionModel {
    pub start: World,
    pub properties: Vec<Rule>,
    /// A bug that the model has to find.
    pub planted: Planted,
}

impl Model for PartitionModel {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        world.events(events);
    }

    fn next_state(&self, world: &World, event: Event) -> Option<World> {
        checking::plant(self.planted);
        let mut world = world.clone();
        world.happen(event);
        Some(world)
    }

    fn properties(&self) -> Vec<Rule> {
        self.properties.clone()
    }
}

/// What holds of every partition.
pub fn always() -> Vec<Rule> {
    vec![
        Rule::always("what was acknowledged is in each later leader's log", |_, world: &World| {
            world.leader_has_what_was_acknowledged()
        }),
        Rule::always("who is in sync has all that is committed", |_, world: &World| {
            world.in_sync_have_what_is_committed()
        }),
        Rule::always("what is committed stays as it is", |_, world: &World| {
            !world.past.broken.committed_differs && !world.past.broken.committed_cut
        }),
        Rule::always("high watermarks only grow", |_, world: &World| !world.past.broken.went_back),
        Rule::always("a follower knows no more to be committed than its leaders", |_, world: &World| {
            !world.past.broken.ahead_of_leaders
        }),
        Rule::always("an epoch has one leader", |_, world: &World| world.one_leads_an_epoch()),
    ]
}
