//! This node as a broker and as a controller of its cluster: its registrations and heartbeats on their way to the active controller.
//!
//! The way is short where this node is the active controller: its own controller is stepped.

use gregor_controller::{Input as ControllerInput, RequestId as DecisionId};
use gregor_node::{LifecycleEffect, LifecycleInput};
use gregor_raft::{Endpoint, Nanos};
use gregor_types::{BrokerId, ErrorCode};

use super::{Driver, MILLISECOND, Registration};
use crate::control::{ControlError, answers::Asker, broker, peers::OfBroker};

/// How long a controller waits before it tries again to register itself.
const REGISTRATION_RETRY: Nanos = 500 * MILLISECOND;

impl Driver {
    pub(super) fn carry_out_lifecycle(&mut self, effect: LifecycleEffect) -> Result<(), ControlError> {
        match effect {
            LifecycleEffect::Register(request) => self.tell(OfBroker::Registration(request)),
            LifecycleEffect::Heartbeat(request) => self.tell(OfBroker::Heartbeat(request)),
            LifecycleEffect::Phase(phase) => {
                let state = broker::state(&self.lifecycle);
                tracing::debug!(?phase, "this broker");
                self.broker_state.send_replace(state);
            }
            LifecycleEffect::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Tells the active controller of this broker. One that cannot be told now is told soon: the lifecycle tries again.
    fn tell(&mut self, request: OfBroker) {
        if self.controller.is_active() {
            return match request {
                OfBroker::Registration(request) => self.ask(Asker::Lifecycle, request.into()),
                OfBroker::Heartbeat(request) => self.ask(Asker::Lifecycle, request.into()),
            };
        }
        match self.remote_controller() {
            Some((leader, address)) => self.network.tell(leader, &address, request),
            None => self.step_lifecycle(request.unanswered()),
        }
    }

    /// The active controller, if it is another node that can be reached.
    fn remote_controller(&self) -> Option<(BrokerId, Endpoint)> {
        let leader = self.quorum_leader.borrow().clone();
        leader.leader.filter(|leader| *leader != self.options.config.node_id).zip(leader.endpoint)
    }

    pub(super) fn ask(&mut self, asker: Asker, request: gregor_controller::ControllerRequest) {
        let id = DecisionId(self.askers.add(asker));
        self.step_controller(ControllerInput::Request { id, version: i16::MAX, request });
    }

    /// Registers this broker, and this controller, as soon as there is a controller to register with. Returns whether something began.
    pub(super) fn register_when_possible(&mut self) -> bool {
        let is_to_start = self.options.config.process_roles.broker && !self.lifecycle_started;
        if is_to_start && (self.controller.is_active() || self.remote_controller().is_some()) {
            self.lifecycle_started = true;
            self.step_lifecycle(LifecycleInput::Start);
            return true;
        }
        self.register_controller()
    }

    /// Registers this controller with the active one, which it may be itself.
    fn register_controller(&mut self) -> bool {
        let is_due = matches!(self.registration, Registration::Due(at) if at <= self.now().monotonic);
        let level_is_known = self.replay.image().features().finalized_metadata_version().is_some();
        let is_controller = self.options.config.process_roles.controller;
        if !is_due || !is_controller || self.first_published.is_none() || !level_is_known {
            return false;
        }
        let leader = self.quorum_leader.borrow().clone();
        let address = leader.leader.zip(leader.endpoint);
        if !self.controller.is_active() && address.is_none() {
            return false;
        }
        let Some(request) = broker::controller_registration(&self.options, self.replay.image()) else {
            self.registration = Registration::Made;
            return false;
        };
        self.registration = Registration::UnderWay;
        if self.controller.is_active() {
            self.ask(Asker::Registration, request.into());
        } else if let Some((leader, address)) = address {
            self.network.register(leader, &address, request);
        }
        true
    }

    /// A level that is finalized while this node runs may know of controllers, and of directories of brokers, which its registrations then
    /// have to say; and a controller that runs may have been unregistered, or have registered elsewhere under the same id.
    pub(super) fn renew_registrations(&mut self) {
        let image = self.handle.image.load_full();
        let version = image.features().metadata_version();
        let broker = image.cluster().broker(self.options.config.node_id);
        if version.has_directory_assignment() && broker.is_some_and(|broker| broker.directories.is_empty()) {
            self.step_lifecycle(LifecycleInput::RegistrationOutdated);
        }
        let is_unknown = broker::controller_registration(&self.options, &image.image).is_some();
        if self.registration == Registration::Made && is_unknown {
            // Two processes of one id answer each other with a record for each record: no faster than they would try again.
            let is_anothers = image.cluster().controller(self.options.config.node_id).is_some();
            let from = if is_anothers { self.now().monotonic + REGISTRATION_RETRY } else { 0 };
            self.registration = Registration::Due(from);
        }
    }

    /// The active controller answered, or nobody did.
    pub(super) fn controller_registered(&mut self, error: Option<ErrorCode>) {
        if error == Some(ErrorCode::None) {
            self.registration = Registration::Made;
            return;
        }
        tracing::info!(?error, "this controller could not register itself yet");
        self.registration = Registration::Due(self.now().monotonic + REGISTRATION_RETRY);
    }
}
