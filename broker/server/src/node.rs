//! A whole node: starts every part in the order in which they need each other, and stops them in reverse.
//!
//! Start: directories, listeners (bound, so that a port 0 is known), quorum and controller, health, then the logs; clients are
//! let in once the broker is unfenced, which waits for no log that has to be checked. Stop: leaderships away, connections
//! drained, logs closed and checkpointed, the clean-shutdown marker, the quorum last.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, UNIX_EPOCH},
};

use gregor_authentication::TlsError;
use gregor_config::{BrokerConfig, Endpoint, Listener, ReplicationConfig};
use gregor_log::{Disk, disk::RealDisk};
use gregor_node::LifecycleConfig;
use gregor_types::{DirectoryId, KString, Offset};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

use crate::{
    api::Broker,
    cleaner::Cleaner,
    control::{self, BrokerState, ControlHandle, ControlOptions, ControlThread},
    controller_link::ControllerLink,
    directory_reports,
    doors::{Door, bind_all, connection_limits},
    fetch_sessions::FetchSessions,
    fetchers::{Fetchers, Network},
    groups::Groups,
    health::{self, HealthSource},
    housekeeper::Housekeeper,
    isr_changes::Asking,
    listener::ConnectionLimits,
    memory::MemoryPool,
    metrics::Metrics,
    moves::Mover,
    partitions::{Partitions, Publisher, random_uuid},
    producer_ids::ProducerIds,
    storage::{Storage, StorageError},
    tls_dialing::Outwards,
    tls_listener,
};

/// What requests on the controller's listeners may hold while they arrive.
const CONTROL_MEMORY_BYTES: usize = 32 << 20;
/// How long others may take to have taken over from a node that stops, as long as its controller answers: half of the time that a pod has,
/// so that its logs are marked clean all the same.
const CONTROLLED_SHUTDOWN_MAX: Duration = Duration::from_mins(1);

/// What a node is started with besides `server.properties`.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// `--health-listen`, as `HOST:PORT`; none serves no health.
    pub health_listen: Option<String>,
}

/// Tells when a node cannot go on.
#[derive(Debug)]
pub struct Failures {
    storage: Arc<Storage>,
    directories: watch::Receiver<Option<String>>,
    control: watch::Receiver<Option<String>>,
}

/// A running node.
pub struct Node {
    addresses: Vec<(String, SocketAddr)>,
    health_address: Option<SocketAddr>,
    broker: Arc<Broker>,
    partitions_thread: thread::JoinHandle<()>,
    housekeeper: Housekeeper,
    mover: Mover,
    cleaner: Cleaner,
    /// The doors of the broker, until clients are let in.
    shut: Vec<Door>,
    acceptors: Vec<JoinHandle<()>>,
    applied: watch::Receiver<Offset>,
    draining: watch::Sender<bool>,
    stopped: watch::Sender<bool>,
    health_thread: Option<thread::JoinHandle<()>>,
    directory_failures: watch::Receiver<Option<String>>,
    control_failure: watch::Receiver<Option<String>>,
}

/// Why a node did not stop cleanly; the next start checks its logs.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// The logs were not closed.
    #[error("closing the logs panicked")]
    Logs,
    /// The control thread had ended by itself.
    #[error("the control thread had ended before")]
    Control,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log directories.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A listener's address.
    #[error("the listener {listener} cannot listen on {host}:{port}: {source}")]
    Bind {
        /// Its name.
        listener: String,
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What the operating system says.
        source: io::Error,
    },
    /// A listener that is not served.
    #[error("the listener {0} is neither PLAINTEXT nor SSL: SASL is not served yet")]
    Protocol(String),
    /// A listener's certificates.
    #[error("the listener {listener} cannot do TLS: {source}")]
    Tls {
        /// Its name.
        listener: String,
        /// Why.
        source: TlsError,
    },
    /// The health listener's address.
    #[error("--health-listen {address} cannot be used: {source}")]
    Health {
        /// What was given.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// A thread.
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
    /// The control thread.
    #[error(transparent)]
    Control(#[from] control::ControlError),
    /// The control thread ended, as it does where the broker could not register in time.
    #[error("the control thread ended during the start; its log line says why")]
    ControlEnded,
}

impl Node {
    /// Starts a node on the current runtime. Returns once the broker is unfenced and clients are let in; a controller without a broker at once.
    pub async fn start(config: BrokerConfig, options: NodeOptions) -> Result<Self, StartError> {
        Self::start_on(Arc::new(RealDisk), config, options).await
    }

    /// The same on any disk: a test's loses what was not synced, fills up and fails.
    pub async fn start_on(disk: Arc<dyn Disk>, config: BrokerConfig, options: NodeOptions) -> Result<Self, StartError> {
        let mut node = Self::begin(disk, config, options).await?;
        node.let_clients_in().await?;
        Ok(node)
    }

    /// Begins a node: its threads run, a controller is served, and a broker asks to be let in. [`let_clients_in`](Self::let_clients_in)
    /// waits for that, which takes as long as there is no quorum; until then as after it, [`shutdown`](Self::shutdown) stops it.
    pub async fn begin(
        disk: Arc<dyn Disk>,
        mut config: BrokerConfig,
        options: NodeOptions,
    ) -> Result<Self, StartError> {
        raise_descriptor_limit();
        let (failures, directory_failures) = watch::channel(None);
        let storage = Arc::new(Storage::open(&disk, &config, failures)?);
        // Those that failed before the start are not in the broker's registration: there is nothing to tell of them.
        let failed = storage.directories().iter().filter(|directory| directory.is_failed());
        let unregistered: HashSet<_> = failed.map(|directory| directory.id).collect();
        let doors = bind_all(&mut config).await?;
        let config = Arc::new(config);
        let outwards = Outwards::new(&config)?;
        let metrics = Arc::new(Metrics::new());
        for directory in storage.directories() {
            directory.appends.count_in(metrics.appends(&directory.path));
        }
        metrics.sampled.set_start(UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64());

        let (draining, draining_receiver) = watch::channel(false);
        let connect = Network::connector(&config, outwards.to_brokers());
        let fetchers = Fetchers::new(&config, connect, draining_receiver.clone(), Handle::current());
        let broker = lifecycle(&config, &storage);
        let me = (config.node_id, broker.incarnation);
        let partitions = Partitions::new(me, Arc::clone(&config), Arc::clone(&storage), Arc::clone(&metrics), fetchers);
        let control_options = ControlOptions {
            config: Arc::clone(&config),
            disk,
            cluster_id: storage.cluster_id().clone(),
            metadata_directory_id: storage.metadata_directory_id(),
            controller_endpoints: controller_endpoints(&config),
            broker,
            listener: Box::new(Publisher(Arc::clone(&partitions))),
        };
        let (control, control_thread) = control::start(control_options, outwards.to_controllers())?;
        let control_failure = watch_control(control_thread);
        tokio::spawn(report_failures(
            Arc::clone(&partitions),
            directory_failures.clone(),
            unregistered,
            control.clone(),
        ));
        tokio::spawn(report_cordons(partitions.cordoned(), control.clone()));
        let (applied_sender, applied) = watch::channel(Offset::NONE);
        tokio::spawn(report_loaded(applied.clone(), control.clone()));
        let unreported = (Arc::clone(&partitions), applied.clone(), control.clone());
        let controller = ControllerLink::of_node(config.node_id, &control, outwards.to_controllers());
        let reports =
            directory_reports::run(config.node_id, unreported.0, unreported.1, unreported.2, Arc::clone(&controller));
        tokio::spawn(reports);
        let report = move |offset| {
            applied_sender.send_replace(offset);
        };
        let partitions_thread = partitions.start(report).map_err(StartError::Thread)?;
        let asking = Asking { node_id: config.node_id, control: control.clone(), link: Arc::clone(&controller) };
        tokio::spawn(Arc::clone(&partitions.isr_changes).run(Arc::new(asking)));
        let housekeeper = Housekeeper::start(Arc::clone(&partitions), &config).map_err(StartError::Thread)?;
        let mover = Mover::start(&partitions, &control, &config).map_err(StartError::Thread)?;
        let cleaner = Cleaner::start(Arc::clone(&partitions)).map_err(StartError::Thread)?;

        let (stopped, stopped_receiver) = watch::channel(false);
        let groups =
            Groups::start(config.node_id, &config, Arc::clone(&partitions), control.clone(), draining_receiver.clone());
        let broker = Arc::new(Broker {
            node_id: config.node_id,
            cluster_id: storage.cluster_id().clone(),
            forwarding: ControllerLink::of_node(config.node_id, &control, outwards.to_controllers()),
            controller,
            control,
            partitions,
            groups,
            producer_ids: ProducerIds::default(),
            fetch_sessions: FetchSessions::new(config.max_incremental_fetch_session_cache_slots),
            outwards,
            tls_listeners: doors.iter().filter_map(|door| door.tls().cloned()).collect(),
            metrics,
            frame_bytes_max: config.socket_request_max_bytes,
            connection_idle: idle_time(&config),
            draining: draining_receiver,
            request_memory: MemoryPool::new(
                config.queued_max_request_bytes.unwrap_or_else(MemoryPool::default_capacity),
            ),
            replication: ReplicationConfig::of(&config),
            config,
        });
        let (health_address, health_thread) = match &options.health_listen {
            Some(address) => {
                let (address, thread) = start_health(address, &broker, stopped_receiver)?;
                (Some(address), Some(thread))
            }
            None => (None, None),
        };
        let mut node = Self {
            addresses: Vec::new(),
            health_address,
            broker,
            partitions_thread,
            housekeeper,
            mover,
            cleaner,
            shut: Vec::new(),
            acceptors: Vec::new(),
            applied,
            draining,
            stopped,
            health_thread,
            directory_failures,
            control_failure,
        };
        node.open_controllers(doors).await;
        Ok(node)
    }

    /// Where each listener really listens, by name; of use where its port is 0.
    pub fn addresses(&self) -> &[(String, SocketAddr)] {
        &self.addresses
    }

    /// Where the health listener really listens.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_address
    }

    /// The way to the control thread: metadata, and who leads the quorum.
    pub fn control(&self) -> &ControlHandle {
        &self.broker.control
    }

    /// Tells when the node cannot go on.
    pub fn failures(&self) -> Failures {
        Failures {
            storage: Arc::clone(self.broker.partitions.storage()),
            directories: self.directory_failures.clone(),
            control: self.control_failure.clone(),
        }
    }

    /// Stops: leaderships move away, what is under way is answered, everything is synced and marked clean.
    pub async fn shutdown(self) -> Result<(), ShutdownError> {
        let config = &self.broker.config;
        if config.process_roles.broker && config.controlled_shutdown_enable {
            match tokio::time::timeout(CONTROLLED_SHUTDOWN_MAX, self.broker.control.shut_down_broker()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "no controlled shutdown"),
                Err(_) => tracing::warn!("the controlled shutdown took too long; stopping without it"),
            }
        }
        self.draining.send_replace(true);
        for acceptor in self.acceptors {
            if acceptor.await.is_err() {
                tracing::error!("an acceptor had panicked");
            }
        }
        let broker = self.broker;
        let (partitions_thread, housekeeper) = (self.partitions_thread, self.housekeeper);
        let (mover, cleaner) = (self.mover, self.cleaner);
        let closing = Arc::clone(&broker);
        let closed = tokio::task::spawn_blocking(move || {
            closing.partitions.stop();
            if partitions_thread.join().is_err() {
                tracing::error!("the partitions thread had panicked");
            }
            mover.stop();
            cleaner.stop();
            housekeeper.stop();
            closing.partitions.close();
            closing.partitions.storage().close(closing.control.broker_epoch());
        });
        let closed = closed.await.map_err(|_| ShutdownError::Logs);
        let stopped = broker.control.stop().await.map_err(|_| ShutdownError::Control);
        self.stopped.send_replace(true);
        if let Some(health) = self.health_thread {
            // Joined off the runtime, as the thread may still answer a probe.
            let _ = tokio::task::spawn_blocking(move || health.join()).await;
        }
        closed.and(stopped)
    }

    /// Waits until the broker is unfenced and leads what the metadata gives it, then opens its doors. A call that is given up changes
    /// nothing. Nothing to wait for in a controller without a broker.
    pub async fn let_clients_in(&mut self) -> Result<(), StartError> {
        if self.shut.is_empty() {
            return Ok(());
        }
        self.serving().await.ok_or(StartError::ControlEnded)?;
        // What was changed at run time is there before the first client.
        let looked_after = tls_listener::look_after(Arc::clone(&self.broker)).await;
        tokio::spawn(looked_after);
        let limits = Arc::new(connection_limits(&self.broker.config));
        let memory = self.broker.request_memory.clone();
        for door in std::mem::take(&mut self.shut) {
            self.open_door(door, &limits, &memory);
        }
        Ok(())
    }

    async fn open_controllers(&mut self, doors: Vec<Door>) {
        let (controllers, brokers): (Vec<_>, Vec<_>) = doors.into_iter().partition(Door::is_controllers);
        self.shut = brokers;
        let limits = Arc::new(connection_limits(&self.broker.config));
        // The control plane has a pool of its own, so that clients cannot starve it.
        let memory = MemoryPool::new(CONTROL_MEMORY_BYTES);
        for door in controllers {
            self.open_door(door, &limits, &memory);
        }
        if self.shut.is_empty() {
            tokio::spawn(tls_listener::look_after(Arc::clone(&self.broker)).await);
        }
    }

    fn open_door(&mut self, door: Door, limits: &Arc<ConnectionLimits>, memory: &MemoryPool) {
        if let Some((listener, address)) = door.address() {
            tracing::info!(%listener, %address, "listening");
            self.addresses.push((listener, address));
        }
        self.acceptors.push(door.open(&self.broker, limits, memory));
    }

    /// Waits until the broker is unfenced and what the metadata gave it to lead is led; `None` if the node ends before. The control
    /// thread ends where the broker did not register within `initial.broker.registration.timeout.ms`.
    async fn serving(&self) -> Option<()> {
        let mut applied = self.applied.clone();
        let control = &self.broker.control;
        control.broker_state().wait_for(|state| matches!(state, BrokerState::Running(_))).await.ok()?;
        let me = self.broker.node_id;
        let mut images = control.image_updates();
        let unfenced = images.wait_for(|image| image.cluster().is_unfenced(me)).await.ok()?.position.last_offset;
        applied.wait_for(|applied| *applied >= unfenced).await.ok()?;
        Some(())
    }
}

impl Failures {
    /// Waits until the node cannot go on: the log directory of the metadata failed, or the control thread ended. Says why.
    pub async fn recv(&mut self) -> String {
        let Self { storage, directories, control } = self;
        let all_failed = |why: &Option<String>| why.is_some() && !storage.is_usable();
        let reason = |why: Option<String>| why.unwrap_or_else(|| "the node is gone".to_owned());
        tokio::select! {
            why = directories.wait_for(all_failed) => reason(why.ok().and_then(|why| why.clone())),
            why = control.wait_for(Option::is_some) => reason(why.ok().and_then(|why| why.clone())),
        }
    }
}

/// Logs and connections take many descriptors: use all that the system allows, as the JVM does.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

fn controller_endpoints(config: &BrokerConfig) -> Vec<gregor_raft::Endpoint> {
    let endpoint = |listener: &Listener| gregor_raft::Endpoint {
        name: listener.advertised.name.as_str().into(),
        host: listener.advertised.host.as_str().into(),
        port: listener.advertised.port,
    };
    config.controller_listeners().map(endpoint).collect()
}

/// This node as a broker, for its registration.
fn lifecycle(config: &BrokerConfig, storage: &Storage) -> LifecycleConfig {
    let brokers = config.listeners.iter().filter(|listener| !listener.controller);
    let listener = |listener: &Listener| {
        let Endpoint { name, host, port } = &listener.advertised;
        (KString::from(name.as_str()), KString::from(host.as_str()), *port, listener.protocol.id())
    };
    let nanoseconds = |milliseconds: i64| milliseconds.max(1).unsigned_abs().saturating_mul(1_000_000);
    LifecycleConfig {
        id: config.node_id,
        cluster_id: storage.cluster_id().clone(),
        incarnation: random_uuid(),
        listeners: brokers.map(listener).collect(),
        rack: config.broker_rack.as_deref().map(KString::from),
        directories: storage.online().map(|directory| directory.id).collect(),
        previous_epoch: storage.previous_broker_epoch(),
        directory_failure_timeout: nanoseconds(config.log_dir_failure_timeout_ms),
        heartbeat_interval: nanoseconds(config.broker_heartbeat_interval_ms),
        registration_timeout: nanoseconds(config.initial_broker_registration_timeout_ms),
        session_timeout: nanoseconds(config.broker_session_timeout_ms),
    }
}

/// Tells why the control thread ended.
fn watch_control(mut thread: ControlThread) -> watch::Receiver<Option<String>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        if let Err(error) = thread.ended().await {
            tracing::error!(%error, "the control thread ended");
            sender.send_replace(Some(error.to_string()));
        } else {
            // A node that is stopping ended it; whoever listens for failures waits on.
            sender.closed().await;
        }
    });
    receiver
}

/// Hands the offsets of applied images from the partitions' thread to the control thread, newest only.
async fn report_loaded(mut applied: watch::Receiver<Offset>, control: ControlHandle) {
    while applied.changed().await.is_ok() {
        let offset = *applied.borrow_and_update();
        if control.loaded(offset).await.is_err() {
            return;
        }
    }
}

/// Takes out of service what lies in directories that failed, and tells the controller of them, so that leaderships move away.
async fn report_failures(
    partitions: Arc<Partitions>,
    mut failures: watch::Receiver<Option<String>>,
    mut reported: HashSet<DirectoryId>,
    control: ControlHandle,
) {
    let storage = Arc::clone(partitions.storage());
    while failures.changed().await.is_ok() {
        for directory in storage.directories().iter().filter(|directory| directory.is_failed()) {
            if reported.insert(directory.id) {
                partitions.directory_failed();
                if control.directory_failed(directory.id).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Tells the controller which directories get no new replicas.
async fn report_cordons(mut cordoned: watch::Receiver<Option<Vec<DirectoryId>>>, control: ControlHandle) {
    while cordoned.changed().await.is_ok() {
        let directories = cordoned.borrow_and_update().clone();
        if control.cordoned(directories).await.is_err() {
            return;
        }
    }
}

fn start_health(
    address: &str,
    broker: &Arc<Broker>,
    stopped: watch::Receiver<bool>,
) -> Result<(SocketAddr, thread::JoinHandle<()>), StartError> {
    let failed = |source| StartError::Health { address: address.to_owned(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let address_text = address.to_owned();
    let source: Arc<dyn HealthSource> = Arc::clone(broker) as Arc<dyn HealthSource>;
    let (bound_sender, bound) = std::sync::mpsc::sync_channel(1);
    let thread = thread::Builder::new()
        .name("gregor-health".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                match health::bind(&address_text).await {
                    Ok((listener, bound)) => {
                        // The receiver waits for exactly this.
                        let _ = bound_sender.send(Ok(bound));
                        health::serve(listener, source, stopped).await;
                    }
                    Err(error) => {
                        let _ = bound_sender.send(Err(error));
                    }
                }
            });
        })
        .map_err(StartError::Thread)?;
    let bound = bound.recv().unwrap_or_else(|_| Err(io::Error::other("the health thread ended")));
    Ok((bound.map_err(failed)?, thread))
}

impl HealthSource for Broker {
    fn readiness(&self) -> Result<(), String> {
        if *self.draining.borrow() {
            return Err("stopping".to_owned());
        }
        if !self.config.process_roles.broker {
            let known = self.control.quorum_leader().borrow().leader.is_some();
            return if known { Ok(()) } else { Err("it is not known who leads the metadata quorum".to_owned()) };
        }
        match *self.control.broker_state().borrow() {
            BrokerState::Running(_) => match self.partitions.storage().unchecked_logs() {
                0 => Ok(()),
                logs => Err(format!("{logs} logs that were not closed are being checked; the others serve")),
            },
            BrokerState::Starting => Err("the broker is not registered yet".to_owned()),
            BrokerState::Recovery(_) => Err("the broker is fenced: its partitions are loading".to_owned()),
            BrokerState::PendingControlledShutdown(_) | BrokerState::ShuttingDown(_) => {
                Err("stopping: leaderships are moving away".to_owned())
            }
        }
    }

    fn metrics_page(&self) -> String {
        self.sample();
        self.metrics.page()
    }
}

fn idle_time(config: &BrokerConfig) -> Duration {
    // A negative time means never in Kafka; a year is never enough for a connection.
    const NEVER: Duration = Duration::from_hours(365 * 24);
    u64::try_from(config.connections_max_idle_ms).map_or(NEVER, Duration::from_millis).min(NEVER)
}
