//! The quorum of one node: its roles, and the step from one state to the next.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;
use gregor_state_records::control::{KRaftVersionRecord, VotersRecord};
use gregor_types::{BrokerId, KString, LeaderEpoch, Offset};

use crate::{
    AppendError, Batch, ControlRecord, Effect, Effects, ElectionState, LogView, MAX_BATCH_BYTES, MAX_BATCH_RECORDS,
    Nanos, Now, OffsetAndEpoch, ReplicaKey, Request, RequestId, Rng, RoleChange, Token, Voter, VoterHistory, VoterSet,
    control::leader_change,
    effects::{Write, Writes},
    leader::Leader,
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
    /// A snapshot of this node is complete.
    SnapshotReady(OffsetAndEpoch),
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
        /// The version that it came in.
        version: i16,
        /// The request.
        request: Request,
    },
    /// The node stops: give up leadership, start no election.
    Resign,
}

/// Why a node cannot take part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Nobody votes.
    #[error(
        "the quorum has no voters: format the directory with `gregor storage format --standalone`, or set controller.quorum.voters"
    )]
    NoVoters,
    /// More than one voter.
    #[error("the quorum has {0} voters; this version of Gregor runs a quorum of one voter")]
    SeveralVoters(usize),
    /// Another node is the voter.
    #[error(
        "the only voter is node {voter}, but this node has node.id {local}; joining a quorum as an observer is not served yet"
    )]
    NotTheVoter {
        /// The voter.
        voter: BrokerId,
        /// This node.
        local: BrokerId,
    },
    /// This node on another disk is the voter.
    #[error("the voter is node {} in the directory with id {}, but the metadata directory here has directory.id {}",
        voter.id, voter.directory_or_zero(), local.directory_or_zero())]
    OtherDirectory {
        /// The voter.
        voter: ReplicaKey,
        /// This replica.
        local: ReplicaKey,
    },
    /// The log's head is gone, and nothing stands for it.
    #[error(
        "the metadata log starts at offset {start}, but no snapshot covers what was before it (newest: {newest:?})"
    )]
    MissingSnapshot {
        /// The first offset that the log has.
        start: Offset,
        /// The newest snapshot.
        newest: Option<OffsetAndEpoch>,
    },
    /// A `kraft.version` that we do not run.
    #[error("the quorum runs kraft.version {0}; this version of Gregor runs 0 and 1")]
    KRaftVersion(i16),
}

/// The highest `kraft.version` that we run.
const KRAFT_VERSION_MAX: i16 = 1;

/// One node's part in the quorum.
#[derive(Debug, Clone)]
pub struct Quorum {
    pub(crate) config: Arc<Config>,
    pub(crate) history: VoterHistory,
    pub(crate) role: Role,
    pub(crate) high_watermark: Option<Offset>,
    pub(crate) writes: Writes,
    /// When the last step was. No part of the state: what is left until something is due is.
    last_step: Nanos,
}

/// The roles of KRaft, each with what is valid in it. With one voter there is nobody to follow, and nobody to ask before a vote
/// (`PreVote`), so Follower and Prospective do not occur.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// Knows an epoch, at most its leader.
    Unattached(Unattached),
    /// Asks for votes.
    Candidate(Candidate),
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

/// See [`Role::Candidate`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub(crate) epoch: LeaderEpoch,
    /// Whether the vote for itself is on disk, so that it counts.
    pub(crate) own_vote: bool,
    pub(crate) timeout: Countdown,
}

/// See [`Role::Resigned`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resigned {
    pub(crate) epoch: LeaderEpoch,
}

impl Quorum {
    /// A node that has read its election state, its log and its newest snapshot.
    pub fn new(
        config: Config,
        election: ElectionState,
        history: VoterHistory,
        log: &dyn LogView,
    ) -> Result<Self, StartError> {
        let local = config.local.key;
        let (start, newest) = (log.start(), log.latest_snapshot());
        if start > Offset::ZERO && newest.is_none_or(|newest| newest.offset < start) {
            return Err(StartError::MissingSnapshot { start, newest });
        }
        if history.kraft_version() > KRAFT_VERSION_MAX {
            return Err(StartError::KRaftVersion(history.kraft_version()));
        }
        check_sole_voter(history.voters(), local)?;
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
            Input::Start => self.stand(log, now, rng, effects),
            // Both are seen by what follows every input: what is due, and what the log view shows.
            Input::Tick | Input::SnapshotReady(_) => {}
            Input::Durable(token) => self.on_durable(token, log, now, effects),
            Input::Appended(token) => self.on_appended(token, log, now, effects),
            Input::Append { epoch, base, records } => self.on_append(epoch, base, records, now, effects),
            Input::Request { id, version, request } => self.on_request(id, version, request, log, now, rng, effects),
            Input::Resign => self.resign(now, effects),
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
            Role::Candidate(role) => role.epoch,
            Role::Leader(leader) => leader.epoch,
            Role::Resigned(role) => role.epoch,
        }
    }

    /// The leader of that epoch, if known.
    pub fn leader_id(&self) -> Option<BrokerId> {
        match &self.role {
            Role::Unattached(role) => role.election.leader,
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

    fn pass(&mut self, elapsed: Nanos) {
        match &mut self.role {
            Role::Unattached(role) => role.timeout.pass(elapsed),
            Role::Candidate(role) => role.timeout.pass(elapsed),
            Role::Leader(leader) => leader.pass(elapsed),
            Role::Resigned(_) => {}
        }
    }

    fn act_on_time(&mut self, log: &dyn LogView, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        match &mut self.role {
            Role::Unattached(role) if role.timeout.is_due() => self.stand(log, now, rng, effects),
            // The vote of the only voter is still on its way to the disk: there is nobody to ask again.
            Role::Candidate(role) if role.timeout.is_due() => {
                role.timeout = Countdown::new(rng.spread(self.config.election_timeout));
            }
            Role::Leader(_) => self.answer_overdue_fetches(now, effects),
            _ => {}
        }
    }

    fn next_due(&self) -> Option<Nanos> {
        match &self.role {
            Role::Unattached(role) => Some(role.timeout.remaining()),
            Role::Candidate(role) => Some(role.timeout.remaining()),
            Role::Leader(leader) => leader.next_due(),
            Role::Resigned(_) => None,
        }
    }

    /// Stands for election in the next epoch. A vote counts, also one's own, once it is on disk.
    fn stand(&mut self, log: &dyn LogView, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let epoch = self.epoch().max(log.end().epoch).next();
        self.leave_leadership(now, effects);
        let timeout = Countdown::new(rng.spread(self.config.election_timeout));
        self.role = Role::Candidate(Candidate { epoch, own_vote: false, timeout });
        let token = self.writes.begin(Write::OwnVote(epoch));
        effects.push(Effect::Persist { token, state: ElectionState::voted(epoch, self.config.local.key) });
    }

    fn on_durable(&mut self, token: Token, log: &dyn LogView, now: Now, effects: &mut Effects) {
        match self.writes.end(token) {
            Some(Write::OwnVote(voted)) => {
                if let Role::Candidate(candidate) = &mut self.role
                    && candidate.epoch == voted
                {
                    candidate.own_vote = true;
                    // The only voter has a majority with its own vote.
                    self.lead(voted, log, now, effects);
                }
            }
            Some(Write::Log(end)) => self.on_log_durable(end, now, effects),
            Some(Write::Election | Write::Batch(_)) | None => {}
        }
    }

    fn lead(&mut self, epoch: LeaderEpoch, log: &dyn LogView, now: Now, effects: &mut Effects) {
        let start = log.end().offset;
        let local = self.config.local.key.id;
        self.role = Role::Leader(Leader::new(epoch, start));
        let records = self.first_records_of_epoch(local);
        for (offset, record) in (start.value()..).zip(&records) {
            self.history.replay(Offset(offset), record);
        }
        self.append(Batch::Control(records), now, effects);
        effects.push(Effect::Role(RoleChange::Leader { epoch, start }));
        let token = self.writes.begin(Write::Election);
        effects.push(Effect::Persist { token, state: ElectionState::elected(epoch, local) });
    }

    /// An epoch starts with its leader's name, and with the voters where the log has none yet or this node listens elsewhere now
    /// (`LeaderState.appendStartOfEpochControlRecords`).
    fn first_records_of_epoch(&self, local: BrokerId) -> Vec<ControlRecord> {
        let voters = self.history.voters();
        let mut records = vec![leader_change(local, voters.iter().map(|voter| voter.key.id), [local])];
        let version = self.history.kraft_version();
        if version >= 1 {
            let in_log = self.history.voters_are_in_log();
            let renewed = voters.with(self.config.local.clone());
            if !in_log {
                records.push(ControlRecord::KRaftVersion(KRaftVersionRecord {
                    k_raft_version: version,
                    ..Default::default()
                }));
            }
            if !in_log || renewed != *voters {
                records.push(ControlRecord::Voters(VotersRecord::from(&renewed)));
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
    fn append(&mut self, batch: Batch, now: Now, effects: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { unreachable!("only a leader appends") };
        assert!(!batch.is_empty(), "an empty batch stops Apache's followers");
        let (base, epoch) = (leader.end, leader.epoch);
        leader.end = base.plus(batch.len() as i64);
        let end = leader.end;
        let token = self.writes.begin(Write::Batch(end));
        effects.push(Effect::Append { token, base, epoch, timestamp: now.wall, batch });
        let token = self.writes.begin(Write::Log(end));
        effects.push(Effect::Flush { token, end });
    }

    fn resign(&mut self, now: Now, effects: &mut Effects) {
        let epoch = self.epoch();
        self.leave_leadership(now, effects);
        self.role = Role::Resigned(Resigned { epoch });
    }

    /// Gives up what only a leader holds; the caller sets the next role.
    fn leave_leadership(&mut self, now: Now, effects: &mut Effects) {
        if matches!(self.role, Role::Leader(_)) {
            let epoch = self.epoch();
            self.fail_waiting_fetches(now, effects);
            effects.push(Effect::Role(RoleChange::NotLeader { epoch }));
        }
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
        let timeout = Countdown::new(rng.spread(self.config.election_timeout));
        self.role = Role::Unattached(Unattached { election, timeout });
        let token = self.writes.begin(Write::Election);
        effects.push(Effect::Persist { token, state: election });
        token
    }

    pub(crate) fn voters(&self) -> &VoterSet {
        self.history.voters()
    }
}

/// Whether this replica is the only voter, which is all that is served yet.
fn check_sole_voter(voters: &VoterSet, local: ReplicaKey) -> Result<(), StartError> {
    let Some(voter) = voters.iter().next() else { return Err(StartError::NoVoters) };
    if voters.len() > 1 {
        return Err(StartError::SeveralVoters(voters.len()));
    }
    if voter.key.id != local.id {
        return Err(StartError::NotTheVoter { voter: voter.key.id, local: local.id });
    }
    if !voters.contains(local) {
        return Err(StartError::OtherDirectory { voter: voter.key, local });
    }
    Ok(())
}

impl PartialEq for Quorum {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
            && self.history == other.history
            && self.role == other.role
            && self.high_watermark == other.high_watermark
            && self.writes == other.writes
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
    }
}
