//! What becomes of committed metadata and of the controller's decisions.

use std::sync::Arc;

use gregor_controller::{Effect as Decision, Input as ControllerInput, Refusal};
use gregor_node::LifecycleInput;
use gregor_raft::{Input, RequestId, UpgradeError};
use gregor_types::{ErrorCode, Offset};

use super::Driver;
use crate::control::{
    ControlError, ImageUpdate,
    answers::{Asker, LifecycleAnswer},
};

impl Driver {
    pub(super) fn carry_out_decision(&mut self, decision: Decision) -> Result<(), ControlError> {
        match decision {
            Decision::Append { epoch, base, records } => {
                let framed = records
                    .iter()
                    .map(|record| record.record.encode_framed(record.version))
                    .collect::<Result<_, _>>()?;
                self.step_quorum(Input::Append { epoch, base, records: framed });
            }
            Decision::Reply { to, response } => match self.askers.answer(to.0, response) {
                Some(LifecycleAnswer::Registered(response)) => {
                    self.step_lifecycle(LifecycleInput::RegistrationAnswered(Some(response)));
                }
                Some(LifecycleAnswer::Heartbeat(response)) => {
                    self.step_lifecycle(LifecycleInput::HeartbeatAnswered(Some(response)));
                }
                Some(LifecycleAnswer::ControllerRegistered(error)) => self.controller_registered(Some(error)),
                None => {}
            },
            Decision::UpgradeKRaft { id, version, request, epoch, wanted } => {
                let validate_only = request.validate_only;
                let asker = self.askers.add(Asker::KRaftUpgrade { id, version, request });
                let (id, version) = (RequestId(asker), wanted);
                self.step_quorum(Input::UpgradeKRaftVersion { id, epoch, version, validate_only });
            }
        }
        Ok(())
    }

    /// What the quorum says to a `kraft.version`, on its way to the controller.
    pub(super) fn upgraded(&mut self, to: RequestId, result: Result<(), UpgradeError>) {
        let Some(Asker::KRaftUpgrade { id, version, request }) = self.askers.remove(to.0) else { return };
        let result = result.map_err(|error| match error {
            UpgradeError::NotLeader(_) => Refusal::not_controller(),
            error => Refusal::new(ErrorCode::InvalidUpdateVersion, error.to_string()),
        });
        self.step_controller(ControllerInput::KRaftUpgraded { id, version, request, result });
    }

    /// Everything before `end` is committed: apply it, tell the controller, show it.
    pub(super) fn commit(&mut self, end: Offset) -> Result<(), ControlError> {
        if self.replay.end() < end {
            self.replay.advance(&mut self.log, end)?;
        } else if self.replay.end() > end {
            // At the start all of the log was read; it is shown once all of it is committed.
            return Ok(());
        }
        self.replay.image().features().check_served()?;
        let kraft_version = self.quorum.history().kraft_version();
        if self.controller.kraft_version() != kraft_version {
            self.step_controller(ControllerInput::KRaftVersion(kraft_version));
        }
        self.step_controller(ControllerInput::Committed { image: self.replay.image().clone(), end });
        self.publish();
        self.snapshot_if_due();
        Ok(())
    }

    /// Has heartbeats say up to where this broker has done what the metadata says: one that goes away waits until others have taken over
    /// (`BrokerLifecycleManager` is given `MetadataLoader.lastAppliedOffset`).
    pub(super) fn tell_how_far(&mut self) {
        let is_all = self.loaded >= self.published;
        let offset = if is_all { self.handle.image.load().position.last_offset } else { self.loaded };
        self.step_lifecycle(LifecycleInput::MetadataPublished(offset));
    }

    pub(super) fn publish(&mut self) {
        let shown = self.handle.image.load_full();
        let kraft_version = self.quorum.history().kraft_version();
        let Some((image, changes)) = self.replay.take_update(&shown.image, kraft_version) else { return };
        let last_offset = image.position.last_offset;
        let image = Arc::new(image);
        // A no-op record moves the position and nothing else: nobody has to wake for that.
        let is_news = !changes.is_empty() || self.first_published.is_none();
        if is_news {
            self.options.listener.announce();
        }
        self.handle.image.store(Arc::clone(&image));
        let is_about_this_controller = changes.controllers.contains(&self.options.config.node_id);
        let registrations_may_lack = changes.features || !changes.brokers.is_empty() || is_about_this_controller;
        if is_news {
            self.published = last_offset;
            self.images.send_replace(Arc::clone(&image));
            self.options.listener.publish(ImageUpdate { image, changes });
            self.first_published.get_or_insert(last_offset);
        }
        self.tell_how_far();
        if registrations_may_lack {
            self.renew_registrations();
        }
    }
}
