//! What becomes of committed metadata and of the controller's decisions.

use std::sync::Arc;

use gregor_controller::{Effect as Decision, Input as ControllerInput};
use gregor_node::LifecycleInput;
use gregor_raft::Input;
use gregor_types::Offset;

use super::Driver;
use crate::control::{ControlError, ImageUpdate, answers::LifecycleAnswer};

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
        }
        Ok(())
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
        self.step_controller(ControllerInput::Committed { image: self.replay.image().clone(), end });
        self.publish();
        self.snapshot_if_due();
        Ok(())
    }

    pub(super) fn publish(&mut self) {
        let shown = self.handle.image.load_full();
        let kraft_version = self.quorum.history().kraft_version();
        let Some((image, changes)) = self.replay.take_update(&shown.image, kraft_version) else { return };
        let last_offset = image.position.last_offset;
        let image = Arc::new(image);
        self.handle.image.store(Arc::clone(&image));
        // A no-op record moves the position and nothing else: nobody has to wake for that.
        if !changes.is_empty() || self.first_published.is_none() {
            self.images.send_replace(Arc::clone(&image));
            self.options.listener.publish(ImageUpdate { image, changes });
            self.first_published.get_or_insert(last_offset);
        }
        self.step_lifecycle(LifecycleInput::MetadataPublished(last_offset));
    }
}
