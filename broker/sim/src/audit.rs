//! Looks into a node and compares what its parts know with what its files say.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use gregor_log::{Disk, PartitionLog, ReadPlan, ReadRequest};
use gregor_metadata::ConfigResource;
use gregor_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId};
use gregor_wire::batch::{BatchError, split_batches};

use crate::{
    network::Place,
    node::{Node, Process},
    promises::{Existence, Promises, Value},
};

const READ_BYTES: u32 = 1 << 20;

/// What a walk over a log finds.
#[derive(Debug, Default)]
struct Found {
    values: BTreeMap<i64, Value>,
    /// What is behind it may be undone.
    stable: i64,
    epochs: Vec<(LeaderEpoch, Offset)>,
    producers: BTreeMap<ProducerId, (ProducerEpoch, i32)>,
}

/// Holds a running node to what was promised. `lost_power` says that topics that do not sync may have lost their end since the
/// last audit: the promises forget that.
pub fn audit(node: &Node, process: &Process, promises: &mut Promises, lost_power: bool) {
    let image = process.image();
    for (name, topic) in &promises.topics {
        let there = image.topics().by_name(name).is_some();
        let wrong = match topic.existence {
            Existence::There if !there => "was created and is not there",
            Existence::Gone if there => "was deleted and is there",
            _ => continue,
        };
        let wrong = format!("the topic {name} {wrong}");
        return promises.violated(wrong);
    }
    if let Some(wrong) = wrong_setting(process, promises) {
        return promises.violated(wrong);
    }
    for place in promises.places() {
        let Some(partition) = process.broker().partitions().get(&place) else {
            return promises.violated(format!("{place} is not served"));
        };
        let log = &partition.log;
        let rotten = promises.rotten_from(&place).map(Offset);
        match walk(node, log, rotten) {
            Ok(found) => {
                if lost_power && !promises.is_synced(&place.topic) {
                    promises.forget_from(&place, log.end_offset(), &found.values);
                }
                promises.check(&place, log.start_offset().value(), found.stable, &found.values);
                if let (Some(wrong), None) = (compare(log, &found), rotten) {
                    promises.violated(format!("{place}: {wrong}"));
                }
            }
            Err(error) => promises.violated(format!("{place} cannot be read: {error}")),
        }
    }
}

/// A topic's setting that is not as was acknowledged: as DescribeConfigs would say it, or in force in a partition.
pub fn wrong_setting(process: &Process, promises: &Promises) -> Option<String> {
    let image = process.image();
    let there = promises.topics.iter().filter(|(_, topic)| topic.existence == Existence::There);
    for (name, topic) in there {
        let resource = ConfigResource::topic(name.as_str());
        for (key, expected) in &topic.configs {
            let Some(value) = image.configs().get(&resource, key).map(ToString::to_string) else {
                if expected.iter().all(|value| !value.is_empty()) {
                    return Some(format!("{key} of {name} is not set, {expected:?} was"));
                }
                continue;
            };
            // Which value a topic was created with, nobody has written down.
            if !expected.contains(&value) && !expected.contains(&String::new()) {
                return Some(format!("{key} of {name} is {value}, and was set to one of {expected:?}"));
            }
            for partition in 0..topic.partitions {
                let held = process.broker().partitions().get(&Place { topic: name.clone(), partition })?;
                let in_force = held.setting(key);
                if in_force.as_ref().is_some_and(|in_force| *in_force != value) {
                    return Some(format!("{key} of {name} is {value}, and {in_force:?} is in force"));
                }
            }
        }
    }
    None
}

/// Reads a whole log from its files: a copy is opened, so that nothing of the node's own is moved.
/// Of a log that the disk has damaged, the copy is cut there.
fn walk(node: &Node, log: &PartitionLog, rotten: Option<Offset>) -> Result<Found, String> {
    let disk: Arc<dyn Disk> = Arc::new(node.disk.fork());
    let options = gregor_log::OpenOptions {
        topic_partition: log.topic_partition().clone(),
        config: Arc::clone(log.config()),
        recovery_point: Offset::ZERO,
        log_start_offset: log.start_offset(),
        cleaned_to: Offset::ZERO,
        clean: false,
        now: node.clock.wall(),
    };
    let directory: &Path = log.directory();
    let mut copy = PartitionLog::open(disk, directory.to_owned(), options).map_err(|error| error.to_string())?;
    let end = rotten.map_or(log.end_offset(), |rotten| rotten.min(log.end_offset()));
    if copy.end_offset() != log.end_offset() && copy.end_offset() < end {
        return Err(format!("it ends at {}, its files say {}", log.end_offset(), copy.end_offset()));
    }
    let mut found = Found { stable: copy.last_stable_offset(copy.end_offset()).value(), ..Found::default() };
    let (mut at, end) = (copy.start_offset(), copy.end_offset());
    let mut expected = None;
    while at < end {
        let request = ReadRequest { from: at, upper_bound: end, max_bytes: READ_BYTES, min_one_batch: true };
        let plan = copy.read(&request).and_then(ReadPlan::check).map_err(|error| error.to_string())?;
        let bytes = plan.read_all().map_err(|error| error.to_string())?;
        let before = at;
        for batch in split_batches(&bytes) {
            let batch = batch.map_err(|error: BatchError| error.to_string())?;
            batch.check_crc().map_err(|error| error.to_string())?;
            let is_due = |expected: &Offset| *expected != batch.base_offset && !log.config().compact;
            if let Some(expected) = expected.filter(is_due) {
                return Err(format!("offset {} stands where {expected} is due", batch.base_offset));
            }
            expected = Some(batch.next_offset());
            if found.epochs.last().is_none_or(|(epoch, _)| *epoch != batch.leader_epoch) {
                found.epochs.push((batch.leader_epoch, batch.base_offset.max(at)));
            }
            if batch.has_producer_id() && !batch.is_control() {
                found.producers.insert(batch.producer_id, (batch.producer_epoch, batch.last_sequence()));
            }
            for record in &batch.records(1 << 20).map_err(|error| error.to_string())? {
                let record = record.map_err(|error| error.to_string())?;
                if let (false, Some(value)) = (batch.is_control(), Value::of(&record))
                    && record.offset >= copy.start_offset()
                {
                    found.values.insert(record.offset.value(), value);
                }
            }
            at = batch.next_offset();
        }
        if at == before {
            // A log that is not compacted has no hole, not even at its end.
            if log.config().compact {
                break;
            }
            return Err(format!("nothing is read at {at} of {end}"));
        }
    }
    Ok(found)
}

/// What the running log knows against what was found; what it says beyond the log's begin is not looked at.
fn compare(log: &PartitionLog, found: &Found) -> Option<String> {
    let used = |(_, start): &&(LeaderEpoch, Offset)| *start < log.end_offset();
    let epochs: Vec<_> = log.epochs().iter().filter(used).copied().collect();
    // Where records were deleted, the epochs may know it although the log's start has come back by a crash.
    let begin = epochs.first().map_or(log.end_offset(), |(_, start)| *start);
    let mut expected: Vec<_> = found.epochs.clone();
    while expected.get(1).is_some_and(|(_, start)| *start <= begin) {
        expected.remove(0);
    }
    // Where an epoch began, the cleaner may have left nothing; nor need what it has left of one reach to the begin.
    if log.config().compact {
        expected.retain(|(_, start)| *start >= begin);
    } else if let Some((_, start)) = expected.first_mut() {
        *start = begin.max(*start);
    }
    let of = |at: Offset| epochs.iter().rev().find(|(_, start)| *start <= at).map(|(epoch, _)| *epoch);
    let fits = || expected.iter().all(|(epoch, start)| of(*start) == Some(*epoch));
    let is_known = if log.config().compact { fits() } else { epochs == expected };
    if !epochs.is_empty() && !is_known {
        return Some(format!("its epochs are {epochs:?}, its batches say {:?}", found.epochs));
    }
    for producer in log.active_producers() {
        let known = (producer.producer_epoch, producer.last_sequence);
        // What was deleted of a producer is remembered as long as the process lives.
        if let Some(replayed) = found.producers.get(&producer.producer_id)
            && *replayed != known
        {
            return Some(format!(
                "it knows {known:?} of producer {}, its batches say {replayed:?}",
                producer.producer_id
            ));
        }
    }
    let forgotten = found.producers.keys().find(|id| log.active_producers().all(|known| known.producer_id != **id));
    forgotten.map(|id| format!("it has forgotten producer {id}"))
}
