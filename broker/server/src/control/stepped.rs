//! The control thread without a thread: a simulation calls it step by step, in its own time. What it does is what the thread does,
//! by the same driver.

use gregor_raft::Nanos;
use gregor_types::Offset;
use tokio::sync::oneshot;

use super::{
    ControlError, ControlHandle, ControlOptions, ControllerRequest, ControllerResponse, Surroundings, driver::Driver,
    handle::Command, open::open, start::channels,
};

/// See the module's documentation. After an error it is of no more use, as the thread would have ended.
pub struct SteppedControl(Driver);

impl SteppedControl {
    /// Opens the metadata log and begins. The handle gives the image and where this broker stands.
    pub fn open(
        options: ControlOptions,
        surroundings: Box<dyn Surroundings>,
    ) -> Result<(ControlHandle, Self), ControlError> {
        let parts = open(options, surroundings.now().wall)?;
        let (handle, ends) = channels();
        let mut driver = Driver::new(parts, surroundings, handle.clone(), ends);
        driver.begin();
        Ok((handle, Self(driver)))
    }

    /// Does everything that can be done now, syncs included, and says when to step again at the latest.
    pub fn step(&mut self) -> Result<Option<Nanos>, ControlError> {
        self.0.settle()?;
        if !self.0.is_stalled() {
            self.0.tick();
            self.0.settle()?;
        }
        Ok(self.0.next_deadline())
    }

    /// Gives it a request; the answer comes out of a later step.
    pub fn request(
        &mut self,
        version: i16,
        request: ControllerRequest,
    ) -> Result<oneshot::Receiver<ControllerResponse>, ControlError> {
        let (reply, response) = oneshot::channel();
        self.0.take(Command::Request { version, request, reply })?;
        Ok(response)
    }

    /// Everything that the image says up to this offset is done.
    pub fn loaded(&mut self, last_offset: Offset) -> Result<(), ControlError> {
        self.0.take(Command::Loaded(last_offset))
    }

    /// Whether an append waits for room on the disk: then it takes no request.
    pub fn is_stalled(&self) -> bool {
        self.0.is_stalled()
    }

    /// Closes the log, as a node that stops does.
    pub fn close(self) -> Result<(), ControlError> {
        self.0.close()
    }
}
