//! One outgoing connection to a broker: TLS, versions, correlation, back-off.
//!
//! The client crate opens one [`Channel`] per broker and purpose, and a broker opens them to its peers. A channel connects when it
//! is first used, asks the peer which versions it serves (`ApiVersions`), keeps a bounded number of requests in flight and, when
//! the connection breaks, connects again after a back-off with jitter. It never sends a request twice: whether that is safe only
//! its caller knows.

mod backoff;
mod connection;
mod end;
mod error;
mod frame;
mod reader;
mod tls;

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex as StdMutex},
    time::Duration,
};

use gregor_messages::{ApiKey, Request};
use gregor_types::KString;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout_at},
};

pub use backoff::Backoff;
use connection::Connection;
pub use error::ChannelError;
pub use tls::{Security, TlsFailure};

/// Host and port as one text, the form in which [`Channel::new`] takes an address: an IPv6 address stands in brackets (RFC 3986).
pub fn authority(host: &str, port: impl std::fmt::Display) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// How a channel behaves. The defaults are those of Kafka's own clients.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// Told to the broker with each request; shows in its metrics, quotas and group descriptions.
    pub client_id: KString,
    /// What the connection speaks below Kafka's protocol.
    pub security: Security,
    /// How long a connection may take with its TLS handshake and its `ApiVersions` exchange.
    pub connect_timeout: Duration,
    /// How long a request may wait for its response, connecting included, unless a call says otherwise.
    pub request_timeout: Duration,
    /// Requests on the wire at a time; the next caller waits for a response.
    pub in_flight_max: usize,
    /// The longest response that is read, in bytes.
    pub frame_bytes_max: usize,
    /// The first pause after a failed connection.
    pub backoff_min: Duration,
    /// The longest pause between attempts.
    pub backoff_max: Duration,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            client_id: KString::from_static("gregor"),
            security: Security::Plaintext,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            in_flight_max: 5,
            frame_bytes_max: 256 << 20,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
        }
    }
}

/// A connection to one broker that is made, and made again, as it is needed. A clone is the same channel.
#[derive(Clone)]
pub struct Channel {
    shared: Arc<Shared>,
}

struct Shared {
    address: String,
    options: ChannelOptions,
    current: StdMutex<Option<Arc<Connection>>>,
    /// Held while connecting, so that many callers make one attempt.
    attempt: Mutex<Attempt>,
}

struct Attempt {
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Channel {
    /// A channel to `host:port`. Nothing is sent until the first call.
    pub fn new(address: impl Into<String>, options: ChannelOptions) -> Self {
        let attempt = Attempt { backoff: Backoff::new(options.backoff_min, options.backoff_max), not_before: None };
        Self {
            shared: Arc::new(Shared {
                address: address.into(),
                options,
                current: StdMutex::new(None),
                attempt: Mutex::new(attempt),
            }),
        }
    }

    /// Where this channel connects to.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// Sends a request at the newest version that both sides serve, and waits for its response.
    pub async fn call<R: Request>(&self, request: &R) -> Result<R::Response, ChannelError> {
        let deadline = Instant::now() + self.shared.options.request_timeout;
        let connection = self.connection::<R>(deadline).await?;
        let version = connection.version(R::KEY, R::VERSIONS)?;
        connection.call(request, version, deadline).await
    }

    /// Like [`call`](Self::call) for a request whose content depends on the version: `build` is told the version agreed on,
    /// which lies within `versions`. `wait` bounds the whole call.
    pub async fn call_with<R: Request>(
        &self,
        versions: RangeInclusive<i16>,
        wait: Duration,
        build: impl FnOnce(i16) -> R,
    ) -> Result<(i16, R::Response), ChannelError> {
        let deadline = Instant::now() + wait;
        let connection = self.connection::<R>(deadline).await?;
        let version = connection.version(R::KEY, versions)?;
        let response = connection.call(&build(version), version, deadline).await?;
        Ok((version, response))
    }

    /// Sends a request that the peer does not answer, such as a produce with acks=0. It returns once the bytes are queued.
    pub async fn send<R: Request>(
        &self,
        versions: RangeInclusive<i16>,
        build: impl FnOnce(i16) -> R,
    ) -> Result<(), ChannelError> {
        let deadline = Instant::now() + self.shared.options.request_timeout;
        let connection = self.connection::<R>(deadline).await?;
        let version = connection.version(R::KEY, versions)?;
        connection.send(&build(version), version, deadline).await
    }

    /// The newest version of an API that both sides serve, within `versions`.
    pub async fn version<R: Request>(&self, versions: RangeInclusive<i16>) -> Result<i16, ChannelError> {
        let deadline = Instant::now() + self.shared.options.request_timeout;
        self.connection::<R>(deadline).await?.version(R::KEY, versions)
    }

    /// Every API that the peer serves with its oldest and newest version, as it said when this channel last connected.
    pub async fn served_versions(&self) -> Result<Vec<(i16, RangeInclusive<i16>)>, ChannelError> {
        let deadline = Instant::now() + self.shared.options.request_timeout;
        Ok(self.any_connection(deadline, "ApiVersions").await?.served())
    }

    /// Drops the connection; requests in flight end with [`ChannelError::Disconnected`], and the next call connects anew.
    pub fn disconnect(&self) {
        if let Some(connection) = self.slot().take() {
            connection.close("the channel was closed on this side");
        }
    }

    async fn connection<R: Request>(&self, deadline: Instant) -> Result<Arc<Connection>, ChannelError> {
        self.any_connection(deadline, api_name(R::KEY)).await
    }

    async fn any_connection(&self, deadline: Instant, api: &'static str) -> Result<Arc<Connection>, ChannelError> {
        if let Some(connection) = self.live() {
            return Ok(connection);
        }
        let timed_out = |_| ChannelError::TimedOut { address: self.shared.address.clone(), api };
        timeout_at(deadline, self.connect()).await.map_err(timed_out)?
    }

    async fn connect(&self) -> Result<Arc<Connection>, ChannelError> {
        let mut attempt = self.shared.attempt.lock().await;
        if let Some(connection) = self.live() {
            return Ok(connection);
        }
        if let Some(not_before) = attempt.not_before {
            sleep_until(not_before).await;
        }
        // Set before the attempt: a caller who gives up half-way must not let the next one rush in.
        attempt.not_before = Some(Instant::now() + attempt.backoff.next_pause());
        let connection = Connection::open(&self.shared.address, &self.shared.options).await?;
        attempt.backoff.reset();
        attempt.not_before = Some(Instant::now() + self.shared.options.backoff_min);
        *self.slot() = Some(Arc::clone(&connection));
        Ok(connection)
    }

    fn live(&self) -> Option<Arc<Connection>> {
        self.slot().as_ref().filter(|connection| !connection.is_closed()).map(Arc::clone)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<Connection>>> {
        self.shared.current.lock().expect("nothing panics while it holds this lock")
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Channel({})", self.shared.address)
    }
}

fn api_name(key: ApiKey) -> &'static str {
    key.name()
}

#[cfg(test)]
mod tests {
    use super::authority;

    #[test]
    fn only_an_ipv6_address_stands_in_brackets() {
        assert_eq!(authority("broker-0.example", 9092), "broker-0.example:9092");
        assert_eq!(authority("127.0.0.1", 9092), "127.0.0.1:9092");
        assert_eq!(authority("::1", 9092), "[::1]:9092");
    }
}
