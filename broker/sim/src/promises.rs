//! What clients were promised, and what they were shown: the simple model that the nodes are held to.
//!
//! Clients write down here what was acknowledged. A process that dies takes nothing of it; a machine that loses power takes only
//! what stands in topics that do not sync before they acknowledge, and of those only the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use gregor_types::Offset;

use crate::{network::Place, node::OFFSETS_TOPIC};

/// A record, by who made it and when in that client's life.
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
    pub fn is_compacted(topic: &str) -> bool {
        topic == OFFSETS_TOPIC
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

    /// The machine lost power: of a topic that does not sync, what is behind `end` now is lost.
    pub fn forget_from(&mut self, place: &Place, end: Offset) {
        if let Some(records) = self.records.get_mut(place) {
            records.known.split_off(&end.value());
        }
    }

    /// All that must be between a log's start and its end is there, each record once, each producer's in order.
    pub fn check(&mut self, place: &Place, start: i64, found: &BTreeMap<i64, Value>) {
        if let Some(wrong) = self.wrong(place, start, found) {
            self.violated(wrong);
        }
    }

    fn wrong(&self, place: &Place, start: i64, found: &BTreeMap<i64, Value>) -> Option<String> {
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
        let (offset, value) =
            records.known.range(start..end).find(|(offset, value)| found.get(offset) != Some(value))?;
        let there = found.get(offset).map_or("nothing".to_owned(), ToString::to_string);
        Some(format!("{place} had {value} at {offset}, and {there} is there now"))
    }
}
