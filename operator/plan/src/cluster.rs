//! The plan of a KafkaCluster: which one step brings it nearer to its manifest, and what to say about it.
//!
//! The order of the questions is the order of safety: is the manifest possible, who is this cluster, are its disks what the
//! identity says, and only then what is to be written. Nothing of the outcome depends on the object's status.
//!
//! A cluster of several nodes begins as its first controller, whose disk alone may be formatted to start the quorum. When that
//! permission is gone the identity gets the other nodes, which join; controllers among them are made voters one by one.

use std::collections::BTreeMap;

use gregor_operator_api::{KafkaCluster, KafkaClusterStatus, names};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::certificates::{self, CertificatesSeen, Next};
use crate::decision::{Decision, Stage};
use crate::evictions::Evictions;
use crate::identity::{Identity, Mint, NodeIdentity};
use crate::kafka::KafkaSeen;
use crate::objects::{self, node};
use crate::placement::{self, Layout};
use crate::pods::{PodSeen, PodState};
use crate::progress::{Progress, Reason};
use crate::roll::{Candidate, Turn};
use crate::unseen::Unseen;
use crate::validate::{Node, ValidCluster};
use crate::writing::{obsolete_config_map, restart, start, withdraw, write_shared};
use crate::{Environment, Kind, Step, Wanted, disks, domain, quorum, racks, release, roll, status};

/// All that was read of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterObserved {
    /// The KafkaCluster.
    pub cluster: KafkaCluster,
    /// The ConfigMap `<cluster>-identity`.
    pub identity: Option<Value>,
    /// Every other object that carries the cluster's label, by kind and name.
    pub objects: BTreeMap<(Kind, String), Value>,
    /// Every pod that carries it.
    pub pods: Vec<Pod>,
    /// Objects that the API server stores otherwise than they were applied (an admission webhook may), by their uid, with the
    /// hash of what was applied: applying the same again would change nothing, for ever.
    pub settled: BTreeMap<String, String>,
    /// The labels of Kubernetes' nodes that pods of this cluster are on, by name, of those that could be read.
    pub kubernetes_nodes: BTreeMap<String, BTreeMap<String, String>>,
    /// The certificates with which the nodes know each other; of clusters that have them.
    pub certificates: CertificatesSeen,
    /// What the brokers say, read after everything else. Only clusters of several nodes are asked.
    pub kafka: Option<KafkaSeen>,
    /// What of all this could not be read.
    pub unseen: Unseen,
}

impl ClusterObserved {
    pub(crate) fn object(&self, kind: Kind, name: &str) -> Option<&Value> {
        self.objects.get(&(kind, name.to_owned()))
    }

    pub(crate) fn pod(&self, node_id: i32) -> Option<PodSeen> {
        let id = node_id.to_string();
        let mut pods: Vec<PodSeen> = self
            .pods
            .iter()
            .filter(|pod| pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::NODE_ID_LABEL)) == Some(&id))
            .map(PodSeen::of)
            .collect();
        // A pod that ends says less about the node than one that begins.
        pods.sort_by_key(|pod| pod.state == PodState::Terminating);
        pods.into_iter().next()
    }

    /// Whether the brokers are worth asking: there are several nodes, and one that serves clients is up.
    pub fn asks_brokers(&self) -> bool {
        let identity = self.identity.as_ref().and_then(|config_map| Identity::parse(config_map).ok());
        let Some(identity) = identity else { return false };
        let several = identity.nodes.len() > 1 || identity.nodes.values().any(|node| node.placement.is_some());
        let serves = |pod: &&Pod| {
            let name = pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::NAME_LABEL));
            name.is_none_or(|name| name != names::CONTROLLER_NAME)
        };
        several && self.pods.iter().filter(serves).any(|pod| PodSeen::of(pod).state == PodState::Ready)
    }

    /// The Kubernetes nodes whose labels are worth reading: a pool takes its racks from them.
    pub fn asks_kubernetes_nodes(&self) -> Vec<String> {
        let labelled = |rack: &gregor_operator_api::cluster::Rack| rack.name.is_none() && rack.topology_key.is_some();
        if !self.cluster.spec.node_pools.iter().filter_map(|pool| pool.rack.as_ref()).any(labelled) {
            return Vec::new();
        }
        let without_rack = self.pods.iter().map(PodSeen::of).filter(|pod| pod.rack.is_none());
        let mut names: Vec<String> = without_rack.filter_map(|pod| pod.kubernetes_node).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// What to do next, and what to say.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterPlan {
    /// The step, if there is one.
    pub step: Option<Step>,
    /// What is carried out before the step, whatever becomes of either: data is released that is to stay, evictions are held up or let
    /// go, certificates are due, and pods have no racks yet. They hold up nobody, and a step that Kubernetes keeps refusing does not hold them up.
    pub beside: Vec<Step>,
    /// How far the cluster is.
    pub progress: Progress,
    /// The stage of the cluster's life that this belongs to.
    pub stage: Stage,
    /// What a renewal of certificates waits for, which nothing tells but looking again. The cluster may be at rest meanwhile.
    pub renewal: Option<String>,
    /// The status as it should be.
    pub status: KafkaClusterStatus,
}

/// A node that the identity knows, with all that was read of it and all that it should be.
pub(crate) struct NodeSeen<'a> {
    pub(crate) node: &'a Node,
    pub(crate) recorded: &'a NodeIdentity,
    pub(crate) pod: Option<PodSeen>,
    pub(crate) claim: Option<&'a Value>,
    pub(crate) stateful_set: Option<&'a Value>,
    pub(crate) wanted_config: Wanted,
    pub(crate) wanted_set: Wanted,
    pub(crate) revision: String,
}

impl NodeSeen<'_> {
    pub(crate) fn claim_uid(&self) -> Option<&str> {
        self.claim.and_then(|claim| claim["metadata"]["uid"].as_str())
    }

    /// The pod, unless it is one of an earlier directory, which speaks about a disk that is given up.
    pub(crate) fn own_pod(&self) -> Option<&PodSeen> {
        self.pod.as_ref().filter(|pod| pod.directory_id == self.recorded.directory_id)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.own_pod().is_some_and(|pod| pod.state == PodState::Ready)
    }

    pub(crate) fn candidate(&self) -> Candidate<'_> {
        let written = self.stateful_set.is_some_and(|seen| node::revision(seen) == self.revision);
        let old_pod = self.pod.as_ref().is_some_and(|pod| pod.revision != self.revision);
        Candidate {
            node: self.node,
            state: self.pod.as_ref().map(|pod| &pod.state),
            outdated: !written || old_pod,
            begun: written,
        }
    }
}

/// Plans a cluster. `now` is RFC 3339; `mint` gives random bytes for ids that do not exist yet.
pub fn plan(observed: &ClusterObserved, environment: &Environment, now: &str, mint: Mint<'_>) -> ClusterPlan {
    let domain = observed.domain(environment);
    let valid = ValidCluster::of(&observed.cluster, environment)
        .map(|valid| ValidCluster { cluster_domain: domain.clone(), ..valid });
    let seconds = now.parse::<Timestamp>().expect("whoever asks gives the time in RFC 3339").as_second();
    let certificates = renew(observed, &domain, seconds, mint);
    let placed = match &valid {
        Ok(cluster) => {
            place(observed, cluster, environment, mint).map(|(identity, layout)| (cluster, identity, layout))
        }
        Err(invalid) => Err(Decision::from(invalid.clone())),
    };
    let identity = recorded(observed);
    let (mut decision, evictions) = match placed {
        Ok((cluster, identity, layout)) => {
            let nodes = look(observed, cluster, &layout, &identity, environment);
            let evictions = Evictions::of(observed, &identity, Some((&layout, &nodes)));
            let scene = Scene { observed, cluster, identity: &identity, layout: &layout, nodes: &nodes };
            (decide(&scene, &certificates, &evictions, mint).unwrap_or_else(|early| early), evictions)
        }
        Err(early) => {
            let uid = observed.cluster.metadata.uid.as_deref().unwrap_or_default();
            let stays = observed.identity.as_ref().is_some_and(|config_map| !leaves(config_map, uid));
            let identity = identity.as_ref().filter(|_| stays);
            (early, identity.map(|identity| Evictions::of(observed, identity, None)).unwrap_or_default())
        }
    };
    let mut beside = Vec::new();
    let released = release::release(observed);
    if !released.is_empty() {
        decision.step = decision.step.filter(|step| !release::is_before(&released, step));
        beside.push(Step::Release(released));
    }
    beside.extend(evictions.step);
    let mut renewal = None;
    match certificates {
        // Which nodes there are is written down first.
        Next::Begin(_) | Next::Renew(_) if matches!(decision.step, Some(Step::ReplaceIdentity(_))) => {}
        // Certificates end whatever a cluster waits for and whatever its manifest says.
        Next::Begin(writes) | Next::Renew(writes) => beside.push(Step::WriteSecrets(writes)),
        Next::Wait(why) => renewal = Some(observed.unseen.after(&why)),
        Next::Leaving(why) => renewal = Some(why),
        Next::Refuse(_) | Next::Done => {}
    }
    if identity.is_some() {
        let layout = valid.as_ref().ok().zip(identity).and_then(|(valid, it)| placement::layout(valid, &it).ok());
        beside.extend(racks::tell(observed, layout.as_ref()));
    }
    let status = status::status(observed, valid.as_ref().ok(), &decision.progress, renewal.as_deref(), now);
    ClusterPlan { step: decision.step, beside, progress: decision.progress, stage: decision.stage, renewal, status }
}

/// The identity, if there is one of a cluster that stays.
fn recorded(observed: &ClusterObserved) -> Option<Identity> {
    let stays = observed.cluster.metadata.deletion_timestamp.is_none();
    observed.identity.as_ref().filter(|_| stays).and_then(|config_map| Identity::parse(config_map).ok())
}

/// What is to be done about the certificates of a cluster that is there.
fn renew(observed: &ClusterObserved, domain: &str, now: i64, mint: Mint<'_>) -> Next {
    recorded(observed).map_or(Next::Done, |identity| certificates::next(observed, &identity, domain, now, mint))
}

/// Who the cluster is and which nodes it should have. The early ways out are `Err`, so that `?` leaves by them.
fn place(
    observed: &ClusterObserved,
    cluster: &ValidCluster,
    environment: &Environment,
    mint: Mint<'_>,
) -> Result<(Identity, Layout), Decision> {
    if observed.cluster.metadata.deletion_timestamp.is_some() {
        let progress = Progress::working(Reason::Terminating, "the cluster is being deleted");
        return Err(Decision::wait(Stage::Manifest, progress));
    }
    let identity = identify(observed, cluster, mint)?;
    domain::keep(observed, cluster, &identity, environment)?;
    if !identity.connections.are_tls() && observed.cluster.spec.node_connections.is_some() {
        return Err(Decision::refuse(
            Reason::EncryptionChangeRefused,
            "an earlier release made this cluster, whose nodes talk in plaintext, and they cannot change that one after the other: take nodeConnections out of the manifest; a new KafkaCluster encrypts its nodes' connections",
        ));
    }
    let layout = placement::layout(cluster, &identity)?;
    Ok((identity, layout))
}

/// A cluster that is known, with the nodes that it should have and what there is of them.
struct Scene<'a> {
    observed: &'a ClusterObserved,
    cluster: &'a ValidCluster,
    identity: &'a Identity,
    layout: &'a Layout,
    nodes: &'a [NodeSeen<'a>],
}

/// What to do about it.
fn decide(scene: &Scene<'_>, certificates: &Next, evictions: &Evictions, mint: Mint<'_>) -> Result<Decision, Decision> {
    let Scene { observed, cluster, identity, layout, nodes } = *scene;
    withdraw(observed, cluster, identity, nodes)?;
    let trouble = disks::record(observed, cluster, identity, nodes, mint)?;
    let repaired = repair(scene, certificates, evictions, trouble.as_ref());
    if let Some(trouble) = trouble {
        return Err(repaired.err().map_or_else(|| trouble.stop(), |decision| trouble.during(decision)));
    }
    let turn = repaired?;
    if !layout.new.is_empty() {
        let Some(first) = nodes.iter().find(|node| node.node.is_controller() && node.is_ready()) else {
            return Err(Decision::wait(Stage::Start, unready(nodes).unwrap_or_else(no_controller)));
        };
        if identity.standalone_grant.is_some() {
            let message =
                format!("waiting until the disk of node {} is recorded as the cluster's first", first.node.id);
            return Err(Decision::wait(Stage::Start, Progress::working(Reason::Starting, message)));
        }
        let ids = layout.new.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let identity = identity.clone().with_nodes(&layout.new, mint);
        let step = Step::ReplaceIdentity(objects::identity(cluster, &identity, observed.identity.as_ref()));
        return Err(Decision::step(Stage::Nodes, step, Reason::AddingNodes, format!("adding the nodes {ids}")));
    }
    vote(observed, layout, identity, nodes)?;
    match turn {
        Turn::Take(id) => {
            if let Some(node) = nodes.iter().find(|node| node.node.id == id) {
                restart(observed, node)?;
            }
        }
        Turn::Wait(reason, message) => {
            let progress = unready(nodes).unwrap_or_else(|| Progress::working(reason, message));
            return Err(Decision::wait(Stage::Roll, progress));
        }
        Turn::Nobody => {}
    }
    rest(observed, layout, identity, nodes)
}

/// Writes what is missing or differs, and puts right who serves nothing, also while a disk is in trouble. Says whose turn it is where
/// nothing of that is to be done.
fn repair(
    scene: &Scene<'_>,
    certificates: &Next,
    evictions: &Evictions,
    trouble: Option<&disks::Trouble>,
) -> Result<Turn, Decision> {
    let Scene { observed, cluster, identity, layout, nodes } = *scene;
    let troubled = trouble.map(|trouble| trouble.nodes.clone()).unwrap_or_default();
    let candidates: Vec<Candidate<'_>> = nodes.iter().map(NodeSeen::candidate).collect();
    write_shared(observed, cluster, layout, identity, nodes, &troubled)?;
    evictions.held()?;
    certify(certificates)?;
    if !layout.moved.is_empty() {
        let identity = identity.clone().with_placements(&layout.moved);
        let step = Step::ReplaceIdentity(objects::identity(cluster, &identity, observed.identity.as_ref()));
        let message = "writing down which pools the nodes are in";
        return Err(Decision::step(Stage::Manifest, step, Reason::Creating, message));
    }
    start(observed, nodes)?;
    racks::known(observed, nodes)?;
    let turn = roll::next(&candidates, observed.kafka.as_ref());
    // Who serves nothing is put right before anything is waited for: it may be what is waited for. A process that still runs on a disk
    // in trouble may be all that holds its data.
    let runs = |node: &NodeSeen<'_>| node.pod.as_ref().is_some_and(|pod| pod.state == PodState::Running);
    let serves_nothing = |node: &&NodeSeen<'_>| {
        let holds = troubled.contains(&node.node.id) && runs(node);
        (!node.is_ready() && !holds) || (trouble.is_none() && layout.is_single())
    };
    if let Turn::Take(id) = turn
        && let Some(node) = nodes.iter().filter(serves_nothing).find(|node| node.node.id == id)
    {
        restart(observed, node)?;
    }
    Ok(turn)
}

/// No node is made before its certificate. What else there is to do about certificates holds up nobody.
fn certify(next: &Next) -> Result<(), Decision> {
    let waits = |stage: Stage, reason: Reason, why: &str| Err(Decision::wait(stage, Progress::working(reason, why)));
    match next {
        Next::Begin(writes) => waits(Stage::Certificates, Reason::Creating, &writes.why),
        Next::Leaving(why) => waits(Stage::Objects, Reason::Terminating, why),
        Next::Refuse(why) => Err(Decision::refuse(Reason::AuthorityUnusable, why)),
        Next::Renew(_) | Next::Wait(_) | Next::Done => Ok(()),
    }
}

fn no_controller() -> Progress {
    Progress::working(Reason::WaitingForQuorum, "no controller is ready: nodes are added to a quorum that decides")
}

/// Who the cluster is. Without an identity it is put together again from what repeats it, or minted where nothing is.
fn identify(observed: &ClusterObserved, cluster: &ValidCluster, mint: Mint<'_>) -> Result<Identity, Decision> {
    let repeats = observed
        .objects
        .iter()
        .filter(|((kind, _), _)| matches!(kind, Kind::PersistentVolumeClaim | Kind::StatefulSet))
        .map(|((_, name), object)| (name.as_str(), object));
    // What an earlier KafkaCluster of this name takes with it says nothing about this one.
    let leaving = match &observed.identity {
        Some(config_map) => leaves(config_map, &cluster.uid).then_some(cluster.identity()),
        None => repeats.clone().find(|(_, object)| leaves(object, &cluster.uid)).map(|(name, _)| name.to_owned()),
    };
    if let Some(name) = leaving {
        let message = format!("waiting until {name} of the deleted KafkaCluster of this name is gone");
        return Err(Decision::wait(Stage::Identity, Progress::working(Reason::Terminating, message)));
    }
    if let Some(config_map) = &observed.identity {
        let unreadable = |message: String| Decision::refuse(Reason::IdentityUnreadable, message);
        let identity = Identity::parse(config_map).map_err(|error| {
            unreadable(format!("the ConfigMap {} says who this cluster is and cannot be read: {error}; restore it, or delete it to have it put together from the volume claims", cluster.identity()))
        })?;
        if identity.nodes.is_empty() {
            return Err(unreadable(format!("the ConfigMap {} names no node: restore it", cluster.identity())));
        }
        return Ok(identity);
    }
    let rebuilt = Identity::rebuild(repeats).map_err(|name| {
        let message = format!("the identity is gone, and {name} does not say which cluster, node and directory it belongs to: restore the ConfigMap {}", cluster.identity());
        Decision::refuse(Reason::ForeignVolume, message)
    })?;
    let (identity, message) = if let Some(identity) = rebuilt {
        (identity, "the identity is gone: putting it together from the volume claims")
    } else {
        let (node_id, placement) = placement::first(cluster)?;
        (Identity::mint(node_id, placement, &cluster.cluster_domain, mint), "giving the cluster its identity")
    };
    let step = Step::CreateIdentity(objects::identity(cluster, &identity, None));
    Err(Decision::step(Stage::Identity, step, Reason::Creating, message))
}

/// Whether an object is deleted, or will be with another KafkaCluster than the one with this uid.
fn leaves(object: &Value, uid: &str) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    object["metadata"]["deletionTimestamp"].is_string()
        || (!owners.is_empty() && owners.iter().all(|owner| owner["uid"] != *uid))
}

/// All that is known of the nodes that the identity has.
fn look<'a>(
    observed: &'a ClusterObserved,
    cluster: &ValidCluster,
    layout: &'a Layout,
    identity: &'a Identity,
    environment: &Environment,
) -> Vec<NodeSeen<'a>> {
    let set_of = |node: &Node| observed.object(Kind::StatefulSet, &node.name);
    // A new node of a cluster that names no image gets the one that the others run.
    let sibling = layout.nodes.values().find_map(|node| set_of(node).and_then(node::image));
    let known = layout.nodes.values().filter_map(|node| Some((node, identity.nodes.get(&node.id)?)));
    known
        .map(|(node, recorded)| {
            let stateful_set = set_of(node);
            // An operator of another release must not restart what runs: without a word in the manifest the image stays.
            let image = cluster
                .image
                .clone()
                .or_else(|| stateful_set.and_then(node::image).or(sibling).map(str::to_owned))
                .unwrap_or_else(|| format!("{}:{}", environment.image_repository, environment.image_tag));
            let config = node::config_map(cluster, layout, node, identity);
            let (wanted_set, revision) =
                node::stateful_set(cluster, layout, node, identity, environment, &image, &config.name);
            NodeSeen {
                node,
                recorded,
                pod: observed.pod(node.id),
                claim: disks::claim(observed, node),
                stateful_set,
                wanted_config: config,
                wanted_set,
                revision,
            }
        })
        .collect()
}

/// The next change of the voters, once every disk is recorded.
fn vote(
    observed: &ClusterObserved,
    layout: &Layout,
    identity: &Identity,
    nodes: &[NodeSeen<'_>],
) -> Result<(), Decision> {
    if layout.is_single() {
        return Ok(());
    }
    let waits = |why: String| {
        let progress = unready(nodes).unwrap_or_else(|| Progress::working(Reason::WaitingForQuorum, why));
        Decision::wait(Stage::Voters, progress)
    };
    let Some(kafka) = &observed.kafka else {
        let progress = unready(nodes).unwrap_or_else(|| {
            let message = observed.unseen.by_brokers("the brokers cannot be asked who votes");
            Progress::working(Reason::ClusterUnreachable, message)
        });
        return Err(Decision::wait(Stage::Start, progress));
    };
    match quorum::next(layout, identity, &kafka.quorum) {
        quorum::Next::Done => Ok(()),
        quorum::Next::Wait(why) => Err(waits(why)),
        quorum::Next::Change(change) => {
            let message = match &change {
                quorum::VoterChange::Add { id, .. } => format!("controller {id} becomes a voter"),
                quorum::VoterChange::Remove { id, .. } => format!("the lost disk of controller {id} votes no more"),
            };
            Err(Decision::step(Stage::Voters, Step::ChangeVoters(change), Reason::ChangingVoters, message))
        }
    }
}

/// Everything is written and everybody's turn is over.
fn rest(
    observed: &ClusterObserved,
    layout: &Layout,
    identity: &Identity,
    nodes: &[NodeSeen<'_>],
) -> Result<Decision, Decision> {
    if let Some(progress) = unready(nodes) {
        return Err(Decision::wait(Stage::Start, progress));
    }
    for node in nodes {
        if let Some(((kind, name), seen)) = obsolete_config_map(observed, node.node, &node.wanted_config.name) {
            return Err(Decision::delete(*kind, name, seen));
        }
    }
    debug_assert!(layout.new.is_empty(), "nodes that are not there are added first");
    let mut message = "every node runs as the manifest says".to_owned();
    if !identity.connections.are_tls() {
        message.push_str(", and talks with the others in plaintext for ever, as an earlier release made the cluster: to have it encrypted, make a new KafkaCluster and move to it");
    }
    let message = observed.unseen.after(&message);
    Ok(Decision::wait(Stage::Rest, Progress::ready(message)))
}

/// What the first node that is not ready waits for.
fn unready(nodes: &[NodeSeen<'_>]) -> Option<Progress> {
    let node = nodes.iter().find(|node| !node.is_ready())?;
    Some(pod_progress(node.node, node.pod.as_ref()))
}

fn pod_progress(node: &Node, pod: Option<&PodSeen>) -> Progress {
    let id = node.id;
    let Some(pod) = pod else {
        let message = format!("waiting for the pod of StatefulSet {}", node.name);
        return Progress::working(Reason::WaitingForPod, message);
    };
    match &pod.state {
        PodState::Ready => Progress::ready("every node runs as the manifest says"),
        PodState::Running => Progress::working(
            Reason::Recovering,
            format!("node {id} runs and is not ready yet: it opens its log or joins"),
        ),
        PodState::Starting => Progress::working(Reason::Starting, format!("node {id} is starting")),
        PodState::Terminating => Progress::working(Reason::Restarting, format!("node {id} is shutting down")),
        PodState::Unschedulable(said) => {
            Progress::working(Reason::Unschedulable, format!("no Kubernetes node takes the pod of node {id}: {said}"))
        }
        PodState::ImagePullFailed(said) => {
            Progress::working(Reason::ImagePullFailed, format!("the image of node {id} cannot be had: {said}"))
        }
        PodState::FormatFailed(said) => {
            Progress::working(Reason::FormatFailed, format!("the disk of node {id} could not be checked: {said}"))
        }
        PodState::Crashing(said) => {
            Progress::working(Reason::NodeCrashing, format!("node {id} ends again and again: {said}"))
        }
        // A fresh disk whose permission the pod has not seen yet: the next attempt will.
        PodState::Refused(_) => {
            Progress::working(Reason::Starting, format!("node {id} waits for the permission to format its new disk"))
        }
    }
}
