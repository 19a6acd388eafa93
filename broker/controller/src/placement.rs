//! On which brokers the replicas of new partitions go: spread over racks, then over brokers (`StripedReplicaPlacer`).
//!
//! Brokers are dealt round-robin over their racks, so that neighbours in the list are in different racks wherever possible; partition
//! `n` begins `n` places after a random start, and its replicas are the next ones. Each pass through all brokers shifts the followers
//! by one more place, so that no two brokers share all their partitions. Fenced brokers come last, and never first.

use std::collections::{BTreeMap, VecDeque};

use gregor_metadata::{BrokerRegistration, Image};
use gregor_types::{BrokerId, ErrorCode, KString};

use crate::Refusal;

/// The replicas of `count` new partitions, the first of which is partition `first` of its topic.
pub(crate) fn place(
    image: &Image,
    random: &mut dyn FnMut() -> u64,
    first: usize,
    count: usize,
    replication_factor: usize,
) -> Result<Vec<Vec<BrokerId>>, Refusal> {
    let usable = image.cluster().brokers().filter(|broker| !broker.is_cordoned());
    let (active, fenced): (Vec<_>, Vec<_>) = usable.partition(|broker| !broker.fenced);
    let refuse = |why: String| {
        let message = format!("Unable to replicate the partition {replication_factor} time(s): {why}");
        Err(Refusal::new(ErrorCode::InvalidReplicationFactor, message))
    };
    if active.is_empty() {
        return refuse("All brokers are currently fenced, or have all their log directories cordoned.".to_owned());
    }
    let known = active.len() + fenced.len();
    if replication_factor > known {
        return refuse(format!(
            "The target replication factor of {replication_factor} cannot be reached because only {known} broker(s) are \
             registered or some brokers have all their log directories cordoned."
        ));
    }
    let active = dealt(active.into_iter().map(AsRef::as_ref), random);
    let fenced = dealt(fenced.into_iter().map(AsRef::as_ref), random);
    let start = (random() % active.len() as u64) as usize;
    let partitions = first..first + count;
    Ok(partitions.map(|partition| replicas(&active, &fenced, start + partition, replication_factor)).collect())
}

fn replicas(active: &[BrokerId], fenced: &[BrokerId], turn: usize, replication_factor: usize) -> Vec<BrokerId> {
    let leader = turn % active.len();
    let shift = if active.len() > 1 { (turn / active.len()) % (active.len() - 1) } else { 0 };
    let followers = (0..active.len().saturating_sub(1))
        .map(|place| active[(leader + 1 + (shift + place) % (active.len() - 1)) % active.len()]);
    let last_resort = (0..fenced.len()).map(|place| fenced[(turn + place) % fenced.len()]);
    std::iter::once(active[leader]).chain(followers).chain(last_resort).take(replication_factor).collect()
}

/// Brokers in random order within their racks, dealt round-robin over the racks.
fn dealt<'a>(brokers: impl Iterator<Item = &'a BrokerRegistration>, random: &mut dyn FnMut() -> u64) -> Vec<BrokerId> {
    let mut racks: BTreeMap<Option<KString>, Vec<BrokerId>> = BTreeMap::new();
    for broker in brokers {
        racks.entry(broker.rack.clone()).or_default().push(broker.id);
    }
    let mut racks: VecDeque<Vec<BrokerId>> = racks.into_values().collect();
    for rack in &mut racks {
        for last in (1..rack.len()).rev() {
            rack.swap(last, (random() % (last as u64 + 1)) as usize);
        }
    }
    let mut order = Vec::new();
    while let Some(mut rack) = racks.pop_front() {
        if let Some(broker) = rack.pop() {
            order.push(broker);
            racks.push_back(rack);
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gregor_state_records::metadata::{MetadataRecord, RegisterBrokerRecord};
    use gregor_types::Uuid;

    use super::*;

    fn cluster(brokers: &[(i32, &str, bool)]) -> Image {
        let mut image = Image::default();
        for (id, rack, fenced) in brokers {
            let record = RegisterBrokerRecord {
                broker_id: *id,
                rack: Some((*rack).into()),
                fenced: *fenced,
                ..Default::default()
            };
            image.apply(&MetadataRecord::RegisterBroker(record)).unwrap();
        }
        image
    }

    fn random() -> impl FnMut() -> u64 {
        let mut state = 42_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        }
    }

    #[test]
    fn replicas_of_a_partition_are_on_different_brokers_and_racks() {
        let image = cluster(&[
            (0, "a", false),
            (1, "a", false),
            (2, "b", false),
            (3, "b", false),
            (4, "c", false),
            (5, "c", false),
        ]);
        let placed = place(&image, &mut random(), 0, 60, 3).unwrap();
        let mut leaders = vec![0; 6];
        for replicas in placed {
            assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), 3, "{replicas:?}");
            leaders[replicas[0].value() as usize] += 1;
        }
        assert_eq!(leaders, vec![10; 6]);
    }

    #[test]
    fn neighbours_are_in_different_racks_while_racks_are_even() {
        let image = cluster(&[(0, "a", false), (1, "b", false), (2, "c", false)]);
        for replicas in place(&image, &mut random(), 0, 12, 3).unwrap() {
            assert_eq!(replicas.len(), 3);
        }
        let two = cluster(&[(0, "a", false), (1, "a", false), (2, "b", false), (3, "b", false)]);
        let order = dealt(two.cluster().brokers().map(AsRef::as_ref), &mut random());
        let rack = |broker: BrokerId| broker.value() / 2;
        assert!(order.windows(2).all(|pair| rack(pair[0]) != rack(pair[1])), "{order:?}");
    }

    #[test]
    fn fenced_brokers_lead_nothing_and_hold_only_what_others_cannot() {
        let image = cluster(&[(0, "a", true), (1, "a", false), (2, "a", false)]);
        for replicas in place(&image, &mut random(), 0, 10, 2).unwrap() {
            assert!(!replicas.contains(&BrokerId(0)), "{replicas:?}");
        }
        for replicas in place(&image, &mut random(), 0, 10, 3).unwrap() {
            assert_eq!(replicas[2], BrokerId(0), "{replicas:?}");
        }
    }

    #[test]
    fn a_broker_whose_directories_are_all_cordoned_gets_nothing() {
        let mut image = Image::default();
        for (id, cordoned) in [(1, vec![10, 11]), (2, vec![20])] {
            let record = RegisterBrokerRecord {
                broker_id: id,
                fenced: false,
                log_dirs: vec![Uuid(id as u128 * 10), Uuid(id as u128 * 10 + 1)],
                cordoned_log_dirs: Some(cordoned.into_iter().map(Uuid).collect()),
                ..Default::default()
            };
            image.apply(&MetadataRecord::RegisterBroker(record)).unwrap();
        }
        for replicas in place(&image, &mut random(), 0, 4, 1).unwrap() {
            assert_eq!(replicas, [BrokerId(2)], "one of its directories is free");
        }
        let refusal = place(&image, &mut random(), 0, 1, 2).unwrap_err();
        assert!(refusal.message.contains("some brokers have all their log directories cordoned"), "{refusal}");
    }

    #[test]
    fn too_few_brokers_are_named_as_kafka_names_them() {
        let image = cluster(&[(0, "a", false)]);
        let refusal = place(&image, &mut random(), 0, 1, 3).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::InvalidReplicationFactor);
        assert!(refusal.message.contains("only 1 broker(s) are registered"), "{refusal}");
        let refusal = place(&cluster(&[(0, "a", true)]), &mut random(), 0, 1, 1).unwrap_err();
        assert!(refusal.message.contains("All brokers are currently fenced"), "{refusal}");
    }
}
