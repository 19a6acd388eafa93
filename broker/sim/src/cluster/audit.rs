//! Looks into a cluster as a whole: whether it has come to rest, and what stands in the files of its nodes.

use std::{collections::BTreeMap, path::Path};

use gregor_log::{Disk, disk::read_file};
use gregor_metadata::Image;
use gregor_replication::FollowedPartition;
use gregor_types::{BrokerId, LeaderEpoch, Offset};
use gregor_wire::batch::split_batches;

use super::{ledger::Ledger, machine::Machine, process::Process, replica::Replica};
use crate::{node::DIRECTORY, promises::Value};

const FILE_BYTES_MAX: usize = 64 << 20;
const DECOMPRESSED_BYTES_MAX: usize = 1 << 20;

/// The nodes of a cluster.
pub(super) type Machines = BTreeMap<BrokerId, Machine>;

/// Why a cluster is not at rest yet, if it is not: every node runs, all know one leader and the same metadata, and every replica of
/// every partition is in sync and has all that is committed, of which something was written after all was well again.
pub(super) fn unrest(machines: &Machines, ledger: &Ledger) -> Option<String> {
    let mut processes = Vec::new();
    for (id, machine) in machines {
        match &machine.process {
            Some(process) if !process.is_stopping() => processes.push((*id, process)),
            _ => return Some(format!("node {id} does not run")),
        }
    }
    let (_, first) = processes.first()?;
    let (leader, image) = (first.leader(), first.image());
    let Some(controller) = leader.leader else { return Some("nobody leads the quorum".to_owned()) };
    for (id, process) in &processes {
        if process.leader().epoch != leader.epoch || process.leader().leader != leader.leader {
            return Some(format!("node {id} knows of another leader: {:?}", process.leader()));
        }
        if process.image().position != image.position {
            return Some(format!("node {id} is at {:?} of the metadata", process.image().position));
        }
        if !process.is_running() {
            return Some(format!("broker {id} is fenced"));
        }
    }
    if machines.get(&controller).and_then(|machine| machine.process.as_ref()?.leads_in()) != Some(leader.epoch) {
        return Some(format!("node {controller} is not the active controller of epoch {}", leader.epoch));
    }
    if let Some(topic) = ledger.topics().find(|topic| image.topics().by_name(topic).is_none()) {
        return Some(format!("the topic {topic} was created and is not there"));
    }
    for topic in image.topics().iter() {
        for (index, partition) in topic.partitions() {
            let name = format!("{}-{index}", topic.name);
            if partition.leader.is_none() || partition.isr.len() < partition.replicas.len() {
                return Some(format!("{name} is led by {:?}, in sync are {:?}", partition.leader, partition.isr));
            }
            if !partition.adding.is_empty() || !partition.removing.is_empty() {
                return Some(format!("{name} is being moved"));
            }
            let id = FollowedPartition { topic_id: topic.id, partition: index };
            if !ledger.is_alive(id) && !ledger.may_be_gone(topic.id) {
                return Some(format!("{name} has taken nothing since all is well"));
            }
            let replicas = partition.replicas.iter().map(|broker| replica(&processes, *broker, id));
            let ends: Vec<_> =
                replicas.map(|replica| Some((replica?.high_watermark(), replica?.log.end_offset()))).collect();
            if ends.iter().any(|end| end.is_none_or(|(mark, end)| mark != end) || *end != ends[0]) {
                return Some(format!("{name} is at {ends:?} on {:?}", partition.replicas));
            }
        }
    }
    None
}

/// Whether any node takes this one for a voter.
pub(super) fn votes(machines: &Machines, id: BrokerId) -> bool {
    let mut processes = machines.values().filter_map(|machine| machine.process.as_ref());
    processes.any(|process| process.quorum().history().voters().voter(id).is_some())
}

fn replica<'p>(processes: &[(BrokerId, &'p Process)], broker: BrokerId, id: FollowedPartition) -> Option<&'p Replica> {
    let (_, process) = processes.iter().find(|(node, _)| *node == broker)?;
    process.replicas.as_ref()?.held.get(id)
}

/// Compares what a running node's metadata log has in its files, as far as that node knows it to be committed, with the others'.
pub(super) fn audit_metadata(machine: &Machine, ledger: &mut Ledger) {
    let Some(process) = &machine.process else { return };
    let (id, last) = (machine.identity.id, process.image().position.last_offset);
    // Nothing of what the node's own disk is made to do happens to a copy.
    let disk = machine.disk.fork();
    let folder = Path::new(DIRECTORY).join("__cluster_metadata-0");
    let Ok(files) = disk.list(&folder) else { return };
    let is_log = |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "log");
    for file in files.iter().filter(|file| is_log(&file.name)) {
        let Ok(content) = read_file(&disk, &folder.join(&file.name), FILE_BYTES_MAX) else { continue };
        for batch in split_batches(&content).map_while(Result::ok) {
            if batch.last_offset() > last {
                break;
            }
            ledger.metadata_has(id, &batch);
        }
    }
}

/// Every replica that the newest metadata takes for in sync, or for eligible, has all that is committed: any of them may lead next. One whose broker has not
/// registered in this life is not looked at: it may have lost what it had, and is not in sync any more once it says so.
pub(super) fn audit_in_sync(machines: &Machines, ledger: &mut Ledger) {
    let Some(image) = ledger.newest_image() else { return };
    for topic in image.topics().iter() {
        for (index, _) in topic.partitions() {
            audit_members(machines, &image, FollowedPartition { topic_id: topic.id, partition: index }, ledger);
        }
    }
}

/// The same, where it may have changed since it was looked at.
pub(super) fn audit_moved(machines: &Machines, ledger: &mut Ledger) {
    let (is_newer, moved) = ledger.take_moved();
    if is_newer {
        return audit_in_sync(machines, ledger);
    }
    if moved.is_empty() {
        return;
    }
    let Some(image) = ledger.newest_image() else { return };
    for id in moved {
        audit_members(machines, &image, id, ledger);
    }
}

fn audit_members(machines: &Machines, image: &Image, id: FollowedPartition, ledger: &mut Ledger) {
    let Some(partition) = image.topics().partition(id.topic_id, id.partition) else { return };
    let committed = ledger.committed_end(id);
    for member in partition.isr.iter().chain(&partition.elr) {
        let Some(process) = machines.get(member).and_then(|machine| machine.process.as_ref()) else { continue };
        let registered = image.cluster().broker(*member).map(|broker| broker.epoch);
        let replica = process.replicas.as_ref().and_then(|replicas| replicas.held.get(id));
        if let Some(replica) = replica
            && registered == Some(process.broker_epoch())
            && replica.log.end_offset() < committed
        {
            let (name, end) = (ledger.name(id), replica.log.end_offset());
            ledger.violated(format!(
                "{member} may lead {name} with {end} of {committed} that are committed: in sync are {:?}, eligible {:?}",
                partition.isr, partition.elr
            ));
        }
    }
}

/// Holds every replica that there is to what was acknowledged and shown.
pub(super) fn audit_records(machines: &mut Machines, ledger: &mut Ledger) {
    audit_unclean(machines, ledger);
    for place in ledger.places() {
        let mut held = 0;
        for (id, machine) in machines.iter_mut() {
            let replicas = machine.process.as_mut().and_then(|process| process.replicas.as_mut());
            let Some(replica) = replicas.and_then(|replicas| replicas.held.reading(place)) else { continue };
            held += 1;
            match records(replica, ledger.deleted(place)) {
                Ok(found) => ledger.hold(*id, place, replica.log.start_offset(), &found),
                Err(error) => ledger.violated(format!("{} at {id} cannot be read: {error}", ledger.name(place))),
            }
        }
        if held == 0 {
            let name = ledger.name(place);
            ledger.violated(format!("{name} is nowhere"));
        }
    }
}

/// Of a partition that has allowed unclean elections all replicas have the same, whatever that is.
fn audit_unclean(machines: &mut Machines, ledger: &mut Ledger) {
    let Some(image) = ledger.newest_image() else { return };
    let places = image.topics().iter().flat_map(|topic| {
        topic.partitions().map(move |(partition, _)| FollowedPartition { topic_id: topic.id, partition })
    });
    let unclean: Vec<_> = places.filter(|place| ledger.is_unclean(*place)).collect();
    for place in unclean {
        let mut first = None;
        for (id, machine) in machines.iter_mut() {
            let replicas = machine.process.as_mut().and_then(|process| process.replicas.as_mut());
            let Some(replica) = replicas.and_then(|replicas| replicas.held.reading(place)) else { continue };
            let found = records(replica, Offset::ZERO);
            let (other, known) = first.get_or_insert_with(|| (*id, found.clone()));
            if let Err(error) = &found {
                ledger.violated(format!("{} at {id} cannot be read: {error}", ledger.name(place)));
            } else if found != *known {
                ledger.violated(format!("{} has {found:?} at {id}, and {known:?} at {other}", ledger.name(place)));
            }
        }
    }
}

/// All records of a replica, of which it knows where each leader epoch begins, and the last sequence of each producer. Somebody has asked for all before
/// `deleted` to go: of that it may know less, also where a crash has brought it back.
fn records(replica: &mut Replica, deleted: Offset) -> Result<BTreeMap<Offset, Value>, String> {
    let mut found = BTreeMap::new();
    let mut begins: Vec<(LeaderEpoch, Offset)> = Vec::new();
    let mut sequences = BTreeMap::new();
    let (mut at, end) = (replica.log.start_offset(), replica.log.end_offset());
    while at < end {
        let bytes = replica.bytes(at, end).map_err(|error| error.to_string())?;
        let before = at;
        for batch in split_batches(&bytes) {
            let Ok(batch) = batch else { break };
            batch.check_crc().map_err(|error| error.to_string())?;
            if batch.base_offset > at {
                return Err(format!("{} stands where {at} is due", batch.base_offset));
            }
            if begins.last().is_none_or(|(epoch, _)| *epoch != batch.leader_epoch) {
                begins.push((batch.leader_epoch, batch.base_offset));
            }
            sequences.insert(batch.producer_id, batch.base_sequence + batch.records_count - 1);
            for record in &batch.records(DECOMPRESSED_BYTES_MAX).map_err(|error| error.to_string())? {
                let record = record.map_err(|error| error.to_string())?;
                if let Some(value) = record.value.and_then(Value::parse) {
                    found.insert(record.offset, value);
                }
            }
            at = batch.next_offset();
        }
        if at == before {
            return Err(format!("nothing is read at {at} of {end}"));
        }
    }
    for (index, (epoch, _)) in begins.iter().enumerate() {
        let due = begins.get(index + 1).map_or(end, |(_, next)| *next);
        let known = replica.log.end_offset_for_epoch(*epoch);
        if due > deleted && (known.leader_epoch, known.end_offset) != (*epoch, due) {
            return Err(format!("epoch {epoch} ends at {due}, and it is known for {known:?}"));
        }
    }
    let known = replica.log.active_producers().map(|producer| (producer.producer_id, producer.last_sequence));
    let known: BTreeMap<_, _> = known.collect();
    let forgets = sequences.iter().any(|(producer, last)| known.get(producer) != Some(last));
    // A producer whose batches are all deleted may be known yet.
    if forgets || (deleted == Offset::ZERO && known.len() > sequences.len()) {
        return Err(format!("the producers' last sequences are {sequences:?}, and they are known for {known:?}"));
    }
    Ok(found)
}
