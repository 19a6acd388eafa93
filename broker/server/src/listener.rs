//! Sockets that listen, and the loop that accepts.
//!
//! `node.rs` binds every listener before the broker registers (so that a port 0 is known by then) and starts the loops once
//! the broker may serve. A full file table, a flood from one address or a full node slows accepting down; it never ends it.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

/// What to set on a listener's sockets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketOptions {
    /// `socket.listen.backlog.size`.
    pub(crate) backlog: i32,
    /// `socket.send.buffer.bytes`; `None` leaves it to the operating system.
    pub(crate) send_buffer_bytes: Option<usize>,
    /// `socket.receive.buffer.bytes`; `None` leaves it to the operating system.
    pub(crate) receive_buffer_bytes: Option<usize>,
}

/// `max.connections` and `max.connections.per.ip`.
#[derive(Debug)]
pub(crate) struct ConnectionLimits {
    total: Arc<Semaphore>,
    per_ip: u32,
    per_ip_overrides: HashMap<IpAddr, u32>,
    by_ip: Mutex<HashMap<IpAddr, u32>>,
}

/// A connection's place within the limits; free again when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    limits: Arc<ConnectionLimits>,
    ip: IpAddr,
    _total: OwnedSemaphorePermit,
}

/// How long a connection may go on with what it does once the node stops.
pub(crate) const DRAIN_TIME: Duration = Duration::from_secs(3);

/// How long to wait when the process or the system has no file descriptor left.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Opens a listening socket; an empty host listens on every interface, IPv6 and IPv4.
pub(crate) async fn bind(host: &str, port: u16, options: SocketOptions) -> io::Result<TcpListener> {
    if host.is_empty() {
        let any_v6 = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
        let any_v4 = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port));
        return bind_address(any_v6, options).or_else(|_| bind_address(any_v4, options));
    }
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        match bind_address(address, options) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn bind_address(address: SocketAddr, options: SocketOptions) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // An accepted socket inherits this; it must be set before listening to widen the window.
    if let Some(bytes) = options.receive_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until `draining` turns true, then gives the connections [`DRAIN_TIME`] to end.
pub(crate) async fn accept_loop<S, F>(
    listener: TcpListener,
    options: SocketOptions,
    limits: Arc<ConnectionLimits>,
    mut draining: watch::Receiver<bool>,
    serve: S,
) where
    S: Fn(TcpStream, SocketAddr, ConnectionSlot) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Not before there is somebody: listeners that nobody comes to would take the places of the others.
                let total = tokio::select! {
                    biased;
                    _ = draining.wait_for(|draining| *draining) => break,
                    total = Arc::clone(&limits.total).acquire_owned() => total.expect("the limit is never closed"),
                };
                let Some(slot) = limits.admit(peer.ip(), total) else {
                    tracing::debug!(%peer, "refused a connection: max.connections.per.ip is reached");
                    continue;
                };
                if let Err(error) = configure(&stream, options) {
                    tracing::debug!(%peer, %error, "a new connection was gone at once");
                    continue;
                }
                connections.spawn(serve(stream, peer, slot));
            }
            Err(error) if is_peers_fault(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections now; trying again");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME, all_ended).await.is_err() {
        connections.shutdown().await;
    }
}

/// A connection that was reset before it was accepted says nothing about us.
fn is_peers_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn configure(stream: &TcpStream, options: SocketOptions) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_keepalive(true)?;
    if let Some(bytes) = options.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(())
}

impl ConnectionLimits {
    /// The limits of a node; `overrides` are `max.connections.per.ip.overrides`.
    pub(crate) fn new(total: usize, per_ip: u32, overrides: HashMap<IpAddr, u32>) -> Self {
        Self {
            total: Arc::new(Semaphore::new(total.min(Semaphore::MAX_PERMITS))),
            per_ip,
            per_ip_overrides: overrides,
            by_ip: Mutex::default(),
        }
    }

    fn admit(self: &Arc<Self>, ip: IpAddr, total: OwnedSemaphorePermit) -> Option<ConnectionSlot> {
        let ip = ip.to_canonical();
        let limit = self.per_ip_overrides.get(&ip).copied().unwrap_or(self.per_ip);
        let mut by_ip = self.by_ip.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_ip.entry(ip).or_default();
        if *count >= limit {
            if *count == 0 {
                by_ip.remove(&ip);
            }
            return None;
        }
        *count += 1;
        Some(ConnectionSlot { limits: Arc::clone(self), ip, _total: total })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut by_ip = self.limits.by_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_ip.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                by_ip.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_has_its_limit_and_gets_its_place_back() {
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let limits = Arc::new(ConnectionLimits::new(10, 1, HashMap::new()));
        let permit = || Arc::clone(&limits.total).try_acquire_owned().unwrap();
        let first = limits.admit(ip, permit()).unwrap();
        assert!(limits.admit(ip, permit()).is_none());
        assert!(limits.admit("::ffff:10.0.0.1".parse().unwrap(), permit()).is_none(), "the same address in IPv6");
        assert!(limits.admit("10.0.0.2".parse().unwrap(), permit()).is_some());
        drop(first);
        assert!(limits.admit(ip, permit()).is_some());
        assert_eq!(limits.total.available_permits(), 10);
    }

    #[tokio::test]
    async fn an_override_counts_before_the_common_limit() {
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let limits = Arc::new(ConnectionLimits::new(10, 5, HashMap::from([(ip, 0)])));
        let permit = Arc::clone(&limits.total).try_acquire_owned().unwrap();
        assert!(limits.admit(ip, permit).is_none());
    }
}
