//! How a world ends: nothing goes wrong any more, the cluster comes to rest within a limit, takes what is written again, and is held to all
//! that it ever promised.

use gregor_log::disk::Crash;
use gregor_raft::Nanos;
use gregor_types::BrokerId;

use super::{Event, LOOK_EVERY, Rest, World};
use crate::{
    clock::SECOND,
    cluster::{
        audit::{audit_metadata, audit_records, unrest, votes},
        trouble::Relief,
    },
};

/// For so long things go on to go wrong until so many records were acknowledged.
const TROUBLE_MAX: Nanos = 600 * SECOND;
const ACKNOWLEDGED_MIN: u64 = 1_000;
/// How long the cluster has then to come to rest.
const HEALING: Nanos = 60 * SECOND;
/// How long it is watched at rest: without a reason, nobody else comes to lead the quorum.
const RESTING: Nanos = 5 * SECOND;

impl World {
    /// From now on nothing goes wrong.
    pub(super) fn heal(&mut self) {
        let acknowledged = self.ledger.acknowledged;
        if self.now < TROUBLE_MAX && (acknowledged < ACKNOWLEDGED_MIN || self.spares_others()) {
            return self.after(SECOND, Event::Heal);
        }
        if acknowledged < ACKNOWLEDGED_MIN {
            let seconds = TROUBLE_MAX / SECOND;
            self.ledger.violated(format!("only {acknowledged} records were acknowledged in {seconds} s"));
        }
        self.trace.note(format_args!("all goes well from now on"));
        self.healing_since = Some(self.now);
        self.wire.heal();
        // Whatever is stuck in the memory of a node is cured when it starts again, so in one world of two the nodes that are well go on.
        let restarts_all = self.random.chance(50);
        let ids: Vec<BrokerId> = self.machines.keys().copied().collect();
        for id in ids {
            self.relieve(Relief::Disk(id));
            let machine = self.machine(id);
            let Some(process) = &machine.process else {
                machine.go_on();
                let pause = self.downtime();
                self.after(pause, Event::Start(id));
                continue;
            };
            // A machine that was to go off does so now, with all the others: the cluster comes back from nothing.
            if restarts_all || machine.is_let_down || machine.disk.is_off() {
                self.go_down(id, Crash::KeepAll, "for the last time");
            } else {
                let is_stopping = process.is_stopping();
                machine.go_on();
                self.trace.note(format_args!("node {id} goes on, stopping: {is_stopping}"));
            }
        }
        self.after(LOOK_EVERY, Event::Look);
    }

    /// Whether it has come to rest, and stays there.
    pub(super) fn look(&mut self) {
        let since = self.healing_since.unwrap_or(self.now);
        let Some((leader, epoch, _)) = self.controller else { return self.after(LOOK_EVERY, Event::Look) };
        let removals = self.ledger.counts.get("voter removed").copied().unwrap_or(0);
        let has_to_go = |rest: Rest| rest.removals < removals || !votes(&self.machines, rest.leader);
        match (unrest(&self.machines, &self.ledger), self.rested) {
            (_, Some(rest)) if rest.epoch != epoch && !has_to_go(rest) => {
                self.ledger.violated(format!("{leader} leads the quorum in {epoch}, for no reason: {rest:?}"));
            }
            (None, None) => {
                self.rested = Some(Rest { since: self.now, leader, epoch, removals });
                self.after(RESTING, Event::Look);
            }
            (None, Some(_)) => {
                for machine in self.machines.values() {
                    audit_metadata(machine, &mut self.ledger);
                }
                audit_records(&mut self.machines, &mut self.ledger);
                self.is_over = true;
            }
            (Some(why), None) if self.now > since + HEALING => {
                self.ledger.violated(format!("the cluster does not come to rest within {} s: {why}", HEALING / SECOND));
            }
            (Some(why), Some(_)) if self.now > since + HEALING + RESTING => {
                self.ledger.violated(format!("the cluster does not stay at rest: {why}"));
            }
            // Leadership of partitions may go back to whom it is preferred at.
            (Some(_), _) => self.after(LOOK_EVERY, Event::Look),
        }
    }
}
