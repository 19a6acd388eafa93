//! The way to the control thread for the rest of the node.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use gregor_metadata::{Changes, MetadataImage};
use gregor_raft::{Endpoint, Origin, SnapshotId};
use gregor_types::{BrokerEpoch, BrokerId, DirectoryId, LeaderEpoch, Offset};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Answered, ControllerRequest, ControllerResponse};

/// Requests that wait for the control thread; whoever sends more waits to send.
pub(super) const QUEUE_REQUESTS_MAX: usize = 1_000;

/// A handle to the control thread; cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlHandle {
    pub(super) quorum_requests: mpsc::Sender<Command>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) image: Arc<ArcSwap<MetadataImage>>,
    pub(super) images: watch::Receiver<Arc<MetadataImage>>,
    pub(super) broker: watch::Receiver<BrokerState>,
    pub(super) leads: Arc<AtomicBool>,
    pub(super) leader: watch::Receiver<QuorumLeader>,
    /// Whether somebody waits for the thread to end.
    pub(super) stop_wanted: Arc<AtomicBool>,
}

/// The control thread is gone: the node stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the control thread has ended: the node is stopping")]
pub struct ControlClosed;

/// Committed metadata, and what changed in it since the last time.
#[derive(Debug, Clone)]
pub struct ImageUpdate {
    /// The metadata.
    pub image: Arc<MetadataImage>,
    /// What changed.
    pub changes: Changes,
}

/// Hears of committed metadata, in order and without a gap: the manager of this broker's partitions.
pub trait MetadataListener: Send {
    /// Called right before others are shown an image that is about to be published.
    fn announce(&mut self) {}

    /// Called on the control thread, so it must not block: work goes elsewhere, and [`ControlHandle::loaded`] says when it is done.
    fn publish(&mut self, update: ImageUpdate);
}

/// Who leads the metadata quorum, as far as this node knows: whom requests to the active controller go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumLeader {
    /// The newest epoch that this node knows.
    pub epoch: LeaderEpoch,
    /// The leader of that epoch, if it is known; this node itself where it leads.
    pub leader: Option<BrokerId>,
    /// Where the leader's controller listens, if that is known.
    pub endpoint: Option<Endpoint>,
}

/// Where this broker stands with the controller (`org.apache.kafka.metadata.BrokerState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerState {
    /// Not registered yet.
    Starting,
    /// Registered with this epoch, and fenced until it has caught up and its partitions are loaded.
    Recovery(BrokerEpoch),
    /// Serves clients.
    Running(BrokerEpoch),
    /// Waits until its leaderships are moved away.
    PendingControlledShutdown(BrokerEpoch),
    /// May stop.
    ShuttingDown(BrokerEpoch),
}

impl BrokerState {
    /// The number in Kafka's metric `BrokerState`.
    pub const fn value(self) -> u8 {
        match self {
            Self::Starting => 1,
            Self::Recovery(_) => 2,
            Self::Running(_) => 3,
            Self::PendingControlledShutdown(_) => 6,
            Self::ShuttingDown(_) => 7,
        }
    }

    /// The broker's epoch, once it is registered.
    pub const fn epoch(self) -> Option<BrokerEpoch> {
        match self {
            Self::Starting => None,
            Self::Recovery(epoch)
            | Self::Running(epoch)
            | Self::PendingControlledShutdown(epoch)
            | Self::ShuttingDown(epoch) => Some(epoch),
        }
    }
}

/// What the control thread is told.
#[derive(Debug)]
pub(super) enum Command {
    Request {
        origin: Origin,
        request: Box<ControllerRequest>,
        reply: oneshot::Sender<ControllerResponse>,
    },
    /// The partitions manager has done everything up to this offset of the metadata log.
    Loaded(Offset),
    /// A log directory of this broker failed.
    DirectoryFailed(DirectoryId),
    /// The directories that get no new replicas; `None` where the finalized level does not know of such.
    Cordoned(Option<Vec<DirectoryId>>),
    /// Begin the controlled shutdown of this broker.
    ShutDownBroker,
    /// A snapshot has been written, or not: its writer has said why.
    SnapshotWritten(Option<SnapshotId>),
    /// End the thread: close the log and say so.
    Stop(oneshot::Sender<()>),
}

impl ControlHandle {
    /// Asks this node's controller, or its part in the quorum. Only the active controller and the leader decide; others say so. Answers
    /// when what it decided is committed.
    pub async fn ask<R: Answered>(&self, version: i16, request: R) -> Result<R::Response, ControlClosed> {
        self.ask_from(Origin::here(version), request).await
    }

    /// The same for another node or a tool: where the answer names the leader, it does so for the listener on which it was asked.
    pub async fn ask_from<R: Answered>(&self, origin: Origin, request: R) -> Result<R::Response, ControlClosed> {
        let response = self.request(origin, request.into_request()).await?;
        R::from_response(response).ok_or(ControlClosed)
    }

    async fn request(&self, origin: Origin, request: ControllerRequest) -> Result<ControllerResponse, ControlClosed> {
        let (reply, response) = oneshot::channel();
        let queue = match &request {
            ControllerRequest::Quorum(_) => &self.quorum_requests,
            ControllerRequest::Controller(_) => &self.commands,
        };
        queue.send(Command::Request { origin, request: Box::new(request), reply }).await.map_err(|_| ControlClosed)?;
        response.await.map_err(|_| ControlClosed)
    }

    /// The newest committed metadata.
    pub fn image(&self) -> Arc<MetadataImage> {
        self.image.load_full()
    }

    /// Wakes at every new image. Only the newest is kept: whoever must see every change is a [`MetadataListener`].
    pub fn image_updates(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.images.clone()
    }

    /// Whether this node is the active controller.
    pub fn is_active_controller(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    /// Who leads the metadata quorum, and its changes.
    pub fn quorum_leader(&self) -> watch::Receiver<QuorumLeader> {
        self.leader.clone()
    }

    /// Where this broker stands, and its changes.
    pub fn broker_state(&self) -> watch::Receiver<BrokerState> {
        self.broker.clone()
    }

    /// This broker's epoch; [`BrokerEpoch::NONE`] before it is registered.
    pub fn broker_epoch(&self) -> BrokerEpoch {
        self.broker.borrow().epoch().unwrap_or(BrokerEpoch::NONE)
    }

    /// Everything that the image said up to this offset is done: partitions are created, loaded, led. The broker is unfenced only
    /// after the first such word.
    pub async fn loaded(&self, last_offset: Offset) -> Result<(), ControlClosed> {
        self.send(Command::Loaded(last_offset)).await
    }

    /// A log directory of this broker failed: its replicas must be led elsewhere.
    pub async fn directory_failed(&self, directory: DirectoryId) -> Result<(), ControlClosed> {
        self.send(Command::DirectoryFailed(directory)).await
    }

    /// These log directories of this broker get no new replicas; `None` where the finalized level does not know of such.
    pub async fn cordoned(&self, directories: Option<Vec<DirectoryId>>) -> Result<(), ControlClosed> {
        self.send(Command::Cordoned(directories)).await
    }

    /// Asks the controller to move leaderships away. Returns when the broker may stop.
    pub async fn shut_down_broker(&self) -> Result<(), ControlClosed> {
        self.send(Command::ShutDownBroker).await?;
        let mut state = self.broker_state();
        let stopped =
            state.wait_for(|state| matches!(state, BrokerState::ShuttingDown(_) | BrokerState::Starting)).await;
        stopped.map(drop).map_err(|_| ControlClosed)
    }

    /// Ends the control thread, after what it has begun is on disk. The last call.
    pub async fn stop(&self) -> Result<(), ControlClosed> {
        let (done, wait) = oneshot::channel();
        self.stop_wanted.store(true, Ordering::Relaxed);
        self.send(Command::Stop(done)).await?;
        wait.await.map_err(|_| ControlClosed)
    }

    async fn send(&self, command: Command) -> Result<(), ControlClosed> {
        self.commands.send(command).await.map_err(|_| ControlClosed)
    }
}
