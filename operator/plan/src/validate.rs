//! From a manifest to a [`ValidCluster`]: everything that builders need, with defaults filled in and templates expanded.
//! Builders never see the raw spec. What the API server's rules cannot say is refused here, in words.

use std::collections::BTreeMap;

use gregor_operator_api::cluster::{Listener, ListenerType, NodePool, Volume};
use gregor_operator_api::value::Resources;
use gregor_operator_api::{ConfigValue, DeletionPolicy, KafkaCluster, names};
use k8s_openapi::api::core::v1::{PodTemplateSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::progress::Reason;
use crate::{Environment, owned_keys};

/// A manifest that cannot be carried out, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The condition's word.
    pub reason: Reason,
    /// The condition's sentence.
    pub message: String,
}

fn invalid(reason: Reason, message: impl Into<String>) -> Invalid {
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
    /// The node, whose id may be left to the operator.
    pub pool: ValidPool,
    /// Node ids whose lost data is given up.
    pub accept_data_loss: Vec<i32>,
    /// The DNS domain of this Kubernetes.
    pub cluster_domain: String,
}

/// A pool of one node.
#[derive(Debug, Clone)]
pub struct ValidPool {
    /// Its name.
    pub name: String,
    /// The node's id, if the manifest says it.
    pub node_id: Option<i32>,
    /// The disk.
    pub volume: Volume,
    /// The rack.
    pub rack: Option<String>,
    /// CPU and memory.
    pub resources: ResourceRequirements,
    /// Templates to merge over the operator's, in this order.
    pub templates: Vec<PodTemplateSpec>,
}

/// One node, with every template expanded.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its id.
    pub id: i32,
    /// Its pool.
    pub pool: String,
    /// The name of its StatefulSet: `<cluster>-<id>`.
    pub name: String,
    /// Its pod's DNS name.
    pub host: String,
    /// Its disk.
    pub volume: Volume,
    /// Its rack.
    pub rack: Option<String>,
    /// Its listeners beside the internal one.
    pub listeners: Vec<NodeListener>,
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
        let [pool] = spec.node_pools.as_slice() else {
            return Err(invalid(
                Reason::InvalidSpec,
                "this release runs clusters of one node: write one entry in nodePools",
            ));
        };
        let image = spec
            .image
            .clone()
            .or_else(|| spec.version.as_ref().map(|version| format!("{}:{version}", environment.image_repository)));
        Ok(Self {
            pool: valid_pool(pool, cluster)?,
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

    /// The node with this id.
    pub fn node(&self, id: i32) -> Result<Node, Invalid> {
        let name = format!("{}-{id}", self.name);
        let host = format!("{name}-0.{}.{}.svc.{}", self.headless_service(), self.namespace, self.cluster_domain);
        let listeners =
            self.listeners.iter().map(|listener| self.node_listener(listener, id, &host)).collect::<Result<_, _>>()?;
        Ok(Node {
            id,
            pool: self.pool.name.clone(),
            name,
            host,
            volume: self.pool.volume.clone(),
            rack: self.pool.rack.clone(),
            listeners,
        })
    }

    fn node_listener(&self, listener: &Listener, id: i32, host: &str) -> Result<NodeListener, Invalid> {
        let expand = |template: &str| {
            template
                .replace("{nodeId}", &id.to_string())
                .replace("{cluster}", &self.name)
                .replace("{namespace}", &self.namespace)
                .replace("{pool}", &self.pool.name)
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
        format!("{}-nodes", self.name)
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

fn valid_pool(pool: &NodePool, cluster: &KafkaCluster) -> Result<ValidPool, Invalid> {
    let spec = &cluster.spec;
    let storage = pool.storage.as_ref().or(spec.storage.as_ref());
    let Some([volume]) = storage.map(|storage| storage.volumes.as_slice()) else {
        let message = "write one disk for the node: storage: {volumes: [{name: data, size: 10Gi}]}";
        return Err(invalid(Reason::InvalidSpec, message));
    };
    let node_id = match pool.node_ids.as_deref() {
        None => None,
        Some([id]) => {
            Some(id.parse().map_err(|_| invalid(Reason::InvalidSpec, format!("{id} is no node id: write a number")))?)
        }
        Some(_) => {
            return Err(invalid(
                Reason::InvalidSpec,
                "this release runs clusters of one node: write one id in nodeIds",
            ));
        }
    };
    let mut templates = Vec::new();
    let sources = [("spec.podTemplate", &spec.pod_template), ("the pool's podTemplate", &pool.pod_template)];
    for (place, template) in sources {
        if let Some(template) = template {
            templates.push(valid_template(place, template)?);
        }
    }
    Ok(ValidPool {
        name: pool.name.clone(),
        node_id,
        volume: volume.clone(),
        rack: pool.rack.as_ref().and_then(|rack| rack.name.clone()),
        resources: requirements(pool.resources.as_ref().or(spec.resources.as_ref())),
        templates,
    })
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
