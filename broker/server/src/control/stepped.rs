//! The control thread without a thread: a simulation calls it step by step, in its own time. What it does is what the thread does,
//! by the same driver.

use gregor_raft::{Nanos, Origin, Quorum};
use gregor_types::Offset;
use tokio::sync::oneshot;

use super::{
    ControlError, ControlHandle, ControlOptions, ControllerRequest, ControllerResponse, Surroundings,
    driver::Driver,
    handle::Command,
    open::open,
    peers::{Heard, Outbox, Posted},
    start::channels,
};

/// See the module's documentation. After an error it is of no more use, as the thread would have ended.
pub struct SteppedControl {
    driver: Driver,
    outbox: Outbox,
}

impl SteppedControl {
    /// Opens the metadata log and begins. The handle gives the image and where this broker stands.
    pub fn open(
        options: ControlOptions,
        surroundings: Box<dyn Surroundings>,
    ) -> Result<(ControlHandle, Self), ControlError> {
        let parts = open(options, surroundings.now().wall)?;
        let (handle, ends, _) = channels();
        let outbox = Outbox::default();
        let mut driver = Driver::new(parts, surroundings, Box::new(outbox.clone()), handle.clone(), ends);
        driver.begin();
        Ok((handle, Self { driver, outbox }))
    }

    /// Does everything that can be done now, syncs included, and says when to step again at the latest.
    pub fn step(&mut self) -> Result<Option<Nanos>, ControlError> {
        self.driver.settle()?;
        Ok(self.driver.next_deadline())
    }

    /// Gives it a request, whose decisions are carried out at once, as the thread does; the answer comes out of a later step.
    pub fn request(
        &mut self,
        version: i16,
        request: ControllerRequest,
    ) -> Result<oneshot::Receiver<ControllerResponse>, ControlError> {
        let (reply, response) = oneshot::channel();
        let request = Box::new(request);
        self.driver.take(Command::Request { origin: Origin::here(version), request, reply })?;
        self.driver.carry_out_all()?;
        Ok(response)
    }

    /// The oldest request to another node that was not taken yet. Each is answered once, by [`SteppedControl::hear`].
    pub fn take_request(&self) -> Option<Posted> {
        self.outbox.take()
    }

    /// What came of a request that was taken.
    pub fn hear(&mut self, heard: Heard) -> Result<(), ControlError> {
        self.driver.hear(heard);
        self.driver.carry_out_all()
    }

    /// Begins the controlled shutdown of this broker.
    pub fn shut_down_broker(&mut self) -> Result<(), ControlError> {
        self.driver.take(Command::ShutDownBroker)
    }

    /// Gives up leadership, as a node does that is about to stop; later steps let the other voters know.
    pub fn resign(&mut self) -> Result<(), ControlError> {
        let (done, _) = oneshot::channel();
        self.driver.take(Command::Stop(done))
    }

    /// Everything that the image says up to this offset is done.
    pub fn loaded(&mut self, last_offset: Offset) -> Result<(), ControlError> {
        self.driver.take(Command::Loaded(last_offset))
    }

    /// The quorum as this node sees it.
    pub const fn quorum(&self) -> &Quorum {
        self.driver.quorum()
    }

    /// Where its metadata log ends.
    pub fn log_end(&self) -> Offset {
        self.driver.log_end()
    }

    /// Whether an append waits for room on the disk: then it takes no request.
    pub fn is_stalled(&self) -> bool {
        self.driver.is_stalled()
    }

    /// Closes the log, as a node that stops does.
    pub fn close(self) -> Result<(), ControlError> {
        self.driver.close()
    }
}
