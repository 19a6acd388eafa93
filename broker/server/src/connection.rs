//! One connection: reads a request, has it handled, sends the response, all in one task.
//!
//! Responses leave in the order of their requests. While a Produce waits for its high watermark the connection reads on and
//! may append the next ones (two-stage pipelining): appends happen in arrival order, at most [`PENDING_MAX`] wait, and any
//! other request first waits for all of them. Whatever a peer sends, the worst that happens here is that it is closed.

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use gregor_types::ErrorCode;
use gregor_wire::{DecodeError, EncodeError};
use tokio::{net::TcpStream, sync::watch, time::Instant};

use crate::{
    api::{Broker, ConnectionInfo, produce},
    dispatch::{self, Handler},
    frame::FrameReader,
    memory::MemoryPool,
    reply::Reply,
};

/// Produces of one connection that may wait for their high watermark.
const PENDING_MAX: usize = 16;

/// Why a connection ended before its peer ended it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Close {
    /// The socket failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// A frame's length is negative or above `socket.request.max.bytes`.
    #[error("a request claims {claimed} bytes; socket.request.max.bytes allows {limit}")]
    FrameSize {
        /// What the peer claims.
        claimed: i32,
        /// What is allowed.
        limit: usize,
    },
    /// The peer closed in the middle of a frame.
    #[error("the peer closed in the middle of a request")]
    HalfSent,
    /// A frame took too long to arrive.
    #[error("a request did not arrive in time")]
    FrameTime,
    /// Nothing came for `connections.max.idle.ms`.
    #[error("idle for longer than connections.max.idle.ms")]
    Idle,
    /// The peer reads nothing of its response.
    #[error("the peer does not read its response")]
    Stalled,
    /// A header or a body is not what its version says.
    #[error("a request cannot be read: {0}")]
    Malformed(#[from] DecodeError),
    /// A key that does not exist, or that this listener does not serve.
    #[error("API key {0} is not served on this listener")]
    UnknownApi(i16),
    /// A version that is not served.
    #[error("version {version} of API key {key} is not served")]
    UnknownVersion {
        /// The API.
        key: i16,
        /// The version in the header.
        version: i16,
    },
    /// A Produce without acknowledgement failed; closing is the only answer there is.
    #[error("a produce request with acks=0 failed with {0}")]
    UnacknowledgedProduce(ErrorCode),
    /// A response that its version cannot carry: a fault of ours.
    #[error("a response cannot be written: {0}")]
    Response(#[from] EncodeError),
}

impl Close {
    /// A short word for the metric.
    fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::FrameSize { .. } => "frame_size",
            Self::HalfSent => "half_sent",
            Self::FrameTime => "frame_time",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::Malformed(_) => "malformed",
            Self::UnknownApi(_) => "unknown_api",
            Self::UnknownVersion { .. } => "unknown_version",
            Self::UnacknowledgedProduce(_) => "unacknowledged_produce",
            Self::Response(_) => "response",
        }
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve(
    broker: Arc<Broker>,
    info: Arc<ConnectionInfo>,
    stream: TcpStream,
    memory: MemoryPool,
    draining: watch::Receiver<bool>,
) {
    let peer = info.peer;
    let metrics = Arc::clone(&broker.metrics);
    let labels = vec![("listener".to_owned(), info.listener.name.clone())];
    let gauge = metrics.connections.get_or_create_owned(&labels);
    gauge.inc();
    let reader = FrameReader::new(memory.grant(), broker.frame_bytes_max, broker.connection_idle);
    let connection = Connection { broker, info, stream, reader, pending: VecDeque::new(), draining };
    if let Err(close) = connection.run().await {
        let labels = vec![("reason".to_owned(), close.reason().to_owned())];
        metrics.closed.get_or_create(&labels).inc();
        report(peer, &close);
    }
    gauge.dec();
}

fn report(peer: SocketAddr, close: &Close) {
    // What a peer does wrong must not fill our log; the metric counts it by reason.
    if let Close::Response(_) = close {
        tracing::error!(%peer, "closed: {close}");
    } else {
        tracing::debug!(%peer, "closed: {close}");
    }
}

struct Connection {
    broker: Arc<Broker>,
    info: Arc<ConnectionInfo>,
    stream: TcpStream,
    reader: FrameReader,
    pending: VecDeque<produce::Pending>,
    draining: watch::Receiver<bool>,
}

impl Connection {
    async fn run(mut self) -> Result<(), Close> {
        loop {
            let has_pending = !self.pending.is_empty();
            let may_read = self.pending.len() < PENDING_MAX;
            let frame = tokio::select! {
                biased;
                () = committed(&self.pending), if has_pending => {
                    self.answer_oldest().await?;
                    continue;
                }
                frame = self.reader.next(&mut self.stream), if may_read => frame?,
                () = drained(&mut self.draining) => return self.answer_all().await,
            };
            let Some(frame) = frame else { return Ok(()) };
            self.handle(frame).await?;
        }
    }

    async fn handle(&mut self, frame: Bytes) -> Result<(), Close> {
        let received_at = Instant::now();
        let request = dispatch::parse(&self.broker, &self.info, frame, received_at)?;
        let (name, row) = (request.row.key.name(), request.row);
        match row.handler {
            Handler::Produce => {
                if let Some(pending) = produce::begin(request.context, &request.body)? {
                    self.pending.push_back(pending);
                    if self.pending.len() == 1 && self.pending[0].is_committed() {
                        self.answer_oldest().await?;
                    }
                } else {
                    self.broker.metrics.on_request(name, received_at.elapsed());
                }
            }
            Handler::Barrier(handle) => {
                self.answer_all().await?;
                let reply = handle(&request.context, request.body).await?;
                self.broker.metrics.on_request(name, received_at.elapsed());
                reply.send(&self.stream).await?;
            }
        }
        Ok(())
    }

    async fn answer_all(&mut self) -> Result<(), Close> {
        while !self.pending.is_empty() {
            committed(&self.pending).await;
            self.answer_oldest().await?;
        }
        Ok(())
    }

    async fn answer_oldest(&mut self) -> Result<(), Close> {
        let Some(pending) = self.pending.pop_front() else { return Ok(()) };
        let received_at = pending.received_at();
        let reply: Reply = pending.finish()?;
        self.broker.metrics.on_request("Produce", received_at.elapsed());
        reply.send(&self.stream).await
    }
}

/// Until the node stops.
async fn drained(draining: &mut watch::Receiver<bool>) {
    // An error means that the node is gone, which is the end as well.
    let _ = draining.wait_for(|draining| *draining).await;
}

/// Until the oldest waiting Produce is committed, has failed or has timed out.
async fn committed(pending: &VecDeque<produce::Pending>) {
    if let Some(oldest) = pending.front() {
        oldest.committed().await;
    }
}
