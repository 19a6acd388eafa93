//! The status of a KafkaCluster: derived from what was read and decided, and never read by the plan again.

use gregor_operator_api::KafkaClusterStatus;
use gregor_operator_api::cluster::{Encryption, ListenerStatus, NodeConnectionsStatus, NodeStatus};
use k8s_openapi::jiff::Timestamp;

use crate::cluster::ClusterObserved;
use crate::identity::Identity;
use crate::placement::{self, Layout};
use crate::pods::PodState;
use crate::progress::{Progress, truncate};
use crate::properties::INTERNAL_PORT;
use crate::validate::{Node, NodeListener, RackSource, ValidCluster};

/// The longest list of addresses that a status carries: a client needs a few to begin with.
const ADDRESSES_BYTES_MAX: usize = 512;

/// The status as it should be.
pub(crate) fn status(
    observed: &ClusterObserved,
    cluster: Option<&ValidCluster>,
    progress: &Progress,
    renewal: Option<&str>,
    now: &str,
) -> KafkaClusterStatus {
    let generation = observed.cluster.metadata.generation.unwrap_or_default();
    let before = observed.cluster.status.clone().unwrap_or_default();
    let phase = match progress {
        Progress::Ready { .. } => "Running".to_owned(),
        Progress::Working { reason, message } | Progress::Stalled { reason, message } => {
            format!("{}: {message}", reason.as_str())
        }
    };
    let identity = observed.identity.as_ref().and_then(|config_map| Identity::parse(config_map).ok());
    let mut status = KafkaClusterStatus {
        observed_generation: generation,
        phase: Some(truncate(&phase, 250)),
        conditions: progress.conditions(&before.conditions, generation, now),
        cluster_id: identity.as_ref().map(|identity| identity.cluster_id.clone()),
        ..KafkaClusterStatus::default()
    };
    status.node_connections = identity.as_ref().map(|identity| connections(observed, identity, renewal));
    let Some(cluster) = cluster else { return status };
    status.node_count = i32::try_from(cluster.node_count()).unwrap_or(i32::MAX);
    status.bootstrap_servers = Some(cluster.bootstrap_servers(INTERNAL_PORT));
    status.listeners.push(ListenerStatus {
        name: "internal".to_owned(),
        bootstrap_servers: cluster.bootstrap_servers(INTERNAL_PORT),
    });
    if let Some(kafka) = &observed.kafka {
        status.quorum_leader = kafka.quorum.leader;
        status.lagging_voters = kafka.quorum.lagging();
        status.under_replicated_partitions = Some(i32::try_from(kafka.under_replicated.len()).unwrap_or(i32::MAX));
    }
    let Some(identity) = &identity else { return status };
    let layout = placement::layout(cluster, identity).ok();
    for (id, recorded) in &identity.nodes {
        let node = layout.as_ref().and_then(|layout| layout.nodes.get(id));
        let recorded_pool = recorded.placement.as_ref().map(|placement| placement.pool.clone());
        let first_pool = || cluster.pools.first().map(|pool| pool.name.clone());
        let pod = observed.pod(*id);
        status.nodes.push(NodeStatus {
            node_id: *id,
            pool: node.map(|node| node.pool.clone()).or(recorded_pool).or_else(first_pool).unwrap_or_default(),
            ready: pod.as_ref().is_some_and(|pod| pod.state == PodState::Ready),
            directory_id: recorded.directory_id.clone(),
            rack: pod.as_ref().and_then(|pod| pod.rack.clone()).or_else(|| node.and_then(named_rack)),
            certificate_not_after: certificate_end(observed, *id).and_then(time),
        });
        status.image = pod.and_then(|pod| pod.image).or(status.image);
    }
    if let Some(layout) = &layout {
        status.listeners.extend(cluster.listeners.iter().filter_map(|listener| addresses(layout, &listener.name)));
    }
    status
}

/// The rack that the manifest names for a broker.
fn named_rack(node: &Node) -> Option<String> {
    match node.rack.as_ref().filter(|_| node.is_broker())? {
        RackSource::Named(rack) => Some(rack.clone()),
        RackSource::Label(_) => None,
    }
}

/// How the nodes talk with each other, and until when they can.
fn connections(observed: &ClusterObserved, identity: &Identity, renewal: Option<&str>) -> NodeConnectionsStatus {
    let authority = observed.certificates.authority.as_ref().and_then(|seen| seen.content.as_ref().ok());
    let first = identity.nodes.keys().filter_map(|id| certificate_end(observed, *id)).min();
    NodeConnectionsStatus {
        encryption: if identity.connections.are_tls() { Encryption::Tls } else { Encryption::Plaintext },
        authority_not_after: authority.and_then(|authority| time(authority.current.not_after)),
        certificates_not_after: first.and_then(time),
        waiting_for: renewal.map(|why| truncate(why, 500)),
    }
}

fn certificate_end(observed: &ClusterObserved, node_id: i32) -> Option<i64> {
    let content = observed.certificates.nodes.get(&node_id)?.content.as_ref().ok()?;
    Some(content.certificate.not_after)
}

/// A time in RFC 3339.
fn time(seconds: i64) -> Option<String> {
    Timestamp::from_second(seconds).ok().map(|time| time.to_string())
}

/// Where clients begin with a listener: its brokers' addresses, as many as there is room for.
fn addresses(layout: &Layout, name: &str) -> Option<ListenerStatus> {
    let mut servers = String::new();
    let of_node = |listener: &NodeListener| format!("{}:{}", listener.advertised_host, listener.advertised_port);
    for node in layout.brokers().filter(|node| !layout.new.contains_key(&node.id)) {
        let Some(address) = node.listeners.iter().find(|listener| listener.name == name).map(of_node) else { continue };
        if servers.len() + 1 + address.len() > ADDRESSES_BYTES_MAX {
            break;
        }
        if !servers.is_empty() {
            servers.push(',');
        }
        servers.push_str(&address);
    }
    (!servers.is_empty()).then(|| ListenerStatus { name: name.to_owned(), bootstrap_servers: servers })
}
