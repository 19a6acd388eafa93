//! Drives the quorum, the controller and this broker's lifecycle: carries out their effects, tells each what the others did.
//!
//! Everything that can be done without waiting for the disk is done first; then one sync covers all that was appended meanwhile
//! (group commit). Nothing that rests on a write leaves before that write is on disk. Runs on the control thread alone.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use gregor_controller::{
    Controller, Effect as Decision, Effects as Decisions, Input as ControllerInput, RequestId as DecisionId,
};
use gregor_metadata::MetadataImage;
use gregor_node::{BrokerLifecycle, LifecycleEffect, LifecycleInput};
use gregor_raft::{
    Effect, Effects, ElectionState, Input, LogRead, LogView, Nanos, Now, Quorum, Reply, RequestId, RoleChange, Token,
};
use gregor_types::{Offset, planted::planted};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    BrokerState, ControlError, ControlHandle, ControllerRequest, ImageUpdate,
    answers::{Asker, Askers, LifecycleAnswer, complete},
    broker,
    handle::Command,
    metadata_log::{MetadataLog, Retention},
    open::{ControlOptions, Parts},
    quorum_state,
    replay::Replay,
    snapshots::SnapshotJob,
    surroundings::{Chance, Surroundings},
};

/// Commands that are taken between two syncs.
const COMMANDS_PER_ROUND: usize = 100;
/// Requests that may be under way; more wait in the queue.
const ASKERS_MAX: usize = 5_000;
/// Longest sleep, so that no deadline has to be exact.
const SLEEP_MAX: Duration = Duration::from_hours(1);
/// How often an append is tried again that found no room.
const DISK_FULL_RETRY: Duration = Duration::from_millis(100);
const MILLISECOND: Nanos = 1_000_000;

/// See the module's documentation.
pub(super) struct Driver {
    options: ControlOptions,
    surroundings: Box<dyn Surroundings>,
    handle: ControlHandle,
    commands: mpsc::Receiver<Command>,
    images: watch::Sender<Arc<MetadataImage>>,
    broker_state: watch::Sender<BrokerState>,

    log: MetadataLog,
    replay: Replay,
    quorum: Quorum,
    quorum_effects: Effects,
    quorum_timer: Option<Nanos>,
    controller: Controller,
    decisions: Decisions,
    lifecycle: BrokerLifecycle,
    lifecycle_effects: VecDeque<LifecycleEffect>,
    lifecycle_started: bool,
    controller_registered: bool,

    /// Writes that still have to reach the disk, in order.
    syncs: VecDeque<Sync>,
    /// Their tokens.
    volatile: BTreeSet<Token>,
    /// Answers that wait for one of them.
    held: Vec<(Token, Held)>,
    askers: Askers,
    /// The last offset of the first image that was shown.
    first_published: Option<Offset>,
    /// The thread that writes a snapshot, if one is under way.
    snapshot: Option<thread::JoinHandle<()>>,
    last_snapshot: Nanos,
    stopping: Option<oneshot::Sender<()>>,
    /// An append for which the disk had no room. Nothing else is done before it is: other nodes, if there are any, elect
    /// somebody else meanwhile, as they hear nothing of this one.
    stalled: Option<Effect>,
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
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) images: watch::Sender<Arc<MetadataImage>>,
    pub(super) broker_state: watch::Sender<BrokerState>,
}

impl Driver {
    pub(super) fn new(
        parts: Parts,
        surroundings: Box<dyn Surroundings>,
        handle: ControlHandle,
        Ends { commands, images, broker_state }: Ends,
    ) -> Self {
        let Parts { options, log, replay, quorum, controller } = parts;
        let lifecycle = BrokerLifecycle::new(options.broker.clone());
        Self {
            options,
            surroundings,
            handle,
            commands,
            images,
            broker_state,
            log,
            replay,
            quorum,
            quorum_effects: Effects::default(),
            quorum_timer: None,
            controller,
            decisions: Decisions::default(),
            lifecycle,
            lifecycle_effects: VecDeque::new(),
            lifecycle_started: false,
            controller_registered: false,
            syncs: VecDeque::new(),
            volatile: BTreeSet::new(),
            held: Vec::new(),
            askers: Askers::default(),
            first_published: None,
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
            if let Some(stopped) = self.stopping.take() {
                return Ok(Some(stopped));
            }
            let wait = self
                .next_deadline()
                .map_or(SLEEP_MAX, |at| Duration::from_nanos(at.saturating_sub(self.now().monotonic)).min(SLEEP_MAX));
            let room = self.askers.len() < ASKERS_MAX;
            tokio::select! {
                biased;
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
        [self.quorum_timer, self.controller.next_deadline(), self.lifecycle.next_deadline(), snapshot]
            .into_iter()
            .flatten()
            .min()
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
            Command::Request { version, request, reply } => match request {
                ControllerRequest::Controller(request) => {
                    let id = DecisionId(self.askers.add(Asker::Caller(reply)));
                    self.step_controller(ControllerInput::Request { id, version, request });
                }
                ControllerRequest::Quorum(request) => {
                    let id = RequestId(self.askers.add(Asker::Caller(reply)));
                    self.step_quorum(Input::Request { id, version, request });
                }
            },
            Command::Loaded(offset) => {
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
            Command::Stop(stopped) => {
                self.step_quorum(Input::Resign);
                self.stopping = Some(stopped);
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
            for _ in 0..COMMANDS_PER_ROUND {
                if self.stopping.is_some() || self.stalled.is_some() || self.askers.len() >= ASKERS_MAX {
                    break;
                }
                let Ok(command) = self.commands.try_recv() else { break };
                self.take(command)?;
                self.carry_out_all()?;
            }
            if self.stalled.is_some() || !self.sync_next()? {
                return Ok(());
            }
        }
    }

    fn carry_out_all(&mut self) -> Result<(), ControlError> {
        while self.stalled.is_none() {
            if let Some(effect) = self.quorum_effects.pop() {
                self.carry_out(effect)?;
            } else if let Some(decision) = self.decisions.pop() {
                self.carry_out_decision(decision)?;
            } else if let Some(effect) = self.lifecycle_effects.pop_front() {
                self.carry_out_lifecycle(effect)?;
            } else if !self.begin_when_active() {
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
                if !planted("metadata-ack-before-fsync") {
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

    fn carry_out(&mut self, effect: Effect) -> Result<(), ControlError> {
        match effect {
            Effect::Persist { token, state } => {
                self.volatile.insert(token);
                self.syncs.push_back(Sync::Election(token, state));
            }
            Effect::Append { token, base, epoch, timestamp, batch } => {
                match self.log.append(&batch, base, epoch, timestamp) {
                    Ok(()) => self.step_quorum(Input::Appended(token)),
                    Err(error) if error.is_disk_full() && !self.handle.stop_wanted.load(Ordering::Relaxed) => {
                        tracing::warn!(%error, "the disk is full: the metadata log waits for room");
                        self.stalled = Some(Effect::Append { token, base, epoch, timestamp, batch });
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Effect::Flush { token, .. } => {
                self.volatile.insert(token);
                self.syncs.push_back(Sync::Log(token));
            }
            Effect::Reply { after, to, reply, read } => {
                let held = Held { to, reply, read };
                match after.filter(|token| self.volatile.contains(token)) {
                    Some(token) => self.held.push((token, held)),
                    None => self.answer(held)?,
                }
            }
            // The start refuses a quorum of several voters: there is nobody who could answer, or send records.
            Effect::Send { to, .. } => self.step_quorum(Input::Response { from: to, response: None }),
            Effect::AppendFetched { .. }
            | Effect::Truncate { .. }
            | Effect::SnapshotPiece { .. }
            | Effect::CompleteSnapshot { .. }
            | Effect::InstallSnapshot { .. } => unreachable!("nobody sent records"),
            Effect::Upgraded { .. } => unreachable!("nobody asks for it before a quorum may have several voters"),
            Effect::HighWatermark(end) => self.commit(end)?,
            Effect::Timer { at } => self.quorum_timer = Some(at),
            Effect::Role(RoleChange::Leader { epoch, start }) => {
                tracing::info!(%epoch, %start, "this node leads the metadata quorum");
                self.handle.leads.store(true, Ordering::Relaxed);
                self.step_controller(ControllerInput::LeadershipWon { epoch, start });
            }
            Effect::Role(RoleChange::NotLeader { epoch }) => {
                tracing::info!(%epoch, "this node does not lead the metadata quorum any more");
                self.handle.leads.store(false, Ordering::Relaxed);
                self.step_controller(ControllerInput::LeadershipLost);
            }
            Effect::Refused { base, error } => {
                tracing::warn!(%base, %error, "an append to the metadata log was refused");
                self.step_controller(ControllerInput::LeadershipLost);
                // This node may lead all the same: then the controller decides on, from what is committed.
                if let Some(start) = self.quorum.next_offset() {
                    let epoch = self.quorum.epoch();
                    self.step_controller(ControllerInput::LeadershipWon { epoch, start });
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, held: Held) -> Result<(), ControlError> {
        let response = complete(held.reply, held.read, &mut self.log)?;
        if let Some(Asker::Caller(reply)) = self.askers.remove(held.to.0) {
            // A caller that has gone needs no answer.
            let _ = reply.send(response);
        }
        Ok(())
    }

    fn carry_out_decision(&mut self, decision: Decision) -> Result<(), ControlError> {
        match decision {
            Decision::Append { epoch, base, records } => {
                let framed = records
                    .iter()
                    .map(|record| record.record.encode_framed(record.version))
                    .collect::<Result<_, _>>()?;
                self.step_quorum(Input::Append { epoch, base, records: framed });
            }
            Decision::Reply { to, response } => match self.askers.answer(to.0, response) {
                Some(LifecycleAnswer::Registered(response)) => {
                    self.step_lifecycle(LifecycleInput::RegistrationAnswered(Some(response)));
                }
                Some(LifecycleAnswer::Heartbeat(response)) => {
                    self.step_lifecycle(LifecycleInput::HeartbeatAnswered(Some(response)));
                }
                None => {}
            },
        }
        Ok(())
    }

    fn carry_out_lifecycle(&mut self, effect: LifecycleEffect) -> Result<(), ControlError> {
        match effect {
            LifecycleEffect::Register(request) => self.ask(Asker::Lifecycle, request.into()),
            LifecycleEffect::Heartbeat(request) => self.ask(Asker::Lifecycle, request.into()),
            LifecycleEffect::Phase(phase) => {
                let state = broker::state(&self.lifecycle);
                tracing::debug!(?phase, "this broker");
                self.broker_state.send_replace(state);
            }
            LifecycleEffect::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn ask(&mut self, asker: Asker, request: gregor_controller::ControllerRequest) {
        let id = DecisionId(self.askers.add(asker));
        self.step_controller(ControllerInput::Request { id, version: i16::MAX, request });
    }

    /// Registers this controller and this broker as soon as there is a controller to register with. Returns whether something began.
    fn begin_when_active(&mut self) -> bool {
        if !self.controller.is_active() {
            return false;
        }
        if !self.lifecycle_started {
            self.lifecycle_started = true;
            self.step_lifecycle(LifecycleInput::Start);
            return true;
        }
        let level_is_known = self.replay.image().features().finalized_metadata_version().is_some();
        if !self.controller_registered && self.first_published.is_some() && level_is_known {
            self.controller_registered = true;
            if let Some(request) = broker::controller_registration(&self.options, self.replay.image()) {
                self.ask(Asker::Registration, request.into());
                return true;
            }
        }
        false
    }

    /// Everything before `end` is committed: apply it, tell the controller, show it.
    fn commit(&mut self, end: Offset) -> Result<(), ControlError> {
        if self.replay.end() < end {
            self.replay.advance(&mut self.log, end)?;
        } else if self.replay.end() > end {
            // At the start all of the log was read; it is shown once all of it is committed.
            return Ok(());
        }
        self.replay.image().features().check_served()?;
        self.step_controller(ControllerInput::Committed { image: self.replay.image().clone(), end });
        self.publish();
        self.snapshot_if_due();
        Ok(())
    }

    fn publish(&mut self) {
        let Some((image, changes)) = self.replay.take_update(self.quorum.history().kraft_version()) else { return };
        let last_offset = image.position.last_offset;
        let image = Arc::new(image);
        self.handle.image.store(Arc::clone(&image));
        // A no-op record moves the position and nothing else: nobody has to wake for that.
        if !changes.is_empty() || self.first_published.is_none() {
            self.images.send_replace(Arc::clone(&image));
            self.options.listener.publish(ImageUpdate { image, changes });
            self.first_published.get_or_insert(last_offset);
        }
        self.step_lifecycle(LifecycleInput::MetadataPublished(last_offset));
    }

    /// Begins a snapshot if enough was appended, or enough time has passed, since the last one.
    fn snapshot_if_due(&mut self) {
        let config = &self.options.config;
        let now = self.now();
        let bytes_max = config.metadata_log_max_record_bytes_between_snapshots.max(1).unsigned_abs();
        let interval = config.metadata_log_max_snapshot_interval_ms.max(0).unsigned_abs() * MILLISECOND;
        let enough_time = interval > 0 && now.monotonic >= self.last_snapshot + interval;
        if self.replay.bytes_since_snapshot() < bytes_max && !enough_time {
            return;
        }
        if self.snapshot.is_some() || self.replay.image().in_transaction() {
            return;
        }
        self.last_snapshot = now.monotonic;
        let id = self.replay.snapshot_id();
        if self.replay.bytes_since_snapshot() == 0 || self.quorum.high_watermark() != Some(id.offset) {
            return;
        }
        self.replay.snapshot_begun();
        let (kraft_version, voters) = self.quorum.history().at(id.offset);
        let job = SnapshotJob {
            disk: Arc::clone(self.log.disk()),
            partition: self.log.partition().to_owned(),
            id,
            image: self.replay.image().clone(),
            kraft_version,
            voters: voters.clone(),
            last_contained: self.replay.last_timestamp(),
            now: now.wall,
        };
        let commands = self.handle.commands.clone();
        let work = move || {
            let result = job.write();
            let written =
                result.inspect_err(|error| tracing::error!(%error, "a metadata snapshot was not written")).ok();
            // A node that is stopping finds the snapshot at its next start.
            let _ = commands.blocking_send(Command::SnapshotWritten(written));
        };
        match self.surroundings.beside("gregor-snapshot", Box::new(work)) {
            Ok(thread) => self.snapshot = thread,
            Err(error) => tracing::error!(%error, "no thread to write a metadata snapshot"),
        }
    }

    /// Waits for a snapshot that is under way: once the node says that it stopped, nothing of it writes any more.
    fn end_snapshot(&mut self) {
        // Its news would find nobody, and must not wait for room either.
        self.commands.close();
        if let Some(thread) = self.snapshot.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that wrote a metadata snapshot panicked");
        }
    }

    fn clean(&mut self) -> Result<(), ControlError> {
        let config = &self.options.config;
        let retention =
            Retention { bytes: config.metadata_max_retention_bytes, milliseconds: config.metadata_max_retention_ms };
        let high_watermark = self.quorum.high_watermark().unwrap_or(Offset::ZERO);
        self.log.clean(retention, high_watermark, self.now().wall)?;
        Ok(())
    }
}
