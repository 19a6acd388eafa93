//! Drives the quorum, the controller and this broker's lifecycle: carries out their effects, tells each what the others did.
//!
//! Everything that can be done without waiting for the disk is done first; then one sync covers all that was appended meanwhile
//! (group commit). Nothing that rests on a write leaves before that write is on disk. Runs on the control thread alone.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    thread,
    time::Duration,
};

use gregor_controller::{Controller, Effects as Decisions, Input as ControllerInput, RequestId as DecisionId};
use gregor_metadata::MetadataImage;
use gregor_node::{BrokerLifecycle, LifecycleEffect, LifecycleInput};
use gregor_raft::{
    Effect, Effects, ElectionState, Input, LogRead, LogView, Nanos, Now, Quorum, Reply, RequestId, Token,
};
use gregor_types::{Offset, planted::planted};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    BrokerState, ControlError, ControlHandle, ControllerRequest, QuorumLeader,
    answers::{Asker, Askers},
    download::Download,
    handle::Command,
    metadata_log::MetadataLog,
    open::{ControlOptions, Parts},
    peers::{Heard, Network},
    quorum_state,
    replay::Replay,
    surroundings::{Chance, Surroundings},
};

mod broker;
mod metadata;
mod quorum;
mod snapshots;

/// Commands that are taken between two syncs.
const COMMANDS_PER_ROUND: usize = 100;
/// What is due waits no longer for commands that have come already.
const OVERDUE_MAX: Nanos = 1_000 * MILLISECOND;
/// Requests that may be under way; more wait in the queue.
const ASKERS_MAX: usize = 5_000;
/// Longest sleep, so that no deadline has to be exact.
const SLEEP_MAX: Duration = Duration::from_hours(1);
/// How often an append is tried again that found no room.
const DISK_FULL_RETRY: Duration = Duration::from_millis(100);
/// How long a leader that stops gives the other voters to hear of it.
const STOP_PATIENCE: Nanos = 1_000 * MILLISECOND;
const MILLISECOND: Nanos = 1_000_000;

/// See the module's documentation.
pub(super) struct Driver {
    options: ControlOptions,
    surroundings: Box<dyn Surroundings>,
    handle: ControlHandle,
    /// Requests to the quorum. They wait for nothing else: what else waits may need their answers.
    quorum_requests: mpsc::Receiver<Command>,
    commands: mpsc::Receiver<Command>,
    heard: mpsc::Receiver<Heard>,
    images: watch::Sender<Arc<MetadataImage>>,
    broker_state: watch::Sender<BrokerState>,
    quorum_leader: watch::Sender<QuorumLeader>,

    log: MetadataLog,
    replay: Replay,
    quorum: Quorum,
    quorum_effects: Effects,
    quorum_timer: Option<Nanos>,
    network: Box<dyn Network>,
    /// Requests of the quorum to other nodes that are not answered yet.
    in_flight: usize,
    download: Download,
    controller: Controller,
    decisions: Decisions,
    lifecycle: BrokerLifecycle,
    lifecycle_effects: VecDeque<LifecycleEffect>,
    lifecycle_started: bool,
    registration: Registration,

    /// Writes that still have to reach the disk, in order.
    syncs: VecDeque<Sync>,
    /// Their tokens.
    volatile: BTreeSet<Token>,
    /// Answers that wait for one of them.
    held: Vec<(Token, Held)>,
    askers: Askers,
    /// The last offset of the first image that was shown.
    first_published: Option<Offset>,
    /// The last offset of the newest image that the listener was given.
    published: Offset,
    /// Up to where it has done what images say.
    loaded: Offset,
    /// The thread that writes a snapshot, if one is under way.
    snapshot: Option<thread::JoinHandle<()>>,
    last_snapshot: Nanos,
    stopping: Option<Stopping>,
    /// An append for which the disk had no room. Nothing else is done before it is: other nodes, if there are any, elect
    /// somebody else meanwhile, as they hear nothing of this one.
    stalled: Option<Effect>,
}

/// How far this controller's own registration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registration {
    /// It is to be made, from this time on.
    Due(Nanos),
    UnderWay,
    Made,
}

/// Somebody waits for the end.
struct Stopping {
    done: oneshot::Sender<()>,
    /// How long other voters may take to hear that they need another leader.
    until: Nanos,
}

/// A write that has to reach the disk.
enum Sync {
    Election(Token, ElectionState),
    Log(Token),
}

/// An answer of the quorum.
struct Held {
    to: RequestId,
    reply: Reply,
    read: Option<LogRead>,
}

/// The driver's ends of the channels that a handle has the others of.
pub(super) struct Ends {
    pub(super) quorum_requests: mpsc::Receiver<Command>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) heard: mpsc::Receiver<Heard>,
    pub(super) images: watch::Sender<Arc<MetadataImage>>,
    pub(super) broker_state: watch::Sender<BrokerState>,
    pub(super) quorum_leader: watch::Sender<QuorumLeader>,
}

impl Driver {
    pub(super) fn new(
        parts: Parts,
        surroundings: Box<dyn Surroundings>,
        network: Box<dyn Network>,
        handle: ControlHandle,
        Ends { quorum_requests, commands, heard, images, broker_state, quorum_leader }: Ends,
    ) -> Self {
        let Parts { options, log, replay, quorum, controller } = parts;
        let download = Download::new(Arc::clone(log.disk()), log.partition().to_owned());
        let lifecycle = BrokerLifecycle::new(options.broker.clone());
        Self {
            options,
            surroundings,
            handle,
            quorum_requests,
            commands,
            heard,
            images,
            broker_state,
            quorum_leader,
            log,
            replay,
            quorum,
            quorum_effects: Effects::default(),
            quorum_timer: None,
            network,
            in_flight: 0,
            download,
            controller,
            decisions: Decisions::default(),
            lifecycle,
            lifecycle_effects: VecDeque::new(),
            lifecycle_started: false,
            registration: Registration::Due(0),
            syncs: VecDeque::new(),
            volatile: BTreeSet::new(),
            held: Vec::new(),
            askers: Askers::default(),
            first_published: None,
            published: Offset::NONE,
            loaded: Offset::NONE,
            snapshot: None,
            last_snapshot: 0,
            stopping: None,
            stalled: None,
        }
    }

    /// Runs until it is told to stop, or cannot go on.
    pub(super) async fn run(mut self) -> Result<(), ControlError> {
        let outcome = self.serve().await;
        self.end_snapshot();
        if let Some(stopped) = outcome? {
            self.close()?;
            // Whoever asked may be gone; the log is closed all the same.
            let _ = stopped.send(());
        }
        Ok(())
    }

    /// Closes the log.
    pub(super) fn close(self) -> Result<(), ControlError> {
        Ok(self.log.close()?)
    }

    /// The first thing to do.
    pub(super) fn begin(&mut self) {
        self.step_quorum(Input::Start);
    }

    pub(super) const fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    pub(super) fn log_end(&self) -> Offset {
        self.log.end().offset
    }

    /// Whether an append waits for room on the disk.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Serves until it is told to stop; returns whom to tell that it did.
    async fn serve(&mut self) -> Result<Option<oneshot::Sender<()>>, ControlError> {
        self.begin();
        loop {
            self.settle()?;
            if self.stalled.is_some() {
                tokio::time::sleep(DISK_FULL_RETRY).await;
                continue;
            }
            let now = self.now().monotonic;
            let has_told = self.in_flight == 0;
            if let Some(stopping) = self.stopping.take_if(|stopping| has_told || stopping.until <= now) {
                return Ok(Some(stopping.done));
            }
            let wait = self
                .next_deadline()
                .map_or(SLEEP_MAX, |at| Duration::from_nanos(at.saturating_sub(now)).min(SLEEP_MAX));
            let takes = self.stopping.is_none();
            let room = takes && self.askers.len() < ASKERS_MAX;
            tokio::select! {
                biased;
                Some(heard) = self.heard.recv() => self.hear(heard),
                Some(request) = self.quorum_requests.recv(), if takes => self.take(request)?,
                command = self.commands.recv(), if room => match command {
                    Some(command) => self.take(command)?,
                    // Every handle is gone, this thread's own included: cannot be, as it holds one.
                    None => return Ok(None),
                },
                () = tokio::time::sleep(wait) => self.tick(),
            }
        }
    }

    fn now(&self) -> Now {
        self.surroundings.now()
    }

    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        let snapshot_interval =
            self.options.config.metadata_log_max_snapshot_interval_ms.max(0).unsigned_abs() * MILLISECOND;
        let snapshot = (snapshot_interval > 0).then(|| self.last_snapshot + snapshot_interval);
        let registration = match self.registration {
            Registration::Due(at) if at > 0 => Some(at),
            _ => None,
        };
        let stop = self.stopping.as_ref().map(|stopping| stopping.until);
        let parts = [self.quorum_timer, self.controller.next_deadline(), self.lifecycle.next_deadline()];
        parts.into_iter().chain([snapshot, registration, stop]).flatten().min()
    }

    /// Whether something should have been done long ago.
    fn is_overdue(&self) -> bool {
        let now = self.now().monotonic;
        self.next_deadline().is_some_and(|at| at + OVERDUE_MAX < now)
    }

    pub(super) fn tick(&mut self) {
        let now = self.now().monotonic;
        if self.quorum_timer.is_some_and(|at| at <= now) {
            self.step_quorum(Input::Tick);
        }
        if self.controller.next_deadline().is_some_and(|at| at <= now) {
            self.step_controller(ControllerInput::Tick);
        }
        if self.lifecycle.next_deadline().is_some_and(|at| at <= now) {
            self.step_lifecycle(LifecycleInput::Tick);
        }
        self.snapshot_if_due();
    }

    pub(super) fn take(&mut self, command: Command) -> Result<(), ControlError> {
        match command {
            Command::Request { origin, request, reply } => match *request {
                ControllerRequest::Controller(request) => {
                    let id = DecisionId(self.askers.add(Asker::Caller(reply)));
                    self.step_controller(ControllerInput::Request { id, version: origin.version, request });
                }
                ControllerRequest::Quorum(request) => {
                    let id = RequestId(self.askers.add(Asker::Caller(reply)));
                    self.step_quorum(Input::Request { id, origin, request });
                }
            },
            Command::Loaded(offset) => {
                self.loaded = offset;
                self.tell_how_far();
                if self.first_published.is_some_and(|first| offset >= first) {
                    self.step_lifecycle(LifecycleInput::ReadyToServe);
                }
            }
            Command::DirectoryFailed(directory) => self.step_lifecycle(LifecycleInput::DirectoryFailed(directory)),
            Command::Cordoned(directories) => self.step_lifecycle(LifecycleInput::Cordoned(directories)),
            Command::ShutDownBroker => self.step_lifecycle(LifecycleInput::BeginShutdown),
            Command::SnapshotWritten(written) => {
                self.snapshot = None;
                if let Some(id) = written {
                    self.log.add_snapshot(id)?;
                    self.step_quorum(Input::SnapshotReady(id));
                    self.clean()?;
                }
            }
            Command::Stop(done) => {
                let others = self.quorum.next_offset().is_some() && self.quorum.history().voters().len() > 1;
                let patience = if others { STOP_PATIENCE } else { 0 };
                self.step_quorum(Input::Resign);
                self.stopping = Some(Stopping { done, until: self.now().monotonic + patience });
            }
        }
        Ok(())
    }

    /// Carries out all effects. Commands that come meanwhile are taken between two syncs, so that one sync covers them all.
    pub(super) fn settle(&mut self) -> Result<(), ControlError> {
        if let Some(effect) = self.stalled.take() {
            self.carry_out(effect)?;
            if self.stalled.is_none() {
                tracing::info!("the disk has room again: the metadata log goes on");
                // The controller has not heard of this broker for all that time, and is not to fence it for that.
                self.step_lifecycle(LifecycleInput::Tick);
            }
        }
        loop {
            self.carry_out_all()?;
            if self.stalled.is_some() {
                return Ok(());
            }
            let mut taken = 0;
            while taken < COMMANDS_PER_ROUND && self.stalled.is_none() && self.take_next()? {
                taken += 1;
                self.carry_out_all()?;
            }
            // Writers that go on without a pause leave no other time for what is due. What has come goes first: heartbeats are in it.
            if self.stalled.is_none() && (taken < COMMANDS_PER_ROUND || self.is_overdue()) {
                self.tick();
                self.carry_out_all()?;
            }
            let has_new_leader = self.show_leader();
            if self.stalled.is_some() || !(self.sync_next()? || has_new_leader) {
                return Ok(());
            }
        }
    }

    /// Takes one of what has come, if anything has. Other nodes go first: a commit waits for them.
    fn take_next(&mut self) -> Result<bool, ControlError> {
        if let Ok(heard) = self.heard.try_recv() {
            self.hear(heard);
            return Ok(true);
        }
        if self.stopping.is_some() {
            return Ok(false);
        }
        let mut next = self.quorum_requests.try_recv().ok();
        if next.is_none() && self.askers.len() < ASKERS_MAX {
            next = self.commands.try_recv().ok();
        }
        let Some(command) = next else { return Ok(false) };
        self.take(command)?;
        Ok(true)
    }

    pub(super) fn carry_out_all(&mut self) -> Result<(), ControlError> {
        while self.stalled.is_none() {
            if let Some(effect) = self.quorum_effects.pop() {
                self.carry_out(effect)?;
            } else if let Some(decision) = self.decisions.pop() {
                self.carry_out_decision(decision)?;
            } else if let Some(effect) = self.lifecycle_effects.pop_front() {
                self.carry_out_lifecycle(effect)?;
            } else if !self.register_when_possible() {
                break;
            }
        }
        Ok(())
    }

    /// Does the oldest write that is waiting; one sync of the log covers all that wait for one. Returns whether there was one.
    fn sync_next(&mut self) -> Result<bool, ControlError> {
        // Nobody waits for the name of an elected leader: it gives way to the log, so that a start is not slowed down by it.
        let log_first = matches!(self.syncs.front(), Some(Sync::Election(_, state)) if state.leader.is_some())
            && self.syncs.iter().any(|sync| matches!(sync, Sync::Log(_)));
        match self.syncs.front() {
            None => return Ok(false),
            Some(Sync::Election(token, state)) if !log_first => {
                let (token, state) = (*token, *state);
                self.syncs.pop_front();
                let history = self.quorum.history();
                let partition = self.log.partition();
                quorum_state::write(&**self.log.disk(), partition, &state, history.kraft_version(), history.voters())?;
                self.durable(token)?;
            }
            Some(_) => {
                let (logs, others) = self.syncs.drain(..).partition(|sync| matches!(sync, Sync::Log(_)));
                self.syncs = others;
                let logs: VecDeque<Sync> = logs;
                let follows = self.quorum.next_offset().is_none();
                let skips = planted("metadata-ack-before-fsync") || (follows && planted("metadata-fetched-unsynced"));
                if !skips {
                    self.log.flush()?;
                }
                for sync in logs {
                    if let Sync::Log(token) = sync {
                        self.durable(token)?;
                    }
                }
            }
        }
        Ok(true)
    }

    fn durable(&mut self, token: Token) -> Result<(), ControlError> {
        self.volatile.remove(&token);
        for (after, held) in std::mem::take(&mut self.held) {
            if after == token {
                self.answer(held)?;
            } else {
                self.held.push((after, held));
            }
        }
        self.step_quorum(Input::Durable(token));
        Ok(())
    }

    fn step_quorum(&mut self, input: Input) {
        let now = self.now();
        self.quorum_timer = None;
        self.quorum.step(input, &self.log, now, &mut Chance(&mut *self.surroundings), &mut self.quorum_effects);
    }

    fn step_controller(&mut self, input: ControllerInput) {
        let now = self.now().monotonic;
        let next_offset = self.quorum.next_offset().unwrap_or_else(|| self.log.end().offset);
        let surroundings = &mut self.surroundings;
        self.controller.step(input, next_offset, now, &mut || surroundings.random(), &mut self.decisions);
    }

    fn step_lifecycle(&mut self, input: LifecycleInput) {
        let now = self.now().monotonic;
        self.lifecycle.step(input, now, &mut self.lifecycle_effects);
    }
}
