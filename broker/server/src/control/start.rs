//! Starts the control thread and hands over to the driver.

use std::{
    sync::{Arc, mpsc as blocking},
    thread,
};

use arc_swap::ArcSwap;
use gregor_channel::Security;
use gregor_metadata::MetadataImage;
use gregor_types::LeaderEpoch;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    BrokerState, ControlHandle, QuorumLeader,
    driver::{Driver, Ends},
    handle::QUEUE_REQUESTS_MAX,
    open::{ControlError, ControlOptions, open},
    peers::{HEARD_MAX, Heard, Peers},
    surroundings::Machine,
};

/// The running control thread.
#[derive(Debug)]
pub struct ControlThread {
    ended: oneshot::Receiver<Result<(), ControlError>>,
}

impl ControlThread {
    /// Waits for the thread to end: well, when it was asked to, or because it cannot go on.
    pub async fn ended(&mut self) -> Result<(), ControlError> {
        (&mut self.ended).await.unwrap_or(Err(ControlError::Panicked))
    }
}

/// Starts the thread. Returns once the log is replayed; leadership, registration and the first image follow on their own.
///
/// `security` is how it reaches other nodes: as the first controller listener speaks.
pub fn start(options: ControlOptions, security: Security) -> Result<(ControlHandle, ControlThread), ControlError> {
    let (handle, ends, heard) = channels();
    let (ended_sender, ended) = oneshot::channel();
    let (opened_sender, opened) = blocking::channel();
    let own_handle = handle.clone();
    thread::Builder::new().name("gregor-control".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(opened_sender.send(Err(ControlError::Thread(error)))),
        };
        let driver = match open(options, crate::clock::now()) {
            Ok(parts) => {
                let peers = Peers::new(&parts.options.config, security, own_handle.quorum_leader(), heard);
                Driver::new(parts, Box::new(Machine::new()), Box::new(peers), own_handle, ends)
            }
            Err(error) => return drop(opened_sender.send(Err(error))),
        };
        if opened_sender.send(Ok(())).is_err() {
            return;
        }
        let result = runtime.block_on(driver.run());
        // Nobody waits for the end of a node that is gone already.
        let _ = ended_sender.send(result);
        // A name that is being resolved must not hold up the end.
        runtime.shutdown_background();
    })?;
    opened.recv().map_err(|_| ControlError::Panicked)??;
    Ok((handle, ControlThread { ended }))
}

/// A handle, the ends that the driver keeps, and the way for what other nodes answer.
pub(super) fn channels() -> (ControlHandle, Ends, mpsc::Sender<Heard>) {
    let (quorum_requests, quorum_inbox) = mpsc::channel(QUEUE_REQUESTS_MAX);
    let (commands, inbox) = mpsc::channel(QUEUE_REQUESTS_MAX);
    let (heard_sender, heard) = mpsc::channel(HEARD_MAX);
    let first = Arc::new(MetadataImage::default());
    let image = Arc::new(ArcSwap::from(Arc::clone(&first)));
    let (image_sender, images) = watch::channel(first);
    let (broker_state, broker) = watch::channel(BrokerState::Starting);
    let (quorum_leader, leader) =
        watch::channel(QuorumLeader { epoch: LeaderEpoch::NONE, leader: None, endpoint: None });
    let leads = Arc::default();
    let stop_wanted = Arc::default();
    let handle = ControlHandle { quorum_requests, commands, image, images, broker, leads, leader, stop_wanted };
    let ends = Ends {
        quorum_requests: quorum_inbox,
        commands: inbox,
        heard,
        images: image_sender,
        broker_state,
        quorum_leader,
    };
    (handle, ends, heard_sender)
}
