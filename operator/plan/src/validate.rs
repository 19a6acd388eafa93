//! From a manifest to a [`ValidCluster`]: everything that builders need, with defaults filled in and templates expanded.
//! Builders never see the raw spec. What the API server's rules cannot say is refused here, in words.

use std::collections::{BTreeMap, BTreeSet};

use gregor_operator_api::cluster::{Listener, ListenerType, NodePool, Role, Volume};
use gregor_operator_api::value::Resources;
use gregor_operator_api::{ConfigValue, DeletionPolicy, KafkaCluster, names};
use k8s_openapi::api::core::v1::{PodTemplateSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::progress::Reason;
use crate::{Environment, owned_keys};

/// The most nodes of a cluster.
const NODES_MAX: usize = 1_000;

/// A manifest that cannot be carried out, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The condition's word.
    pub reason: Reason,
    /// The condition's sentence.
    pub message: String,
}

pub(crate) fn invalid(reason: Reason, message: impl Into<String>) -> Invalid {
    Invalid { reason, message: message.into() }
}

/// A cluster that can be built.
#[derive(Debug, Clone)]
pub struct ValidCluster {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The uid of the KafkaCluster, for owner references.
    pub uid: String,
    /// What becomes of the data with the KafkaCluster.
    pub deletion_policy: DeletionPolicy,
    /// Brokers' configuration as text.
    pub config: BTreeMap<String, String>,
    /// The image that the manifest asks for, if it does.
    pub image: Option<String>,
    /// The nonce that restarts nodes.
    pub restarted_at: Option<String>,
    /// The listeners beside the internal one.
    pub listeners: Vec<Listener>,
    /// The groups of nodes, whose ids may be left to the operator.
    pub pools: Vec<ValidPool>,
    /// Node ids whose lost data is given up.
    pub accept_data_loss: Vec<i32>,
    /// The DNS domain of this Kubernetes.
    pub cluster_domain: String,
}

/// A group of nodes that are alike.
#[derive(Debug, Clone)]
pub struct ValidPool {
    /// Its name.
    pub name: String,
    /// Which nodes.
    pub nodes: PoolNodes,
    /// What they do.
    pub roles: BTreeSet<Role>,
    /// The disk of each.
    pub volume: Volume,
    /// The rack.
    pub rack: Option<RackSource>,
    /// CPU and memory.
    pub resources: ResourceRequirements,
    /// Templates to merge over the operator's, in this order.
    pub templates: Vec<PodTemplateSpec>,
}

/// Which nodes a pool has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolNodes {
    /// So many, whose ids the operator chooses.
    Count(usize),
    /// Those with these ids.
    Ids(BTreeSet<i32>),
}

impl PoolNodes {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Count(count) => *count,
            Self::Ids(ids) => ids.len(),
        }
    }
}

/// Where a node's rack comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RackSource {
    /// The manifest names it.
    Named(String),
    /// It is the value of this label of the pod's Kubernetes node.
    Label(String),
}

/// One node, with every template expanded.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its id.
    pub id: i32,
    /// Its pool.
    pub pool: String,
    /// What it does.
    pub roles: BTreeSet<Role>,
    /// The name of its StatefulSet: `<cluster>-<id>`.
    pub name: String,
    /// Its pod's DNS name.
    pub host: String,
    /// Its disk.
    pub volume: Volume,
    /// Its rack.
    pub rack: Option<RackSource>,
    /// CPU and memory.
    pub resources: ResourceRequirements,
    /// Templates to merge over the operator's, in this order.
    pub templates: Vec<PodTemplateSpec>,
    /// Its listeners beside the internal one; none of a node that is no broker.
    pub listeners: Vec<NodeListener>,
}

impl Node {
    /// Whether it holds partitions and serves clients.
    pub fn is_broker(&self) -> bool {
        self.roles.contains(&Role::Broker)
    }

    /// Whether it votes.
    pub fn is_controller(&self) -> bool {
        self.roles.contains(&Role::Controller)
    }

    /// Its roles, as `process.roles` has them.
    pub fn roles_text(&self) -> String {
        roles_text(&self.roles)
    }
}

/// Roles, as `process.roles` has them.
pub fn roles_text(roles: &BTreeSet<Role>) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(",")
}

/// A listener of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeListener {
    /// Its name in the manifest.
    pub name: String,
    /// The port that the broker listens on.
    pub port: i32,
    /// How it is reached.
    pub type_: ListenerType,
    /// The host that clients are told.
    pub advertised_host: String,
    /// The port that clients are told.
    pub advertised_port: i32,
}

impl NodeListener {
    /// The name as it stands in the brokers' configuration.
    pub fn kafka_name(&self) -> String {
        self.name.to_ascii_uppercase().replace('-', "_")
    }
}

impl ValidCluster {
    /// Checks the manifest and fills in what it leaves out.
    pub fn of(cluster: &KafkaCluster, environment: &Environment) -> Result<Self, Invalid> {
        let spec = &cluster.spec;
        let name = cluster.metadata.name.clone().unwrap_or_default();
        if name.is_empty() || name.len() > names::CLUSTER_NAME_LENGTH_MAX {
            let message =
                format!("the name {name} has not between 1 and {} characters", names::CLUSTER_NAME_LENGTH_MAX);
            return Err(invalid(Reason::InvalidSpec, message));
        }
        let pools = spec
            .node_pools
            .iter()
            .map(|pool| valid_pool(pool, cluster))
            .collect::<Result<Vec<ValidPool>, Invalid>>()?;
        check_pools(&pools)?;
        let image = spec
            .image
            .clone()
            .or_else(|| spec.version.as_ref().map(|version| format!("{}:{version}", environment.image_repository)));
        Ok(Self {
            pools,
            config: valid_config(&spec.config)?,
            uid: cluster.metadata.uid.clone().unwrap_or_default(),
            namespace: cluster.metadata.namespace.clone().unwrap_or_default(),
            deletion_policy: spec.deletion_policy,
            image,
            restarted_at: spec.restarted_at.clone(),
            listeners: spec.listeners.clone(),
            accept_data_loss: spec.accept_data_loss.clone(),
            cluster_domain: environment.cluster_domain.clone(),
            name,
        })
    }

    /// How many nodes the manifest asks for.
    pub fn node_count(&self) -> usize {
        self.pools.iter().map(|pool| pool.nodes.count()).sum()
    }

    /// The node with this id, in this pool.
    pub fn node(&self, id: i32, pool: &ValidPool) -> Result<Node, Invalid> {
        let name = format!("{}-{id}", self.name);
        let host = node_host(&self.name, &self.namespace, &self.cluster_domain, id);
        let listeners = if pool.roles.contains(&Role::Broker) { self.listeners.as_slice() } else { &[] };
        let listeners = listeners
            .iter()
            .map(|listener| self.node_listener(listener, id, &pool.name, &host))
            .collect::<Result<_, _>>()?;
        Ok(Node {
            id,
            pool: pool.name.clone(),
            roles: pool.roles.clone(),
            name,
            host,
            volume: pool.volume.clone(),
            rack: pool.rack.clone(),
            resources: pool.resources.clone(),
            templates: pool.templates.clone(),
            listeners,
        })
    }

    fn node_listener(&self, listener: &Listener, id: i32, pool: &str, host: &str) -> Result<NodeListener, Invalid> {
        let expand = |template: &str| {
            template
                .replace("{nodeId}", &id.to_string())
                .replace("{cluster}", &self.name)
                .replace("{namespace}", &self.namespace)
                .replace("{pool}", pool)
        };
        let exception = listener.nodes.iter().find(|node| node.node_id == id);
        let advertised = listener.advertised.as_ref();
        let advertised_host = exception
            .and_then(|node| node.host.clone())
            .or_else(|| advertised.and_then(|advertised| advertised.host_template.as_deref()).map(expand))
            .unwrap_or_else(|| host.to_owned());
        let template = advertised.and_then(|advertised| advertised.port_template.as_deref());
        let advertised_port = match (exception.and_then(|node| node.port), template) {
            (Some(port), _) => port,
            (None, None) => listener.port,
            (None, Some(template)) => {
                let text = expand(template);
                text.parse().ok().filter(|port| (1..=65535).contains(port)).ok_or_else(|| {
                    let message = format!(
                        "listener {}: portTemplate {template} gives {text} for node {id}, which is no port: write one that gives 1 to 65535",
                        listener.name
                    );
                    invalid(Reason::InvalidSpec, message)
                })?
            }
        };
        if listener.type_ == ListenerType::NodePort && !(1024..=65535).contains(&advertised_port) {
            let message = format!("listener {}: {advertised_port} cannot be a node port", listener.name);
            return Err(invalid(Reason::InvalidSpec, message));
        }
        Ok(NodeListener {
            name: listener.name.clone(),
            port: listener.port,
            type_: listener.type_,
            advertised_host,
            advertised_port,
        })
    }

    /// The name of the Service that gives pods their DNS names.
    pub fn headless_service(&self) -> String {
        headless_service(&self.name)
    }

    /// The name of the Service that clients begin at.
    pub fn bootstrap_service(&self) -> String {
        format!("{}-bootstrap", self.name)
    }

    /// The name of the ConfigMap that holds the identity.
    pub fn identity(&self) -> String {
        format!("{}-identity", self.name)
    }

    /// `bootstrap.servers` of a listener for clients in this Kubernetes.
    pub fn bootstrap_servers(&self, port: i32) -> String {
        format!("{}.{}.svc.{}:{port}", self.bootstrap_service(), self.namespace, self.cluster_domain)
    }
}

fn headless_service(cluster: &str) -> String {
    format!("{cluster}-nodes")
}

/// The DNS name of a node's pod, by which other nodes dial it.
pub fn node_host(cluster: &str, namespace: &str, domain: &str, id: i32) -> String {
    format!("{cluster}-{id}-0.{}.{namespace}.svc.{domain}", headless_service(cluster))
}

fn valid_pool(pool: &NodePool, cluster: &KafkaCluster) -> Result<ValidPool, Invalid> {
    let spec = &cluster.spec;
    let storage = pool.storage.as_ref().or(spec.storage.as_ref());
    let Some([volume]) = storage.map(|storage| storage.volumes.as_slice()) else {
        let message = "write one disk for the node: storage: {volumes: [{name: data, size: 10Gi}]}";
        return Err(invalid(Reason::InvalidSpec, message));
    };
    let nodes = match (&pool.node_ids, pool.replicas) {
        (Some(ids), _) => PoolNodes::Ids(valid_ids(&pool.name, ids)?),
        (None, Some(count)) => PoolNodes::Count(usize::try_from(count).unwrap_or_default()),
        (None, None) => {
            let message = format!("pool {} says neither replicas nor nodeIds: write one of them", pool.name);
            return Err(invalid(Reason::InvalidSpec, message));
        }
    };
    if nodes.count() > NODES_MAX {
        return Err(too_many());
    }
    let mut templates = Vec::new();
    let sources = [("spec.podTemplate", &spec.pod_template), ("the pool's podTemplate", &pool.pod_template)];
    for (place, template) in sources {
        if let Some(template) = template {
            templates.push(valid_template(place, template)?);
        }
    }
    Ok(ValidPool {
        name: pool.name.clone(),
        nodes,
        roles: pool.roles.iter().copied().collect(),
        volume: volume.clone(),
        rack: pool.rack.as_ref().and_then(|rack| {
            let named = rack.name.clone().map(RackSource::Named);
            named.or_else(|| rack.topology_key.clone().map(RackSource::Label))
        }),
        resources: requirements(pool.resources.as_ref().or(spec.resources.as_ref())),
        templates,
    })
}

fn too_many() -> Invalid {
    invalid(Reason::InvalidSpec, format!("a cluster has at most {NODES_MAX} nodes: write fewer in nodePools"))
}

/// The ids of single numbers and ranges. A range is checked before it is spread out.
fn valid_ids(pool: &str, texts: &[String]) -> Result<BTreeSet<i32>, Invalid> {
    let mut ids = BTreeSet::new();
    for text in texts {
        let wrong = || {
            let message = format!("pool {pool}: {text} is no node id: write a number, or a range such as 0-2");
            invalid(Reason::InvalidSpec, message)
        };
        let (first, last) = text.split_once('-').unwrap_or((text.as_str(), text.as_str()));
        let first: i32 = first.parse().map_err(|_| wrong())?;
        let last: i32 = last.parse().map_err(|_| wrong())?;
        if first < 0 || last < first {
            return Err(wrong());
        }
        if usize::try_from(last - first).unwrap_or(usize::MAX) >= NODES_MAX {
            return Err(too_many());
        }
        for id in first..=last {
            if !ids.insert(id) {
                let message = format!("pool {pool}: node id {id} stands in nodeIds twice: write it once");
                return Err(invalid(Reason::InvalidSpec, message));
            }
        }
    }
    Ok(ids)
}

/// What only all pools together can have wrong.
fn check_pools(pools: &[ValidPool]) -> Result<(), Invalid> {
    if pools.iter().map(|pool| pool.nodes.count()).sum::<usize>() > NODES_MAX {
        return Err(too_many());
    }
    let nodes_with = |role: Role| {
        pools.iter().filter(|pool| pool.roles.contains(&role)).map(|pool| pool.nodes.count()).sum::<usize>()
    };
    if nodes_with(Role::Controller) == 0 {
        let message = "no node would hold the metadata: write a pool of at least one node with roles: [controller] or [broker, controller]";
        return Err(invalid(Reason::InvalidSpec, message));
    }
    if nodes_with(Role::Broker) == 0 {
        let message = "no node would serve clients: write a pool of at least one node with roles: [broker] or [broker, controller]";
        return Err(invalid(Reason::InvalidSpec, message));
    }
    let mut owners: BTreeMap<i32, &str> = BTreeMap::new();
    for pool in pools {
        let PoolNodes::Ids(ids) = &pool.nodes else { continue };
        for id in ids {
            if let Some(other) = owners.insert(*id, &pool.name) {
                let message =
                    format!("node id {id} stands in the pools {other} and {}: write it in one of them", pool.name);
                return Err(invalid(Reason::InvalidSpec, message));
            }
        }
    }
    Ok(())
}

/// Every value as the text that a properties file or a broker gets.
pub fn valid_values(config: &BTreeMap<String, ConfigValue>) -> Result<BTreeMap<String, String>, Invalid> {
    let mut valid = BTreeMap::new();
    for (key, value) in config {
        if key.is_empty() || key.len() > 256 || !key.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
            return Err(invalid(Reason::InvalidConfig, format!("config: {key:?} is no configuration key")));
        }
        let text = value.to_string();
        if !value.is_scalar() {
            return Err(invalid(
                Reason::InvalidConfig,
                format!("config: {key}: {text} is not text, a number or a boolean"),
            ));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid(
                Reason::InvalidConfig,
                format!("config: {key} holds a line break or control character"),
            ));
        }
        valid.insert(key.clone(), text);
    }
    Ok(valid)
}

fn valid_config(config: &BTreeMap<String, ConfigValue>) -> Result<BTreeMap<String, String>, Invalid> {
    if let Some(refusal) = config.keys().find_map(|key| owned_keys::refusal(key)) {
        return Err(invalid(Reason::InvalidConfig, format!("config: {refusal}")));
    }
    valid_values(config)
}

fn requirements(resources: Option<&Resources>) -> ResourceRequirements {
    let quantities = |values: &BTreeMap<String, ConfigValue>| {
        (!values.is_empty())
            .then(|| values.iter().map(|(name, value)| (name.clone(), Quantity(value.to_string()))).collect())
    };
    let default = |name: &str, value: &str| (name.to_owned(), Quantity(value.to_owned()));
    match resources {
        Some(resources) => ResourceRequirements {
            requests: quantities(&resources.requests),
            limits: quantities(&resources.limits),
            claims: None,
        },
        None => ResourceRequirements {
            requests: Some(BTreeMap::from([default("cpu", "100m"), default("memory", "128Mi")])),
            ..ResourceRequirements::default()
        },
    }
}

/// A pod template whose every field is known: a typing error would otherwise vanish without a word.
fn valid_template(place: &str, template: &Value) -> Result<PodTemplateSpec, Invalid> {
    let typed: PodTemplateSpec = serde_json::from_value(template.clone()).map_err(|error| {
        invalid(Reason::InvalidPodTemplate, format!("{place} is no pod template: {error}; see `kubectl explain pod`"))
    })?;
    let through = serde_json::to_value(&typed)
        .map_err(|error| invalid(Reason::InvalidPodTemplate, format!("{place} cannot be written back: {error}")))?;
    match unknown_field(template, &through, "") {
        Some(path) => {
            let message = format!("{place}{path} is no field of a pod template: see `kubectl explain pod`");
            Err(invalid(Reason::InvalidPodTemplate, message))
        }
        None => Ok(typed),
    }
}

fn unknown_field(raw: &Value, through: &Value, path: &str) -> Option<String> {
    match (raw, through) {
        (Value::Object(raw), Value::Object(through)) => raw.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match through.get(key) {
                Some(through) => unknown_field(value, through, &path),
                None => (!value.is_null()).then_some(path),
            }
        }),
        (Value::Array(raw), Value::Array(through)) => raw
            .iter()
            .zip(through)
            .enumerate()
            .find_map(|(index, (raw, through))| unknown_field(raw, through, &format!("{path}[{index}]"))),
        _ => None,
    }
}
