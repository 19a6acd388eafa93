//! Carries out what the quorum wants done, and tells the rest of the node who leads.
//!
//! Called by the driver alone, for one effect at a time and in their order.

use std::sync::atomic::Ordering;

use gregor_controller::Input as ControllerInput;
use gregor_node::LifecycleInput;
use gregor_raft::{Effect, Endpoint, Input, Outgoing, Quorum, RoleChange};
use gregor_types::{BrokerId, planted::planted};

use super::{Driver, Held, Sync};
use crate::control::{
    ControlError, QuorumLeader,
    answers::{Asker, complete},
    metadata_log::MetadataLogError,
    peers::Heard,
    replay::Replay,
};

impl Driver {
    pub(super) fn carry_out(&mut self, effect: Effect) -> Result<(), ControlError> {
        match effect {
            Effect::Persist { token, state } => {
                self.volatile.insert(token);
                self.syncs.push_back(Sync::Election(token, state));
            }
            Effect::Append { token, base, epoch, timestamp, ref batch } => {
                let appended = self.log.append(batch, base, epoch, timestamp);
                if self.stall_if_full(appended, effect)? {
                    self.step_quorum(Input::Appended(token));
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
            Effect::Send { to, request } => self.send(to, request),
            Effect::AppendFetched { base, ref records } => {
                let appended = self.log.append_fetched(base, records, self.now().wall);
                self.stall_if_full(appended, effect)?;
            }
            Effect::Truncate { end } => {
                self.log.truncate(end, self.now().wall)?;
                // Nothing that was shown is cut off: that was committed. What was read at the start may be.
                if self.replay.end() > end && !planted("cut-metadata-shown") {
                    self.replay = Replay::load_anew(&mut self.log)?;
                }
            }
            Effect::SnapshotPiece { id, position, ref bytes } => {
                let written = self.download.write(id, position, bytes);
                self.stall_if_full(written, effect)?;
            }
            Effect::CompleteSnapshot { token, id } => {
                let control = self.download.complete(id)?;
                if control.is_some() {
                    self.log.add_snapshot(id)?;
                }
                self.step_quorum(Input::SnapshotReceived { token, control });
            }
            Effect::InstallSnapshot { id } => {
                tracing::info!(end = %id.offset, "the metadata log starts again at the end of the leader's snapshot");
                if !planted("snapshot-beside-log") {
                    self.log.start_at(id, self.now().wall)?;
                }
                self.replay = Replay::load_anew(&mut self.log)?;
                self.step_quorum(Input::SnapshotReady(id));
            }
            Effect::Upgraded { to, result } => self.upgraded(to, result),
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

    /// Puts off an effect for which the disk has no room. Returns whether it was done.
    fn stall_if_full(&mut self, done: Result<(), MetadataLogError>, effect: Effect) -> Result<bool, ControlError> {
        match done {
            Ok(()) => Ok(true),
            Err(error) if error.is_disk_full() && !self.handle.stop_wanted.load(Ordering::Relaxed) => {
                tracing::warn!(%error, "the disk is full: the metadata log waits for room");
                self.stalled = Some(effect);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn send(&mut self, to: BrokerId, request: Outgoing) {
        let address = match &request {
            Outgoing::ApiVersions(address) => Some(address.clone()),
            _ => self.address(to),
        };
        if let Some(address) = address {
            self.in_flight += 1;
            self.network.send(to, &address, request);
        } else {
            tracing::debug!(node = %to, "it is not known where this voter listens");
            self.step_quorum(Input::Response { from: to, response: None });
        }
    }

    /// Takes what came from another node.
    pub(in crate::control) fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Response { from, response } => {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.step_quorum(Input::Response { from, response });
            }
            Heard::Registered(error) => self.controller_registered(error),
            Heard::Broker(input) => self.step_lifecycle(input),
        }
    }

    pub(super) fn answer(&mut self, held: Held) -> Result<(), ControlError> {
        let response = complete(held.reply, held.read, &mut self.log)?;
        if let Some(Asker::Caller(reply)) = self.askers.remove(held.to.0) {
            // A caller that has gone needs no answer.
            let _ = reply.send(response);
        }
        Ok(())
    }

    /// Tells who leads, if that has changed. Returns whether somebody does who did not before: this broker has something to say to it.
    pub(super) fn show_leader(&mut self) -> bool {
        let (epoch, leader) = (self.quorum.epoch(), self.quorum.leader_id());
        let endpoint = leader.and_then(|id| self.address(id));
        let is_shown = {
            let shown = self.quorum_leader.borrow();
            shown.epoch == epoch && shown.leader == leader && shown.endpoint == endpoint
        };
        if is_shown {
            return false;
        }
        self.quorum_leader.send_replace(QuorumLeader { epoch, leader, endpoint });
        if leader.is_some() {
            self.step_lifecycle(LifecycleInput::ControllerChanged);
        }
        leader.is_some()
    }

    /// Where a node listens for controllers, as far as this one knows.
    fn address(&self, node: BrokerId) -> Option<Endpoint> {
        let config = &self.options.config;
        let servers = config.controller_quorum_bootstrap_servers.iter().enumerate();
        let mut named = servers
            .filter(|(index, _)| u16::try_from(*index).is_ok_and(|index| Quorum::bootstrap_node(index) == node))
            .map(|(_, (host, port))| Endpoint { name: "".into(), host: host.as_str().into(), port: *port });
        if let Some(server) = named.next() {
            return Some(server);
        }
        let said = if self.quorum.leader_id() == Some(node) { self.quorum.leader_endpoints() } else { &[] };
        let known: &[Endpoint] = if node == config.node_id {
            &self.options.controller_endpoints
        } else if said.is_empty() {
            self.quorum.history().voters().voter(node).map_or(&[], |voter| &voter.endpoints)
        } else {
            said
        };
        let name = config.controller_listener_names.first().map_or("", String::as_str);
        let mut endpoint = known.iter().find(|endpoint| endpoint.name == name).or(known.first())?.clone();
        // An answer to a fetch says where the leader listens, but not what it calls that listener.
        if endpoint.name.is_empty() {
            endpoint.name = name.into();
        }
        Some(endpoint)
    }
}
