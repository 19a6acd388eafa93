//! On which brokers the replicas of new partitions go: spread over racks, then over brokers (`StripedReplicaPlacer`).
//!
//! Partition by partition the first replica goes to the next rack, and the others to the racks after it, one each for as long as there
//! are racks; within its rack every broker has its turn. Fenced brokers come after all others of their rack, and never first. When
//! every broker had its turn at being first, racks and brokers are shuffled, so that not the same ones share all their partitions.

use std::collections::BTreeMap;

use gregor_metadata::Image;
use gregor_types::{BrokerId, ErrorCode, KString};

use crate::Refusal;

type Random<'a> = &'a mut dyn FnMut() -> u64;

/// The replicas of `count` new partitions.
pub(crate) fn place(
    image: &Image,
    random: &mut dyn FnMut() -> u64,
    count: usize,
    replication_factor: usize,
) -> Result<Vec<Vec<BrokerId>>, Refusal> {
    let refuse = |why: String| {
        let message = format!("Unable to replicate the partition {replication_factor} time(s): {why}");
        Err(Refusal::new(ErrorCode::InvalidReplicationFactor, message))
    };
    let mut racks = Racks::new(image, random);
    if racks.unfenced == 0 {
        return refuse("All brokers are currently fenced, or have all their log directories cordoned.".to_owned());
    }
    if replication_factor > racks.brokers {
        return refuse(format!(
            "The target replication factor of {replication_factor} cannot be reached because only {} broker(s) are \
             registered or some brokers have all their log directories cordoned.",
            racks.brokers
        ));
    }
    Ok((0..count).map(|_| racks.place(replication_factor, random)).collect())
}

/// Brokers in a circle: each partition begins one further, and takes each broker once.
#[derive(Debug, Default)]
struct Circle {
    brokers: Vec<BrokerId>,
    start: usize,
    taken: usize,
    turn: usize,
}

#[derive(Debug, Default)]
struct Rack {
    unfenced: Circle,
    fenced: Circle,
}

struct Racks {
    all: Vec<Rack>,
    /// The rack that the next partition begins with.
    next: usize,
    /// Which partition it is since the last shuffle.
    turn: usize,
    brokers: usize,
    unfenced: usize,
}

impl Circle {
    fn begin_anywhere(&mut self, random: Random<'_>) {
        if !self.brokers.is_empty() {
            self.start = below(random, self.brokers.len());
        }
    }

    fn next(&mut self, turn: usize) -> Option<BrokerId> {
        let size = self.brokers.len();
        if self.turn != turn && size > 0 {
            self.turn = turn;
            self.taken = 0;
            self.start = (self.start + 1) % size;
        }
        if self.taken == size {
            return None;
        }
        let broker = self.brokers[(self.start + self.taken) % size];
        self.taken += 1;
        Some(broker)
    }
}

impl Racks {
    fn new(image: &Image, random: Random<'_>) -> Self {
        let mut racks: BTreeMap<Option<KString>, Rack> = BTreeMap::new();
        let (mut brokers, mut unfenced) = (0, 0);
        // A broker that is on its way down is to hold nothing new; a fenced one may be back soon.
        let usable = image.cluster().brokers().filter(|broker| !broker.is_cordoned());
        for broker in usable.filter(|broker| broker.fenced || broker.is_active()) {
            let rack = racks.entry(broker.rack.clone()).or_default();
            let circle = if broker.fenced { &mut rack.fenced } else { &mut rack.unfenced };
            circle.brokers.push(broker.id);
            brokers += 1;
            unfenced += usize::from(!broker.fenced);
        }
        let mut racks: Vec<Rack> = racks.into_values().collect();
        for rack in &mut racks {
            rack.unfenced.begin_anywhere(random);
            rack.fenced.begin_anywhere(random);
        }
        let next = if racks.is_empty() { 0 } else { below(random, racks.len()) };
        Self { all: racks, next, turn: 0, brokers, unfenced }
    }

    /// The replicas of the next partition: one at least and no more than there are brokers, one of which is unfenced.
    fn place(&mut self, replication_factor: usize, random: Random<'_>) -> Vec<BrokerId> {
        if self.turn == self.unfenced && self.unfenced > 1 {
            self.shuffle(random);
            self.turn = 0;
        }
        let (turn, racks) = (self.turn, self.all.len());
        let mut first = self.next;
        let leader = loop {
            if let Some(leader) = self.all[first].unfenced.next(turn) {
                break leader;
            }
            first = (first + 1) % racks;
        };
        let mut replicas = vec![leader];
        // The leader's rack has its turn already the first time round.
        let mut skip = Some(first);
        let mut rack = self.next;
        while replicas.len() < replication_factor {
            if skip == Some(rack) {
                skip = None;
            } else {
                let Rack { unfenced, fenced } = &mut self.all[rack];
                replicas.extend(unfenced.next(turn).or_else(|| fenced.next(turn)));
            }
            rack = (rack + 1) % racks;
        }
        self.turn += 1;
        self.next = (self.next + 1) % racks;
        replicas
    }

    fn shuffle(&mut self, random: Random<'_>) {
        shuffle(&mut self.all, random);
        for rack in &mut self.all {
            shuffle(&mut rack.unfenced.brokers, random);
            shuffle(&mut rack.fenced.brokers, random);
        }
    }
}

fn below(random: Random<'_>, bound: usize) -> usize {
    (random() % bound as u64) as usize
}

fn shuffle<T>(items: &mut [T], random: Random<'_>) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(random, last + 1));
    }
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
        let placed = place(&image, &mut random(), 60, 3).unwrap();
        let mut leaders = vec![0; 6];
        for replicas in placed {
            assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), 3, "{replicas:?}");
            leaders[replicas[0].value() as usize] += 1;
        }
        assert_eq!(leaders, vec![10; 6]);
    }

    #[test]
    fn replicas_are_in_as_many_racks_as_there_are_however_uneven_the_racks_are() {
        let layouts: [&[(i32, &str, bool)]; 4] = [
            &[(0, "a", false), (1, "a", false), (2, "a", false), (3, "a", false), (4, "b", false)],
            &[(0, "a", false), (1, "b", false), (2, "b", false), (3, "c", false), (4, "c", false), (5, "c", false)],
            &[(0, "a", false), (1, "b", false), (2, "c", false)],
            &[(0, "a", false), (1, "b", false), (2, "b", true), (3, "c", true)],
        ];
        for brokers in layouts {
            let image = cluster(brokers);
            let racks: BTreeSet<&str> = brokers.iter().map(|(_, rack, _)| *rack).collect();
            for replication_factor in 1..=brokers.len() {
                for replicas in place(&image, &mut random(), 50, replication_factor).unwrap() {
                    assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), replication_factor, "{replicas:?}");
                    let used: BTreeSet<&str> =
                        replicas.iter().map(|replica| brokers[replica.value() as usize].1).collect();
                    assert_eq!(used.len(), racks.len().min(replication_factor), "{replicas:?} of {brokers:?}");
                    assert!(!brokers[replicas[0].value() as usize].2, "a fenced broker is not first: {replicas:?}");
                }
            }
        }
    }

    #[test]
    fn brokers_do_not_share_all_their_partitions_with_the_same_others() {
        let image = cluster(&[(0, "a", false), (1, "a", false), (2, "b", false), (3, "b", false)]);
        let pairs: BTreeSet<_> = place(&image, &mut random(), 100, 2)
            .unwrap()
            .into_iter()
            .map(|mut replicas| {
                replicas.sort_unstable();
                replicas
            })
            .collect();
        assert_eq!(pairs.len(), 4, "each broker of one rack is with each of the other: {pairs:?}");
    }

    #[test]
    fn a_broker_on_its_way_down_gets_nothing_new() {
        let mut image = cluster(&[(1, "a", false)]);
        let leaving =
            RegisterBrokerRecord { broker_id: 2, fenced: false, in_controlled_shutdown: true, ..Default::default() };
        image.apply(&MetadataRecord::RegisterBroker(leaving)).unwrap();
        assert!(place(&image, &mut random(), 5, 1).unwrap().iter().all(|replicas| replicas == &[BrokerId(1)]));
        assert!(place(&image, &mut random(), 1, 2).is_err());
    }

    #[test]
    fn fenced_brokers_lead_nothing_and_hold_only_what_others_cannot() {
        let image = cluster(&[(0, "a", true), (1, "a", false), (2, "a", false)]);
        for replicas in place(&image, &mut random(), 10, 2).unwrap() {
            assert!(!replicas.contains(&BrokerId(0)), "{replicas:?}");
        }
        for replicas in place(&image, &mut random(), 10, 3).unwrap() {
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
        for replicas in place(&image, &mut random(), 4, 1).unwrap() {
            assert_eq!(replicas, [BrokerId(2)], "one of its directories is free");
        }
        let refusal = place(&image, &mut random(), 1, 2).unwrap_err();
        assert!(refusal.message.contains("some brokers have all their log directories cordoned"), "{refusal}");
    }

    #[test]
    fn too_few_brokers_are_named_as_kafka_names_them() {
        let image = cluster(&[(0, "a", false)]);
        let refusal = place(&image, &mut random(), 1, 3).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::InvalidReplicationFactor);
        assert!(refusal.message.contains("only 1 broker(s) are registered"), "{refusal}");
        let refusal = place(&cluster(&[(0, "a", true)]), &mut random(), 1, 1).unwrap_err();
        assert!(refusal.message.contains("All brokers are currently fenced"), "{refusal}");
    }
}
