//! A node's listeners: bound before the broker registers, opened once it may serve.
//!
//! Called by `node.rs`. What a connection is before its first request is decided here: plain or under TLS, and whose it is.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use gregor_authentication::Principal;
use gregor_config::{BrokerConfig, Listener, SecurityProtocol};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{
    api::{Broker, ConnectionInfo, ListenerInfo},
    close::Close,
    connection,
    listener::{self, ConnectionLimits, SocketOptions, accept_loop},
    memory::MemoryPool,
    node::StartError,
    tls_listener::TlsListener,
    transport::Transport,
};

/// A listener that is bound, and lets nobody in yet.
pub(crate) struct Door {
    listener: Listener,
    socket: TcpListener,
    tls: Option<Arc<TlsListener>>,
}

/// Binds every listener, and puts the port that it got in place of a 0 in what clients are told.
pub(crate) async fn bind_all(config: &mut BrokerConfig) -> Result<Vec<Door>, StartError> {
    let options = socket_options(config);
    // Whoever has no certificate should hear of it before a port is taken.
    let tls: Vec<_> = config.listeners.iter().map(|listener| tls_of(listener, config)).collect::<Result<_, _>>()?;
    let mut doors = Vec::with_capacity(config.listeners.len());
    for (listener, tls) in config.listeners.iter_mut().zip(tls) {
        let bind = &listener.bind;
        let failed =
            |source| StartError::Bind { listener: bind.name.clone(), host: bind.host.clone(), port: bind.port, source };
        let socket = listener::bind(&bind.host, bind.port, options).await.map_err(failed)?;
        let port = socket.local_addr().map_err(failed)?.port();
        if listener.advertised.port == 0 {
            listener.advertised.port = port;
        }
        if listener.advertised.host.is_empty() {
            listener.advertised.host = host_name();
        }
        listener.bind.port = port;
        doors.push(Door { listener: listener.clone(), socket, tls });
    }
    Ok(doors)
}

impl Door {
    /// Whether it is the controller's.
    pub(crate) fn is_controllers(&self) -> bool {
        self.listener.controller
    }

    /// What it does TLS with, if it does.
    pub(crate) fn tls(&self) -> Option<&Arc<TlsListener>> {
        self.tls.as_ref()
    }

    /// Its name and where it listens.
    pub(crate) fn address(&self) -> Option<(String, SocketAddr)> {
        Some((self.listener.bind.name.clone(), self.socket.local_addr().ok()?))
    }

    /// Lets connections in until the node stops.
    pub(crate) fn open(
        self,
        broker: &Arc<Broker>,
        limits: &Arc<ConnectionLimits>,
        memory: &MemoryPool,
    ) -> JoinHandle<()> {
        let Self { listener, socket, tls } = self;
        let info = Arc::new(ListenerInfo { name: listener.bind.name, controller: listener.controller });
        let (broker, memory) = (Arc::clone(broker), memory.clone());
        let draining = broker.draining.clone();
        let options = socket_options(&broker.config);
        let serve = move |stream, peer, slot| {
            let (broker, listener, memory) = (Arc::clone(&broker), Arc::clone(&info), memory.clone());
            let tls = tls.clone();
            async move {
                let entered = match &tls {
                    None => Some((Transport::Plain(stream), Principal::anonymous())),
                    // Away from the task's own memory, which connections without TLS have as well.
                    Some(tls) => Box::pin(shake_hands(&broker, tls, stream, peer)).await,
                };
                if let Some((transport, principal)) = entered {
                    let info = Arc::new(ConnectionInfo { peer, listener, principal, not_controller: None });
                    let draining = broker.draining.clone();
                    connection::serve(broker, info, transport, &memory, draining).await;
                }
                drop(slot);
            }
        };
        tokio::spawn(accept_loop(socket, options, Arc::clone(limits), draining, serve))
    }
}

/// `None` for a peer that is not let in, which is counted, or when the node stops.
async fn shake_hands(
    broker: &Broker,
    tls: &TlsListener,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<(Transport, Principal)> {
    let entered: Result<_, Close> = tokio::select! {
        biased;
        entered = tls.accept(stream) => entered,
        () = broker.drained() => return None,
    };
    match entered {
        Ok((stream, principal)) => Some((Transport::Tls(Box::new(stream)), principal)),
        Err(close) => {
            connection::count_closed(&broker.metrics, peer, &close);
            None
        }
    }
}

fn tls_of(listener: &Listener, config: &BrokerConfig) -> Result<Option<Arc<TlsListener>>, StartError> {
    let name = &listener.bind.name;
    match listener.protocol {
        SecurityProtocol::Plaintext => Ok(None),
        SecurityProtocol::Ssl => TlsListener::new(name, config)
            .map(|tls| Some(Arc::new(tls)))
            .map_err(|source| StartError::Tls { listener: name.clone(), source }),
        SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl => Err(StartError::Protocol(name.clone())),
    }
}

/// What a listener on every interface advertises, as Kafka does: this machine's name.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

fn socket_options(config: &BrokerConfig) -> SocketOptions {
    SocketOptions {
        backlog: config.socket_listen_backlog_size,
        send_buffer_bytes: config.socket_send_buffer_bytes,
        receive_buffer_bytes: config.socket_receive_buffer_bytes,
    }
}

/// `max.connections` and `max.connections.per.ip`, as configured.
pub(crate) fn connection_limits(config: &BrokerConfig) -> ConnectionLimits {
    let limit = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let overrides = config
        .max_connections_per_ip_overrides
        .iter()
        .filter_map(|(address, number)| Some((address.parse::<IpAddr>().ok()?, limit(*number))))
        .collect();
    ConnectionLimits::new(config.max_connections, limit(config.max_connections_per_ip), overrides)
}
