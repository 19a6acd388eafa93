//! What a cluster is held to: what was shown, committed or acknowledged anywhere stands everywhere, for good.
//!
//! The world calls it after every step of a node, clients with what they were answered, and `audit.rs` when it looks into files. It
//! never asks a node for anything.

use std::collections::{BTreeMap, BTreeSet};

use gregor_metadata::Image;
use gregor_replication::FollowedPartition;
use gregor_types::{BrokerId, LeaderEpoch, Offset, TopicId};
use gregor_wire::batch::{BatchView, split_batches};

use super::{
    process::Process,
    replica::{Replica, Role},
};
use crate::promises::Value;

/// A batch as it stands in a log: what its checksum does not cover, and the checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    epoch: LeaderEpoch,
    records: i32,
    crc: u32,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    violation: Option<String>,
    /// How often each thing has happened.
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// The metadata at each offset at which a node has shown it.
    images: BTreeMap<Offset, (LeaderEpoch, Image)>,
    /// The committed batches of the metadata log, by their first offset.
    metadata: BTreeMap<Offset, Seal>,
    /// Who was the active controller in an epoch, and in which of its lives.
    controllers: BTreeMap<LeaderEpoch, (BrokerId, u64)>,
    /// Whom nodes take for the leader of an epoch.
    leaders: BTreeMap<LeaderEpoch, BrokerId>,
    /// How far each life of a node has shown the metadata, and the newest epoch that it knows.
    shown: BTreeMap<BrokerId, (u64, Offset, LeaderEpoch)>,
    /// The committed batches of each partition, by their first offset.
    committed: BTreeMap<FollowedPartition, BTreeMap<Offset, Seal>>,
    /// Where what is known to be committed of them ends.
    ends: BTreeMap<FollowedPartition, Offset>,
    /// How far a life of a node has been compared with them, and the marks that it has shown.
    seen: BTreeMap<(BrokerId, FollowedPartition), Seen>,
    /// What stands at which offset: acknowledged to its producer, or shown to a consumer.
    records: BTreeMap<FollowedPartition, BTreeMap<Offset, Value>>,
    /// Topics that were created for sure, and those whose deletion was asked for.
    created: BTreeSet<String>,
    leaving: BTreeSet<String>,
    /// The ids of topics whose names are known.
    names: BTreeMap<TopicId, String>,
    /// How many records were acknowledged.
    pub(super) acknowledged: u64,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    boot: u64,
    compared: Offset,
    /// The epoch that it led in when it showed this high watermark.
    led: Option<(LeaderEpoch, Offset)>,
    truncations: u64,
}

impl Seal {
    fn of(batch: &BatchView<'_>) -> Self {
        Self { epoch: batch.leader_epoch, records: batch.records_count, crc: batch.crc }
    }
}

impl Ledger {
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

    /// Looks at what a node's control thread shows.
    pub(super) fn look_at_control(&mut self, id: BrokerId, boot: u64, process: &Process) {
        let leader = process.leader();
        if let Some(named) = leader.leader {
            let known = *self.leaders.entry(leader.epoch).or_insert(named);
            if known != named {
                let what = format!("node {id} takes {named} for the leader of epoch {}, it is {known}", leader.epoch);
                return self.violated(what);
            }
        }
        if let Some(epoch) = process.leads_in() {
            let known = *self.controllers.entry(epoch).or_insert((id, boot));
            if known != (id, boot) {
                let (other, life) = known;
                let what = format!("node {id} leads epoch {epoch} in life {boot}, and {other} did in life {life}");
                return self.violated(what);
            }
        }
        let image = process.image();
        let position = image.position;
        let (life, before, epoch) = self.shown.get(&id).copied().unwrap_or((0, Offset::NONE, LeaderEpoch::NONE));
        if life == boot && leader.epoch < epoch {
            return self.violated(format!("node {id} goes from epoch {epoch} back to {}", leader.epoch));
        }
        if life == boot && position.last_offset < before {
            let what = format!("node {id} shows metadata up to {} after {before}", position.last_offset);
            return self.violated(what);
        }
        self.shown.insert(id, (boot, position.last_offset, leader.epoch));
        if position.last_offset < Offset::ZERO || (life == boot && position.last_offset == before) {
            return;
        }
        if let Some((newest, (_, before))) = self.images.last_key_value()
            && *newest < position.last_offset
        {
            count_elections(&mut self.counts, before, &image.image);
        }
        let fresh = || (position.epoch, image.image.clone());
        let (epoch, known) = self.images.entry(position.last_offset).or_insert_with(fresh);
        if *epoch != position.epoch || *known != image.image {
            let at = position.last_offset;
            let what = format!(
                "node {id} has another image of the metadata at {at} in epoch {} than was shown in epoch {epoch}",
                position.epoch
            );
            return self.violated(what);
        }
        for topic in image.topics().iter() {
            self.names.entry(topic.id).or_insert_with(|| topic.name.to_string());
        }
    }

    /// A batch of a node's metadata log that the node knows to be committed.
    pub(super) fn metadata_has(&mut self, id: BrokerId, batch: &BatchView<'_>) {
        let seal = Seal::of(batch);
        let known = *self.metadata.entry(batch.base_offset).or_insert(seal);
        if known != seal {
            let at = batch.base_offset;
            self.violated(format!("node {id} has {seal:?} at {at} of the metadata, {known:?} was committed there"));
        }
    }

    /// Looks at a replica, and compares what it knows to be committed with what others do.
    pub(super) fn look_at_replica(&mut self, id: BrokerId, boot: u64, replica: &mut Replica) {
        let place = replica.id;
        let (start, end) = (replica.log.start_offset(), replica.log.end_offset());
        let high_watermark = replica.high_watermark();
        if high_watermark < start || high_watermark > end {
            let topic = &replica.topic;
            let what =
                format!("node {id} has {topic} from {start} to {end}, and its high watermark is {high_watermark}");
            return self.violated(what);
        }
        let before = self.seen.get(&(id, place)).copied().filter(|seen| seen.boot == boot);
        let mut seen = before.unwrap_or(Seen { boot, compared: start, led: None, truncations: 0 });
        if let Role::Leader(leader) = &replica.role {
            let epoch = leader.leader_epoch();
            if let Some((led, shown)) = seen.led
                && led == epoch
                && high_watermark < shown
            {
                let topic = &replica.topic;
                let what =
                    format!("readers of {topic} at {id} see it go from {shown} back to {high_watermark} in {epoch}");
                return self.violated(what);
            }
            seen.led = Some((epoch, high_watermark));
        }
        if replica.truncations > seen.truncations {
            seen.truncations = replica.truncations;
            self.count("truncation");
        }
        if seen.compared > high_watermark {
            // What it had was not known to be committed any more when it was cut, or it begins anew.
            seen.compared = start;
        }
        let wrong = self.compare(id, replica, &mut seen.compared, high_watermark);
        self.seen.insert((id, place), seen);
        if let Some(wrong) = wrong {
            self.violated(wrong);
        }
    }

    /// Compares a replica's batches from an offset on with those that are known to be committed.
    fn compare(&mut self, id: BrokerId, replica: &mut Replica, from: &mut Offset, to: Offset) -> Option<String> {
        *from = (*from).max(replica.log.start_offset());
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
                let committed = self.committed.entry(replica.id).or_default();
                let known = *committed.entry(batch.base_offset).or_insert(seal);
                if known != seal {
                    let (topic, at) = (&replica.topic, batch.base_offset);
                    let index = replica.id.partition;
                    return Some(format!("node {id} has {seal:?} at {at} of {topic}-{index}, {known:?} is committed"));
                }
                *from = batch.next_offset();
                let end = self.ends.entry(replica.id).or_insert(*from);
                *end = (*end).max(*from);
            }
            if *from == before {
                return None;
            }
        }
        None
    }

    /// The newest metadata that any node has shown.
    pub(super) fn newest_image(&self) -> Option<Image> {
        self.images.last_key_value().map(|(_, (_, image))| image.clone())
    }

    /// Where what is known to be committed of a partition ends.
    pub(super) fn committed_end(&self, place: FollowedPartition) -> Offset {
        self.ends.get(&place).copied().unwrap_or(Offset::ZERO)
    }

    /// A batch was acknowledged.
    pub(super) fn acknowledged(&mut self, place: FollowedPartition, base: Offset, values: &[Value]) {
        self.acknowledged += values.len() as u64;
        for (offset, value) in (base.value()..).map(Offset).zip(values) {
            self.stands(place, offset, *value, "an acknowledgement");
        }
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
        for (offset, value) in found {
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
                Some(_) => count("leader elected"),
                None => count("leaderless"),
            }
        }
    }
}
