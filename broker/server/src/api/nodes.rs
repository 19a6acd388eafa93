//! What Metadata, DescribeTopicPartitions and DescribeCluster say about brokers and partitions, as one listener's clients see them.
//!
//! Pure functions of an image; the files of those APIs call them. Nothing here waits or asks anybody.

use gregor_metadata::{BrokerRegistration, Endpoint, Image, Partition};
use gregor_types::{BrokerId, ErrorCode};

/// What a client may do with a topic where nobody is forbidden anything: read, write, create, delete, alter, describe, and describe and
/// alter its configuration, as bits of Kafka's operations.
pub(crate) const ALL_TOPIC_OPERATIONS: i32 = operations(&[3, 4, 5, 6, 7, 8, 10, 11]);
/// The same for the cluster: create, alter, describe, act as a broker, describe and alter configuration, write idempotently.
pub(crate) const ALL_CLUSTER_OPERATIONS: i32 = operations(&[5, 7, 8, 9, 10, 11, 12]);
/// What a response says where operations were not asked for.
pub(crate) const OPERATIONS_OMITTED: i32 = i32::MIN;

/// The brokers that clients of a listener can be sent to, by id.
pub(crate) fn reachable<'a>(
    image: &'a Image,
    listener: &'a str,
) -> impl Iterator<Item = (&'a BrokerRegistration, &'a Endpoint)> {
    let unfenced = image.cluster().brokers().filter(|broker| !broker.fenced);
    unfenced.filter_map(move |broker| Some((broker.as_ref(), broker.endpoint(listener)?)))
}

/// The broker that clients take for the controller: any that is up, as each forwards to the real one. This one, if it can be.
pub(crate) fn controller_for_clients(image: &Image, listener: &str, this: BrokerId) -> BrokerId {
    let mut reachable = reachable(image, listener).map(|(broker, _)| broker.id);
    let first = reachable.next();
    match first {
        Some(first) if first == this || reachable.any(|id| id == this) => this,
        Some(first) => first,
        None => BrokerId::NONE,
    }
}

/// A partition as clients are told of it.
pub(crate) struct Described {
    /// Why it cannot be used just now, if so.
    pub(crate) error: ErrorCode,
    /// The leader, or -1.
    pub(crate) leader: BrokerId,
    /// All replicas.
    pub(crate) replicas: Vec<i32>,
    /// Those in sync.
    pub(crate) isr: Vec<i32>,
    /// Those that are down, or in a directory that is.
    pub(crate) offline: Vec<i32>,
}

/// Says of a partition who leads it and who is down, to clients of this listener.
pub(crate) fn describe(image: &Image, partition: &Partition, listener: &str) -> Described {
    let cluster = image.cluster();
    let endpoint = |id: BrokerId| {
        cluster.broker(id).filter(|broker| !broker.fenced).map(|broker| broker.endpoint(listener).is_some())
    };
    let (error, leader) = match partition.leader.map(|leader| (leader, endpoint(leader))) {
        None | Some((_, None)) => (ErrorCode::LeaderNotAvailable, BrokerId::NONE),
        Some((_, Some(false))) => (ErrorCode::ListenerNotFound, BrokerId::NONE),
        Some((leader, Some(true))) => (ErrorCode::None, leader),
    };
    let is_offline = |id: &BrokerId| match cluster.broker(*id) {
        Some(broker) if !broker.fenced => {
            partition.directory_of(*id).is_some_and(|directory| !broker.has_online_directory(directory))
        }
        _ => true,
    };
    Described {
        error,
        leader,
        replicas: numbers(&partition.replicas),
        isr: numbers(&partition.isr),
        offline: partition.replicas.iter().filter(|id| is_offline(id)).map(|id| id.value()).collect(),
    }
}

/// Brokers as the numbers of a response.
pub(crate) fn numbers(brokers: &[BrokerId]) -> Vec<i32> {
    brokers.iter().map(|broker| broker.value()).collect()
}

const fn operations(codes: &[u8]) -> i32 {
    let mut bits = 0;
    let mut index = 0;
    while index < codes.len() {
        bits |= 1 << codes[index];
        index += 1;
    }
    bits
}
