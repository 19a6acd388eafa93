//! A process on a node of a cluster: the control thread's driver, and the replicas where it is a broker, stepped together.

use std::{collections::VecDeque, fmt, sync::Arc};

use gregor_controller::ControllerResponse as Decision;
use gregor_log::{Disk, LogDirectory, disk::FaultyDisk};
use gregor_metadata::MetadataImage;
use gregor_node::{IsrAnswers, LifecycleConfig, alter_partition_answers};
use gregor_raft::{Nanos, Outgoing, Quorum};
use gregor_server::control::{
    BrokerState, ControlError, ControlHandle, ControlOptions, ControllerRequest, ControllerResponse, Heard,
    NodeRequest, QuorumLeader, SteppedControl,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, Uuid};
use tokio::sync::{oneshot, watch};

use super::{
    letters::{Answer, Purpose, Question, Return, Wanted, as_heard, as_request},
    machine::{CLUSTER, Identity, node_at},
    replicas::{Replicas, Sent},
};
use crate::{
    Random,
    clock::{Clock, MILLISECOND, SECOND, SimulatedMachine},
    node::{DIRECTORY, Death, Updates},
};

const LATEST: i16 = i16::MAX;
/// How often it is looked whether a full disk has room for the metadata log.
const STALLED: Nanos = 100 * MILLISECOND;
/// How long an answer may take between control threads (`controller.quorum.request.timeout.ms`).
const CONTROL_PATIENCE: Nanos = 2 * SECOND;
/// How much longer a fetch of metadata may.
const FETCH_WAIT: Nanos = SECOND / 2;
/// How long a broker that stops waits until its leaderships are elsewhere.
const SHUTDOWN_PATIENCE: Nanos = 3 * SECOND;
/// How long a node that has resigned goes on, so that others hear of it.
const RESIGNED: Nanos = 300 * MILLISECOND;

/// See the module's documentation.
pub(super) struct Process {
    me: BrokerId,
    clock: Clock,
    control: SteppedControl,
    handle: ControlHandle,
    quorum_leader: watch::Receiver<QuorumLeader>,
    broker_state: watch::Receiver<BrokerState>,
    updates: Updates,
    pub(super) replicas: Option<Replicas>,
    /// What the control thread cannot be given while its log waits for room.
    queued: VecDeque<Queued>,
    decisions: Vec<(Return, oneshot::Receiver<ControllerResponse>)>,
    sent: Vec<Sent>,
    answers: Vec<(Return, Answer)>,
    stopping: Stopping,
    /// When the control thread has something to do by itself; at once, if it was told something.
    control_due: Nanos,
    /// Whether the control thread was stepped since that was asked last.
    has_control_news: bool,
    /// Whether the broker's listener is open: it is from the first moment on at which the broker may serve.
    is_open: bool,
}

enum Queued {
    Request(Return, ControllerRequest),
    Heard(Heard),
}

/// How far a clean stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopping {
    No,
    /// Leaderships are moving away, at the latest until then.
    Broker(Nanos),
    /// The other voters are hearing of it, until then.
    Controller(Nanos),
}

impl fmt::Debug for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Process").field("me", &self.me).finish_non_exhaustive()
    }
}

impl From<ControlError> for Death {
    fn from(error: ControlError) -> Self {
        Self(error.to_string())
    }
}

impl Process {
    pub(super) fn start(
        disk: &FaultyDisk,
        clock: &Clock,
        mut random: Random,
        identity: &Identity,
        incarnation: Uuid,
    ) -> Result<Self, Death> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let config = Arc::clone(&identity.config);
        let directory = LogDirectory::open(Arc::clone(&shared), DIRECTORY.into())?;
        let previous_epoch = directory.previous_broker_epoch().unwrap_or(BrokerEpoch::NONE);
        let replicas = if config.process_roles.broker {
            Some(Replicas::open(
                disk,
                clock,
                random.fork(),
                Arc::clone(&config),
                (directory, identity.directory),
                incarnation,
            )?)
        } else {
            None
        };
        let updates = Updates::default();
        let milliseconds = |time: i64| time.max(1).unsigned_abs() * MILLISECOND;
        let host = identity.host();
        let options = ControlOptions {
            config: Arc::clone(&config),
            disk: shared,
            cluster_id: CLUSTER.into(),
            metadata_directory_id: identity.directory,
            controller_endpoints: identity.controller_endpoints(),
            broker: LifecycleConfig {
                id: config.node_id,
                cluster_id: CLUSTER.into(),
                incarnation,
                listeners: vec![("PLAINTEXT".into(), host.as_str().into(), 9092, 0)],
                rack: None,
                directories: vec![identity.directory],
                previous_epoch,
                heartbeat_interval: milliseconds(config.broker_heartbeat_interval_ms),
                session_timeout: milliseconds(config.broker_session_timeout_ms),
                // A cluster may be without a quorum for longer than a real operator would wait.
                registration_timeout: 600 * SECOND,
                directory_failure_timeout: 30 * SECOND,
            },
            listener: Box::new(updates.clone()),
        };
        let machine = SimulatedMachine { clock: clock.clone(), random: random.fork() };
        let (handle, control) = SteppedControl::open(options, Box::new(machine))?;
        Ok(Self {
            me: config.node_id,
            clock: clock.clone(),
            control,
            quorum_leader: handle.quorum_leader(),
            broker_state: handle.broker_state(),
            handle,
            updates,
            replicas,
            queued: VecDeque::new(),
            decisions: Vec::new(),
            sent: Vec::new(),
            answers: Vec::new(),
            stopping: Stopping::No,
            control_due: 0,
            has_control_news: false,
            is_open: false,
        })
    }

    /// What it shows of the metadata.
    pub(super) fn image(&self) -> Arc<MetadataImage> {
        self.handle.image()
    }

    /// Its broker's epoch in this life.
    pub(super) fn broker_epoch(&self) -> BrokerEpoch {
        self.handle.broker_epoch()
    }

    /// Whom it takes for the leader of the quorum.
    pub(super) fn leader(&self) -> watch::Ref<'_, QuorumLeader> {
        self.quorum_leader.borrow()
    }

    /// The epoch in which it is the active controller, if it is.
    pub(super) fn leads_in(&self) -> Option<LeaderEpoch> {
        if !self.handle.is_active_controller() {
            return None;
        }
        let leader = self.leader();
        (leader.leader == Some(self.me)).then_some(leader.epoch)
    }

    /// The quorum as it sees it.
    pub(super) const fn quorum(&self) -> &Quorum {
        self.control.quorum()
    }

    /// Where its metadata log ends.
    pub(super) fn metadata_end(&self) -> Offset {
        self.control.log_end()
    }

    /// Whether its control thread waits for room on the disk.
    pub(super) fn is_stalled(&self) -> bool {
        self.control.is_stalled()
    }

    /// Whether its broker, if it is one, serves clients.
    pub(super) fn is_running(&self) -> bool {
        self.replicas.is_none() || matches!(*self.broker_state.borrow(), BrokerState::Running(_))
    }

    /// Whether it lets in whoever wants something of a broker.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Does all that can be done now; says when to step again.
    pub(super) fn step(&mut self) -> Result<Nanos, Death> {
        // Most of what comes is of partitions, and the control thread has nothing to do with it.
        if self.control_due <= self.clock.nanos() || !self.queued.is_empty() {
            self.step_control()?;
        }
        let mut next = self.control_due;
        if let Some(replicas) = &mut self.replicas {
            let controller = self.quorum_leader.borrow().leader;
            replicas.on_time(self.handle.broker_epoch(), controller, &mut self.sent)?;
            self.answers.append(&mut replicas.take_answers());
            next = next.min(replicas.next_time());
        }
        self.is_open |= self.replicas.is_some() && self.is_running();
        Ok(match self.stopping {
            Stopping::No => next,
            Stopping::Broker(until) | Stopping::Controller(until) => next.min(until),
        })
    }

    fn step_control(&mut self) -> Result<(), Death> {
        self.has_control_news = true;
        loop {
            self.give_queued()?;
            let deadline = self.control.step()?;
            self.take_posted();
            let has_news = self.apply_updates()?;
            self.hear_decisions();
            if self.control.is_stalled() {
                self.control_due = self.clock.nanos() + STALLED;
                return Ok(());
            }
            if !has_news && self.queued.is_empty() {
                self.control_due = deadline.unwrap_or(Nanos::MAX);
                return Ok(());
            }
        }
    }

    /// Whether its control thread was stepped since this was asked last.
    pub(super) fn take_control_news(&mut self) -> bool {
        std::mem::replace(&mut self.has_control_news, false)
    }

    /// It dies: what it had sent and answered before is on its way all the same.
    pub(super) fn leave(&mut self) {
        self.take_posted();
        self.hear_decisions();
        if let Some(replicas) = &mut self.replicas {
            self.answers.append(&mut replicas.take_answers());
        }
    }

    /// What it sends.
    pub(super) fn take_sent(&mut self) -> Vec<Sent> {
        std::mem::take(&mut self.sent)
    }

    /// The answers that may leave.
    pub(super) fn take_answers(&mut self) -> Vec<(Return, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// Takes a question.
    pub(super) fn receive(&mut self, back: Return, question: Question) -> Result<(), Death> {
        let request = match question {
            Question::Control(request) => {
                let Some(request) = as_request(request) else {
                    self.answers.push((back, Answer::Versions));
                    return Ok(());
                };
                request
            }
            Question::AlterPartition(request) => ControllerRequest::Controller(request.into()),
            Question::Decide(request) => ControllerRequest::Controller(request),
            Question::Quorum(request) => ControllerRequest::Quorum(request),
            Question::Fetch(_)
            | Question::LookUp(_)
            | Question::Produce(..)
            | Question::Read(..)
            | Question::Delete(..) => {
                return self.receive_data(back, question);
            }
        };
        self.queued.push_back(Queued::Request(back, request));
        Ok(())
    }

    fn receive_data(&mut self, back: Return, question: Question) -> Result<(), Death> {
        let Some(replicas) = &mut self.replicas else {
            self.answers.push((back, Answer::Refused(ErrorCode::NotLeaderOrFollower)));
            return Ok(());
        };
        match question {
            Question::Fetch(asked) => replicas.fetch(back, asked),
            Question::LookUp(asked) => {
                replicas.look_up(back, &asked);
                Ok(())
            }
            Question::Produce(id, batch) => replicas.produce(back, id, &batch),
            Question::Read(id, from) => replicas.read(back, id, from),
            Question::Delete(id, until) => replicas.delete_records(back, id, until),
            Question::Control(_) | Question::AlterPartition(_) | Question::Decide(_) | Question::Quorum(_) => Ok(()),
        }
    }

    /// Hears what came of a question of its own; `None` where nothing came.
    pub(super) fn hear(&mut self, purpose: Purpose, answer: Option<Answer>) -> Result<(), Death> {
        let times = (self.clock.nanos(), self.clock.wall());
        match (purpose, &mut self.replicas) {
            (Purpose::Control(asked, wanted), _) => {
                self.queued.push_back(Queued::Heard(as_heard(asked, wanted, answer)));
            }
            (Purpose::Fetch(id, number), Some(replicas)) => {
                let said = answer.and_then(|answer| if let Answer::Fetched(said) = answer { Some(said) } else { None });
                replicas.fetchers.fetched(id, number, said, &mut replicas.held, times)?;
            }
            (Purpose::LookUp(id, asked), Some(replicas)) => {
                let found =
                    answer.and_then(|answer| if let Answer::LookedUp(found) = answer { Some(found) } else { None });
                replicas.fetchers.looked_up(id, &asked, found, &mut replicas.held, times)?;
            }
            (Purpose::Isr(asked), Some(replicas)) => {
                replicas.proposals_answered(asked, answer.and_then(said_of_proposals).as_ref());
            }
            (Purpose::Directories, Some(replicas)) => {
                let said = match &answer {
                    Some(Answer::Control(ControllerResponse::Controller(Decision::AssignReplicasToDirs(said)))) => {
                        Some(said)
                    }
                    _ => None,
                };
                replicas.reports_answered(said);
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// Begins a clean stop.
    pub(super) fn begin_stop(&mut self) -> Result<(), Death> {
        if self.stopping == Stopping::No {
            self.stopping = Stopping::Broker(self.clock.nanos() + SHUTDOWN_PATIENCE);
            if self.replicas.is_some() && !self.control.is_stalled() {
                self.control.shut_down_broker()?;
                self.control_due = 0;
            }
        }
        Ok(())
    }

    /// Goes on with a clean stop; whether it may be closed now.
    pub(super) fn is_stopped(&mut self) -> Result<bool, Death> {
        let now = self.clock.nanos();
        match self.stopping {
            Stopping::No => Ok(false),
            Stopping::Broker(until) => {
                let is_gone =
                    matches!(*self.broker_state.borrow(), BrokerState::ShuttingDown(_) | BrokerState::Starting);
                if (self.replicas.is_none() || is_gone || until <= now) && !self.control.is_stalled() {
                    self.control.resign()?;
                    self.control_due = 0;
                    self.stopping = Stopping::Controller(now + RESIGNED);
                }
                Ok(false)
            }
            Stopping::Controller(until) => Ok(until <= now),
        }
    }

    /// Whether it is about to stop by itself.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping != Stopping::No
    }

    /// Closes everything.
    pub(super) fn close(self) -> Result<(), Death> {
        let epoch = self.handle.broker_epoch();
        if let Some(replicas) = self.replicas {
            replicas.close(epoch)?;
        }
        Ok(self.control.close()?)
    }

    fn take_posted(&mut self) {
        while let Some(posted) = self.control.take_request() {
            let Some(to) = node_at(&posted.address) else {
                self.queued.push_back(Queued::Heard(posted.request.unanswered(posted.to)));
                continue;
            };
            let waits = matches!(&posted.request, NodeRequest::Quorum(Outgoing::Fetch(_)));
            self.sent.push(Sent {
                to,
                purpose: Purpose::Control(posted.to, Wanted::by(&posted.request)),
                question: Question::Control(posted.request),
                patience: CONTROL_PATIENCE + if waits { FETCH_WAIT } else { 0 },
            });
        }
    }

    fn apply_updates(&mut self) -> Result<bool, Death> {
        let mut any = false;
        while let Some(update) = self.updates.take() {
            any = true;
            if let Some(replicas) = &mut self.replicas {
                replicas.apply(&update)?;
            }
            self.control.loaded(update.image.position.last_offset)?;
        }
        Ok(any)
    }

    fn give_queued(&mut self) -> Result<(), Death> {
        while !self.control.is_stalled()
            && let Some(queued) = self.queued.pop_front()
        {
            match queued {
                Queued::Heard(heard) => self.control.hear(heard)?,
                Queued::Request(back, request) => self.decisions.push((back, self.control.request(LATEST, request)?)),
            }
        }
        Ok(())
    }

    fn hear_decisions(&mut self) {
        let answers = &mut self.answers;
        self.decisions.retain_mut(|(back, receiver)| match receiver.try_recv() {
            Ok(response) => {
                answers.push((*back, Answer::Control(response)));
                false
            }
            Err(oneshot::error::TryRecvError::Closed) => false,
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
    }
}

/// What an answer of the active controller says of a proposal.
fn said_of_proposals(answer: Answer) -> Option<IsrAnswers> {
    let Answer::Control(ControllerResponse::Controller(Decision::AlterPartition(response))) = answer else {
        return None;
    };
    // A controller that is not active, or a broker epoch that is over, says nothing of any partition.
    alter_partition_answers(&response).ok()
}
