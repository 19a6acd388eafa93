//! A process on a node: the control thread's driver, the partitions and the groups, stepped together.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use gregor_config::BrokerConfig;
use gregor_controller::{ControllerRequest as Decided, ControllerResponse as Decision};
use gregor_coordinators::{group::GroupRequest, partition_for};
use gregor_log::{Disk, LogDirectory, disk::FaultyDisk};
use gregor_messages::AllocateProducerIdsRequest;
use gregor_metadata::MetadataImage;
use gregor_node::LifecycleConfig;
use gregor_raft::Nanos;
use gregor_replication::LeaderState;
use gregor_server::control::{
    ControlHandle, ControlOptions, ControllerRequest, ControllerResponse, ImageUpdate, MetadataListener, SteppedControl,
};
use gregor_types::{BrokerEpoch, DirectoryId, ErrorCode, ProducerId, Uuid};
use gregor_wire::batch::{EndTransactionMarker, RecordBatchBuilder};
use tokio::sync::oneshot;

use super::{Broker, CLUSTER, DIRECTORY, controller_endpoint, groups::Groups, partition::Answer};
use crate::{
    Random,
    clock::{Clock, SECOND, SimulatedMachine},
    network::{CallId, Place, Request, Response},
};

/// The topic of the groups.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";
const LATEST: i16 = i16::MAX;

/// Why a process ended by itself.
#[derive(Debug, Clone)]
pub struct Death(pub(crate) String);

impl fmt::Display for Death {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// See the module's documentation.
pub struct Process {
    clock: Clock,
    random: Random,
    control: SteppedControl,
    handle: ControlHandle,
    updates: Updates,
    broker: Broker,
    groups: BTreeMap<i32, Groups>,
    /// Requests that the controller cannot be given while its log waits for room.
    queued: VecDeque<(Option<CallId>, Decided)>,
    decisions: Vec<(Option<CallId>, oneshot::Receiver<ControllerResponse>)>,
    /// Producer ids of the block at hand, and who waits for the next block.
    producer_ids: std::ops::Range<i64>,
    wanting_ids: Vec<CallId>,
    answers: Vec<Answer>,
}

/// Committed metadata on its way from the control thread to the partitions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Updates(Arc<Mutex<VecDeque<ImageUpdate>>>);

impl Updates {
    /// The oldest one.
    pub(crate) fn take(&self) -> Option<ImageUpdate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl MetadataListener for Updates {
    fn publish(&mut self, update: ImageUpdate) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(update);
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Process").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl Process {
    pub(super) fn start(
        disk: &FaultyDisk,
        clock: &Clock,
        mut random: Random,
        config: &Arc<BrokerConfig>,
        (directory_id, incarnation): (DirectoryId, Uuid),
    ) -> Result<Self, Death> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let directory = LogDirectory::open(Arc::clone(&shared), DIRECTORY.into())?;
        let previous_epoch = directory.previous_broker_epoch().unwrap_or(BrokerEpoch::NONE);
        let broker = Broker::open(disk, clock, random.fork(), Arc::clone(config), directory)?;
        let updates = Updates::default();
        let milliseconds = |time: i64| time.max(1).unsigned_abs() * 1_000_000;
        let options = ControlOptions {
            config: Arc::clone(config),
            disk: shared,
            cluster_id: CLUSTER.into(),
            metadata_directory_id: directory_id,
            controller_endpoints: vec![controller_endpoint()],
            broker: LifecycleConfig {
                id: config.node_id,
                cluster_id: CLUSTER.into(),
                incarnation,
                listeners: vec![("PLAINTEXT".into(), "127.0.0.1".into(), 9092, 0)],
                rack: None,
                directories: vec![directory_id],
                previous_epoch,
                heartbeat_interval: milliseconds(config.broker_heartbeat_interval_ms),
                registration_timeout: 60 * SECOND,
                session_timeout: 9 * SECOND,
                directory_failure_timeout: 30 * SECOND,
            },
            listener: Box::new(updates.clone()),
        };
        let machine = SimulatedMachine { clock: clock.clone(), random: random.fork() };
        let (handle, control) =
            SteppedControl::open(options, Box::new(machine)).map_err(|error| Death(error.to_string()))?;
        Ok(Self {
            clock: clock.clone(),
            random,
            control,
            handle,
            updates,
            broker,
            groups: BTreeMap::new(),
            queued: VecDeque::new(),
            decisions: Vec::new(),
            producer_ids: 0..0,
            wanting_ids: Vec::new(),
            answers: Vec::new(),
        })
    }

    /// What it shows of the metadata.
    pub fn image(&self) -> Arc<MetadataImage> {
        self.handle.image()
    }

    /// Its partitions.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Does all that can be done now; says when to step again.
    pub fn step(&mut self) -> Result<Nanos, Death> {
        let mut next = Nanos::MAX;
        // What one part does is work for the others; a few rounds settle it.
        loop {
            let control = self.control.step().map_err(|error| Death(error.to_string()))?;
            let mut busy = self.apply_updates()?;
            busy |= self.give_queued()?;
            busy |= self.hear_decisions();
            self.answers.extend(self.broker.on_time()?);
            self.step_groups()?;
            if !busy {
                next = next.min(self.broker.next_time());
                // While its log waits for room, the control thread does nothing else.
                next = next.min(control.filter(|_| !self.control.is_stalled()).unwrap_or(Nanos::MAX));
                break;
            }
        }
        if self.control.is_stalled() {
            next = next.min(self.clock.nanos() + SECOND / 10);
        }
        let groups = self.groups.values().map(Groups::next_time).min().unwrap_or(Nanos::MAX);
        Ok(next.min(groups))
    }

    /// The answers that may leave.
    pub fn take_answers(&mut self) -> Vec<(CallId, Response)> {
        std::mem::take(&mut self.answers)
    }

    /// Takes a client's request.
    pub fn receive(&mut self, call: CallId, request: Request) -> Result<(), Death> {
        let now = self.clock.wall();
        let missing = Response::Refused(ErrorCode::UnknownTopicOrPartition);
        let answer = match request {
            Request::Control(request) => {
                self.queued.push_back((Some(call), request));
                None
            }
            Request::ProducerId => {
                self.wanting_ids.push(call);
                self.give_ids();
                None
            }
            Request::Group { group, request } => {
                self.ask_group(call, &group, request)?;
                None
            }
            Request::Produce { place, batch, acks_all } => match self.broker.partition(&place) {
                Some(partition) => partition.produce(call, &batch.0, acks_all, now)?,
                None => Some((call, missing)),
            },
            Request::EndTransaction { place, producer, epoch, commit } => {
                let marker = EndTransactionMarker { commit, coordinator_epoch: 0 };
                let bytes = RecordBatchBuilder::end_transaction_marker(marker, producer, epoch, now);
                match self.broker.partition(&place) {
                    Some(partition) => partition.append_trusted(call, &bytes, now, Response::TransactionEnded)?,
                    None => Some((call, missing)),
                }
            }
            Request::Fetch { place, from, read_committed } => match self.broker.partition(&place) {
                Some(partition) => Some((call, partition.fetch(from, read_committed)?)),
                None => Some((call, missing)),
            },
            Request::DeleteRecords { place, before } => match self.broker.partition(&place) {
                Some(partition) => Some((call, partition.delete_records(before)?)),
                None => Some((call, missing)),
            },
        };
        self.answers.extend(answer);
        Ok(())
    }

    /// Stops cleanly: closes everything.
    pub fn stop(self) -> Result<(), Death> {
        let epoch = self.handle.broker_epoch();
        self.broker.close(epoch)?;
        self.control.close().map_err(|error| Death(error.to_string()))
    }

    fn apply_updates(&mut self) -> Result<bool, Death> {
        let mut any = false;
        loop {
            let Some(update) = self.updates.take() else { return Ok(any) };
            any = true;
            self.broker.apply(&update)?;
            let applied = update.image.position.last_offset;
            self.control.loaded(applied).map_err(|error| Death(error.to_string()))?;
            let gone: Vec<_> = update.changes.topics_deleted.values().map(|topic| topic.name.clone()).collect();
            if !gone.is_empty() {
                for index in self.groups.keys().copied().collect::<Vec<_>>() {
                    let nobody = CallId { client: usize::MAX, number: 0 };
                    self.ask_shard(nobody, index, GroupRequest::ForgetTopics(gone.clone()))?;
                }
            }
        }
    }

    fn give_queued(&mut self) -> Result<bool, Death> {
        let mut any = false;
        while !self.control.is_stalled()
            && let Some((call, request)) = self.queued.pop_front()
        {
            any = true;
            let answer = self.control.request(LATEST, ControllerRequest::Controller(request));
            self.decisions.push((call, answer.map_err(|error| Death(error.to_string()))?));
        }
        Ok(any)
    }

    fn hear_decisions(&mut self) -> bool {
        let mut decided = Vec::new();
        self.decisions.retain_mut(|(call, receiver)| match receiver.try_recv() {
            Ok(ControllerResponse::Controller(decision)) => {
                decided.push((*call, decision));
                false
            }
            Ok(_) | Err(oneshot::error::TryRecvError::Closed) => false,
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
        let any = !decided.is_empty();
        for (call, decision) in decided {
            match (call, decision) {
                (Some(call), decision) => self.answers.push((call, Response::Control(decision))),
                (None, Decision::AllocateProducerIds(response)) if response.error_code == 0 => {
                    let start = response.producer_id_start;
                    self.producer_ids = start..start + i64::from(response.producer_id_len);
                    self.give_ids();
                }
                (None, _) => {
                    let refused = Response::Refused(ErrorCode::CoordinatorLoadInProgress);
                    self.answers.extend(self.wanting_ids.drain(..).map(|call| (call, refused.clone())));
                }
            }
        }
        any
    }

    fn give_ids(&mut self) {
        while let Some(call) = self.wanting_ids.pop() {
            let Some(id) = self.producer_ids.next() else {
                self.wanting_ids.push(call);
                let request = AllocateProducerIdsRequest {
                    broker_id: 1,
                    broker_epoch: self.handle.broker_epoch().value(),
                    ..Default::default()
                };
                if self.wanting_ids.len() == 1 {
                    self.queued.push_back((None, request.into()));
                }
                return;
            };
            self.answers.push((call, Response::ProducerId(ProducerId(id))));
        }
    }

    fn ask_group(&mut self, call: CallId, group: &str, request: GroupRequest) -> Result<(), Death> {
        let count = self.image().topics().by_name(OFFSETS_TOPIC).map_or(0, |topic| topic.partition_count());
        if count == 0 {
            self.answers.push((call, Response::Refused(ErrorCode::CoordinatorNotAvailable)));
            return Ok(());
        }
        self.ask_shard(call, partition_for(group, count as i32), request)
    }

    fn ask_shard(&mut self, call: CallId, index: i32, request: GroupRequest) -> Result<(), Death> {
        let place = Place { topic: OFFSETS_TOPIC.to_owned(), partition: index };
        let (Some(groups), Some(partition)) = (self.groups.get_mut(&index), self.broker.partition(&place)) else {
            self.answers.push((call, Response::Refused(ErrorCode::CoordinatorLoadInProgress)));
            return Ok(());
        };
        let answers = groups.ask(call, request, partition, &self.clock, &mut self.random)?;
        self.answers.extend(answers);
        Ok(())
    }

    fn step_groups(&mut self) -> Result<(), Death> {
        for partition in self.broker.partitions_mut() {
            if &*partition.topic != OFFSETS_TOPIC {
                continue;
            }
            let index = partition.index.value();
            let Some(epoch) = partition.leader.as_ref().map(LeaderState::leader_epoch) else {
                self.groups.remove(&index);
                continue;
            };
            if !self.groups.get(&index).is_some_and(|groups| groups.is_of(epoch)) {
                let loaded = Groups::load(partition, &self.clock, &mut self.random)?;
                self.groups.insert(index, loaded);
            }
            let groups = self.groups.get_mut(&index).expect("it was just put there");
            self.answers.extend(groups.on_time(partition, &self.clock, &mut self.random)?);
        }
        Ok(())
    }
}
