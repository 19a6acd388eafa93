//! What a cluster is held to: what was shown, committed or acknowledged anywhere stands everywhere, for good. `ledger/quorum.rs` has the
//! quorum's part of it.
//!
//! The world calls it after every step of a node, clients with what they were answered, and `audit.rs` when it looks into files. It
//! never asks a node for anything.

mod quorum;

use std::collections::{BTreeMap, BTreeSet};

use gregor_metadata::Image;
use gregor_raft::VoterSet;
use gregor_replication::{FollowedPartition, IsrProposal};
use gregor_types::{BrokerId, DirectoryId, LeaderEpoch, Offset, TopicId};
use gregor_wire::batch::{BatchView, split_batches};

use super::{
    laws::Proposed,
    replica::{Replica, Role},
};
use crate::promises::Value;

/// Topics that are named so allow unclean elections (`unclean.leader.election.enable`): of what was acknowledged there nothing need last.
pub(super) const UNCLEAN_TOPIC: &str = "unclean-";

/// A batch as it stands in a log: what its checksum does not cover, and the checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    epoch: LeaderEpoch,
    records: i32,
    crc: u32,
    next: Offset,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    violation: Option<String>,
    /// How often each thing has happened.
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// What has become of partitions since that was taken, where somebody reads the story.
    pub(super) changes: Option<Vec<String>>,
    /// The metadata at each offset at which a node has shown it.
    images: BTreeMap<Offset, (LeaderEpoch, Image)>,
    /// The committed batches of the metadata log, by their first offset.
    metadata: BTreeMap<Offset, Seal>,
    /// Who was the active controller in an epoch, and in which of its lives.
    controllers: BTreeMap<LeaderEpoch, (BrokerId, u64)>,
    /// Whom nodes take for the leader of an epoch.
    leaders: BTreeMap<LeaderEpoch, BrokerId>,
    /// Whom a voter has voted for in an epoch.
    votes: BTreeMap<(BrokerId, DirectoryId, LeaderEpoch), BrokerId>,
    /// What each node has shown of the quorum when it was looked at last.
    shown: BTreeMap<BrokerId, Shown>,
    /// Who votes, and the `kraft.version`, as of each offset at which a node has shown metadata.
    voters: BTreeMap<Offset, (i16, VoterSet)>,
    /// Whom leaders have proposed for in sync.
    proposed: Proposed,
    /// Whether metadata was shown that is newer than what was looked at.
    is_newer: bool,
    /// Partitions of which more is committed since their in-sync replicas were looked at, or that a replica of was cut.
    moved: BTreeSet<FollowedPartition>,
    /// The committed batches of each partition, by their first offset.
    committed: BTreeMap<FollowedPartition, BTreeMap<Offset, Seal>>,
    /// Where what is known to be committed of them ends.
    ends: BTreeMap<FollowedPartition, Offset>,
    /// What stands at which offset: acknowledged to its producer, or shown to a consumer.
    records: BTreeMap<FollowedPartition, BTreeMap<Offset, Value>>,
    /// Up to where somebody has asked for a partition's records to be deleted.
    deleted: BTreeMap<FollowedPartition, Offset>,
    /// Topics that were created for sure, and those whose deletion was asked for.
    created: BTreeSet<String>,
    leaving: BTreeSet<String>,
    /// Partitions that have taken a batch that was made after all was well again.
    alive: BTreeSet<FollowedPartition>,
    /// The ids of topics whose names are known.
    names: BTreeMap<TopicId, String>,
    /// How many records were acknowledged.
    pub(super) acknowledged: u64,
}

/// What a life of a node shows of the quorum.
#[derive(Debug, Clone, Copy)]
struct Shown {
    boot: u64,
    directory: DirectoryId,
    /// The last offset of the metadata that it shows.
    last: Offset,
    /// The newest epoch that it knows, and the one in which it is the active controller.
    epoch: LeaderEpoch,
    leads_in: Option<LeaderEpoch>,
    /// Where its metadata log ends, and where it ended when it was first seen to lead that epoch.
    end: Offset,
    began: Offset,
}

/// What was seen of a replica: it keeps that for the ledger, as long as it is held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// How far it was compared with what is committed.
    compared: Offset,
    /// The epoch that it led in when it showed this high watermark.
    led: Option<(LeaderEpoch, Offset)>,
    /// The state of the partition in which it had too few replicas in sync, if it had.
    short_in: Option<i32>,
    truncations: u64,
    starts_over: u64,
}

impl Seal {
    fn of(batch: &BatchView<'_>) -> Self {
        Self { epoch: batch.leader_epoch, records: batch.records_count, crc: batch.crc, next: batch.next_offset() }
    }
}

impl Ledger {
    /// Nothing is known. `told` has it say what becomes of partitions.
    pub(super) fn new(told: bool) -> Self {
        Self { changes: told.then(Vec::new), ..Self::default() }
    }

    /// Something is not as it must be. The first one counts.
    pub(super) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// What was violated, if anything was.
    pub(super) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Something has happened.
    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Looks at a replica, and compares what it knows to be committed with what others do. Whether there is more of that than it could look at.
    pub(super) fn look_at_replica(&mut self, id: BrokerId, replica: &mut Replica) -> bool {
        if replica.is_doubtful {
            return true;
        }
        match self.hold_replica(id, replica) {
            Ok(seen) => seen.compared < replica.high_watermark(),
            Err(wrong) => {
                self.violated(wrong);
                true
            }
        }
    }

    fn hold_replica(&mut self, id: BrokerId, replica: &mut Replica) -> Result<Seen, String> {
        let place = replica.id;
        let (start, end) = (replica.log.start_offset(), replica.log.end_offset());
        let high_watermark = replica.high_watermark();
        if high_watermark < start || high_watermark > end {
            let topic = &replica.topic;
            let what =
                format!("node {id} has {topic} from {start} to {end}, and its high watermark is {high_watermark}");
            return Err(what);
        }
        if start > self.deleted(place) {
            let (name, asked) = (self.name(place), self.deleted(place));
            return Err(format!("{name} begins at {start} on {id}, and was to be deleted before {asked} only"));
        }
        let fresh = Seen { compared: start, led: None, short_in: None, truncations: 0, starts_over: 0 };
        let mut seen = replica.seen.unwrap_or(fresh);
        if let Role::Leader(leader) = &replica.role {
            let epoch = leader.leader_epoch();
            if let Some(asked) = replica.answered_in {
                let topic = &replica.topic;
                return Err(format!(
                    "node {id} leads {topic} in epoch {epoch}, and answers a fetch of a follower in epoch {asked} (KIP-320)"
                ));
            }
            if let Some((led, shown)) = seen.led
                && led == epoch
                && high_watermark < shown
            {
                let topic = &replica.topic;
                let what =
                    format!("readers of {topic} at {id} see it go from {shown} back to {high_watermark} in {epoch}");
                return Err(what);
            }
            let short_in = leader.is_under_min_isr().then(|| leader.partition_epoch());
            if let Some((led, shown)) = seen.led
                && led == epoch
                && high_watermark > shown
                && short_in.is_some()
                && short_in == seen.short_in
            {
                let (topic, isr) = (&replica.topic, leader.isr());
                let what = format!(
                    "{topic} at {id} is committed from {shown} to {high_watermark} by {isr:?}, which is too few"
                );
                return Err(what);
            }
            (seen.led, seen.short_in) = (Some((epoch, high_watermark)), short_in);
        }
        if replica.truncations > seen.truncations {
            seen.truncations = replica.truncations;
            self.count("truncation");
            self.moved.insert(place);
        }
        if replica.starts_over > seen.starts_over {
            seen.starts_over = replica.starts_over;
            self.count("log started over");
        }
        if seen.compared > high_watermark && replica.topic.starts_with(UNCLEAN_TOPIC) {
            self.count("committed records truncated");
        }
        if seen.compared > high_watermark {
            // What it had was not known to be committed any more when it was cut, or it begins anew.
            seen.compared = start;
        }
        let wrong = self.compare(id, replica, &mut seen.compared, high_watermark);
        replica.seen = Some(seen);
        wrong.map_or(Ok(seen), Err)
    }

    /// A leader proposes who is to be in sync.
    pub(super) fn proposes(&mut self, place: FollowedPartition, proposal: &IsrProposal) {
        let state = (place, proposal.leader_epoch, proposal.partition_epoch);
        self.proposed.entry(state).or_default().extend(&proposal.isr);
    }

    /// Compares a replica's batches from an offset on with those that are known to be committed.
    fn compare(&mut self, id: BrokerId, replica: &mut Replica, from: &mut Offset, to: Offset) -> Option<String> {
        *from = (*from).max(replica.log.start_offset());
        if replica.topic.starts_with(UNCLEAN_TOPIC) {
            *from = to;
        }
        while *from < to {
            // A disk that fails meanwhile shows it to the node itself.
            let bytes = replica.bytes(*from, to).ok()?;
            let before = *from;
            for batch in split_batches(&bytes) {
                let Ok(batch) = batch else { break };
                if batch.next_offset() > to {
                    break;
                }
                let seal = Seal::of(&batch);
                // As below in `hold`: nobody tells a follower that its own is another's.
                let has_to_go = batch.next_offset() <= self.deleted(replica.id);
                let committed = self.committed.entry(replica.id).or_default();
                let (topic, index, at) = (&replica.topic, replica.id.partition, batch.base_offset);
                if let Some(known) = committed.get(&at) {
                    if *known != seal && !has_to_go {
                        return Some(format!(
                            "node {id} has {seal:?} at {at} of {topic}-{index}, {known:?} is committed"
                        ));
                    }
                } else if let Some(wrong) = misplaced(committed, at, &seal).filter(|_| !has_to_go) {
                    return Some(format!("node {id} has in {topic}-{index}: {wrong}"));
                } else {
                    committed.insert(at, seal);
                }
                *from = batch.next_offset();
                let end = self.ends.entry(replica.id).or_insert(Offset::ZERO);
                if *from > *end {
                    *end = *from;
                    self.moved.insert(replica.id);
                }
            }
            if *from == before {
                return None;
            }
        }
        None
    }

    /// Whether newer metadata was shown, and the partitions of which more is committed or that a replica of was cut, since it was asked last.
    pub(super) fn take_moved(&mut self) -> (bool, BTreeSet<FollowedPartition>) {
        (std::mem::take(&mut self.is_newer), std::mem::take(&mut self.moved))
    }

    /// The newest metadata that any node has shown.
    pub(super) fn newest_image(&self) -> Option<Image> {
        self.images.last_key_value().map(|(_, (_, image))| image.clone())
    }

    /// Where the newest metadata ends that any node has shown.
    pub(super) fn newest_shown(&self) -> Option<Offset> {
        self.images.last_key_value().map(|(at, _)| *at)
    }

    /// Somebody asks for everything before an offset to be deleted.
    pub(super) fn deletes(&mut self, place: FollowedPartition, until: Offset) {
        let asked = self.deleted.entry(place).or_insert(until);
        *asked = until.max(*asked);
    }

    /// Up to where records may be gone that stood in a partition.
    pub(super) fn deleted(&self, place: FollowedPartition) -> Offset {
        self.deleted.get(&place).copied().unwrap_or(Offset::ZERO)
    }

    /// Where what is known to be committed of a partition ends.
    pub(super) fn committed_end(&self, place: FollowedPartition) -> Offset {
        self.ends.get(&place).copied().unwrap_or(Offset::ZERO)
    }

    /// A batch was acknowledged.
    pub(super) fn acknowledged(&mut self, place: FollowedPartition, base: Offset, values: &[Value]) {
        self.acknowledged += values.len() as u64;
        if self.is_unclean(place) {
            return;
        }
        for (offset, value) in (base.value()..).map(Offset).zip(values) {
            self.stands(place, offset, *value, "an acknowledgement");
        }
    }

    /// A partition has taken a batch that was made after all was well again.
    pub(super) fn lives(&mut self, place: FollowedPartition) {
        self.alive.insert(place);
    }

    /// Whether it has.
    pub(super) fn is_alive(&self, place: FollowedPartition) -> bool {
        self.alive.contains(&place)
    }

    /// A record stands at an offset, says an acknowledgement or a read.
    pub(super) fn stands(&mut self, place: FollowedPartition, offset: Offset, value: Value, who: &str) {
        let known = *self.records.entry(place).or_default().entry(offset).or_insert(value);
        if known != value {
            let name = self.name(place);
            self.violated(format!("{who}: {name} has {value} at {offset}, where {known} was"));
        }
    }

    /// A topic was created for sure.
    pub(super) fn created(&mut self, topic: &str) {
        self.created.insert(topic.to_owned());
    }

    /// Somebody asks for a topic's deletion: from now on it may be gone.
    pub(super) fn leaves(&mut self, topic: &str) {
        self.leaving.insert(topic.to_owned());
    }

    /// Whether a topic may be gone.
    pub(super) fn may_be_gone(&self, topic: TopicId) -> bool {
        self.names.get(&topic).is_none_or(|name| self.leaving.contains(name))
    }

    /// Whether a partition is one of those of which nothing need last.
    pub(super) fn is_unclean(&self, place: FollowedPartition) -> bool {
        self.names.get(&place.topic_id).is_some_and(|name| name.starts_with(UNCLEAN_TOPIC))
    }

    /// Topics that are to be there.
    pub(super) fn topics(&self) -> impl Iterator<Item = &String> {
        self.created.difference(&self.leaving)
    }

    /// The partitions that have records which must not be lost.
    pub(super) fn places(&self) -> Vec<FollowedPartition> {
        self.records.keys().copied().filter(|place| !self.may_be_gone(place.topic_id)).collect()
    }

    /// A partition, for people.
    pub(super) fn name(&self, place: FollowedPartition) -> String {
        let topic = self.names.get(&place.topic_id).map_or("a topic without a name", String::as_str);
        format!("{topic}-{}", place.partition)
    }

    /// Holds one replica's records, from its log's start on, to all that is known to stand in the partition: nothing is lost, nothing is
    /// there twice, and each producer's are in order.
    pub(super) fn hold(
        &mut self,
        id: BrokerId,
        place: FollowedPartition,
        start: Offset,
        found: &BTreeMap<Offset, Value>,
    ) {
        let name = self.name(place);
        let (mut seen, mut last) = (BTreeSet::new(), BTreeMap::new());
        // What was deleted, and a crash has brought back, is in no leader epoch and of no producer that is known any more, as in Kafka.
        let start = start.max(self.deleted(place));
        for (offset, value) in found.range(start..) {
            if !seen.insert(*value) {
                return self.violated(format!("{name} at {id} has {value} twice, the second time at {offset}"));
            }
            if last.insert(value.client, value.number).is_some_and(|last| last > value.number) {
                return self
                    .violated(format!("{name} at {id} has {value} at {offset} behind a later one of its producer"));
            }
        }
        let records = self.records.entry(place).or_default();
        let lost = records.range(start..).find(|(offset, value)| found.get(*offset) != Some(*value));
        if let Some((offset, value)) = lost {
            let there = found.get(offset).map_or("nothing".to_owned(), ToString::to_string);
            let what = format!("{name} had {value} at {offset}, and {there} is there at {id} now");
            self.violated(what);
        }
    }
}

/// What is wrong with a committed batch between its neighbours: batches overlap nowhere, and epochs never go back.
fn misplaced(committed: &BTreeMap<Offset, Seal>, base: Offset, seal: &Seal) -> Option<String> {
    let before = committed.range(..base).next_back();
    let after = committed.range(base..).next();
    let is_behind = before.is_none_or(|(_, before)| before.next <= base && before.epoch <= seal.epoch);
    let is_ahead = after.is_none_or(|(at, after)| seal.next <= *at && seal.epoch <= after.epoch);
    (!(is_behind && is_ahead))
        .then(|| format!("{seal:?} at {base}, between {before:?} and {after:?} that are committed"))
}

/// Counts what has become of partitions between two images.
fn count_elections(counts: &mut BTreeMap<&'static str, u64>, before: &Image, after: &Image) {
    let mut count = |what| *counts.entry(what).or_default() += 1;
    for topic in after.topics().iter() {
        for (index, partition) in topic.partitions() {
            let Some(known) = before.topics().partition(topic.id, index) else { continue };
            if partition.leader == known.leader {
                continue;
            }
            match partition.leader {
                Some(leader) if known.elr.contains(&leader) => count("eligible leader elected"),
                Some(leader) if topic.name.starts_with(UNCLEAN_TOPIC) && !known.isr.contains(&leader) => {
                    count("unclean leader elected");
                }
                Some(_) => count("leader elected"),
                None => count("leaderless"),
            }
        }
    }
}

/// What has become of partitions between two images, for people.
fn changes_between(before: &Image, after: &Image) -> Vec<String> {
    let partitions =
        after.topics().iter().flat_map(|topic| topic.partitions().map(move |(index, now)| (topic, index, now)));
    let changed = partitions.filter(|(topic, index, now)| before.topics().partition(topic.id, *index) != Some(*now));
    changed
        .map(|(topic, index, now)| {
            let numbers = |brokers: &[BrokerId]| brokers.iter().map(|broker| broker.value()).collect::<Vec<_>>();
            format!(
                "{}-{index}: epoch {}, state {}, led by {:?}; replicas {:?}, in sync {:?}, eligible {:?}",
                topic.name,
                now.leader_epoch,
                now.partition_epoch,
                now.leader.map(BrokerId::value),
                numbers(&now.replicas),
                numbers(&now.isr),
                numbers(&now.elr)
            )
        })
        .collect()
}
