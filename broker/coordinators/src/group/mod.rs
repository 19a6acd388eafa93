//! The group coordinator: consumer groups of the classic protocol and committed offsets, kept in `__consumer_offsets`.
//!
//! Each kind of request has its own module; [`rebalance`] is what they share. What a group promises to its members is the group's
//! own state ([`classic`]); what must survive this broker is in records ([`records`]), in Kafka's own formats.

mod admin;
mod classic;
mod config;
mod join;
mod leave;
mod offsets;
mod pending;
mod rebalance;
mod records;
mod request;
mod sync;

use std::{collections::BTreeMap, ops::Add};

use gregor_types::{ErrorCode, KString, ProducerId, Timestamp};

pub use classic::{ClassicGroup, GroupState, Member};
pub use config::GroupConfig;
pub use offsets::CommittedOffset;
pub use request::{ClientInfo, GroupRequest, GroupResponse};

use crate::{LoggedRecord, Moment, ReplayError, Scope, StateMachine, Token, timers::Timers};
use offsets::Offsets;
use pending::{PendingOffset, PendingOffsets};

/// The groups of one partition of `__consumer_offsets`.
#[derive(Debug)]
pub struct GroupCoordinator {
    config: GroupConfig,
    groups: BTreeMap<KString, ClassicGroup>,
    offsets: Offsets,
    pending: PendingOffsets,
    timers: Timers<Timer>,
}

/// What a coordinator holds, for metrics; adds up over shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupCounts {
    /// Groups.
    pub groups: usize,
    /// Groups without members.
    pub empty: usize,
    /// Groups whose members know their parts.
    pub stable: usize,
    /// Committed offsets.
    pub offsets: usize,
}

impl Add for GroupCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            groups: self.groups + other.groups,
            empty: self.empty + other.empty,
            stable: self.stable + other.stable,
            offsets: self.offsets + other.offsets,
        }
    }
}

/// What can be due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    /// A member has been silent for its session timeout; or never joined with the id it was given.
    Session(KString, KString),
    /// The members of a group had their time to join.
    Join(KString),
    /// The members of a group had their time to sync.
    Sync(KString),
    /// Look for offsets that are too old.
    ExpireOffsets,
}

/// What the decisions about one group need beside the group.
struct Turn<'t, 'e> {
    config: &'t GroupConfig,
    timers: &'t mut Timers<Timer>,
    scope: &'t mut Scope<'e, GroupResponse>,
}

impl GroupCoordinator {
    /// A coordinator without groups.
    pub fn new(config: GroupConfig) -> Self {
        Self {
            config,
            groups: BTreeMap::new(),
            offsets: Offsets::default(),
            pending: PendingOffsets::default(),
            timers: Timers::default(),
        }
    }

    /// The settings it was made with.
    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    /// A group, to look at.
    pub fn group(&self, id: &str) -> Option<&ClassicGroup> {
        self.groups.get(id)
    }

    /// The committed offsets of a group, by topic and partition.
    pub fn committed(&self, group: &str) -> impl Iterator<Item = (&KString, i32, &CommittedOffset)> {
        self.offsets.of_group(group)
    }

    /// How many groups and offsets there are.
    pub fn counts(&self) -> GroupCounts {
        let in_state = |state| self.groups.values().filter(|group| group.state() == state).count();
        GroupCounts {
            groups: self.groups.len(),
            empty: in_state(GroupState::Empty),
            stable: in_state(GroupState::Stable),
            offsets: self.offsets.count(),
        }
    }

    /// What a coordinator that loads the same records must come to; one line per fact.
    pub fn durable_state(&self) -> Vec<String> {
        let groups = self.groups.values().filter_map(ClassicGroup::durable_state);
        groups.chain(self.offsets.durable_state()).collect()
    }

    /// A group and the turn to decide about it.
    fn turn<'t, 'e>(
        &'t mut self,
        id: &str,
        scope: &'t mut Scope<'e, GroupResponse>,
    ) -> Option<(&'t mut ClassicGroup, Turn<'t, 'e>)> {
        let group = self.groups.get_mut(id)?;
        Some((group, Turn { config: &self.config, timers: &mut self.timers, scope }))
    }
}

impl StateMachine for GroupCoordinator {
    type Request = GroupRequest;
    type Response = GroupResponse;

    fn handle(&mut self, request: GroupRequest, token: Token, scope: &mut Scope<'_, GroupResponse>) {
        match request {
            GroupRequest::Join { request, version, client } => self.join(&request, version, &client, token, scope),
            GroupRequest::Sync(request) => self.sync(&request, token, scope),
            GroupRequest::Heartbeat(request) => self.heartbeat(&request, token, scope),
            GroupRequest::Leave { request, version } => self.leave(&request, version, token, scope),
            GroupRequest::OffsetCommit(request) => self.offset_commit(&request, token, scope),
            GroupRequest::OffsetFetch { request, require_stable } => {
                self.offset_fetch(&request, require_stable, token, scope);
            }
            GroupRequest::OffsetDelete(request) => self.offset_delete(&request, token, scope),
            GroupRequest::Describe { group_id, version } => self.describe(&group_id, version, token, scope),
            GroupRequest::Delete { group_id } => self.delete(&group_id, token, scope),
            GroupRequest::List { states, types } => self.list(&states, &types, token, scope),
            GroupRequest::ForgetTopics(topics) => self.forget_topics(&topics, token, scope),
        }
    }

    fn on_time(&mut self, scope: &mut Scope<'_, GroupResponse>) {
        while let Some(timer) = self.timers.pop_due(scope.now()) {
            match timer {
                Timer::Session(group, member) => {
                    if let Some((group, mut turn)) = self.turn(&group, scope) {
                        rebalance::session_expired(&mut turn, group, &member);
                    }
                }
                Timer::Join(group) => {
                    if let Some((group, mut turn)) = self.turn(&group, scope) {
                        rebalance::join_time_is_up(&mut turn, group);
                    }
                }
                Timer::Sync(group) => {
                    if let Some((group, mut turn)) = self.turn(&group, scope) {
                        rebalance::sync_time_is_up(&mut turn, group);
                    }
                }
                Timer::ExpireOffsets => {
                    self.expire_offsets(scope);
                    self.schedule_expiry(scope.now());
                }
            }
        }
    }

    fn next_time(&self) -> Option<Moment> {
        self.timers.next()
    }

    fn replay(&mut self, LoggedRecord { offset, transaction, record }: LoggedRecord) -> Result<(), ReplayError> {
        match records::decode(record.key, record.value)? {
            records::Replayed::Offset { group, topic, partition, committed } => {
                if committed.is_some() {
                    // A group that only commits offsets has no record of its own; it is there even if they are aborted.
                    let new = || ClassicGroup::new(group.clone(), Timestamp::NONE);
                    self.groups.entry(group.clone()).or_insert_with(new);
                }
                match transaction {
                    Some(producer) => {
                        self.pending.add(producer, PendingOffset { at: offset, group, topic, partition, committed });
                    }
                    None => self.offsets.put(&group, &topic, partition, offset, committed),
                }
            }
            records::Replayed::Group { group, value: Some(value) } => {
                let loaded = ClassicGroup::from_record(group.clone(), value);
                self.groups.insert(group, loaded);
            }
            records::Replayed::Group { group, value: None } => drop(self.groups.remove(&group)),
            records::Replayed::Other => {}
        }
        Ok(())
    }

    fn replay_end(&mut self, producer: ProducerId, committed: bool) {
        for PendingOffset { at, group, topic, partition, committed: value } in self.pending.end(producer) {
            // What was committed by a later record stands: compaction may have taken the earlier one, and then it stands too.
            if committed && self.offsets.written_at(&group, &topic, partition).is_none_or(|written| written < at) {
                self.offsets.put(&group, &topic, partition, at, value);
            }
        }
    }

    fn loaded(&mut self, scope: &mut Scope<'_, GroupResponse>) {
        self.timers.clear();
        let Self { groups, timers, config, .. } = self;
        for group in groups.values_mut() {
            let mut turn = Turn { config, timers, scope };
            let members: Vec<KString> = group.members().map(|member| member.id.clone()).collect();
            for member in &members {
                rebalance::restart_session(&mut turn, group, member);
            }
            if members.len() > turn.config.group_size_max {
                rebalance::prepare(&mut turn, group);
            }
        }
        self.schedule_expiry(scope.now());
    }
}

/// The codes that clients of the group protocol are told when a record of a group could not be written.
fn append_error(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::UnknownTopicOrPartition
        | ErrorCode::NotEnoughReplicas
        | ErrorCode::NotEnoughReplicasAfterAppend
        | ErrorCode::RequestTimedOut => ErrorCode::CoordinatorNotAvailable,
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge | ErrorCode::InvalidFetchSize => {
            ErrorCode::UnknownServerError
        }
        error => error,
    }
}
