//! What every image of the metadata keeps to, whatever happens: the controller's part of what a cluster is held to.

use gregor_metadata::{Image, LeaderRecoveryState, Partition};
use gregor_types::BrokerId;

/// The first law that an image breaks, if it breaks any.
pub(super) fn broken_law(image: &Image) -> Option<String> {
    let keeps_eligible = image.features().has_eligible_leader_replicas();
    image.topics().iter().find_map(|topic| {
        topic.partitions().find_map(|(index, partition)| {
            let law = broken_by(partition, keeps_eligible, &|broker| image.cluster().is_active(*broker))?;
            Some(format!("{}-{index} {law}: {partition:?}", topic.name))
        })
    })
}

fn broken_by(
    partition: &Partition,
    keeps_eligible: bool,
    is_active: &dyn Fn(&BrokerId) -> bool,
) -> Option<&'static str> {
    let Partition { replicas, isr, elr, adding, removing, .. } = partition;
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
    // Without eligible leader replicas the last in-sync replica stays one, led by nobody.
    let stays = !keeps_eligible && isr.len() == 1 && partition.leader.is_none();
    if !stays && !isr.iter().all(is_active) {
        return Some("counts as in sync who is fenced or on its way down");
    }
    let mut candidates = if isr.is_empty() { elr } else { isr }.iter();
    match partition.leader {
        Some(leader) if !isr.contains(&leader) || !is_active(&leader) => {
            return Some("is led by who is not in sync, or is fenced or on its way down");
        }
        None if candidates.any(is_active) => return Some("is led by nobody, and somebody could lead it"),
        _ => {}
    }
    // Nobody allows unclean elections here. The last known eligible leader may be elected all the same (KIP-966).
    let recovers = partition.leader_recovery == LeaderRecoveryState::Recovering;
    (recovers && !keeps_eligible).then_some("is led by who may lack records")
}
