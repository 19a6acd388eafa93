//! The machine itself: who leads, what waits for its commit, and when time matters.

use std::collections::VecDeque;

use gregor_config::BrokerConfig;
use gregor_messages::UpdateFeaturesRequest;
use gregor_metadata::{
    Image, METADATA_VERSION_FEATURE, MetadataVersion, SERVED_FEATURES, ServedFeature, VersionedRecord,
};
use gregor_state_records::metadata::{
    AbortTransactionRecord, BeginTransactionRecord, EndTransactionRecord, FeatureLevelRecord, MetadataRecord,
    NoOpRecord,
};
use gregor_types::{ClusterId, LeaderEpoch, Offset, planted::planted};

use crate::{
    ControllerRequest, ControllerResponse, Refusal, brokers, configs, credentials, elections,
    features::{self, KRaft, Updated},
    isr, partitions,
    plan::{Base, Decided, Plan, batches},
    quotas, reassignments,
    sessions::Sessions,
    topics,
};

/// Nanoseconds on a clock that never goes back.
pub type Nanos = u64;

const MILLISECOND: Nanos = 1_000_000;
/// How many answers may wait for commits.
const MAX_PENDING: usize = 10_000;

/// What does not change while the controller runs.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// The cluster; brokers of another one are refused.
    pub cluster_id: ClusterId,
    /// The node's own configuration: defaults of topics, and what is in effect where nothing is set at run time.
    pub broker: BrokerConfig,
    /// `broker.session.timeout.ms`.
    pub session_timeout: Nanos,
    /// `metadata.max.idle.interval.ms`; 0 for never.
    pub max_idle_interval: Nanos,
    /// `leader.imbalance.check.interval.seconds`; `None` for never (`auto.leader.rebalance.enable`).
    pub rebalance_interval: Option<Nanos>,
    /// How often partitions without a leader are looked at again (`unclean.leader.election.interval.ms`).
    pub rescue_interval: Nanos,
    /// The feature levels that this node serves.
    pub served: Vec<ServedFeature>,
    /// What the first leader of an empty log writes first: the feature levels that formatting chose.
    pub bootstrap: Vec<MetadataRecord>,
}

/// Names a request until it is answered; chosen by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A request, in the version in which it came.
    Request {
        /// For the answer.
        id: RequestId,
        /// The version of the request.
        version: i16,
        /// The request.
        request: ControllerRequest,
    },
    /// This node leads the quorum in `epoch`, whose first record is at `start`. It decides once everything before that is committed.
    LeadershipWon {
        /// The epoch.
        epoch: LeaderEpoch,
        /// The offset of its first record.
        start: Offset,
    },
    /// This node does not lead any more, or an append of its was refused; what it appended and is not committed may be gone.
    LeadershipLost,
    /// Everything before `end` is committed, and this is the image of it.
    Committed {
        /// The image; a clone is cheap.
        image: Image,
        /// The offset after the last committed record.
        end: Offset,
    },
    /// The quorum runs this `kraft.version`, which no metadata record says.
    KRaftVersion(i16),
    /// What the quorum said to an [`Effect::UpgradeKRaft`], of which this has the rest: it is written, or would be.
    KRaftUpgraded {
        /// The request's.
        id: RequestId,
        /// The request's.
        version: i16,
        /// The request.
        request: UpdateFeaturesRequest,
        /// Whether it could be.
        result: Result<(), Refusal>,
    },
    /// Time has passed.
    Tick,
}

/// Something to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Append these records as one batch, in this epoch and at this very offset, or tell [`Input::LeadershipLost`].
    Append {
        /// The epoch in which they were decided.
        epoch: LeaderEpoch,
        /// The offset of the first of them.
        base: Offset,
        /// The records; at most [`MAX_RECORDS_PER_BATCH`](crate::MAX_RECORDS_PER_BATCH).
        records: Vec<VersionedRecord>,
    },
    /// Answer a request.
    Reply {
        /// Which one.
        to: RequestId,
        /// The answer.
        response: ControllerResponse,
    },
    /// Have the quorum finalize a `kraft.version`, or say whether it would where the request only validates, and tell
    /// [`Input::KRaftUpgraded`].
    UpgradeKRaft {
        /// Which request asks for it.
        id: RequestId,
        /// The version of that request.
        version: i16,
        /// The request.
        request: UpdateFeaturesRequest,
        /// The epoch in which this was decided.
        epoch: LeaderEpoch,
        /// The `kraft.version`.
        wanted: i16,
    },
}

/// The effects of steps, emptied by the driver.
#[derive(Debug, Clone, Default)]
pub struct Effects(VecDeque<Effect>);

/// The controller of one node. See the crate's documentation.
#[derive(Debug, Clone)]
pub struct Controller {
    config: ControllerConfig,
    committed: Image,
    committed_end: Offset,
    kraft_version: i16,
    role: Role,
}

#[derive(Debug, Clone)]
enum Role {
    /// Another node decides.
    Standby,
    /// This node leads, and has not yet seen everything that its predecessors wrote.
    Claiming { epoch: LeaderEpoch, start: Offset },
    /// This node decides.
    Active(Box<Active>),
}

#[derive(Debug, Clone)]
struct Active {
    epoch: LeaderEpoch,
    /// The image with everything that was appended.
    speculative: Image,
    /// The offset after the last record that was appended.
    appended_end: Offset,
    /// Answers that wait for a commit, in the order of what they wait for.
    pending: VecDeque<Pending>,
    sessions: Sessions,
    last_append: Nanos,
    /// When leadership goes back to preferred leaders, if it does so by itself.
    next_rebalance: Option<Nanos>,
    /// When partitions without a leader are looked at.
    next_rescue: Nanos,
}

#[derive(Debug, Clone)]
struct Pending {
    end: Offset,
    id: RequestId,
    request: ControllerRequest,
    response: ControllerResponse,
}

impl ControllerConfig {
    /// The configuration of a controller on a node.
    pub fn new(cluster_id: ClusterId, broker: &BrokerConfig, bootstrap: Vec<MetadataRecord>) -> Self {
        let nanos = |milliseconds: i64| milliseconds.max(0).unsigned_abs().saturating_mul(MILLISECOND);
        Self {
            cluster_id,
            session_timeout: nanos(broker.broker_session_timeout_ms),
            max_idle_interval: nanos(broker.metadata_max_idle_interval_ms),
            rebalance_interval: broker
                .auto_leader_rebalance_enable
                .then(|| nanos(broker.leader_imbalance_check_interval_seconds.saturating_mul(1_000))),
            rescue_interval: nanos(broker.unclean_leader_election_interval_ms),
            broker: broker.clone(),
            served: SERVED_FEATURES.to_vec(),
            bootstrap,
        }
    }
}

impl Effects {
    /// Takes the first one.
    pub fn pop(&mut self) -> Option<Effect> {
        self.0.pop_front()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn reply(&mut self, to: RequestId, response: ControllerResponse) {
        self.0.push_back(Effect::Reply { to, response });
    }
}

impl Controller {
    /// A controller that knows nothing yet and does not lead.
    pub fn new(config: ControllerConfig) -> Self {
        Self { config, committed: Image::default(), committed_end: Offset::ZERO, kraft_version: 0, role: Role::Standby }
    }

    /// Takes one input. `next_offset` is the end of the log, where the first append of this step has to land; further ones follow it
    /// without a gap. `random` gives 64 random bits.
    pub fn step(
        &mut self,
        input: Input,
        next_offset: Offset,
        now: Nanos,
        random: &mut dyn FnMut() -> u64,
        effects: &mut Effects,
    ) {
        match input {
            Input::Request { id, version, request: ControllerRequest::UpdateFeatures(request) } => {
                self.update_features((id, version, request), None, next_offset, now, random, effects);
            }
            Input::Request { id, version, request } => {
                self.request(id, version, request, next_offset, now, random, effects);
            }
            Input::LeadershipWon { epoch, start } => {
                self.renounce(effects);
                self.role = Role::Claiming { epoch, start };
                self.claim(next_offset, now, random, effects);
            }
            Input::LeadershipLost => self.renounce(effects),
            Input::Committed { image, end } => {
                self.committed = image;
                self.committed_end = end;
                self.release(effects);
                self.claim(next_offset, now, random, effects);
            }
            Input::KRaftVersion(version) => self.kraft_version = version,
            Input::KRaftUpgraded { id, version, request, result } => {
                self.update_features((id, version, request), Some(&result), next_offset, now, random, effects);
            }
            Input::Tick => self.tick(next_offset, now, random, effects),
        }
    }

    /// Whether this controller decides now.
    pub const fn is_active(&self) -> bool {
        matches!(self.role, Role::Active(_))
    }

    /// The `kraft.version` that the quorum runs, as far as this controller was told.
    pub const fn kraft_version(&self) -> i16 {
        self.kraft_version
    }

    /// The image that the next decision is made on: with what is appended and not committed yet, where this controller decides.
    pub const fn image(&self) -> &Image {
        match &self.role {
            Role::Active(active) => &active.speculative,
            _ => &self.committed,
        }
    }

    /// When to step with [`Input::Tick`] at the latest, if ever.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let Role::Active(active) = &self.role else { return None };
        let idle = self.config.max_idle_interval;
        let no_op = (idle > 0).then(|| active.last_append + idle);
        let session = active.sessions.next_expiry(&active.speculative);
        [no_op, session, active.next_rebalance, Some(active.next_rescue)].into_iter().flatten().min()
    }

    #[allow(clippy::too_many_arguments, reason = "what a step is given, passed on")]
    fn request(
        &mut self,
        id: RequestId,
        version: i16,
        request: ControllerRequest,
        next_offset: Offset,
        now: Nanos,
        random: &mut dyn FnMut() -> u64,
        effects: &mut Effects,
    ) {
        let Role::Active(active) = &mut self.role else {
            return effects.reply(id, request.refused(&Refusal::not_controller()));
        };
        if active.pending.len() >= MAX_PENDING {
            return effects.reply(id, request.refused(&Refusal::overloaded()));
        }
        let base = Base { image: &active.speculative, config: &self.config, offset: next_offset, now };
        let sessions = &mut active.sessions;
        let (response, decided) = base.plan(random, |plan| decide(&request, version, plan, sessions));
        if configs::may_allow_unclean(&decided.1) {
            active.next_rescue = now;
        }
        active.append(decided, next_offset, now, effects);
        active.reply_when_committed(id, request, response, self.committed_end, effects);
    }

    /// Updates features. The quorum is asked first where a `kraft.version` is among them; what it writes lies before what is decided then.
    fn update_features(
        &mut self,
        (id, version, request): (RequestId, i16, UpdateFeaturesRequest),
        answer: Option<&Result<(), Refusal>>,
        next_offset: Offset,
        now: Nanos,
        random: &mut dyn FnMut() -> u64,
        effects: &mut Effects,
    ) {
        let Role::Active(active) = &mut self.role else {
            return effects.reply(id, ControllerRequest::from(request).refused(&Refusal::not_controller()));
        };
        if active.pending.len() >= MAX_PENDING {
            return effects.reply(id, ControllerRequest::from(request).refused(&Refusal::overloaded()));
        }
        let kraft = KRaft { present: self.kraft_version, answer };
        let base = Base { image: &active.speculative, config: &self.config, offset: next_offset, now };
        let (updated, decided) = base.plan(random, |plan| features::update(plan, &request, version, kraft));
        match updated {
            Updated::AskQuorum(wanted) => {
                let epoch = active.epoch;
                effects.0.push_back(Effect::UpgradeKRaft { id, version, request, epoch, wanted });
            }
            Updated::Answer(response) => {
                if matches!(answer, Some(Ok(()))) && !request.validate_only {
                    // The answer waits for what the quorum wrote, too.
                    active.appended_end = active.appended_end.max(next_offset);
                }
                active.append(decided, next_offset, now, effects);
                active.reply_when_committed(id, request.into(), response.into(), self.committed_end, effects);
            }
        }
    }

    /// Begins to decide once everything from before this node's epoch is committed, and writes what a new leader has to.
    fn claim(&mut self, next_offset: Offset, now: Nanos, random: &mut dyn FnMut() -> u64, effects: &mut Effects) {
        let Role::Claiming { epoch, start } = self.role else { return };
        if self.committed_end < start && !planted("decides-too-early") {
            return;
        }
        let mut active = Active {
            epoch,
            speculative: self.committed.clone(),
            appended_end: self.committed_end,
            pending: VecDeque::new(),
            sessions: Sessions::new(&self.committed, now + self.config.session_timeout),
            last_append: now,
            next_rebalance: self.config.rebalance_interval.map(|interval| now.saturating_add(interval)),
            next_rescue: now.saturating_add(self.config.rescue_interval),
        };
        let mut plan = Plan::new(active.speculative.clone(), &self.config, next_offset, now, random);
        if plan.image.in_transaction() {
            let abort = MetadataRecord::AbortTransaction(AbortTransactionRecord::default());
            // Who began it knew transactions; the level may be among what never came, as when a first leader dies while it writes that.
            plan.push_at(MetadataVersion::LATEST, abort);
        }
        if plan.image.features().finalized_metadata_version().is_none() {
            bootstrap(&mut plan);
        }
        active.append(plan.finish(), next_offset, now, effects);
        self.role = Role::Active(Box::new(active));
    }

    fn renounce(&mut self, effects: &mut Effects) {
        if let Role::Active(active) = std::mem::replace(&mut self.role, Role::Standby) {
            // What is not appended by now follows from records that may never be.
            effects.0.retain(|effect| !matches!(effect, Effect::Append { .. }));
            for pending in active.pending {
                effects.reply(pending.id, pending.request.refused(&Refusal::not_controller()));
            }
        }
    }

    /// Answers what waited for the commit.
    fn release(&mut self, effects: &mut Effects) {
        let Role::Active(active) = &mut self.role else { return };
        while let Some(pending) = active.pending.pop_front_if(|pending| pending.end <= self.committed_end) {
            effects.reply(pending.id, pending.response);
        }
    }

    fn tick(&mut self, next_offset: Offset, now: Nanos, random: &mut dyn FnMut() -> u64, effects: &mut Effects) {
        let Role::Active(active) = &mut self.role else { return };
        let Active { speculative, sessions, last_append, next_rebalance, next_rescue, .. } = &mut **active;
        let base = Base { image: speculative, config: &self.config, offset: next_offset, now };
        let rebalance = next_rebalance.is_some_and(|next| now >= next);
        let rescue = now >= *next_rescue;
        let idle = self.config.max_idle_interval;
        let no_op = idle > 0 && now >= *last_append + idle;
        let (more, decided) = base.plan(random, |plan| {
            // KIP-631: one broker at a time, so that a controller that was slow itself does not fence the whole cluster at once.
            if let Some(expired) = sessions.first_expired(&plan.image, now) {
                brokers::fence(plan, expired);
            }
            let more = (rebalance && elections::prefer(plan), rescue && elections::rescue(plan));
            if no_op {
                plan.push(MetadataRecord::NoOp(NoOpRecord::default()));
            }
            more
        });
        // What one check does not take goes on at the next tick.
        if rebalance {
            let pause = if more.0 { Some(0) } else { self.config.rebalance_interval };
            *next_rebalance = pause.map(|pause| now.saturating_add(pause));
        }
        if rescue {
            let pause = if more.1 { 0 } else { self.config.rescue_interval };
            *next_rescue = now.saturating_add(pause);
        }
        active.append(decided, next_offset, now, effects);
    }
}

impl Active {
    fn reply_when_committed(
        &mut self,
        id: RequestId,
        request: ControllerRequest,
        response: ControllerResponse,
        committed_end: Offset,
        effects: &mut Effects,
    ) {
        if committed_end >= self.appended_end {
            effects.reply(id, response);
        } else {
            self.pending.push_back(Pending { end: self.appended_end, id, request, response });
        }
    }

    fn append(&mut self, decided: Decided, base: Offset, now: Nanos, effects: &mut Effects) {
        let (image, records) = decided;
        if records.is_empty() {
            return;
        }
        self.speculative = image;
        self.last_append = now;
        self.appended_end = base;
        for records in batches(records) {
            let base = self.appended_end;
            self.appended_end = base.plus(records.len() as i64);
            effects.0.push_back(Effect::Append { epoch: self.epoch, base, records });
        }
    }
}

fn decide(
    request: &ControllerRequest,
    version: i16,
    plan: &mut Plan<'_>,
    sessions: &mut Sessions,
) -> ControllerResponse {
    match request {
        ControllerRequest::CreateTopics(request) => topics::create(plan, request).into(),
        ControllerRequest::DeleteTopics(request) => topics::delete(plan, request, version).into(),
        ControllerRequest::CreatePartitions(request) => partitions::create(plan, request).into(),
        ControllerRequest::AlterConfigs(request) => configs::replace(plan, request).into(),
        ControllerRequest::IncrementalAlterConfigs(request) => configs::change(plan, request).into(),
        ControllerRequest::AlterClientQuotas(request) => quotas::alter(plan, request).into(),
        ControllerRequest::AlterUserScramCredentials(request) => credentials::alter(plan, request).into(),
        ControllerRequest::BrokerRegistration(request) => brokers::register(plan, sessions, request).into(),
        ControllerRequest::BrokerHeartbeat(request) => brokers::heartbeat(plan, sessions, request).into(),
        ControllerRequest::UnregisterBroker(request) => brokers::unregister(plan, sessions, request).into(),
        ControllerRequest::AllocateProducerIds(request) => brokers::allocate_producer_ids(plan, request).into(),
        ControllerRequest::ControllerRegistration(request) => brokers::register_controller(plan, request).into(),
        ControllerRequest::UnregisterController(request) => brokers::unregister_controller(plan, request).into(),
        ControllerRequest::AlterPartition(request) => isr::alter(plan, request, version).into(),
        ControllerRequest::AssignReplicasToDirs(request) => isr::assign_directories(plan, request).into(),
        ControllerRequest::ElectLeaders(request) => elections::elect(plan, request, version).into(),
        ControllerRequest::AlterPartitionReassignments(request) => reassignments::alter(plan, request).into(),
        ControllerRequest::UpdateFeatures(_) => unreachable!("update_features decides these"),
        ControllerRequest::ListPartitionReassignments(request) => reassignments::list(&plan.image, request).into(),
    }
}

/// Writes what formatting chose, all at once where the level allows it (`ActivationRecordsGenerator.recordsForEmptyLog`).
fn bootstrap(plan: &mut Plan<'_>) {
    let records = &plan.config.bootstrap;
    let chosen = records.iter().find_map(|record| match record {
        MetadataRecord::FeatureLevel(record) if record.name == METADATA_VERSION_FEATURE => {
            MetadataVersion::from_level(record.feature_level)
        }
        _ => None,
    });
    let level = chosen.unwrap_or(MetadataVersion::MINIMUM);
    if level.has_transactions() {
        let name = Some("Bootstrap records".into());
        let begin = BeginTransactionRecord { name, ..Default::default() };
        plan.push_at(level, MetadataRecord::BeginTransaction(begin));
    }
    if chosen.is_none() {
        plan.push_at(
            level,
            MetadataRecord::FeatureLevel(FeatureLevelRecord {
                name: METADATA_VERSION_FEATURE.into(),
                feature_level: level.level(),
                ..Default::default()
            }),
        );
    }
    for record in records {
        plan.push_at(level, record.clone());
    }
    if plan.image.features().has_eligible_leader_replicas() {
        features::agree_on_min_in_sync(plan);
    }
    if level.has_transactions() {
        plan.push(MetadataRecord::EndTransaction(EndTransactionRecord::default()));
    }
}
