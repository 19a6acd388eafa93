//! Carries out what the quorum wants done, and tells the rest of the node who leads.
//!
//! Called by the driver alone, for one effect at a time and in their order.

use std::sync::atomic::Ordering;

use gregor_controller::Input as ControllerInput;
use gregor_raft::{Effect, Endpoint, Input, RoleChange};

use super::{Driver, Held, Sync};
use crate::control::{
    ControlError, QuorumLeader,
    answers::{Asker, complete},
};

impl Driver {
    pub(super) fn carry_out(&mut self, effect: Effect) -> Result<(), ControlError> {
        match effect {
            Effect::Persist { token, state } => {
                self.volatile.insert(token);
                self.syncs.push_back(Sync::Election(token, state));
            }
            Effect::Append { token, base, epoch, timestamp, batch } => {
                match self.log.append(&batch, base, epoch, timestamp) {
                    Ok(()) => self.step_quorum(Input::Appended(token)),
                    Err(error) if error.is_disk_full() && !self.handle.stop_wanted.load(Ordering::Relaxed) => {
                        tracing::warn!(%error, "the disk is full: the metadata log waits for room");
                        self.stalled = Some(Effect::Append { token, base, epoch, timestamp, batch });
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Effect::Flush { token, .. } => {
                self.volatile.insert(token);
                self.syncs.push_back(Sync::Log(token));
            }
            Effect::Reply { after, to, reply, read } => {
                let held = Held { to, reply, read };
                match after.filter(|token| self.volatile.contains(token)) {
                    Some(token) => self.held.push((token, held)),
                    None => self.answer(held)?,
                }
            }
            // The start refuses a quorum of several voters: there is nobody who could answer, or send records.
            Effect::Send { to, .. } => self.step_quorum(Input::Response { from: to, response: None }),
            Effect::AppendFetched { .. }
            | Effect::Truncate { .. }
            | Effect::SnapshotPiece { .. }
            | Effect::CompleteSnapshot { .. }
            | Effect::InstallSnapshot { .. } => unreachable!("nobody sent records"),
            Effect::Upgraded { .. } => unreachable!("nobody asks for it before a quorum may have several voters"),
            Effect::HighWatermark(end) => self.commit(end)?,
            Effect::Timer { at } => self.quorum_timer = Some(at),
            Effect::Role(RoleChange::Leader { epoch, start }) => {
                tracing::info!(%epoch, %start, "this node leads the metadata quorum");
                self.handle.leads.store(true, Ordering::Relaxed);
                self.step_controller(ControllerInput::LeadershipWon { epoch, start });
            }
            Effect::Role(RoleChange::NotLeader { epoch }) => {
                tracing::info!(%epoch, "this node does not lead the metadata quorum any more");
                self.handle.leads.store(false, Ordering::Relaxed);
                self.step_controller(ControllerInput::LeadershipLost);
            }
            Effect::Refused { base, error } => {
                tracing::warn!(%base, %error, "an append to the metadata log was refused");
                self.step_controller(ControllerInput::LeadershipLost);
                // This node may lead all the same: then the controller decides on, from what is committed.
                if let Some(start) = self.quorum.next_offset() {
                    let epoch = self.quorum.epoch();
                    self.step_controller(ControllerInput::LeadershipWon { epoch, start });
                }
            }
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, held: Held) -> Result<(), ControlError> {
        let response = complete(held.reply, held.read, &mut self.log)?;
        if let Some(Asker::Caller(reply)) = self.askers.remove(held.to.0) {
            // A caller that has gone needs no answer.
            let _ = reply.send(response);
        }
        Ok(())
    }

    /// Tells who leads, if that has changed.
    pub(super) fn show_leader(&self) {
        let leader = self.leader();
        self.quorum_leader.send_if_modified(|shown| {
            let changes = *shown != leader;
            *shown = leader;
            changes
        });
    }

    fn leader(&self) -> QuorumLeader {
        let id = self.quorum.leader_id();
        let own = &self.options.controller_endpoints;
        let known: &[Endpoint] = match (id, self.quorum.leader_endpoints()) {
            (None, _) => &[],
            (Some(id), _) if id == self.options.config.node_id => own,
            (Some(_), said) if !said.is_empty() => said,
            (Some(id), _) => self.quorum.history().voters().voter(id).map_or(&[], |voter| &voter.endpoints),
        };
        let names = &self.options.config.controller_listener_names;
        let name = names.first().map_or("", String::as_str);
        let endpoint = known.iter().find(|endpoint| endpoint.name == name).or(known.first()).cloned();
        // An answer to a fetch says where the leader listens, but not what it calls that listener.
        let endpoint = endpoint.map(|mut endpoint| {
            if endpoint.name.is_empty() {
                endpoint.name = name.into();
            }
            endpoint
        });
        QuorumLeader { epoch: self.quorum.epoch(), leader: id, endpoint }
    }
}
