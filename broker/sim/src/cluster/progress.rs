//! Progress: whatever goes wrong elsewhere, a majority of the voters to whom nothing happens has a leader that commits, soon.
//!
//! The world calls it now and then. It looks at nodes and the network from outside, and asks nobody anything.

use std::collections::BTreeMap;

use gregor_raft::{Nanos, VoterSet};
use gregor_types::{BrokerId, DirectoryId, Offset};

use super::{audit::Machines, letters::Party, machine::Machine, process::Process, wire::Wire};
use crate::clock::SECOND;

/// How long a majority may go without anything new that is committed. An active controller writes something every 2 s
/// (`metadata.max.idle.interval.ms`); that it has gone its voters notice after 2 s (`controller.quorum.fetch.timeout.ms`), and it itself after 3 that it
/// has no majority; an election without a winner takes up to 2 s and a pause of one. So there is time for several of them.
const PROGRESS_WITHIN: Nanos = 20 * SECOND;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// When something was new last, or when something happened to those that are well.
    since: Nanos,
    /// The newest metadata that was shown by then.
    newest: Option<Offset>,
    /// How often the network had become worse by then.
    worsened: u64,
    /// Nodes that reach each other and to which nothing has happened since.
    well: BTreeMap<BrokerId, Condition>,
}

/// What is different once something has happened to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    boot: u64,
    directory: DirectoryId,
    ahead: Nanos,
}

impl Condition {
    /// None where something is wrong with the node.
    fn of(machine: &Machine) -> Option<Self> {
        let process = machine.process.as_ref()?;
        let is_well = !process.is_stopping() && !process.is_stalled() && !machine.is_let_down && !machine.disk.is_off();
        let Machine { boot, identity, .. } = machine;
        is_well.then(|| Self { boot: *boot, directory: identity.directory, ahead: machine.ahead() })
    }
}

impl Progress {
    /// What is wrong, if nothing has become of a majority that is well for too long.
    pub(super) fn look(
        &mut self,
        now: Nanos,
        machines: &Machines,
        wire: &Wire,
        newest: Option<Offset>,
    ) -> Option<String> {
        let processes = machines.values().filter_map(|machine| machine.process.as_ref());
        // Which of them counts is not known to all: a majority of each is wanted.
        let sets: Vec<&VoterSet> = processes.map(|process: &Process| process.quorum().history().voters()).collect();
        let conditions = machines.iter().filter_map(|(id, machine)| Some((*id, Condition::of(machine)?)));
        let conditions: BTreeMap<_, _> = conditions.collect();
        self.well.retain(|id, before| conditions.get(id) == Some(before));
        let goes_on = wire.is_fair() && wire.worsened() == self.worsened && newest == self.newest;
        if goes_on && is_majority(&self.well, &sets) {
            let seconds = PROGRESS_WITHIN / SECOND;
            return (now >= self.since + PROGRESS_WITHIN).then(|| {
                let well: Vec<_> = self.well.keys().collect();
                format!("nothing is committed after {newest:?} for {seconds} s, and {well:?} are well, and a majority")
            });
        }
        let reach = |one: BrokerId, other: BrokerId| {
            let (one, other) = (Party::Node(one), Party::Node(other));
            !wire.is_cut(one, other) && !wire.is_cut(other, one)
        };
        let around = |id: &BrokerId| {
            let mut group = BTreeMap::from([(*id, conditions[id])]);
            for (other, condition) in &conditions {
                if group.keys().all(|member| reach(*member, *other)) {
                    group.insert(*other, *condition);
                }
            }
            group
        };
        let well = conditions.keys().map(around).find(|group| is_majority(group, &sets)).unwrap_or_default();
        *self = Self { since: now, newest, worsened: wire.worsened(), well };
        None
    }
}

/// Whether these nodes are more than half of the voters of each set.
fn is_majority(nodes: &BTreeMap<BrokerId, Condition>, sets: &[&VoterSet]) -> bool {
    let mut halves = sets.iter().map(|voters| {
        let votes = |id: BrokerId, directory: Option<DirectoryId>| {
            let known = nodes.get(&id).map(|condition| condition.directory);
            known.is_some_and(|known| directory.is_none_or(|directory| directory == known))
        };
        voters.iter().filter(|voter| votes(voter.key.id, voter.key.directory)).count() > voters.len() / 2
    });
    !sets.is_empty() && halves.all(|is_more| is_more)
}
