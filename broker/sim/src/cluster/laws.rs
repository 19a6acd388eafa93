//! What every image of the metadata keeps to, and every step from one to the next, whatever happens: the controller's part of what a cluster is held to.

use std::collections::{BTreeMap, BTreeSet};

use gregor_metadata::{ConfigResource, Image, LeaderRecoveryState, Partition, Topic};
use gregor_replication::FollowedPartition;
use gregor_types::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionIndex};

use super::ledger::UNCLEAN_TOPIC;

const MIN_IN_SYNC_REPLICAS: &str = "min.insync.replicas";

/// The first law that an image breaks, if it breaks any.
pub(super) fn broken_law(image: &Image) -> Option<String> {
    let keeps_eligible = image.features().has_eligible_leader_replicas();
    image.topics().iter().find_map(|topic| {
        topic.partitions().find_map(|(index, partition)| {
            // The last known eligible leader may be elected all the same (KIP-966).
            let may_recover = keeps_eligible || topic.name.starts_with(UNCLEAN_TOPIC);
            let recovers = partition.leader_recovery == LeaderRecoveryState::Recovering;
            let is_active = |broker: &BrokerId| image.cluster().is_active(*broker);
            // Who has not told yet on which disk it has its replica leads nothing (KIP-858).
            let is_here = |broker: &BrokerId| {
                let known = image.cluster().broker(*broker).zip(partition.directory_of(*broker));
                known.is_some_and(|(broker, directory)| broker.has_online_directory(directory))
            };
            let law = broken_by(partition, keeps_eligible, &is_active, &is_here)
                .or((recovers && !may_recover).then_some("is led by who may lack records"))?;
            Some(format!("{}-{index} {law}: {partition:?}", topic.name))
        })
    })
}

/// The first law that what became of a partition between two images breaks, where one change led from the one to the other: with fewer in
/// sync than a record needs to be acknowledged, whoever had everything still has, and may lead (KIP-966).
pub(super) fn broken_passage(before: &Image, after: &Image) -> Option<String> {
    if !before.features().has_eligible_leader_replicas() || !after.features().has_eligible_leader_replicas() {
        return None;
    }
    after.topics().iter().filter(|topic| !topic.name.starts_with(UNCLEAN_TOPIC)).find_map(|topic| {
        // Where that is changed the controller forgets who is eligible, also where it comes to the same number of replicas.
        let wanted = min_isr(after, topic).filter(|wanted| Some(*wanted) == min_isr(before, topic))?;
        // As Kafka does, the controller takes all partitions to have as many replicas as the first one.
        let replicas = |topic: &Topic| topic.partition(PartitionIndex(0)).map(|first| first.replicas.len());
        let wanted = wanted.min(replicas(topic)?).min(replicas(before.topics().by_id(topic.id)?)?);
        topic.partitions().find_map(|(index, now)| {
            let then = before.topics().partition(topic.id, index)?;
            let forgotten = forgotten(then, now, wanted, &|broker| {
                let registered = |image: &Image| image.cluster().broker(broker).map(|registered| registered.epoch);
                registered(before) == registered(after)
            })?;
            let Topic { name, .. } = &**topic;
            Some(format!("{forgotten} has all of {name}-{index}, and is not eligible: {then:?} became {now:?}"))
        })
    })
}

/// Who is to be in sync, by what leaders have proposed on a state of a partition: which life of which broker.
pub(super) type Proposed = BTreeMap<(FollowedPartition, LeaderEpoch, i32), BTreeSet<(BrokerId, BrokerEpoch)>>;

/// A broker that has joined the in-sync replicas of a leader that stays, and in another life than the leader has proposed: it may have lost
/// meanwhile what made it in sync (KIP-903).
pub(super) fn joined_in_another_life(before: &Image, after: &Image, proposed: &Proposed) -> Option<String> {
    after.topics().iter().find_map(|topic| {
        topic.partitions().find_map(|(partition, now)| {
            let then = before.topics().partition(topic.id, partition)?;
            let is_one_change = now.partition_epoch == then.partition_epoch + 1 && now.leader == then.leader;
            let place = FollowedPartition { topic_id: topic.id, partition };
            let lives = proposed.get(&(place, then.leader_epoch, then.partition_epoch));
            let is_known = |broker: &BrokerId| {
                let registered = |image: &Image| image.cluster().broker(*broker).map(|registered| registered.epoch);
                let mut lived = [before, after].into_iter().filter_map(registered);
                lived.any(|life| lives.is_some_and(|lives| lives.contains(&(*broker, life))))
            };
            let mut joined = now.isr.iter().filter(|broker| !then.isr.contains(broker));
            let stranger = joined.find(|broker| is_one_change && now.leader.is_some() && !is_known(broker))?;
            let name = &topic.name;
            Some(format!("{stranger} has joined {name}-{partition} in another life than was proposed: {lives:?}"))
        })
    })
}

/// How many have to be in sync, where the topic says so.
fn min_isr(image: &Image, topic: &Topic) -> Option<usize> {
    let wanted = image.configs().get(&ConfigResource::topic(topic.name.clone()), MIN_IN_SYNC_REPLICAS)?;
    wanted.trim().parse().ok()
}

/// Who had everything before the one change that made a partition what it is now, and should be eligible, and is not.
fn forgotten(
    then: &Partition,
    now: &Partition,
    min_isr: usize,
    is_same_life: &dyn Fn(BrokerId) -> bool,
) -> Option<BrokerId> {
    let is_clean = now.leader_recovery == LeaderRecoveryState::Recovered;
    if now.partition_epoch != then.partition_epoch + 1 || now.isr.len() >= min_isr || !is_clean {
        return None;
    }
    let mut had_everything = then.isr.iter().chain(&then.elr).copied();
    had_everything.find(|broker| {
        let may_lead = now.isr.contains(broker) || now.elr.contains(broker);
        now.replicas.contains(broker) && is_same_life(*broker) && !may_lead
    })
}

fn broken_by(
    partition: &Partition,
    keeps_eligible: bool,
    is_active: &dyn Fn(&BrokerId) -> bool,
    is_here: &dyn Fn(&BrokerId) -> bool,
) -> Option<&'static str> {
    let Partition { replicas, isr, elr, last_known_elr, adding, removing, .. } = partition;
    let are_replicas = |brokers: &[BrokerId]| {
        let is_new_replica =
            |(place, broker): (usize, &BrokerId)| replicas.contains(broker) && !brokers[..place].contains(broker);
        brokers.iter().enumerate().all(is_new_replica)
    };
    if ![isr, elr, adding, removing].into_iter().all(|brokers| are_replicas(brokers)) {
        return Some("names brokers that hold no replica, or names one twice");
    }
    if elr.iter().any(|eligible| isr.contains(eligible)) {
        return Some("has a replica that is in sync and eligible");
    }
    if isr.is_empty() && !keeps_eligible {
        return Some("has nobody in sync");
    }
    if isr.is_empty() && elr.is_empty() && last_known_elr.is_empty() {
        return Some("can be led by nobody ever again");
    }
    // Without eligible leader replicas the last in-sync replica stays one, led by nobody.
    let stays = !keeps_eligible && isr.len() == 1 && partition.leader.is_none();
    if !stays && !isr.iter().all(is_active) {
        return Some("counts as in sync who is fenced or on its way down");
    }
    let mut candidates = if isr.is_empty() { elr } else { isr }.iter();
    match partition.leader {
        Some(leader) if !isr.contains(&leader) || !is_active(&leader) => {
            Some("is led by who is not in sync, or is fenced or on its way down")
        }
        None if candidates.any(|broker| is_active(broker) && is_here(broker)) => {
            Some("is led by nobody, and somebody could lead it")
        }
        _ => None,
    }
}
