//! One connection: reads a request, has it handled, sends the response, all in one task.
//!
//! Responses leave in the order of their requests. While a Produce waits for its high watermark the connection reads on and
//! may append the next ones (two-stage pipelining): appends happen in arrival order, at most [`PENDING_MAX`] wait, and any
//! other request first waits for all of them. Whatever a peer sends, the worst that happens here is that it is closed.

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use gregor_messages::ApiKey;
use gregor_types::ErrorCode;
use gregor_wire::{DecodeError, EncodeError};
use tokio::{sync::watch, time::Instant};

use crate::{
    api::{Broker, ConnectionInfo, Context, fetch, produce},
    dispatch::{self, Handler},
    frame::FrameReader,
    memory::MemoryPool,
    reply::send_fetched,
    transport::Transport,
};

/// Produces of one connection that may wait for their high watermark.
const PENDING_MAX: usize = 16;
/// A Produce response's memory is kept for the next one up to this size.
const RESPONSE_RETAINED: usize = 4 << 10;

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
    stream: Transport,
    memory: MemoryPool,
    draining: watch::Receiver<bool>,
) {
    let peer = info.peer;
    let metrics = Arc::clone(&broker.metrics);
    let labels = vec![("listener".to_owned(), info.listener.name.clone())];
    let gauge = metrics.connections.get_or_create_owned(&labels);
    gauge.inc();
    let reader = FrameReader::new(memory.grant(), broker.frame_bytes_max, broker.connection_idle);
    let context = Context::new(broker, info);
    let connection =
        Connection { context, stream, reader, pending: VecDeque::new(), response: BytesMut::new(), fetching: None };
    if let Err(close) = connection.run(draining).await {
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
    context: Context,
    stream: Transport,
    reader: FrameReader,
    pending: VecDeque<produce::Pending>,
    /// The memory of a Produce response that has left, for the next one.
    response: BytesMut,
    /// What fetches keep from one to the next.
    fetching: Option<Box<fetch::Fetching>>,
}

impl Connection {
    async fn run(mut self, mut draining: watch::Receiver<bool>) -> Result<(), Close> {
        // Asked about in every turn, begun once.
        let drained = drained(&mut draining);
        tokio::pin!(drained);
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
                () = &mut drained => return self.answer_all().await,
            };
            let Some(frame) = frame else { return Ok(()) };
            self.handle(frame).await?;
        }
    }

    async fn handle(&mut self, frame: Bytes) -> Result<(), Close> {
        let received_at = Instant::now();
        let (row, body) = dispatch::parse(&mut self.context, frame, received_at)?;
        match row.handler {
            Handler::Produce => {
                let reused = std::mem::take(&mut self.response);
                let any_slow = self.context.is_any_directory_slow();
                let slow = any_slow.then(|| produce::slow_directory(&self.context, &body)).flatten();
                // What is left of the request would keep its memory for as long as it waits.
                let begun = match slow {
                    None => produce::begin(&self.context, &body, reused).inspect(|_| drop(body))?,
                    Some(slow) => Box::pin(produce::begin_slow(&self.context, body, reused, &slow)).await?,
                };
                self.context.client_id = None;
                match begun {
                    Some(pending) if self.pending.is_empty() && pending.is_committed() => self.answer(pending).await?,
                    Some(pending) => self.pending.push_back(pending),
                    None => self.count(ApiKey::Produce, received_at),
                }
            }
            Handler::Fetch => {
                self.answer_all().await?;
                let fetching = self.fetching.get_or_insert_default();
                fetching.answer(&self.context, body).await?;
                self.context.client_id = None;
                send_fetched(&mut self.stream, fetching.response()).await?;
                fetching.end();
                self.count(ApiKey::Fetch, received_at);
            }
            Handler::Barrier(handle) => {
                self.answer_all().await?;
                let reply = handle(&self.context, body).await?;
                self.context.client_id = None;
                self.count(row.key, received_at);
                reply.send(&mut self.stream).await?;
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
        self.answer(pending).await
    }

    async fn answer(&mut self, pending: produce::Pending) -> Result<(), Close> {
        self.count(ApiKey::Produce, pending.received_at());
        let response = pending.finish();
        self.stream.send(&response, false).await?;
        if response.capacity() <= RESPONSE_RETAINED {
            self.response = response;
        }
        Ok(())
    }

    fn count(&self, api: ApiKey, received_at: Instant) {
        self.context.broker.metrics.on_request(api, received_at.elapsed());
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
