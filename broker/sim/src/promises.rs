//! What clients were promised, and what they were shown: the simple model that the nodes are held to.
//!
//! Clients write down here what was acknowledged. A process that dies takes nothing of it; a machine that loses power takes only
//! what stands in topics that do not sync before they acknowledge, and of those only the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use gregor_types::Offset;
use gregor_wire::batch::RecordView;

use crate::{network::Place, node::OFFSETS_TOPIC};

/// How many keys there are in a compacted topic: few, so that each soon has a newer record.
const KEYS: u64 = 7;
/// One record of so many deletes its key.
const DELETES_ONE_OF: u64 = 11;
/// The header that says of every record of a compacted topic who made it: what deletes a key has no value to say so.
pub const MADE_BY: &str = "made by";

/// A record, by who made it and when in that client's life. In a compacted topic, its key follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    /// The client.
    pub client: usize,
    /// Counts its records.
    pub number: u64,
}

/// Whether a topic is there, as far as those know who asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existence {
    /// Creating it was acknowledged.
    There,
    /// Deleting it was asked for and not answered.
    Leaving,
    /// Deleting it was acknowledged.
    Gone,
}

/// How a transaction stands that a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transaction {
    /// Nobody has decided.
    Open,
    /// It is to be aborted, or is.
    Aborted,
    /// It is to be committed, or is.
    Committed,
}

/// A topic's part.
#[derive(Debug)]
pub struct Topic {
    /// Whether it is there.
    pub existence: Existence,
    /// Whether only the newest record of each key is kept.
    pub compacted: bool,
    /// Whether its acknowledgements wait for the disk.
    pub synced: bool,
    /// Whether only so many bytes of it are kept.
    pub limited: bool,
    /// How many partitions it has.
    pub partitions: i32,
    /// What its settings that were changed may be: the acknowledged value, then those not answered.
    pub configs: BTreeMap<&'static str, Vec<String>>,
}

/// A partition's part.
#[derive(Debug, Default)]
struct Records {
    /// What stands at which offset: acknowledged to its producer, or shown to a consumer.
    known: BTreeMap<i64, Value>,
    /// What was sent to delete a key, whether or not it was acknowledged.
    deletions: BTreeSet<Value>,
    /// The highest start that was asked for.
    start_asked: i64,
    /// Where the log began when the node stopped cleanly the last time.
    start_kept: i64,
    /// The first offset of the first batch that the disk has damaged: from there on nothing is promised, but that no reader is
    /// given what is damaged.
    rotten_from: Option<i64>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Promises {
    /// Topics by name; no name is used twice.
    pub topics: BTreeMap<String, Topic>,
    /// How the transactions of transactional records stand.
    pub transactions: BTreeMap<Value, Transaction>,
    /// How often power was lost.
    pub power_losses: u64,
    /// How often a process stopped cleanly.
    pub clean_stops: u64,
    /// How many records were acknowledged.
    pub acknowledged_count: u64,
    records: BTreeMap<Place, Records>,
    /// Offsets that a group may have committed for a partition: the acknowledged one, then those not answered. -1 for none.
    offsets: BTreeMap<(String, Place), Vec<i64>>,
    violation: Option<String>,
    generations: BTreeMap<String, Generation>,
    /// How many members of groups were given their partitions.
    pub assignments_count: u64,
}

/// The latest generation of a group in which a member was given its partitions.
#[derive(Debug, Default)]
struct Generation {
    number: i32,
    owners: BTreeMap<Place, String>,
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.client, self.number)
    }
}

impl Value {
    /// What a record's value says.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (client, number) = std::str::from_utf8(bytes).ok()?.split_once('-')?;
        Some(Self { client: client.parse().ok()?, number: number.parse().ok()? })
    }

    /// What a record says of itself.
    pub fn of(record: &RecordView<'_>) -> Option<Self> {
        let made_by = || record.headers.iter().find(|header| header.key == MADE_BY.as_bytes())?.value;
        record.value.or_else(made_by).and_then(Self::parse)
    }

    /// Its key, in a compacted topic.
    pub const fn key(self) -> u64 {
        self.number % KEYS
    }

    /// Whether it deletes its key, in a compacted topic.
    pub const fn deletes(self) -> bool {
        self.number.is_multiple_of(DELETES_ONE_OF)
    }
}

impl Promises {
    /// Something is not as it was promised. The first one counts.
    pub fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// What was violated, if anything was.
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Whether a topic is there for sure.
    pub fn is_there(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|topic| topic.existence == Existence::There)
    }

    /// Whether a topic syncs before it acknowledges.
    pub fn is_synced(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|topic| topic.synced)
    }

    /// Whether only the newest record of each key is kept of a topic: its offsets have gaps then.
    pub fn is_compacted(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|topic| topic.compacted)
    }

    /// Whether a topic keeps so many bytes only.
    pub fn is_limited(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|topic| topic.limited)
    }

    /// Somebody asks for another value of a topic's setting. One that was never changed may still be as it was: an empty text.
    pub fn configured(&mut self, topic: &str, key: &'static str, value: &str) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.configs.entry(key).or_insert_with(|| vec![String::new()]).push(value.to_owned());
        }
    }

    /// Another value of a topic's setting is acknowledged.
    pub fn set_configured(&mut self, topic: &str, key: &'static str, value: String) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.configs.insert(key, vec![value]);
        }
    }

    /// Somebody deletes a topic. What it held is of no more interest.
    pub fn set_existence(&mut self, topic: &str, existence: Existence) {
        if let Some(known) = self.topics.get_mut(topic) {
            known.existence = existence;
        }
        self.records.retain(|place, _| place.topic != topic);
        self.offsets.retain(|(_, place), _| place.topic != topic);
    }

    /// The partitions of topics that are there.
    pub fn places(&self) -> Vec<Place> {
        let there = self.topics.iter().filter(|(_, topic)| topic.existence == Existence::There);
        let places = there
            .flat_map(|(name, topic)| (0..topic.partitions).map(|partition| Place { topic: name.clone(), partition }));
        places.collect()
    }

    /// Those that clients write to: not the brokers' own; if asked, only those that sync before they acknowledge.
    pub fn places_for_data(&self, synced: bool) -> Vec<Place> {
        let mut places = self.places();
        places.retain(|place| !place.topic.starts_with('_') && (!synced || self.is_synced(&place.topic)));
        places
    }

    /// Somebody sends these: from now on they may delete their keys.
    pub fn sent(&mut self, place: &Place, values: &[Value]) {
        if self.is_compacted(&place.topic) {
            let deletions = values.iter().copied().filter(|value| value.deletes());
            self.records.entry(place.clone()).or_default().deletions.extend(deletions);
        }
    }

    /// A batch is acknowledged.
    pub fn acknowledged(&mut self, place: &Place, base: Offset, values: &[Value]) {
        self.acknowledged_count += values.len() as u64;
        if self.is_there(&place.topic) {
            for (offset, value) in (base.value()..).zip(values) {
                self.stands(place, offset, *value, "an acknowledgement");
            }
        }
    }

    /// A record stands at an offset, says an acknowledgement or a read.
    pub fn stands(&mut self, place: &Place, offset: i64, value: Value, who: &str) {
        let records = self.records.entry(place.clone()).or_default();
        if let Some(known) = records.known.insert(offset, value)
            && known != value
            && records.rotten_from.is_none_or(|rotten| offset < rotten)
        {
            self.violated(format!("{who}: {place} has {value} at {offset}, where {known} was"));
        }
    }

    /// The last offset of which anything is known.
    pub fn last_known(&self, place: &Place) -> Option<i64> {
        self.records.get(place)?.known.last_key_value().map(|(offset, _)| *offset)
    }

    /// The disk has lost bits of the batch that begins here.
    pub fn rots(&mut self, place: &Place, base: i64) {
        let rotten = &mut self.records.entry(place.clone()).or_default().rotten_from;
        *rotten = Some(rotten.map_or(base, |known| known.min(base)));
    }

    /// Where the disk has damaged a log, if it has.
    pub fn rotten_from(&self, place: &Place) -> Option<i64> {
        self.records.get(place)?.rotten_from
    }

    /// The node stopped cleanly: where a log begins is known for sure.
    pub fn stopped_with_start(&mut self, place: &Place, start: i64) {
        let records = self.records.entry(place.clone()).or_default();
        records.start_kept = records.start_kept.max(start);
    }

    /// Somebody asks for a later start of a log.
    pub fn start_asked(&mut self, place: &Place, start: i64) {
        let records = self.records.entry(place.clone()).or_default();
        records.start_asked = records.start_asked.max(start);
    }

    /// A record was shown to a reader of committed records only.
    pub fn shown_as_committed(&mut self, place: &Place, offset: i64, value: Value) {
        // A marker may be among what a recovery has cut off with the damage.
        let rotten = self.rotten_from(place).is_some();
        let state = self.transactions.get(&value).copied().filter(|_| !rotten);
        if let Some(state @ (Transaction::Open | Transaction::Aborted)) = state {
            self.violated(format!("{place}: {value} at {offset} is shown as committed, its transaction is {state:?}"));
        }
    }

    /// What a group may have committed for a partition.
    pub fn committed(&mut self, group: &str, place: &Place) -> &mut Vec<i64> {
        self.offsets.entry((group.to_owned(), place.clone())).or_insert_with(|| vec![-1])
    }

    /// Whether what the groups' coordinator answered may be lost: power was, and its topic does not sync.
    pub fn groups_may_be_lost(&self) -> bool {
        self.power_losses > 0 && !self.is_synced(OFFSETS_TOPIC)
    }

    /// A member of a group hears which partitions are its own in a generation.
    pub fn assigned(&mut self, group: &str, number: i32, member: &str, places: &[Place]) {
        self.assignments_count += 1;
        let may_be_lost = self.groups_may_be_lost();
        let latest = self.generations.entry(group.to_owned()).or_default();
        if number < latest.number && !may_be_lost {
            let wrong = format!("{group} gives {member} partitions in generation {number} after {}", latest.number);
            return self.violated(wrong);
        }
        if number != latest.number {
            *latest = Generation { number, owners: BTreeMap::new() };
        }
        for place in places {
            let before = latest.owners.insert(place.clone(), member.to_owned());
            if let Some(before) = before.filter(|before| before != member && !may_be_lost) {
                let wrong = format!("{place} is given to {before} and to {member} in generation {number} of {group}");
                return self.violated(wrong);
            }
        }
    }

    /// The machine lost power: of a topic that does not sync, what is behind `end` now is lost. Of one that is compacted, more of what
    /// was not on the disk may be: a segment's name may be there without what stood before it.
    pub fn forget_from(&mut self, place: &Place, end: Offset, found: &BTreeMap<i64, Value>) {
        let is_compacted = self.is_compacted(&place.topic);
        if let Some(records) = self.records.get_mut(place) {
            records.known.split_off(&end.value());
            records.known.retain(|offset, _| !is_compacted || found.contains_key(offset));
        }
    }

    /// All that must be between a log's start and its end is there, each record once, each producer's in order. From `stable` on
    /// nothing is compacted.
    pub fn check(&mut self, place: &Place, start: i64, stable: i64, found: &BTreeMap<i64, Value>) {
        if let Some(wrong) = self.wrong(place, start, stable, found) {
            self.violated(wrong);
        }
    }

    fn wrong(&self, place: &Place, start: i64, stable: i64, found: &BTreeMap<i64, Value>) -> Option<String> {
        let (mut last, mut seen) = (BTreeMap::new(), BTreeSet::new());
        for (offset, value) in found {
            if !seen.insert(*value) {
                return Some(format!("{place} has {value} twice, the second time at {offset}"));
            }
            if last.insert(value.client, value.number).is_some_and(|last| last > value.number) {
                return Some(format!("{place} has {value} at {offset} behind a later one of the same producer"));
            }
        }
        let records = self.records.get(place)?;
        if start > records.start_asked && !self.is_limited(&place.topic) {
            return Some(format!("{place} begins at {start}, nobody asked for more than {}", records.start_asked));
        }
        if start < records.start_kept && records.rotten_from.is_none() {
            return Some(format!("{place} begins at {start}, a clean stop left it at {}", records.start_kept));
        }
        let end = records.rotten_from.unwrap_or(i64::MAX).max(start);
        let may_be_gone = self.what_compaction_may_take(place, records, stable, found);
        let is_wrong = |(offset, value): &(&i64, &Value)| match found.get(offset) {
            Some(there) => there != *value,
            None => !may_be_gone(**offset, **value),
        };
        let (offset, value) = records.known.range(start..end).find(is_wrong)?;
        let there = found.get(offset).map_or("nothing".to_owned(), ToString::to_string);
        Some(format!("{place} had {value} at {offset}, and {there} is there now"))
    }

    /// What of a compacted log need not be there: it was aborted, or a newer record has its key, or its key was deleted. Only what is
    /// stable makes an older record go, and goes.
    fn what_compaction_may_take(
        &self,
        place: &Place,
        records: &Records,
        stable: i64,
        found: &BTreeMap<i64, Value>,
    ) -> impl Fn(i64, Value) -> bool {
        let is_compacted = self.is_compacted(&place.topic);
        // What took the place of an older record may have been cut off with the damage behind it, or been lost with the power where the
        // topic does not sync.
        let is_cut = records.rotten_from.is_some() || (self.power_losses > 0 && !self.is_synced(&place.topic));
        let is_aborted = |value: &Value| self.transactions.get(value) == Some(&Transaction::Aborted);
        let mut newest = BTreeMap::new();
        for (offset, value) in found.range(..stable).filter(|(_, value)| !is_aborted(value)) {
            newest.insert(value.key(), *offset);
        }
        // What deleted a key may itself be gone: then nobody but who sent it knows of it.
        let known: BTreeMap<Value, i64> = records.known.iter().map(|(offset, value)| (*value, *offset)).collect();
        for value in records.deletions.iter().filter(|value| !is_aborted(value)) {
            let at = known.get(value).copied().unwrap_or(i64::MAX);
            newest.entry(value.key()).and_modify(|newest| *newest = at.max(*newest)).or_insert(at);
        }
        let aborted: BTreeSet<Value> = known.into_keys().filter(is_aborted).collect();
        move |offset, value| {
            let is_superseded = newest.get(&value.key()).is_some_and(|newest| *newest > offset);
            is_compacted
                && (is_cut || (offset < stable && (value.deletes() || is_superseded || aborted.contains(&value))))
        }
    }
}
