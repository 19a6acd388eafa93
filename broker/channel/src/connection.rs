//! A live connection, plain or in TLS: callers write, one after the other, and a task reads and hands each response to the caller
//! who waits for it.
//!
//! [`Channel`](crate::Channel) opens it. A connection never comes back: once closed, every caller is told, and a new one is made.

use std::{
    collections::HashMap,
    io,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, Ordering},
    },
};

use bytes::Bytes;
use gregor_messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse, Request};
use gregor_types::{ErrorCode, KString};
use gregor_wire::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{ChannelError, ChannelOptions, TlsFailure, api_name, end::End, frame, reader::FrameReader, tls};

/// A response's frame behind its length.
type Answer = Result<Bytes, ChannelError>;

pub(crate) struct Connection {
    address: String,
    client_id: KString,
    served: Mutex<HashMap<i16, RangeInclusive<i16>>>,
    next_correlation: AtomicI32,
    in_flight: Arc<Semaphore>,
    /// None once it is closed on this side, so that the peer sees it.
    write: AsyncMutex<Option<Writing>>,
    state: Arc<Mutex<State>>,
    reader: JoinHandle<()>,
}

type Writing = Box<dyn AsyncWrite + Send + Unpin>;

struct State {
    waiting: HashMap<i32, Waiting>,
    /// Why the connection ended, once it has.
    closed: Option<End>,
}

struct Waiting {
    answer: oneshot::Sender<Answer>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Connects and asks what the peer serves.
    pub(crate) async fn open(address: &str, options: &ChannelOptions) -> Result<Arc<Self>, ChannelError> {
        let deadline = Instant::now() + options.connect_timeout;
        let refused = |source| ChannelError::Connect { address: address.to_owned(), source };
        let stream = timeout(options.connect_timeout, TcpStream::connect(address))
            .await
            .map_err(|_| refused(io::ErrorKind::TimedOut.into()))?
            .map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        let state = Arc::new(Mutex::new(State { waiting: HashMap::new(), closed: None }));
        let security = options.security.now();
        let (reader, write) = match &security {
            None => {
                let (read, write) = stream.into_split();
                (spawn(read, &state, address, options.frame_bytes_max), Box::new(write) as Writing)
            }
            Some(config) => {
                let stream = timeout_at(deadline, tls::connect(config, address, stream))
                    .await
                    .map_err(|_| refused(io::ErrorKind::TimedOut.into()))?
                    .map_err(|failure| ChannelError::Tls { address: address.to_owned(), failure })?;
                let (read, write) = tokio::io::split(stream);
                (spawn(read, &state, address, options.frame_bytes_max), Box::new(write) as _)
            }
        };
        let connection = Arc::new(Self {
            address: address.to_owned(),
            client_id: options.client_id.clone(),
            served: Mutex::new(HashMap::new()),
            next_correlation: AtomicI32::new(0),
            in_flight: Arc::new(Semaphore::new(options.in_flight_max.max(1))),
            write: AsyncMutex::new(Some(write)),
            state,
            reader,
        });
        let served = connection.negotiate(deadline).await.map_err(|error| match (error, &security) {
            // The alert that says why can be lost when the peer resets the connection.
            (ChannelError::Disconnected { address, .. }, Some(_)) => {
                ChannelError::Tls { address, failure: TlsFailure::EndedAfterwards }
            }
            (error, _) => error,
        })?;
        *connection.served.lock().expect("nothing panics while it holds this lock") = served;
        Ok(connection)
    }

    /// The newest version of an API that both sides serve.
    pub(crate) fn version(&self, key: ApiKey, ours: RangeInclusive<i16>) -> Result<i16, ChannelError> {
        let served = self.served.lock().expect("nothing panics while it holds this lock");
        let theirs = served.get(&(key as i16)).cloned();
        // A version that may still change is never used, even if the peer offers it.
        let stable = key.stable_versions();
        let newest = theirs.as_ref().map(|theirs| (*theirs.end()).min(*ours.end()).min(*stable.end()));
        match newest {
            Some(version)
                if ours.contains(&version) && theirs.as_ref().is_some_and(|range| range.contains(&version)) =>
            {
                Ok(version)
            }
            _ => Err(ChannelError::Unsupported {
                address: self.address.clone(),
                api: api_name(key),
                wanted: ours,
                served: theirs,
            }),
        }
    }

    /// Every API that the peer said it serves.
    pub(crate) fn served(&self) -> Vec<(i16, RangeInclusive<i16>)> {
        let served = self.served.lock().expect("nothing panics while it holds this lock");
        let mut rows: Vec<_> = served.iter().map(|(key, range)| (*key, range.clone())).collect();
        rows.sort_by_key(|(key, _)| *key);
        rows
    }

    /// Sends a request and waits for its response.
    pub(crate) async fn call<R: Request>(
        &self,
        request: &R,
        version: i16,
        deadline: Instant,
    ) -> Result<R::Response, ChannelError> {
        let body = self.exchange(request, version, deadline).await?;
        frame::decode_response::<R>(body, version).map_err(|source| {
            // The next response may be out of step too.
            self.close("a response could not be read");
            ChannelError::Decode { address: self.address.clone(), api: api_name(R::KEY), version, source }
        })
    }

    /// Sends a request that has no response.
    pub(crate) async fn send<R: Request>(
        &self,
        request: &R,
        version: i16,
        deadline: Instant,
    ) -> Result<(), ChannelError> {
        let bytes = self.encode(request, version, self.correlation())?;
        self.write(&bytes, deadline, api_name(R::KEY)).await
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Ends the connection; whoever waits on it is told why.
    pub(crate) fn close(&self, reason: &str) {
        close(&self.state, &self.address, &reason.into());
        self.reader.abort();
        // Who is writing closes it afterwards.
        if let Ok(mut write) = self.write.try_lock() {
            *write = None;
        }
    }

    /// KIP-511: ask in our newest version. A peer that does not know it answers in version 0 with `UNSUPPORTED_VERSION`
    /// and the versions of this one API, and is asked again in its own newest.
    async fn negotiate(&self, deadline: Instant) -> Result<HashMap<i16, RangeInclusive<i16>>, ChannelError> {
        let mut version = *ApiVersionsRequest::VERSIONS.end();
        loop {
            let request = ApiVersionsRequest {
                client_software_name: KString::from_static("gregor"),
                client_software_version: KString::from_static(env!("CARGO_PKG_VERSION")),
                ..Default::default()
            };
            let body = self.exchange(&request, version, deadline).await?;
            // Behind the correlation id, which never has tags here (KIP-511), every version starts with the error.
            let error = ErrorCode::from(body.get(4..6).map_or(0, |code| i16::from_be_bytes([code[0], code[1]])));
            let read_as = if error == ErrorCode::UnsupportedVersion { 0 } else { version };
            let response = frame::decode_response::<ApiVersionsRequest>(body, read_as).map_err(|source| {
                ChannelError::Decode { address: self.address.clone(), api: "ApiVersions", version: read_as, source }
            })?;
            let served = versions_by_key(&response);
            match (error, served.get(&(ApiKey::ApiVersions as i16))) {
                (ErrorCode::None, _) => return Ok(served),
                (ErrorCode::UnsupportedVersion, Some(range)) if *range.end() < version => {
                    version = (*range.end()).max(0);
                }
                // Brokers before 2.4 name no range: version 0 is served by every one.
                (ErrorCode::UnsupportedVersion, None) if version > 0 => version = 0,
                _ => return Err(ChannelError::Refused { address: self.address.clone(), error }),
            }
        }
    }

    async fn exchange<R: Request>(&self, request: &R, version: i16, deadline: Instant) -> Answer {
        let api = api_name(R::KEY);
        let timed_out = || ChannelError::TimedOut { address: self.address.clone(), api };
        let place = timeout_at(deadline, Arc::clone(&self.in_flight).acquire_owned())
            .await
            .map_err(|_| timed_out())?
            .expect("this semaphore is never closed");
        let correlation = self.correlation();
        let bytes = self.encode(request, version, correlation)?;
        let (answer, response) = oneshot::channel();
        {
            let mut state = self.lock();
            if let Some(end) = &state.closed {
                return Err(end.clone().error(&self.address));
            }
            state.waiting.insert(correlation, Waiting { answer, _place: place });
        }
        self.write(&bytes, deadline, api).await?;
        match timeout_at(deadline, response).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(dropped().error(&self.address)),
            Err(_) => {
                // Brokers answer in order, so whatever is stuck holds up all that follows: start afresh, as Kafka's clients do.
                self.close("a request was not answered in time");
                Err(timed_out())
            }
        }
    }

    fn encode<R: Request>(&self, request: &R, version: i16, correlation: i32) -> Result<Bytes, ChannelError> {
        frame::encode_request(request, version, correlation, &self.client_id).map_err(|source| ChannelError::Encode {
            api: api_name(R::KEY),
            version,
            source,
        })
    }

    /// Writes a whole frame. A connection that part of one was written to takes no other: it is closed, also where the caller gives up.
    async fn write(&self, bytes: &[u8], deadline: Instant, api: &'static str) -> Result<(), ChannelError> {
        let timed_out = || ChannelError::TimedOut { address: self.address.clone(), api };
        let write = timeout_at(deadline, self.write.lock()).await.map_err(|_| timed_out())?;
        if let Some(end) = &self.lock().closed {
            return Err(end.clone().error(&self.address));
        }
        let mut unfinished = Unfinished { connection: self, write, is_over: false };
        let Some(write) = &mut *unfinished.write else { return Err(dropped().error(&self.address)) };
        let all = async {
            write.write_all(bytes).await?;
            // TLS may hold back the end of what it was given until it is told that no more comes; TCP does nothing here.
            write.flush().await
        };
        let written = timeout_at(deadline, all).await;
        match written {
            Ok(Ok(())) => {
                unfinished.is_over = true;
                Ok(())
            }
            // The reader meets what the peer said before it closed, which tells more than that it closed.
            Ok(Err(error)) if is_gone(&error) => {
                unfinished.is_over = true;
                Ok(())
            }
            Ok(Err(error)) => {
                let end = End::of(&error, &self.address);
                close(&self.state, &self.address, &end);
                Err(end.error(&self.address))
            }
            Err(_) => Err(timed_out()),
        }
    }

    fn correlation(&self) -> i32 {
        self.next_correlation.fetch_add(1, Ordering::Relaxed) & i32::MAX
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close("the channel was dropped");
    }
}

fn versions_by_key(response: &ApiVersionsResponse) -> HashMap<i16, RangeInclusive<i16>> {
    response.api_keys.iter().map(|row| (row.api_key, row.min_version..=row.max_version)).collect()
}

fn dropped() -> End {
    "the connection was dropped".into()
}

fn close(state: &Mutex<State>, address: &str, end: &End) {
    let waiting = {
        let mut state = state.lock().expect("nothing panics while it holds this lock");
        if state.closed.is_none() {
            state.closed = Some(end.clone());
        }
        std::mem::take(&mut state.waiting)
    };
    for (_, waiting) in waiting {
        // A caller who gave up needs no answer.
        let _ = waiting.answer.send(Err(end.clone().error(address)));
    }
}

/// A frame that is being written, which nobody else writes into.
struct Unfinished<'a> {
    connection: &'a Connection,
    write: AsyncMutexGuard<'a, Option<Writing>>,
    is_over: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.connection.close("a request could not be written as a whole");
        }
        if self.connection.is_closed() {
            *self.write = None;
        }
    }
}

/// The task that reads.
fn spawn(
    read: impl AsyncRead + Unpin + Send + 'static,
    state: &Arc<Mutex<State>>,
    address: &str,
    frame_bytes_max: usize,
) -> JoinHandle<()> {
    tokio::spawn(read_frames(FrameReader::new(read, frame_bytes_max), Arc::clone(state), address.to_owned()))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

async fn read_frames(mut read: FrameReader<impl AsyncRead + Unpin>, state: Arc<Mutex<State>>, address: String) {
    let end = loop {
        match read.next(&address).await {
            Ok(frame) => {
                let correlation = frame::correlation_of(&frame);
                let waiting = {
                    let mut state = state.lock().expect("nothing panics while it holds this lock");
                    state.waiting.remove(&correlation)
                };
                let Some(waiting) = waiting else {
                    let reason = format!("a response came to a request never sent (correlation id {correlation})");
                    break End::Other(reason);
                };
                // A caller who gave up needs no answer.
                let _ = waiting.answer.send(Ok(frame));
            }
            Err(end) => break end,
        }
    };
    let shown = end.clone().error(&address);
    tracing::debug!(error = %shown, "connection ended");
    close(&state, &address, &end);
}
