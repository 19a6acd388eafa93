//! The partitions of a simulated broker in a cluster, as the metadata says: what the server's `partitions/` and `housekeeper.rs` do on
//! their threads, in steps.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use gregor_config::BrokerConfig;
use gregor_log::{CheckpointKind, LogDirectory, disk::FaultyDisk};
use gregor_messages::AssignReplicasToDirsResponse;
use gregor_metadata::{ConfigResource, Image, MetadataImage};
use gregor_node::{
    DirectoryReports, IsrAnswers, IsrChanges, PartitionAction, Proposed, ReplicaRole, alter_partition,
    is_to_be_reported, partition_actions,
};
use gregor_raft::Nanos;
use gregor_replication::{FollowedPartition, OffsetLookUp, PartitionAssignment, ProposalOutcome, Registration};
use gregor_server::{TopicSettings, control::ImageUpdate};
use gregor_types::{BrokerEpoch, BrokerId, DirectoryId, ErrorCode, KString, Offset, TopicPartition, Uuid};

use super::{
    fetching::Fetchers,
    held::Held,
    letters::{Answer, FollowerQuestion, Parts, Purpose, Question, Return, partition_of},
    replica::{Replica, Role, refusal},
    sessions::{Sessions, Turn},
};
use crate::{
    Random,
    clock::{Clock, SECOND},
    network::Batches,
    node::{Death, LogFolder},
};

const CHECKPOINT_EVERY: Nanos = 5 * SECOND;
/// How often leaders look for followers that are too far behind.
const LAGGARDS_EVERY: Nanos = SECOND;
/// How long a leader lets a follower wait that has everything.
const FETCH_WAIT: Nanos = SECOND / 2;
/// How long the controller may take to answer.
const CONTROLLER_PATIENCE: Nanos = 3 * SECOND;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Replicas {
    me: BrokerId,
    /// Which run of the broker this is.
    incarnation: Uuid,
    config: Arc<BrokerConfig>,
    clock: Clock,
    random: Random,
    folder: LogFolder,
    previous: Arc<MetadataImage>,
    pub(super) held: Held,
    /// Replicas for which the disk had no room yet.
    unmade: BTreeMap<FollowedPartition, KString>,
    pub(super) fetchers: Fetchers,
    sessions: Sessions,
    waiting: Vec<WaitingFetch>,
    /// Whether a replica is gone since it was looked whether fetches that wait have something to hear.
    has_fewer: bool,
    /// Whether this machine has ever lost power.
    pub(super) has_lost_power: bool,
    /// What has happened here that is counted.
    pub(super) happened: Vec<&'static str>,
    isr_changes: IsrChanges<()>,
    /// The id of its disk, and the replicas of which the metadata does not say that they are on it.
    disk: DirectoryId,
    reports: DirectoryReports,
    answers: Vec<(Return, Answer)>,
    next_checkpoint: Nanos,
    next_look: Nanos,
    first: bool,
}

/// A question of this node.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) to: BrokerId,
    pub(super) question: Question,
    pub(super) purpose: Purpose,
    pub(super) patience: Nanos,
}

/// A follower that has everything.
#[derive(Debug)]
struct WaitingFetch {
    back: Return,
    asked: FollowerQuestion,
    turn: Turn,
    until: Nanos,
}

/// How the metadata knows a broker.
fn registration_of(image: &Image, broker: BrokerId) -> Option<Registration> {
    let cluster = image.cluster();
    cluster.broker(broker).map(|known| Registration { epoch: known.epoch, active: cluster.is_active(broker) })
}

impl Replicas {
    /// Looks at what lies in the directory; a log is opened once the metadata gives it to this broker.
    pub(super) fn open(
        disk: &FaultyDisk,
        clock: &Clock,
        mut random: Random,
        config: Arc<BrokerConfig>,
        (directory, id): (LogDirectory, DirectoryId),
        incarnation: Uuid,
    ) -> Result<Self, Death> {
        let sessions = Sessions::new(&mut random);
        Ok(Self {
            me: config.node_id,
            incarnation,
            fetchers: Fetchers::new(config.node_id, config.num_replica_fetchers, 1_000),
            config,
            clock: clock.clone(),
            random,
            folder: LogFolder::open(disk, directory)?,
            previous: Arc::default(),
            held: Held::default(),
            unmade: BTreeMap::new(),
            sessions,
            waiting: Vec::new(),
            has_fewer: false,
            has_lost_power: false,
            happened: Vec::new(),
            isr_changes: IsrChanges::default(),
            disk: id,
            reports: DirectoryReports::default(),
            answers: Vec::new(),
            next_checkpoint: clock.nanos() + CHECKPOINT_EVERY,
            next_look: clock.nanos() + LAGGARDS_EVERY,
            first: true,
        })
    }

    /// Creates, deletes, leads and follows partitions as an image says.
    pub(super) fn apply(&mut self, update: &ImageUpdate) -> Result<(), Death> {
        let previous = std::mem::replace(&mut self.previous, Arc::clone(&update.image));
        let image = Arc::clone(&update.image);
        if std::mem::take(&mut self.first) {
            self.folder.set_strays(self.me, &image, &mut self.random)?;
        }
        // As the server: a higher min.insync.replicas counts before roles.
        let is_configured =
            |replica: &&Replica| update.changes.configs.contains(&ConfigResource::topic(replica.topic.clone()));
        let configured: Vec<_> = if update.changes.configs.is_empty() {
            Vec::new()
        } else {
            self.held.all().filter(is_configured).map(|replica| replica.id).collect()
        };
        for id in &configured {
            if let Some(replica) = self.held.get_mut(*id) {
                replica.expect_limits(TopicSettings::of(&replica.topic, &self.config, &image).limits);
            }
        }
        for action in partition_actions(self.me, &previous, &image, &update.changes) {
            match action {
                PartitionAction::Delete { topic_id, index, .. } => {
                    self.delete(FollowedPartition { topic_id, partition: index })?;
                }
                PartitionAction::Hold { topic_id, topic, index, .. } => {
                    self.hold(&topic, FollowedPartition { topic_id, partition: index }, &image)?;
                }
            }
        }
        let wall = self.clock.wall();
        let brokers: Vec<_> = update.changes.brokers.iter().map(|id| (*id, registration_of(&image, *id))).collect();
        if !brokers.is_empty() {
            for replica in self.held.all_mut() {
                replica.on_registrations(&brokers, wall);
                self.sessions.changed(replica.id);
            }
        }
        if self.is_registered(&image) && !self.is_registered(&previous) {
            let held: Vec<_> = self.held.all().map(|replica| (replica.topic.clone(), replica.id)).collect();
            for (topic, id) in held {
                self.hold(&topic, id, &image)?;
            }
        }
        // Those that have come meanwhile began with these settings.
        for id in configured {
            if let Some(replica) = self.held.get_mut(id) {
                replica.set_settings(&TopicSettings::of(&replica.topic, &self.config, &image), wall);
            }
        }
        Ok(())
    }

    /// Whether the metadata knows this run of the broker: before, it neither leads nor follows.
    fn is_registered(&self, image: &Image) -> bool {
        image.cluster().broker(self.me).is_some_and(|broker| broker.incarnation == self.incarnation)
    }

    /// Holds a replica in the role that the image gives it.
    fn hold(&mut self, topic: &KString, id: FollowedPartition, image: &Image) -> Result<(), Death> {
        let Some(state) = image.topics().partition(id.topic_id, id.partition) else { return Ok(()) };
        if !self.held.contains(id) {
            let settings = TopicSettings::of(topic, &self.config, image);
            let Some(mut opened) = self.open_log(topic, id, settings)? else {
                self.unmade.insert(id, topic.clone());
                return Ok(());
            };
            opened.is_doubtful = self.has_lost_power;
            self.held.insert(id, opened);
        }
        self.unmade.remove(&id);
        let assigned =
            state.directory_of(self.me).filter(|_| image.features().metadata_version().has_directory_assignment());
        if assigned.is_some_and(|assigned| is_to_be_reported(assigned, self.disk, &[self.disk])) {
            self.reports.report(id.topic_id, id.partition, self.disk);
        }
        let leader = state.leader.filter(|_| self.is_registered(image));
        let role = match leader {
            Some(leader) if leader == self.me => ReplicaRole::Leader,
            Some(leader) => ReplicaRole::Follower(leader),
            None => ReplicaRole::Leaderless,
        };
        let assignment = PartitionAssignment {
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            replicas: state.replicas.clone(),
            isr: state.isr.clone(),
            adding: state.adding.clone(),
        };
        let times = (self.clock.nanos(), self.clock.wall());
        let replica = self.held.get_mut(id).expect("it was just put there");
        // A follower that may be in sync or not is to be looked at with its next fetch.
        self.sessions.changed(id);
        replica.set_role(self.me, leader, &assignment, |broker| registration_of(image, broker), times.1);
        match role {
            ReplicaRole::Follower(leader) => self.fetchers.follow(replica, leader, state.leader_epoch, times)?,
            ReplicaRole::Leader | ReplicaRole::Leaderless => self.fetchers.unfollow(id),
        }
        Ok(())
    }

    fn open_log(
        &mut self,
        topic: &KString,
        id: FollowedPartition,
        settings: Arc<TopicSettings>,
    ) -> Result<Option<Replica>, Death> {
        let name = TopicPartition::new(topic.clone(), id.partition);
        let held = self.held.logs();
        let opened = self.folder.open_log(&name, id.topic_id, &settings.log, &held, self.clock.wall())?;
        Ok(opened.map(|(log, high_watermark)| Replica::new(topic.clone(), id, log, high_watermark, settings)))
    }

    fn delete(&mut self, id: FollowedPartition) -> Result<(), Death> {
        self.fetchers.unfollow(id);
        self.unmade.remove(&id);
        let Some(mut replica) = self.held.remove(id) else { return Ok(()) };
        self.has_fewer = true;
        self.sessions.changed(id);
        self.answers.append(&mut replica.give_up());
        self.folder.delete(replica.log, self.clock.wall(), &mut self.random)?;
        self.folder.forget_gone(&self.held.logs())?;
        Ok(())
    }

    pub(super) fn produce(&mut self, back: Return, id: FollowedPartition, batch: &Batches) -> Result<(), Death> {
        let now = self.clock.wall();
        match self.held.get_mut(id) {
            Some(replica) => {
                for (follower, at) in self.sessions.quiet(id) {
                    self.happened.push("quiet fetch");
                    replica.on_quiet_fetch(follower, at);
                }
                replica.produce(back, &batch.0, now)?;
            }
            None => self.answers.push((back, Answer::Refused(ErrorCode::NotLeaderOrFollower))),
        }
        Ok(())
    }

    pub(super) fn read(&mut self, back: Return, id: FollowedPartition, from: Offset) -> Result<(), Death> {
        let answer = match self.held.reading(id) {
            Some(replica) => replica.read(from)?,
            None => Answer::Refused(ErrorCode::NotLeaderOrFollower),
        };
        self.answers.push((back, answer));
        Ok(())
    }

    pub(super) fn delete_records(&mut self, back: Return, id: FollowedPartition, until: Offset) -> Result<(), Death> {
        let answer = match self.held.get_mut(id) {
            Some(replica) => replica.delete_records(until)?,
            None => Answer::Refused(ErrorCode::NotLeaderOrFollower),
        };
        self.answers.push((back, answer));
        Ok(())
    }

    pub(super) fn look_up(&mut self, back: Return, asked: &[OffsetLookUp]) {
        let find = |asked: &OffsetLookUp| match self.held.get(asked.partition) {
            Some(replica) => replica.look_up(asked),
            None => Err(ErrorCode::NotLeaderOrFollower),
        };
        let found = asked.iter().map(find).collect();
        self.answers.push((back, Answer::LookedUp(found)));
    }

    /// Takes a follower's fetch: it is answered at once if there is something to say, else it waits.
    pub(super) fn fetch(&mut self, back: Return, asked: FollowerQuestion) -> Result<(), Death> {
        let turn = match self.sessions.begin(&asked, self.clock.wall()) {
            Ok(turn) => turn,
            Err(error) => {
                self.happened.push("fetch session lost");
                self.answers.push((back, Answer::Fetched(Err(error))));
                return Ok(());
            }
        };
        match self.serve(&asked, turn)? {
            Some(parts) if !parts.is_empty() => {
                self.answers.push((back, Answer::Fetched(Ok((turn.session, parts)))));
            }
            _ => {
                let until = self.clock.nanos() + FETCH_WAIT;
                self.waiting.push(WaitingFetch { back, asked, turn, until });
            }
        }
        Ok(())
    }

    /// What there is to say of partitions in a session; `None` where a later request has taken the turn.
    fn serve(&mut self, asked: &FollowerQuestion, turn: Turn) -> Result<Option<Parts>, Death> {
        let now = self.clock.wall();
        let registration = registration_of(&self.previous, asked.replica);
        let Some(visited) = self.sessions.visit(turn) else { return Ok(None) };
        let mut parts = Vec::new();
        for (id, position, is_new) in visited {
            let replica = if is_new { self.held.get_mut(id) } else { self.held.reading(id) };
            let (answer, records) = match replica {
                Some(replica) => replica.serve(asked, &position, registration, is_new, now)?,
                None => (refusal(ErrorCode::NotLeaderOrFollower), Bytes::new()),
            };
            parts.push((id, answer, records));
        }
        self.sessions.settle(turn, &mut parts);
        Ok(Some(parts))
    }

    /// Answers the fetches that have waited long enough, or have something to hear now: most of what happens changes nothing that they wait for.
    fn wake_fetches(&mut self, is_changed: bool) -> Result<(), Death> {
        let now = self.clock.nanos();
        if !is_changed && self.waiting.iter().all(|waiting| waiting.until > now) {
            return Ok(());
        }
        for waiting in std::mem::take(&mut self.waiting) {
            // Whoever asked in a turn that is over has asked again since.
            let Some(parts) = self.serve(&waiting.asked, waiting.turn)? else { continue };
            if parts.is_empty() && waiting.until > now {
                self.waiting.push(waiting);
            } else {
                self.answers.push((waiting.back, Answer::Fetched(Ok((waiting.turn.session, parts)))));
            }
        }
        Ok(())
    }

    /// Does what is due. `broker_epoch` is this broker's, `controller` whom it takes for the active one.
    pub(super) fn on_time(
        &mut self,
        broker_epoch: BrokerEpoch,
        controller: Option<BrokerId>,
        sent: &mut Vec<Sent>,
    ) -> Result<(), Death> {
        let (now, wall) = (self.clock.nanos(), self.clock.wall());
        let looks = self.next_look <= now;
        if looks {
            self.next_look = now + LAGGARDS_EVERY;
            let image = Arc::clone(&self.previous);
            for (id, topic) in self.unmade.clone() {
                self.hold(&topic, id, &image)?;
            }
        }
        if looks {
            self.held.touch_all();
        }
        let mut is_changed = std::mem::take(&mut self.has_fewer);
        for id in self.held.take_due(now) {
            let Some(replica) = self.held.reading(id) else { continue };
            if std::mem::take(&mut replica.is_cut) {
                self.folder.lower_recovery_point(&replica.log)?;
            }
            replica.sync(now, &mut self.random, wall)?;
            if looks {
                replica.drop_laggards(wall);
            }
            self.answers.append(&mut replica.take_answers());
            if let Some(proposal) = replica.take_proposal() {
                let key = (id.topic_id, id.partition);
                self.isr_changes.propose(Proposed { id: key, partition: (), proposal });
            }
            if replica.take_change() {
                is_changed = true;
                self.sessions.changed(id);
            }
            self.held.done(id);
        }
        if looks {
            self.folder.remove_deleted(wall)?;
            if self.random.chance(2) {
                self.sessions.forget_one();
            }
        }
        if self.next_checkpoint <= now {
            self.next_checkpoint = now + CHECKPOINT_EVERY;
            self.held.all_mut().for_each(|replica| replica.log.release_files());
            self.checkpoint(CheckpointKind::RecoveryPoint)?;
            self.checkpoint(CheckpointKind::HighWatermark)?;
            self.checkpoint(CheckpointKind::LogStart)?;
        }
        self.propose(broker_epoch, controller, sent);
        self.report(broker_epoch, controller, sent);
        // As the server's fetchers: the epoch that the metadata knows, or knew before this broker was taken out of it.
        let known = registration_of(&self.previous, self.me).map_or(broker_epoch, |known| known.epoch);
        self.fetchers.ask(known, now, sent);
        self.wake_fetches(is_changed)
    }

    fn propose(&mut self, broker_epoch: BrokerEpoch, controller: Option<BrokerId>, sent: &mut Vec<Sent>) {
        let now = self.clock.nanos();
        let Some(mut batch) = self.isr_changes.take(now) else { return };
        batch.retain(|one| match self.held.get(partition_of(one)).map(|replica| &replica.role) {
            Some(Role::Leader(leader)) => leader.has_proposed(&one.proposal),
            _ => false,
        });
        match controller {
            _ if batch.is_empty() => self.isr_changes.answered(batch, now),
            None => self.isr_changes.unanswered(batch, now),
            Some(controller) => sent.push(Sent {
                to: controller,
                question: Question::AlterPartition(alter_partition(self.me, broker_epoch, &batch)),
                purpose: Purpose::Isr(batch),
                patience: CONTROLLER_PATIENCE,
            }),
        }
    }

    /// Tells the controller which replicas are here.
    fn report(&mut self, broker_epoch: BrokerEpoch, controller: Option<BrokerId>, sent: &mut Vec<Sent>) {
        let now = self.clock.nanos();
        let Some(request) = self.reports.next_request(self.me, broker_epoch, now) else { return };
        match controller.filter(|_| broker_epoch != BrokerEpoch::NONE) {
            None => self.reports.answered(None, now),
            Some(controller) => sent.push(Sent {
                to: controller,
                question: Question::Decide(request.into()),
                purpose: Purpose::Directories,
                patience: CONTROLLER_PATIENCE,
            }),
        }
    }

    /// What the controller said of what it was told; `None` where it said nothing.
    pub(super) fn reports_answered(&mut self, answer: Option<&AssignReplicasToDirsResponse>) {
        self.happened.extend(answer.filter(|answer| answer.error_code == 0).map(|_| "disk of a replica told"));
        self.reports.answered(answer, self.clock.nanos());
    }

    /// What the controller said of what it was asked for; `None` where it said nothing of any.
    pub(super) fn proposals_answered(&mut self, mut batch: Vec<Proposed<()>>, answers: Option<&IsrAnswers>) {
        let (now, wall) = (self.clock.nanos(), self.clock.wall());
        let Some(answers) = answers else {
            self.isr_changes.unanswered(batch, now);
            return;
        };
        batch.retain(|one| {
            let Some(answer) = answers.get(&one.id) else { return true };
            let id = partition_of(one);
            let Some(Role::Leader(leader)) = self.held.get_mut(id).map(|replica| &mut replica.role) else {
                return false;
            };
            let outcome = leader.on_proposal_answered(&one.proposal, answer, wall);
            if matches!(outcome, ProposalOutcome::Settled(_)) {
                self.sessions.changed(id);
            }
            outcome == ProposalOutcome::Retry
        });
        self.isr_changes.answered(batch, now);
    }

    pub(super) fn take_answers(&mut self) -> Vec<(Return, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// When something is due.
    pub(super) fn next_time(&self) -> Nanos {
        let syncs = self.held.sync_due().unwrap_or(Nanos::MAX);
        let waits = self.waiting.iter().map(|waiting| waiting.until).min().unwrap_or(Nanos::MAX);
        let asks = self.isr_changes.next_time().into_iter().chain(self.reports.next_deadline()).min();
        let next = self.next_checkpoint.min(self.next_look).min(self.fetchers.next_time());
        next.min(syncs).min(waits).min(asks.unwrap_or(Nanos::MAX))
    }

    fn checkpoint(&self, kind: CheckpointKind) -> Result<bool, Death> {
        self.folder.checkpoint(kind, self.held.logs())
    }

    /// Closes every log and the directory: a clean stop.
    pub(super) fn close(mut self, epoch: BrokerEpoch) -> Result<(), Death> {
        let held = self.held.all_mut().map(|replica| {
            let high_watermark = replica.high_watermark();
            (&mut replica.log, high_watermark)
        });
        self.folder.close(epoch, held.collect())
    }
}
