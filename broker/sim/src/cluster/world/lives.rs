//! How nodes start, stop and die, and what becomes of who had asked them something.

use gregor_log::disk::Crash;
use gregor_types::BrokerId;

use super::{Event, REFUSED, World};
use crate::{
    cluster::{letters::Party, trouble::Power},
    node::Death,
};

impl World {
    /// A node starts, unless it runs.
    pub(super) fn start_node(&mut self, id: BrokerId) {
        if self.machines[&id].process.is_some() {
            return;
        }
        let now = self.now;
        let machine = self.machine(id);
        if now < machine.down_until {
            let pause = machine.down_until - now;
            return self.after(pause, Event::Start(id));
        }
        machine.follow_time(now);
        let started = machine.start();
        let boot = self.machines[&id].boot;
        self.trace.note(format_args!("node {id} starts, boot {boot}"));
        match started {
            Ok(()) => self.step_node(id),
            Err(death) => self.died(id, &death),
        }
    }

    /// A process has ended by itself: by a disk that failed or went off, and by nothing else.
    pub(super) fn died(&mut self, id: BrokerId, death: &Death) {
        self.trace.note(format_args!("the process of {id} ends: {death}"));
        let machine = &self.machines[&id];
        if !machine.disk.is_off() && !machine.is_let_down {
            return self.ledger.violated(format!("node {id} ends on a disk that is well: {death}"));
        }
        if let Some(what) = machine.stops_at.filter(|_| machine.disk.is_off()) {
            self.ledger.count(what);
        }
        let crash = self.crash_of(id);
        self.go_down(id, crash, "by itself");
    }

    /// A process ends, or its machine goes down with it; it comes back.
    pub(in crate::cluster) fn go_down(&mut self, id: BrokerId, crash: Crash, how: &str) {
        self.trace.note(format_args!("node {id} goes down {how}: {crash:?}"));
        match crash {
            Crash::KeepAll => {}
            Crash::LoseUnsynced => self.ledger.count("power lost"),
            Crash::Tear(_) => self.ledger.count("write torn"),
        }
        if self.power == Power::FailsInTurn && crash == Crash::LoseUnsynced && self.has_committed_unsynced(id) {
            self.ledger.count("committed records lost by power");
        }
        self.machine(id).crash(crash);
        if self.power == Power::FailsInTurn && crash != Crash::KeepAll {
            self.spare_all();
        }
        self.calls.forget(Party::Node(id));
        // Its connections are gone, which who asked it hears of, unless nothing comes through.
        for (call, from) in self.calls.asked(id) {
            if !self.wire.is_cut(Party::Node(id), from) {
                self.give_up_after(REFUSED, call);
            }
        }
        let pause = self.downtime();
        self.after(pause, Event::Start(id));
    }

    /// Whether a loss of power would take records from a node that are committed.
    fn has_committed_unsynced(&self, id: BrokerId) -> bool {
        let replicas = self.machines[&id].process.as_ref().and_then(|process| process.replicas.as_ref());
        let mut held = replicas.into_iter().flat_map(|replicas| replicas.held.all());
        held.any(|replica| replica.log.recovery_point() < replica.high_watermark())
    }

    /// A node begins to stop as it is meant to.
    pub(in crate::cluster) fn stop_cleanly(&mut self, id: BrokerId) {
        self.trace.note(format_args!("node {id} is told to stop"));
        let now = self.now;
        let machine = self.machine(id);
        machine.follow_time(now);
        let Some(process) = &mut machine.process else { return };
        match process.begin_stop() {
            Ok(()) => self.step_node(id),
            Err(death) => self.died(id, &death),
        }
    }

    /// Ends a process that has stopped.
    pub(super) fn close(&mut self, id: BrokerId) {
        let machine = self.machine(id);
        let Some(process) = machine.process.take() else { return };
        match process.close() {
            Ok(()) if !machine.disk.is_off() => {
                self.ledger.count("stopped cleanly");
                self.go_down(id, Crash::KeepAll, "by a clean stop");
            }
            Ok(()) => self.died(id, &Death("the machine went off".to_owned())),
            Err(death) => self.died(id, &death),
        }
    }

    /// A node's disk is lost.
    pub(in crate::cluster) fn replace_disk(&mut self, id: BrokerId) {
        self.trace.note(format_args!("the disk of {id} is lost, and it gets a new one"));
        self.ledger.count("disk replaced");
        if self.machines[&id].process.is_some() {
            self.go_down(id, Crash::KeepAll, "with its disk");
        }
        let machine = self.machine(id);
        machine.replace_disk();
        if machine.identity.roles.is_broker() {
            self.ledger.count("broker's disk replaced");
            self.spare_all();
        }
    }
}
