//! One connection: reads a request, has it handled, sends the response, all in one task.
//!
//! Responses leave in the order of their requests, and those of Produces that have arrived together leave together, which wakes
//! the peer once. While a Produce waits for its high watermark the connection reads on and may append the next ones (two-stage
//! pipelining): appends happen in arrival order, at most [`PENDING_MAX`] wait, and any other request first waits for all of
//! them. Whatever a peer sends, the worst that happens here is that it is closed.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use gregor_messages::ApiKey;
use tokio::{sync::watch, time::Instant};

use crate::{
    api::{Broker, ConnectionInfo, Context, fetch, produce},
    append_mode::AppendMode,
    close::Close,
    dispatch::{self, Handler},
    frame::FrameReader,
    memory::MemoryPool,
    metrics::Metrics,
    reply::send_fetched,
    transport::Transport,
};

/// Produces of one connection that may wait for their high watermark.
const PENDING_MAX: usize = 16;
/// A Produce response's memory is kept for the next one up to this size.
const RESPONSE_RETAINED: usize = 4 << 10;
/// So much of Produce responses waits to leave together.
const UNSENT_MAX: usize = 1 << 10;

/// Serves a connection until it ends. What it keeps is moved into the task once: a future that takes it as arguments would
/// hold room for it twice.
pub(crate) fn serve(
    broker: Arc<Broker>,
    info: Arc<ConnectionInfo>,
    stream: Transport,
    memory: &MemoryPool,
    draining: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    let peer = info.peer;
    let metrics = Arc::clone(&broker.metrics);
    let labels = vec![("listener".to_owned(), info.listener.name.clone())];
    let gauge = metrics.connections.get_or_create_owned(&labels);
    gauge.inc();
    tracing::debug!(%peer, principal = %info.principal, listener = %info.listener.name, "connected");
    let reader = FrameReader::new(memory.grant(), broker.frame_bytes_max, broker.connection_idle);
    let context = Context::new(broker, info);
    let mut connection = Connection {
        context,
        stream,
        reader,
        pending: VecDeque::new(),
        response: BytesMut::new(),
        unsent: BytesMut::new(),
        fetching: None,
    };
    async move {
        if let Err(close) = connection.run(draining).await {
            count_closed(&metrics, peer, &close);
            // What was answered before is the peer's, if it still takes it.
            let _ = connection.stream.try_send(&connection.unsent);
        }
        connection.stream.close();
        gauge.dec();
    }
}

/// Counts and reports a connection that ended before its peer ended it.
pub(crate) fn count_closed(metrics: &Metrics, peer: SocketAddr, close: &Close) {
    let labels = vec![("reason".to_owned(), close.reason().to_owned())];
    metrics.closed.get_or_create(&labels).inc();
    report(peer, close);
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
    /// Produce responses that leave once the requests that came with theirs are taken.
    unsent: BytesMut,
    /// What fetches keep from one to the next.
    fetching: Option<Box<fetch::Fetching>>,
}

impl Connection {
    async fn run(&mut self, mut draining: watch::Receiver<bool>) -> Result<(), Close> {
        // Asked about in every turn, begun once.
        let drained = drained(&mut draining);
        tokio::pin!(drained);
        loop {
            let has_pending = !self.pending.is_empty();
            let may_read = self.pending.len() < PENDING_MAX;
            // Nothing that is ready waits for what may take its time.
            if !(may_read && self.reader.has_small_frame()) {
                self.send_unsent().await?;
            }
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
                if produce::has_to_wait(&self.context, &body) {
                    // Nobody waits for an answer meanwhile that could be given.
                    self.answer_all().await?;
                    Box::pin(produce::ready(&self.context, &body)).await;
                }
                let any_slow = self.context.is_any_directory_slow();
                let slow = any_slow.then(|| produce::slow_directory(&self.context, &body)).flatten();
                // What is left of the request would keep its memory for as long as it waits.
                let begun = match slow {
                    None => produce::begin(&self.context, &body, reused).inspect(|_| drop(body))?,
                    Some(slow) => Box::pin(self.begin_slow(body, reused, &slow)).await?,
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

    /// Has a slow directory's thread append, and answers meanwhile what is committed.
    async fn begin_slow(
        &mut self,
        body: Bytes,
        reused: BytesMut,
        slow: &AppendMode,
    ) -> Result<Option<produce::Pending>, Close> {
        let begun = produce::begin_slow(&self.context, body, reused, slow);
        tokio::pin!(begun);
        loop {
            self.send_unsent().await?;
            let has_pending = !self.pending.is_empty();
            tokio::select! {
                begun = &mut begun => return begun,
                () = committed(&self.pending), if has_pending => self.answer_oldest().await?,
            }
        }
    }

    async fn answer_all(&mut self) -> Result<(), Close> {
        while !self.pending.is_empty() {
            self.send_unsent().await?;
            committed(&self.pending).await;
            self.answer_oldest().await?;
        }
        self.send_unsent().await
    }

    /// Sends the responses that are ready.
    async fn send_unsent(&mut self) -> Result<(), Close> {
        if !self.unsent.is_empty() {
            // Not there while it is sent: of what broke off in the midst nothing may be sent once more.
            let mut unsent = std::mem::take(&mut self.unsent);
            self.stream.send(&unsent, false).await?;
            unsent.clear();
            self.unsent = unsent;
        }
        Ok(())
    }

    async fn answer_oldest(&mut self) -> Result<(), Close> {
        let Some(pending) = self.pending.pop_front() else { return Ok(()) };
        self.answer(pending).await
    }

    async fn answer(&mut self, pending: produce::Pending) -> Result<(), Close> {
        self.count(ApiKey::Produce, pending.received_at());
        let response = pending.finish(&self.context)?;
        let together = self.unsent.len() + response.len();
        if together <= UNSENT_MAX && (self.reader.has_small_frame() || !self.unsent.is_empty()) {
            self.unsent.extend_from_slice(&response);
        } else {
            self.send_unsent().await?;
            self.stream.send(&response, false).await?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The future of an idle connection, in bytes, beside its socket and a timer.
    const TASK_BYTES_MAX: usize = 1_920;

    fn size_of_future<A, B, C, D, E, F>(_: impl Fn(A, B, C, &D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_connection_is_small() {
        let bytes = size_of_future(serve);
        assert!(bytes <= TASK_BYTES_MAX, "{bytes} bytes");
    }
}
