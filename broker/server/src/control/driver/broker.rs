//! This node as a broker and as a controller of its cluster: its registrations and heartbeats on their way to the active controller.
//!
//! The way is short where this node is the active controller: its own controller is stepped.

use gregor_controller::{Input as ControllerInput, RequestId as DecisionId};
use gregor_node::{LifecycleEffect, LifecycleInput};

use super::Driver;
use crate::control::{ControlError, answers::Asker, broker};

impl Driver {
    pub(super) fn carry_out_lifecycle(&mut self, effect: LifecycleEffect) -> Result<(), ControlError> {
        match effect {
            LifecycleEffect::Register(request) => self.ask(Asker::Lifecycle, request.into()),
            LifecycleEffect::Heartbeat(request) => self.ask(Asker::Lifecycle, request.into()),
            LifecycleEffect::Phase(phase) => {
                let state = broker::state(&self.lifecycle);
                tracing::debug!(?phase, "this broker");
                self.broker_state.send_replace(state);
            }
            LifecycleEffect::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    pub(super) fn ask(&mut self, asker: Asker, request: gregor_controller::ControllerRequest) {
        let id = DecisionId(self.askers.add(asker));
        self.step_controller(ControllerInput::Request { id, version: i16::MAX, request });
    }

    /// Registers this controller and this broker as soon as there is a controller to register with. Returns whether something began.
    pub(super) fn begin_when_active(&mut self) -> bool {
        if !self.controller.is_active() {
            return false;
        }
        if !self.lifecycle_started {
            self.lifecycle_started = true;
            self.step_lifecycle(LifecycleInput::Start);
            return true;
        }
        let level_is_known = self.replay.image().features().finalized_metadata_version().is_some();
        if !self.controller_registered && self.first_published.is_some() && level_is_known {
            self.controller_registered = true;
            if let Some(request) = broker::controller_registration(&self.options, self.replay.image()) {
                self.ask(Asker::Registration, request.into());
                return true;
            }
        }
        false
    }
}
