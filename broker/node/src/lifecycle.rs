//! A broker's life as it tells it to the controller (`BrokerLifecycleManager`): register, heartbeat, ask to be unfenced, ask to go.
//!
//! One request is under way at a time. What fails is tried again after a pause that grows; only an initial registration that takes too
//! long ends the broker.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gregor_messages::{
    BrokerHeartbeatRequest, BrokerHeartbeatResponse, BrokerRegistrationRequest, BrokerRegistrationResponse,
    broker_registration_request::{Feature, Listener},
};
use gregor_metadata::{Endpoint, SERVED_FEATURES};
use gregor_types::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, ErrorCode, KString, Offset, Uuid};

/// Nanoseconds on a clock that never goes back.
pub type Nanos = u64;

const MILLISECOND: Nanos = 1_000_000;
/// The first pause after a failure; each further one is twice as long (`BrokerLifecycleManager`'s resend backoff).
const RETRY_MIN: Nanos = 100 * MILLISECOND;
/// While the controller moves leadership away, the broker asks often: clients wait for it.
const SHUTDOWN_INTERVAL: Nanos = 50 * MILLISECOND;

/// What does not change while the broker runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LifecycleConfig {
    /// `node.id`.
    pub id: BrokerId,
    /// The cluster of its directories.
    pub cluster_id: ClusterId,
    /// New with each process.
    pub incarnation: Uuid,
    /// Where it is reached: every listener but the controller's.
    pub listeners: Vec<(KString, KString, u16, i16)>,
    /// `broker.rack`.
    pub rack: Option<KString>,
    /// Its log directories that are online.
    pub directories: Vec<DirectoryId>,
    /// `log.dir.failure.timeout.ms`.
    pub directory_failure_timeout: Nanos,
    /// Its epoch when it last stopped cleanly; -1 if it did not.
    pub previous_epoch: BrokerEpoch,
    /// `broker.heartbeat.interval.ms`.
    pub heartbeat_interval: Nanos,
    /// `initial.broker.registration.timeout.ms`.
    pub registration_timeout: Nanos,
    /// `broker.session.timeout.ms`.
    pub session_timeout: Nanos,
}

/// Where the broker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BrokerPhase {
    /// It has no epoch yet.
    Registering,
    /// It has an epoch and reads the metadata up to its own registration.
    CatchingUp,
    /// It has caught up; it recovers its logs, or waits for the controller to unfence it.
    Recovering,
    /// It serves.
    Running,
    /// It wants to go and waits until others lead what it led.
    ControlledShutdown,
    /// It may go.
    Stopped,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum LifecycleInput {
    /// The broker begins to register.
    Start,
    /// The controller answered the registration; `None` if it could not be reached.
    RegistrationAnswered(Option<BrokerRegistrationResponse>),
    /// The controller answered the heartbeat; `None` if it could not be reached.
    HeartbeatAnswered(Option<BrokerHeartbeatResponse>),
    /// This broker has published its metadata up to and including this offset.
    MetadataPublished(Offset),
    /// Logs are recovered and everything that serves is up: the broker may be unfenced.
    ReadyToServe,
    /// A log directory failed.
    DirectoryFailed(DirectoryId),
    /// The directories that get no new replicas (KIP-1066); `None` where the finalized level does not know of them.
    Cordoned(Option<Vec<DirectoryId>>),
    /// Another controller is the active one, or one is again.
    ControllerChanged,
    /// The registration lacks what the finalized level holds by now (`BrokerRegistrationTracker`).
    RegistrationOutdated,
    /// The broker wants to go.
    BeginShutdown,
    /// Time has passed.
    Tick,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum LifecycleEffect {
    /// Send this to the active controller, and tell the answer.
    Register(BrokerRegistrationRequest),
    /// Send this to the active controller, and tell the answer.
    Heartbeat(BrokerHeartbeatRequest),
    /// The phase is another now.
    Phase(BrokerPhase),
    /// The broker cannot go on.
    Failed(LifecycleError),
}

/// Why a broker cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LifecycleError {
    /// No controller took the registration in time.
    #[error(
        "this broker could not register within {} ms{}; is a controller reachable, and is another process running with the same \
         node.id?", .timeout / MILLISECOND, .last.map(|code| format!(" (last answer: {})", code.name())).unwrap_or_default()
    )]
    RegistrationTimedOut {
        /// How long it tried.
        timeout: Nanos,
        /// What the controller last answered, if it did.
        last: Option<ErrorCode>,
    },
    /// The controller could not be told of a log directory that failed: it lets this broker lead what is gone.
    #[error(
        "the controller could not be told within {} ms that the log directory {directory} failed; is a controller reachable?",
        .timeout / MILLISECOND
    )]
    DirectoryFailureUntold {
        /// The directory.
        directory: DirectoryId,
        /// How long it tried.
        timeout: Nanos,
    },
    /// The controller will never take this registration.
    #[error(
        "the controller refuses this broker: {}; compare cluster.id and the directory ids in meta.properties, and the finalized \
         features, with those of the cluster", .0.name()
    )]
    Refused(ErrorCode),
}

/// The life of one broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BrokerLifecycle {
    config: LifecycleConfig,
    phase: BrokerPhase,
    epoch: BrokerEpoch,
    published: Offset,
    ready: bool,
    /// Whether it was ever unfenced, so that it may lead something.
    has_served: bool,
    wants_shutdown: bool,
    /// Whether it has to register once more, as the same incarnation.
    registers_again: bool,
    /// Directories that failed, with the time until when the controller has to know; `None` where it does.
    offline: BTreeMap<DirectoryId, Option<Nanos>>,
    /// Those of them that the request under way tells.
    telling: BTreeSet<DirectoryId>,
    cordoned: Option<Vec<DirectoryId>>,
    /// Whether a request is under way.
    waiting: bool,
    /// Something changed while a request was under way; the next one follows at once.
    hurry: bool,
    failures: u32,
    /// Whether anything begins at all.
    started: Option<Nanos>,
    /// When the controller last took what it was told.
    last_answer: Nanos,
    next_contact: Nanos,
    last_error: Option<ErrorCode>,
}

impl LifecycleConfig {
    /// Listeners as the configuration and the bound sockets have them.
    #[must_use]
    pub fn with_listeners(mut self, endpoints: &[Endpoint]) -> Self {
        let listener = |endpoint: &Endpoint| {
            let code = endpoint.security_protocol.code();
            (endpoint.listener.clone(), endpoint.host.clone(), endpoint.port, code)
        };
        self.listeners = endpoints.iter().map(listener).collect();
        self
    }
}

impl BrokerLifecycle {
    /// A broker that has not begun.
    pub const fn new(config: LifecycleConfig) -> Self {
        Self {
            config,
            phase: BrokerPhase::Registering,
            epoch: BrokerEpoch::NONE,
            published: Offset::NONE,
            ready: false,
            has_served: false,
            wants_shutdown: false,
            registers_again: false,
            offline: BTreeMap::new(),
            telling: BTreeSet::new(),
            cordoned: None,
            waiting: false,
            hurry: false,
            failures: 0,
            started: None,
            last_answer: 0,
            next_contact: 0,
            last_error: None,
        }
    }

    /// Takes one input.
    pub fn step(&mut self, input: LifecycleInput, now: Nanos, effects: &mut VecDeque<LifecycleEffect>) {
        match input {
            LifecycleInput::Start => {
                self.started = Some(now);
                self.next_contact = now;
            }
            LifecycleInput::RegistrationAnswered(response) => self.registered(response, now, effects),
            LifecycleInput::HeartbeatAnswered(response) => self.heartbeat_answered(response, now, effects),
            LifecycleInput::MetadataPublished(offset) => {
                let was_behind = self.published.value() < self.epoch.value();
                self.published = offset;
                if was_behind && offset.value() >= self.epoch.value() && self.epoch != BrokerEpoch::NONE {
                    self.contact_now(now);
                }
            }
            LifecycleInput::ReadyToServe => {
                self.ready = true;
                self.contact_now(now);
            }
            LifecycleInput::DirectoryFailed(directory) => {
                let until = now + self.config.directory_failure_timeout;
                self.offline.entry(directory).or_insert(Some(until));
                self.contact_now(now);
            }
            LifecycleInput::Cordoned(directories) => {
                if self.cordoned != directories {
                    self.cordoned = directories;
                    self.contact_now(now);
                }
            }
            LifecycleInput::ControllerChanged => {
                // The pauses were for its predecessor.
                self.failures = 0;
                self.hurry |= self.waiting;
                self.next_contact = now;
            }
            LifecycleInput::RegistrationOutdated => {
                // One that is under way says all that there is.
                if self.phase != BrokerPhase::Registering {
                    self.registers_again = true;
                    self.contact_now(now);
                }
            }
            LifecycleInput::BeginShutdown => self.begin_shutdown(now, effects),
            LifecycleInput::Tick => {}
        }
        self.contact(now, effects);
    }

    /// Where the broker is.
    pub const fn phase(&self) -> BrokerPhase {
        self.phase
    }

    /// Its epoch; -1 before it has one.
    pub const fn epoch(&self) -> BrokerEpoch {
        self.epoch
    }

    /// When to step with [`LifecycleInput::Tick`] at the latest, if ever.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let started = self.started?;
        let registering = self.phase == BrokerPhase::Registering;
        let give_up = registering.then(|| started + self.config.registration_timeout);
        let contact = (!self.waiting && self.phase != BrokerPhase::Stopped).then_some(self.next_contact);
        let untold = self.first_untold().map(|(_, until)| until).filter(|_| self.phase != BrokerPhase::Stopped);
        [give_up, contact, untold, self.session_end()].into_iter().flatten().min()
    }

    /// When a broker on its way out waits no longer: a controller that there is has fenced it by then and moved its leaderships by itself, and a
    /// quorum without a majority, as the last of its nodes to stop finds it, moves nothing.
    fn session_end(&self) -> Option<Nanos> {
        let leaves = self.phase == BrokerPhase::ControlledShutdown;
        leaves.then(|| self.last_answer.saturating_add(self.config.session_timeout))
    }

    /// The failed directory that the controller has to know of first.
    fn first_untold(&self) -> Option<(DirectoryId, Nanos)> {
        let untold = self.offline.iter().filter_map(|(directory, until)| Some((*directory, (*until)?)));
        untold.min_by_key(|(_, until)| *until)
    }

    fn contact(&mut self, now: Nanos, effects: &mut VecDeque<LifecycleEffect>) {
        let Some(started) = self.started else { return };
        if self.phase == BrokerPhase::Stopped {
            return;
        }
        if self.phase == BrokerPhase::Registering && now >= started + self.config.registration_timeout {
            let timeout = self.config.registration_timeout;
            return self.fail(LifecycleError::RegistrationTimedOut { timeout, last: self.last_error }, effects);
        }
        if let Some((directory, until)) = self.first_untold()
            && now >= until
        {
            let timeout = self.config.directory_failure_timeout;
            return self.fail(LifecycleError::DirectoryFailureUntold { directory, timeout }, effects);
        }
        if self.session_end().is_some_and(|end| now >= end) {
            return self.enter(BrokerPhase::Stopped, effects);
        }
        if self.waiting || now < self.next_contact {
            return;
        }
        self.waiting = true;
        self.hurry = false;
        self.telling.clear();
        let registers = self.phase == BrokerPhase::Registering || self.registers_again;
        if !registers {
            self.telling.extend(self.offline.keys());
        }
        effects.push_back(if registers {
            LifecycleEffect::Register(self.registration())
        } else {
            LifecycleEffect::Heartbeat(BrokerHeartbeatRequest {
                broker_id: self.config.id.value(),
                broker_epoch: self.epoch.value(),
                current_metadata_offset: self.published.value(),
                want_fence: !self.ready,
                want_shut_down: self.wants_shutdown,
                offline_log_dirs: self.offline.keys().copied().collect(),
                cordoned_log_dirs: self.cordoned.clone(),
                ..Default::default()
            })
        });
    }

    fn registration(&self) -> BrokerRegistrationRequest {
        let listeners = self.config.listeners.iter().map(|(name, host, port, security_protocol)| Listener {
            name: name.clone(),
            host: host.clone(),
            port: *port,
            security_protocol: *security_protocol,
            ..Default::default()
        });
        let features = SERVED_FEATURES.iter().map(|feature| Feature {
            name: feature.name.into(),
            min_supported_version: feature.min,
            max_supported_version: feature.max,
            ..Default::default()
        });
        let mut log_dirs = self.config.directories.clone();
        log_dirs.sort_unstable();
        BrokerRegistrationRequest {
            broker_id: self.config.id.value(),
            cluster_id: self.config.cluster_id.clone(),
            incarnation_id: self.config.incarnation,
            listeners: listeners.collect(),
            features: features.collect(),
            rack: self.config.rack.clone(),
            log_dirs,
            previous_broker_epoch: self.config.previous_epoch.value(),
            ..Default::default()
        }
    }

    fn registered(
        &mut self,
        response: Option<BrokerRegistrationResponse>,
        now: Nanos,
        effects: &mut VecDeque<LifecycleEffect>,
    ) {
        self.waiting = false;
        match self.phase {
            BrokerPhase::Stopped => return,
            BrokerPhase::Registering => {}
            _ => return self.registered_again(response, now),
        }
        let Some(response) = response else { return self.failed(now) };
        match ErrorCode::from_code(response.error_code).unwrap_or(ErrorCode::UnknownServerError) {
            ErrorCode::None => {
                self.epoch = BrokerEpoch(response.broker_epoch);
                self.failures = 0;
                self.last_answer = now;
                self.next_contact = now;
                self.enter(BrokerPhase::CatchingUp, effects);
            }
            error @ (ErrorCode::InconsistentClusterId
            | ErrorCode::InvalidRegistration
            | ErrorCode::UnsupportedVersion) => self.fail(LifecycleError::Refused(error), effects),
            // An older incarnation's session may still be alive; NOT_CONTROLLER and the like pass too.
            error => {
                self.last_error = Some(error);
                self.failed(now);
            }
        }
    }

    /// The same incarnation keeps its epoch. It serves on whatever comes of this, as only an initial registration is waited for.
    fn registered_again(&mut self, response: Option<BrokerRegistrationResponse>, now: Nanos) {
        let Some(response) = response else { return self.failed(now) };
        match ErrorCode::from_code(response.error_code).unwrap_or(ErrorCode::UnknownServerError) {
            ErrorCode::None => {
                self.registers_again = false;
                self.failures = 0;
                self.last_answer = now;
                self.next_contact = now;
            }
            // Asking once more would not help, and heartbeats must go on.
            ErrorCode::InconsistentClusterId | ErrorCode::InvalidRegistration | ErrorCode::UnsupportedVersion => {
                self.registers_again = false;
                self.failed(now);
            }
            _ => self.failed(now),
        }
    }

    fn heartbeat_answered(
        &mut self,
        response: Option<BrokerHeartbeatResponse>,
        now: Nanos,
        effects: &mut VecDeque<LifecycleEffect>,
    ) {
        self.waiting = false;
        let Some(response) = response.filter(|response| response.error_code == 0) else { return self.failed(now) };
        self.failures = 0;
        self.last_answer = now;
        for told in std::mem::take(&mut self.telling) {
            self.offline.insert(told, None);
        }
        let interval = match self.phase {
            BrokerPhase::ControlledShutdown => SHUTDOWN_INTERVAL,
            _ => self.config.heartbeat_interval,
        };
        self.next_contact = now + interval;
        match self.phase {
            BrokerPhase::CatchingUp if response.is_caught_up => {
                self.enter(BrokerPhase::Recovering, effects);
                if self.ready && !response.is_fenced {
                    self.enter(BrokerPhase::Running, effects);
                }
            }
            BrokerPhase::Recovering if !response.is_fenced => self.enter(BrokerPhase::Running, effects),
            BrokerPhase::Running if response.is_fenced => self.enter(BrokerPhase::Recovering, effects),
            BrokerPhase::ControlledShutdown if response.should_shut_down => self.enter(BrokerPhase::Stopped, effects),
            _ => {}
        }
        if self.hurry {
            self.next_contact = now;
        }
    }

    fn begin_shutdown(&mut self, now: Nanos, effects: &mut VecDeque<LifecycleEffect>) {
        match self.phase {
            BrokerPhase::Stopped | BrokerPhase::ControlledShutdown => {}
            // Nothing was led yet: there is nobody to wait for.
            _ if !self.has_served => self.enter(BrokerPhase::Stopped, effects),
            _ => {
                self.wants_shutdown = true;
                self.enter(BrokerPhase::ControlledShutdown, effects);
                self.contact_now(now);
            }
        }
    }

    fn contact_now(&mut self, now: Nanos) {
        if self.phase == BrokerPhase::Registering {
            return;
        }
        self.hurry = self.waiting;
        self.next_contact = now;
    }

    fn failed(&mut self, now: Nanos) {
        let pause =
            RETRY_MIN.saturating_mul(1 << self.failures.min(10)).min(self.config.heartbeat_interval.max(RETRY_MIN));
        self.failures = self.failures.saturating_add(1);
        self.next_contact = now + pause;
    }

    fn enter(&mut self, phase: BrokerPhase, effects: &mut VecDeque<LifecycleEffect>) {
        self.phase = phase;
        self.has_served |= phase == BrokerPhase::Running;
        effects.push_back(LifecycleEffect::Phase(phase));
    }

    fn fail(&mut self, error: LifecycleError, effects: &mut VecDeque<LifecycleEffect>) {
        effects.push_back(LifecycleEffect::Failed(error));
        self.enter(BrokerPhase::Stopped, effects);
    }
}
