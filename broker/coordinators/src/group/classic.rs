//! A group of the classic protocol: its members, what they agree on, and where they are in a rebalance.
//!
//! Only facts and how they change; when they change is decided by the modules that handle requests and by `rebalance`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use gregor_messages::{ConsumerProtocolSubscription, join_group_response::JoinGroupResponseMember};
use gregor_state_records::group::{GroupMetadataValue, group_metadata_value::MemberMetadata};
use gregor_types::{ErrorCode, KString, Timestamp, planted::planted};
use gregor_wire::{Message, Reader};

use crate::Token;

/// The protocol type of consumers.
pub(super) const CONSUMER: &str = "consumer";

/// Where a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupState {
    /// It has no members; it may have offsets.
    Empty,
    /// Its members are to join (again).
    PreparingRebalance {
        /// Set while the first members of an empty group are waited for.
        initial: Option<InitialDelay>,
    },
    /// Its members have joined, and the leader is to assign.
    CompletingRebalance,
    /// Every member can know what it is assigned.
    Stable,
}

/// How long the first rebalance of an empty group still waits for more members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InitialDelay {
    /// The wait that runs now.
    pub delay_ms: u64,
    /// How much longer it may be extended.
    pub remaining_ms: u64,
    /// Whether a member came since the wait began.
    pub member_added: bool,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The id that the coordinator gave it.
    pub id: KString,
    /// Its own name, if it is static (KIP-345).
    pub instance: Option<KString>,
    /// What its client calls itself.
    pub client_id: KString,
    /// Where it connects from.
    pub client_host: KString,
    /// How long it may take to join again.
    pub rebalance_timeout_ms: i32,
    /// How long it may be silent.
    pub session_timeout_ms: i32,
    /// The protocols that it can follow, the one it likes best first, each with its metadata.
    pub protocols: Vec<(KString, Bytes)>,
    /// What it is assigned.
    pub assignment: Bytes,
    pub(super) joining: Option<Token>,
    pub(super) syncing: Option<Token>,
    /// Whether it has never got the answer to its first join.
    pub(super) is_new: bool,
}

/// A group of the classic protocol.
#[derive(Debug, Clone)]
pub struct ClassicGroup {
    pub(super) id: KString,
    state: GroupState,
    /// When it came to its state.
    pub(super) state_since: Timestamp,
    pub(super) generation: i32,
    pub(super) protocol_type: Option<KString>,
    pub(super) protocol: Option<KString>,
    pub(super) leader: Option<KString>,
    members: BTreeMap<KString, Member>,
    static_members: BTreeMap<KString, KString>,
    /// Ids that were given out to clients that have not joined with them yet (KIP-394).
    pub(super) pending_join: BTreeSet<KString>,
    /// Members of this generation that have not synced yet.
    pub(super) pending_sync: BTreeSet<KString>,
    /// The topics that the members of this generation read; none if that cannot be known.
    subscribed_topics: Option<BTreeSet<KString>>,
}

impl ClassicGroup {
    /// A group without members.
    pub(super) fn new(id: KString, now: Timestamp) -> Self {
        Self {
            id,
            state: GroupState::Empty,
            state_since: now,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending_join: BTreeSet::new(),
            pending_sync: BTreeSet::new(),
            subscribed_topics: None,
        }
    }

    /// A group as its record describes it.
    pub(super) fn from_record(id: KString, value: GroupMetadataValue) -> Self {
        let mut group = Self::new(id, Timestamp(value.current_state_timestamp));
        group.generation = value.generation;
        group.protocol_type = Some(value.protocol_type.compact()).filter(|kind| !kind.is_empty());
        group.protocol = value.protocol.as_ref().map(KString::compact);
        group.leader = value.leader.as_ref().map(KString::compact);
        for row in value.members {
            let protocol = group.protocol.clone().unwrap_or_default();
            let member = Member {
                id: row.member_id.compact(),
                instance: row.group_instance_id.as_ref().map(KString::compact),
                client_id: row.client_id.compact(),
                client_host: row.client_host.compact(),
                // Version 0 of the record has no rebalance timeout; the session's was used for both then.
                rebalance_timeout_ms: if row.rebalance_timeout < 0 {
                    row.session_timeout
                } else {
                    row.rebalance_timeout
                },
                session_timeout_ms: row.session_timeout,
                protocols: vec![(protocol, Bytes::copy_from_slice(&row.subscription))],
                assignment: Bytes::copy_from_slice(&row.assignment),
                joining: None,
                syncing: None,
                is_new: false,
            };
            group.insert(member);
        }
        if !group.members.is_empty() {
            group.state = GroupState::Stable;
        }
        group.subscribed_topics = group.read_subscriptions();
        group
    }

    /// The group as a record, with the assignments that `assignment` gives.
    pub(super) fn to_record(&self, assignment: impl Fn(&Member) -> Bytes, now: Timestamp) -> GroupMetadataValue {
        let protocol = self.protocol.clone().unwrap_or_default();
        let members = self.members.values().map(|member| MemberMetadata {
            member_id: member.id.clone(),
            group_instance_id: member.instance.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            rebalance_timeout: member.rebalance_timeout_ms,
            session_timeout: member.session_timeout_ms,
            subscription: member.metadata(&protocol),
            assignment: assignment(member),
            ..Default::default()
        });
        GroupMetadataValue {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            current_state_timestamp: now.0,
            members: members.collect(),
            ..Default::default()
        }
    }

    /// Its id.
    pub fn id(&self) -> &KString {
        &self.id
    }

    /// Where it is.
    pub fn state(&self) -> GroupState {
        self.state
    }

    /// How often it has rebalanced.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// The member that assigns.
    pub fn leader(&self) -> Option<&KString> {
        self.leader.as_ref()
    }

    /// Its members.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// How many members it has.
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// A member by its id.
    pub fn member(&self, id: &str) -> Option<&Member> {
        self.members.get(id)
    }

    pub(super) fn member_mut(&mut self, id: &str) -> Option<&mut Member> {
        self.members.get_mut(id)
    }

    pub(super) fn members_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.members.values_mut()
    }

    pub(super) fn static_member(&self, instance: &str) -> Option<&KString> {
        self.static_members.get(instance)
    }

    pub(super) fn set_state(&mut self, state: GroupState, now: Timestamp) {
        self.state = state;
        self.state_since = now;
    }

    /// More members may join the first rebalance: it waits for them.
    pub(super) fn extend_initial_delay(&mut self) {
        if let GroupState::PreparingRebalance { initial: Some(initial) } = &mut self.state {
            initial.member_added = true;
        }
    }

    pub(super) fn set_initial_delay(&mut self, delay: InitialDelay) {
        if let GroupState::PreparingRebalance { initial } = &mut self.state {
            *initial = Some(delay);
        }
    }

    pub(super) fn is_preparing(&self) -> bool {
        matches!(self.state, GroupState::PreparingRebalance { .. })
    }

    pub(super) fn insert(&mut self, member: Member) {
        if self.members.is_empty() && self.leader.is_none() {
            self.leader = Some(member.id.clone());
        }
        if let Some(instance) = &member.instance {
            self.static_members.insert(instance.clone(), member.id.clone());
        }
        self.pending_join.remove(&member.id);
        self.members.insert(member.id.clone(), member);
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Member> {
        self.pending_join.remove(id);
        self.pending_sync.remove(id);
        let member = self.members.remove(id)?;
        if let Some(instance) = &member.instance {
            self.static_members.remove(instance);
        }
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
        Some(member)
    }

    /// A static member came back under a new id; returns what waited under the old one.
    pub(super) fn replace_static(&mut self, old: &str, new: KString) -> (Option<Token>, Option<Token>) {
        let Some(mut member) = self.members.remove(old) else { return (None, None) };
        let waited = (member.joining.take(), member.syncing.take());
        member.id = new.clone();
        if self.leader.as_deref() == Some(old) {
            self.leader = Some(new.clone());
        }
        if self.pending_sync.remove(old) {
            self.pending_sync.insert(new);
        }
        self.insert(member);
        waited
    }

    /// KIP-345 and the rules before it: may this client speak as that member?
    pub(super) fn check_member(&self, member: &str, instance: Option<&KString>) -> Result<(), ErrorCode> {
        if let Some(instance) = instance {
            match self.static_members.get(instance) {
                None => return Err(ErrorCode::UnknownMemberId),
                Some(known) if *known != member => return Err(ErrorCode::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member) { Ok(()) } else { Err(ErrorCode::UnknownMemberId) }
    }

    /// Whether a member with these protocols can be in the group: one of them must be known to all others.
    pub(super) fn supports(&self, protocol_type: &str, protocols: &[KString]) -> bool {
        if self.state == GroupState::Empty {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        let of_all = |name: &KString| self.members.values().all(|member| member.knows(name));
        self.protocol_type.as_deref() == Some(protocol_type) && protocols.iter().any(of_all)
    }

    pub(super) fn rebalance_timeout_ms(&self) -> u64 {
        let longest = self.members.values().map(|member| member.rebalance_timeout_ms).max();
        longest.unwrap_or(0).max(0) as u64
    }

    pub(super) fn all_have_joined(&self) -> bool {
        self.pending_join.is_empty() && self.members.values().all(|member| member.joining.is_some())
    }

    pub(super) fn joining_count(&self) -> usize {
        self.members.values().filter(|member| member.joining.is_some()).count()
    }

    /// Makes a member that has joined the leader, if the leader itself has not; whether there is one then.
    pub(super) fn elect_leader_that_joined(&mut self) -> bool {
        let joined = |id: &KString| self.members.get(id).is_some_and(|member| member.joining.is_some());
        if self.leader.as_ref().is_some_and(joined) {
            return true;
        }
        let other = self.members.values().find(|member| member.joining.is_some()).map(|member| member.id.clone());
        if other.is_some() {
            self.leader = other;
            return true;
        }
        false
    }

    /// The next generation: agree on a protocol, or be empty.
    pub(super) fn next_generation(&mut self, now: Timestamp) {
        self.generation += i32::from(!planted("generation-kept"));
        self.pending_sync.clear();
        if self.members.is_empty() {
            self.protocol = None;
            self.leader = None;
            self.set_state(GroupState::Empty, now);
        } else {
            self.protocol = self.select_protocol();
            self.set_state(GroupState::CompletingRebalance, now);
        }
        self.subscribed_topics = self.read_subscriptions();
    }

    /// Each member votes for the first of its protocols that all members know; where votes are equal, the leader's order decides.
    pub(super) fn select_protocol(&self) -> Option<KString> {
        let mut votes: BTreeMap<&KString, usize> = BTreeMap::new();
        for member in self.members.values() {
            let choice = member.protocols.iter().map(|(name, _)| name).find(|name| self.all_know(name));
            *votes.entry(choice?).or_default() += 1;
        }
        let leader = self.leader.as_ref().and_then(|leader| self.members.get(leader));
        let rank = |name: &KString| leader.and_then(|leader| leader.protocols.iter().position(|(own, _)| own == name));
        let winner = votes.into_iter().max_by_key(|(name, count)| (*count, std::cmp::Reverse(rank(name))));
        winner.map(|(name, _)| name.clone())
    }

    fn all_know(&self, name: &KString) -> bool {
        self.members.values().all(|member| member.knows(name))
    }

    /// The members with their metadata, for the leader to assign by.
    pub(super) fn members_for_leader(&self) -> Vec<JoinGroupResponseMember> {
        let protocol = self.protocol.clone().unwrap_or_default();
        let row = |member: &Member| JoinGroupResponseMember {
            member_id: member.id.clone(),
            group_instance_id: member.instance.clone(),
            metadata: member.metadata(&protocol),
            ..Default::default()
        };
        self.members.values().map(row).collect()
    }

    /// Whether its members speak the consumers' embedded protocol.
    pub(super) fn is_of_consumers(&self) -> bool {
        self.protocol_type.as_deref() == Some(CONSUMER)
    }

    /// Whether a member reads this topic, as far as that can be known.
    pub(super) fn reads(&self, topic: &str) -> bool {
        self.subscribed_topics.as_ref().is_some_and(|topics| topics.contains(topic))
    }

    /// Whether it is known what its members read.
    pub(super) fn knows_subscriptions(&self) -> bool {
        self.subscribed_topics.is_some()
    }

    fn read_subscriptions(&self) -> Option<BTreeSet<KString>> {
        if !self.is_of_consumers() {
            return None;
        }
        if self.members.is_empty() {
            return Some(BTreeSet::new());
        }
        let protocol = self.protocol.as_ref()?;
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            let mut reader = Reader::new(member.metadata(protocol));
            let version = reader.i16().ok()?;
            let known = ConsumerProtocolSubscription::VERSIONS;
            let version = version.clamp(*known.start(), *known.end());
            let subscription = ConsumerProtocolSubscription::decode(&mut reader, version).ok()?;
            topics.extend(subscription.topics.iter().map(KString::compact));
        }
        Some(topics)
    }

    /// What outlives this coordinator; none for a group that has never been written.
    pub(super) fn durable_state(&self) -> Option<String> {
        if self.state != GroupState::Stable && self.generation == 0 {
            return None;
        }
        let protocol = self.protocol.clone().unwrap_or_default();
        let members: Vec<_> = self
            .members
            .values()
            .map(|member| {
                let Member { id, instance, client_id, client_host, assignment, .. } = member;
                let timeouts = (member.rebalance_timeout_ms, member.session_timeout_ms);
                format!(
                    "{id} {instance:?} {client_id} {client_host} {timeouts:?} {:?} {assignment:?}",
                    member.metadata(&protocol)
                )
            })
            .collect();
        Some(format!(
            "group {} {:?} {:?} {:?} {:?} {} since {} {members:?}",
            self.id, self.state, self.protocol_type, self.protocol, self.leader, self.generation, self.state_since
        ))
    }
}

impl Member {
    pub(super) fn knows(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|(name, _)| *name == *protocol)
    }

    /// Its metadata for a protocol.
    pub fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| *name == *protocol);
        found.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }

    /// While its request waits here, it cannot send heartbeats and need not.
    pub(super) fn is_waiting(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }
}
