//! The quorum of one node: its roles, and the step from one state to the next.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;
use gregor_state_records::control::{KRaftVersionRecord, VotersRecord};
use gregor_types::{BrokerId, ErrorCode, KString, LeaderEpoch, Offset};

use crate::{
    AppendError, Batch, ControlRecord, Effect, Effects, ElectionState, Endpoint, LogView, MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS, Nanos, Now, OffsetAndEpoch, Origin, Request, RequestId, Response, Rng, RoleChange, StartError,
    Token, Voter, VoterHistory, VoterSet,
    candidate::{Candidate, Prospective},
    control::leader_change,
    effects::{Write, Writes},
    follower::Follower,
    leader::Leader,
    peers::Peers,
    resigned::Resigned,
    start,
    time::Countdown,
};

/// What does not change while the node runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// The cluster.
    pub cluster_id: KString,
    /// This node as a voter: id, metadata directory, the controller listeners that it advertises, the versions it can run.
    pub local: Voter,
    /// `controller.quorum.election.timeout.ms`.
    pub election_timeout: Nanos,
    /// `controller.quorum.fetch.timeout.ms`.
    pub fetch_timeout: Nanos,
    /// `controller.quorum.election.backoff.max.ms`.
    pub election_backoff_max: Nanos,
    /// `controller.quorum.retry.backoff.ms`.
    pub retry_backoff: Nanos,
    /// The most bytes of records that one request asks for, but for a batch that is larger: `controller.quorum.fetch.max.bytes` (KIP-1219).
    pub fetch_bytes: u32,
    /// The most bytes of a snapshot that one request asks for.
    pub snapshot_piece_bytes: u32,
    /// `controller.quorum.request.timeout.ms`.
    pub request_timeout: Nanos,
    /// How many servers `controller.quorum.bootstrap.servers` names: where to look for a leader.
    pub bootstrap_servers: u16,
    /// Whether this node makes itself a voter: `controller.quorum.auto.join.enable`, of a controller.
    pub auto_join: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The node has read its log and takes part from now on.
    Start,
    /// Time has passed.
    Tick,
    /// A write is on disk.
    Durable(Token),
    /// A batch has been appended and can be read, synced or not.
    Appended(Token),
    /// A snapshot of this node is complete, or the log has been cut up to one: what the log view shows of them has changed.
    SnapshotReady(OffsetAndEpoch),
    /// An [`Effect::CompleteSnapshot`] is done.
    SnapshotReceived {
        /// The one of the effect.
        token: Token,
        /// The control records of the snapshot; `None` where the file was no snapshot.
        control: Option<Vec<ControlRecord>>,
    },
    /// Append framed metadata records as one batch, if this node still leads this epoch and the batch lands at `base`.
    Append {
        /// The epoch in which the records were decided.
        epoch: LeaderEpoch,
        /// The offset of the first of them, which decisions may depend on.
        base: Offset,
        /// The records.
        records: Vec<Bytes>,
    },
    /// A request of another node.
    Request {
        /// For the answer.
        id: RequestId,
        /// How it came.
        origin: Origin,
        /// The request.
        request: Request,
    },
    /// What another node answered to an [`Effect::Send`]; `None` where no answer came.
    Response {
        /// The node that was asked.
        from: BrokerId,
        /// Its answer.
        response: Option<Response>,
    },
    /// The controller finalizes a `kraft.version`; answered by [`Effect::Upgraded`].
    UpgradeKRaftVersion {
        /// For the answer.
        id: RequestId,
        /// The epoch in which this was decided.
        epoch: LeaderEpoch,
        /// The version.
        version: i16,
        /// Whether only to say if it could be done.
        validate_only: bool,
    },
    /// The node stops: give up leadership, start no election.
    Resign,
}

/// One node's part in the quorum.
#[derive(Debug, Clone)]
pub struct Quorum {
    pub(crate) config: Arc<Config>,
    pub(crate) history: VoterHistory,
    pub(crate) role: Role,
    pub(crate) high_watermark: Option<Offset>,
    pub(crate) writes: Writes,
    pub(crate) peers: Peers,
    /// When the last step was. No part of the state: what is left until something is due is.
    last_step: Nanos,
}

/// The roles of KRaft, each with what is valid in it. A quorum of one voter has nobody to follow and nobody to ask before a vote.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// Knows an epoch, at most its leader.
    Unattached(Unattached),
    /// Asks whether it would win an election.
    Prospective(Prospective),
    /// Asks for votes.
    Candidate(Candidate),
    /// Fetches from the leader.
    Follower(Follower),
    /// Leads.
    Leader(Leader),
    /// Led, or might have, and gives way.
    Resigned(Resigned),
}

/// See [`Role::Unattached`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unattached {
    pub(crate) election: ElectionState,
    pub(crate) timeout: Countdown,
}

impl Quorum {
    /// A node that has read its election state, its log and its newest snapshot.
    pub fn new(
        config: Config,
        election: ElectionState,
        history: VoterHistory,
        log: &dyn LogView,
    ) -> Result<Self, StartError> {
        start::check_log(log)?;
        start::check_version(&history)?;
        // A log can hold a newer epoch than the election state where that file was lost.
        let epoch = election.epoch.max(log.end().epoch);
        let election = if epoch == election.epoch { election } else { ElectionState::unknown_leader(epoch) };
        let timeout = Countdown::new(config.election_timeout);
        Ok(Self {
            config: Arc::new(config),
            history,
            role: Role::Unattached(Unattached { election, timeout }),
            high_watermark: None,
            writes: Writes::default(),
            peers: Peers::default(),
            last_step: 0,
        })
    }

    /// Takes one input at a time and appends what must happen to `effects`.
    pub fn step(&mut self, input: Input, log: &dyn LogView, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let is_start = matches!(input, Input::Start);
        let elapsed = if is_start { 0 } else { now.monotonic.saturating_sub(self.last_step) };
        self.last_step = now.monotonic.max(self.last_step);
        self.pass(elapsed);
        match input {
            Input::Start => self.begin(log, now, rng, effects),
            // Seen by what follows every input: what is due.
            Input::Tick => {}
            Input::SnapshotReady(_) => self.history.forget_before(log.start()),
            Input::SnapshotReceived { token, control } => {
                self.on_snapshot_received(token, control.as_deref(), log, effects);
            }
            Input::Durable(token) => self.on_durable(token, log, now, rng, effects),
            Input::Appended(token) => self.on_appended(token, log, now, effects),
            Input::Append { epoch, base, records } => self.on_append(epoch, base, records, now, effects),
            Input::Request { id, origin, request } => self.on_request(id, &origin, request, log, now, rng, effects),
            Input::Response { from, response } => self.on_response(from, response.as_ref(), log, now, rng, effects),
            Input::UpgradeKRaftVersion { id, epoch, version, validate_only } => {
                self.on_upgrade(id, epoch, version, validate_only, now, effects);
            }
            Input::Resign => self.resign(true, now, rng, effects),
        }
        self.act_on_time(log, now, rng, effects);
        if let Some(remaining) = self.next_due() {
            effects.push(Effect::Timer { at: self.last_step.saturating_add(remaining) });
        }
    }

    /// The role now.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The newest epoch that this node knows.
    pub fn epoch(&self) -> LeaderEpoch {
        match &self.role {
            Role::Unattached(role) => role.election.epoch,
            Role::Prospective(role) => role.election.epoch,
            Role::Candidate(role) => role.epoch,
            Role::Follower(role) => role.election.epoch,
            Role::Leader(leader) => leader.epoch,
            Role::Resigned(role) => role.epoch,
        }
    }

    /// The leader of that epoch, if known.
    pub fn leader_id(&self) -> Option<BrokerId> {
        match &self.role {
            Role::Unattached(role) => role.election.leader,
            Role::Prospective(role) => role.election.leader,
            Role::Follower(role) => Some(role.leader),
            Role::Leader(_) => Some(self.config.local.key.id),
            Role::Candidate(_) | Role::Resigned(_) => None,
        }
    }

    /// Everything before it is committed; none until this node knows.
    pub fn high_watermark(&self) -> Option<Offset> {
        self.high_watermark
    }

    /// Where the next record lands, on the leader.
    pub fn next_offset(&self) -> Option<Offset> {
        match &self.role {
            Role::Leader(leader) => Some(leader.end),
            _ => None,
        }
    }

    /// The voters and `kraft.version`, now and as of any offset.
    pub fn history(&self) -> &VoterHistory {
        &self.history
    }

    /// Where the leader that this node follows, or has lost sight of, listens, if it said so; else the voter set knows.
    pub fn leader_endpoints(&self) -> &[Endpoint] {
        match &self.role {
            Role::Follower(role) => &role.endpoints,
            Role::Prospective(role) => &role.endpoints,
            _ => &[],
        }
    }

    fn pass(&mut self, elapsed: Nanos) {
        self.peers.pass(elapsed);
        match &mut self.role {
            Role::Unattached(role) => role.timeout.pass(elapsed),
            Role::Prospective(role) => role.timeout.pass(elapsed),
            Role::Candidate(role) => role.timeout.pass(elapsed),
            Role::Follower(role) => {
                role.timeout.pass(elapsed);
                role.update_voter.pass(elapsed);
            }
            Role::Leader(leader) => leader.pass(elapsed),
            Role::Resigned(role) => role.timeout.iter_mut().for_each(|timeout| timeout.pass(elapsed)),
        }
    }

    fn act_on_time(&mut self, log: &dyn LogView, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let stands = match &self.role {
            Role::Unattached(role) => role.timeout.is_due(),
            Role::Follower(role) => role.timeout.is_due(),
            _ => false,
        };
        // Who does not vote waits for a leader for as long as it takes.
        if stands && self.may_stand() {
            self.become_prospective(now, rng, effects);
        }
        if matches!(self.role, Role::Prospective(_) | Role::Candidate(_)) {
            self.pursue_election(log, now, rng, effects);
        }
        // Also who has just given way in an election has something to do.
        match &self.role {
            Role::Unattached(_) => {
                // The voters that a voter knows may all have been replaced since.
                if !self.is_voter() || self.config.bootstrap_servers > 0 {
                    self.look_for_leader(log, rng, effects);
                }
            }
            Role::Prospective(_) | Role::Candidate(_) => {}
            Role::Follower(role) => {
                let is_lost = role.timeout.is_due();
                self.fetch(log, effects);
                if is_lost {
                    self.look_for_leader(log, rng, effects);
                }
            }
            Role::Leader(_) => self.pursue_leadership(now, rng, effects),
            Role::Resigned(_) => self.pursue_resignation(now, rng, effects),
        }
    }

    fn next_due(&self) -> Option<Nanos> {
        let own = match &self.role {
            Role::Unattached(role) => self.may_stand().then(|| role.timeout.remaining()),
            Role::Prospective(role) => Some(role.timeout.remaining()),
            Role::Candidate(role) => Some(role.timeout.remaining()),
            Role::Follower(role) => Some(role.timeout.remaining()).filter(|left| self.may_stand() || *left > 0),
            Role::Leader(leader) => {
                let duty = leader.next_duty(self.voters(), self.config.local.key, self.patience());
                leader.next_due().into_iter().chain(duty).min()
            }
            Role::Resigned(role) => role.timeout.map(Countdown::remaining),
        };
        own.into_iter().chain(self.peers.next_due()).min()
    }

    /// What is to be remembered of elections, as of now.
    pub(crate) fn election(&self) -> ElectionState {
        let local = self.config.local.key;
        match &self.role {
            Role::Unattached(role) => role.election,
            Role::Prospective(role) => role.election,
            Role::Candidate(role) => ElectionState::voted(role.epoch, local),
            Role::Follower(role) => role.election,
            Role::Leader(leader) => ElectionState::elected(leader.epoch, local.id),
            Role::Resigned(role) => ElectionState::elected(role.epoch, local.id),
        }
    }

    pub(crate) fn is_voter(&self) -> bool {
        self.voters().contains(self.config.local.key)
    }

    /// Whether this node may be elected: it votes, or it did before a change that it does not know to be committed. Nobody else may have that
    /// change, and more than those who would lead without it: the last of two voters could not be elected by a leader that died while it
    /// removed itself.
    pub(crate) fn may_stand(&self) -> bool {
        let local = self.config.local.key;
        let is_committed = self.high_watermark.is_some_and(|committed| committed > self.history.voters_offset());
        self.is_voter() || (!is_committed && self.history.voters_before().is_some_and(|voters| voters.contains(local)))
    }

    fn on_durable(&mut self, token: Token, log: &dyn LogView, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        match self.writes.end(token) {
            Some(Write::OwnVote(voted)) => {
                if let Role::Candidate(candidate) = &mut self.role
                    && candidate.epoch == voted
                {
                    candidate.own_vote = true;
                    self.pursue_election(log, now, rng, effects);
                }
            }
            Some(Write::Log(epoch, end)) => self.on_log_durable(epoch, end, now, effects),
            Some(Write::Fetched(end)) => self.follow_high_watermark(end, effects),
            Some(Write::Election | Write::Batch(_) | Write::Snapshot(_)) | None => {}
        }
    }

    /// A majority has voted for this node.
    pub(crate) fn lead(
        &mut self,
        epoch: LeaderEpoch,
        log: &dyn LogView,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
    ) {
        let start = log.end().offset;
        let local = self.config.local.key.id;
        let granting: Vec<_> = match &self.role {
            Role::Candidate(role) => self.is_voter().then_some(local).into_iter().chain(role.votes.granted()).collect(),
            _ => vec![local],
        };
        let is_alone = self.voters().iter().all(|voter| voter.key.id == local);
        let grace = if is_alone { 0 } else { self.patience() };
        let volatile_voters =
            (self.history.kraft_version() == 0).then(|| self.voters().with(self.config.local.clone()));
        self.role = Role::Leader(Leader::new(epoch, start, grace, volatile_voters));
        let records = self.first_records_of_epoch(local, granting);
        for (offset, record) in (start.value()..).zip(&records) {
            self.history.replay(Offset(offset), record);
        }
        self.append(Batch::Control(records), now, effects);
        effects.push(Effect::Role(RoleChange::Leader { epoch, start }));
        let token = self.writes.begin(Write::Election);
        effects.push(Effect::Persist { token, state: ElectionState::elected(epoch, local) });
        self.pursue_leadership(now, rng, effects);
    }

    /// An epoch starts with its leader's name, and with the voters where the log has none yet or this node listens elsewhere now
    /// (`LeaderState.appendStartOfEpochControlRecords`).
    fn first_records_of_epoch(&self, local: BrokerId, granting: Vec<BrokerId>) -> Vec<ControlRecord> {
        let voters = self.history.voters();
        let mut records = vec![leader_change(local, voters.iter().map(|voter| voter.key.id), granting)];
        let version = self.history.kraft_version();
        if version >= 1 {
            let in_log = self.history.voters_are_in_log();
            // Who leads to have its own removal committed does not come back by it.
            let own = voters.voter(local).filter(|_| self.is_voter());
            let is_renewed = own.is_some_and(|own| !own.is_same_as(&self.config.local));
            if !in_log {
                records.push(ControlRecord::KRaftVersion(KRaftVersionRecord {
                    k_raft_version: version,
                    ..Default::default()
                }));
            }
            if is_renewed {
                records.push(ControlRecord::Voters(VotersRecord::from(&voters.with(self.config.local.clone()))));
            } else if !in_log {
                records.push(ControlRecord::Voters(VotersRecord::from(voters)));
            }
        }
        records
    }

    fn on_append(&mut self, epoch: LeaderEpoch, base: Offset, records: Vec<Bytes>, now: Now, effects: &mut Effects) {
        let bytes = records.iter().map(Bytes::len).sum();
        let error = match &self.role {
            Role::Leader(leader) if leader.epoch == epoch => {
                if leader.end != base {
                    Some(AppendError::WrongOffset { expected: base, end: leader.end })
                } else if records.is_empty() || records.len() > MAX_BATCH_RECORDS || bytes > MAX_BATCH_BYTES {
                    Some(AppendError::Size { records: records.len(), bytes })
                } else {
                    None
                }
            }
            _ => Some(AppendError::NotLeader(epoch)),
        };
        match error {
            Some(error) => effects.push(Effect::Refused { base, error }),
            None => self.append(Batch::Data(records), now, effects),
        }
    }

    /// Appends a batch at the end and has it synced.
    pub(crate) fn append(&mut self, batch: Batch, now: Now, effects: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { unreachable!("only a leader appends") };
        assert!(!batch.is_empty(), "an empty batch stops Apache's followers");
        let (base, epoch) = (leader.end, leader.epoch);
        leader.end = base.plus(batch.len() as i64);
        let end = leader.end;
        let token = self.writes.begin(Write::Batch(end));
        effects.push(Effect::Append { token, base, epoch, timestamp: now.wall, batch });
        let token = self.writes.begin(Write::Log(epoch, end));
        effects.push(Effect::Flush { token, end });
    }

    /// Gives up what only a leader holds; the caller sets the next role.
    pub(crate) fn leave_leadership(&mut self, now: Now, effects: &mut Effects) {
        if matches!(self.role, Role::Leader(_)) {
            let epoch = self.epoch();
            self.fail_waiting_fetches(now, effects);
            self.end_change(ErrorCode::NotLeaderOrFollower, Some("this node does not lead any more"), effects);
            effects.push(Effect::Role(RoleChange::NotLeader { epoch }));
        }
    }

    /// Learns of a newer epoch, or of the leader of one. Returns the token that an answer has to wait for.
    pub(crate) fn transition(
        &mut self,
        epoch: LeaderEpoch,
        leader: Option<BrokerId>,
        endpoints: Vec<Endpoint>,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
    ) -> Token {
        let known = self.election();
        let election = if known.epoch == epoch { known } else { ElectionState::unknown_leader(epoch) };
        let Some(leader) = leader else { return self.become_unattached(election, now, rng, effects) };
        self.leave_leadership(now, effects);
        self.follow(election, leader, endpoints);
        let token = self.writes.begin(Write::Election);
        effects.push(Effect::Persist { token, state: election.led_by(leader) });
        token
    }

    /// Learns of a newer epoch from somebody else. Returns the token that an answer has to wait for.
    pub(crate) fn become_unattached(
        &mut self,
        election: ElectionState,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
    ) -> Token {
        self.leave_leadership(now, effects);
        let timeout = self.election_time_left().unwrap_or_else(|| self.new_election_time(rng));
        self.role = Role::Unattached(Unattached { election, timeout });
        let token = self.writes.begin(Write::Election);
        effects.push(Effect::Persist { token, state: election });
        token
    }

    /// What is left of the time after which this node tries to lead. An epoch of somebody else leaves it running, so that nobody is kept from
    /// standing by one who stands in vain (`QuorumState.transitionToUnattached`). None where none runs, or where the election is over.
    pub(crate) fn election_time_left(&self) -> Option<Countdown> {
        match &self.role {
            _ if !self.may_stand() => None,
            Role::Unattached(role) => Some(role.timeout),
            Role::Prospective(role) if !role.votes.is_lost(self.voters()) => Some(role.timeout),
            Role::Candidate(role) => Some(role.timeout),
            Role::Resigned(role) => role.timeout,
            Role::Prospective(_) | Role::Follower(_) | Role::Leader(_) => None,
        }
    }

    /// As `QuorumState.randomElectionTimeoutMs`.
    pub(crate) fn new_election_time(&self, rng: &mut dyn Rng) -> Countdown {
        Countdown::new(rng.spread(self.config.election_timeout))
    }

    pub(crate) fn voters(&self) -> &VoterSet {
        self.history.voters()
    }
}

impl PartialEq for Quorum {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
            && self.history == other.history
            && self.role == other.role
            && self.high_watermark == other.high_watermark
            && self.writes == other.writes
            && self.peers == other.peers
    }
}

impl Eq for Quorum {}

impl Hash for Quorum {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.config.hash(hasher);
        self.history.hash(hasher);
        self.role.hash(hasher);
        self.high_watermark.hash(hasher);
        self.writes.hash(hasher);
        self.peers.hash(hasher);
    }
}
