//! The identity of a cluster: its id, its nodes, their disks, and the one permission to format a disk standalone.
//!
//! It lives in the ConfigMap `<cluster>-identity`, which no deletion of a KafkaCluster touches (under
//! `deletionPolicy: Retain`), and is repeated in annotations on the claims. It is the only thing that the operator must
//! not lose; everything else is derived. Changes are made by whole replacement at the version that was read.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use gregor_operator_api::cluster::Role;
use gregor_operator_api::names;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Gives sixteen random bytes at a time.
pub type Mint<'a> = &'a mut dyn FnMut() -> [u8; 16];

/// The key of the identity's ConfigMap that holds it.
pub const KEY: &str = "identity.json";

/// Who a cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// The version of this text: 1.
    pub version: u32,
    /// The cluster's id in Kafka.
    pub cluster_id: String,
    /// Which disk may be formatted as the first of the cluster. `None` once that has happened: every other empty disk is
    /// either new to a cluster that lives, or a disk that lost its data.
    pub standalone_grant: Option<Grant>,
    /// How the nodes talk with each other. It is for ever: nodes that speak otherwise could not find each other while they are
    /// restarted one by one.
    #[serde(default, skip_serializing_if = "Connections::are_plaintext")]
    pub connections: Connections,
    /// The DNS domain that ends the nodes' names, by which they are recorded in the metadata and know each other's certificates. It
    /// is for ever too; an identity that an earlier release wrote gets it when it is first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_domain: Option<String>,
    /// Every node that was ever given out and not taken back, by its id.
    pub nodes: BTreeMap<i32, NodeIdentity>,
}

/// How the nodes of a cluster talk with each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connections {
    /// In plaintext: an earlier release made the cluster.
    #[default]
    Plaintext,
    /// By mutual TLS, with certificates of the cluster's own authority.
    Tls,
}

impl Connections {
    /// The word in the annotations that repeat it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "Plaintext",
            Self::Tls => "Tls",
        }
    }

    /// Whether they are encrypted.
    pub fn are_tls(self) -> bool {
        self == Self::Tls
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde asks with a reference
    fn are_plaintext(&self) -> bool {
        *self == Self::Plaintext
    }
}

/// The permission to format one disk standalone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grant {
    /// The node.
    pub node_id: i32,
    /// The directory id that the disk gets.
    pub directory_id: String,
}

/// One node's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeIdentity {
    /// The id of the log directory.
    pub directory_id: String,
    /// The claim that holds it, as its uid: another claim of the same name is another disk.
    pub claim_uid: Option<String>,
    /// Whether the disk was seen formatted. From then on an empty disk is a lost one.
    pub formatted: bool,
    /// How the node stands to `spec.acceptDataLoss`.
    #[serde(default)]
    pub acceptance: Acceptance,
    /// The pool and the roles that the node was given; none of the only node of a cluster, which is broker and controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

/// Where a node belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Placement {
    /// The pool, by its last known name.
    pub pool: String,
    /// What the node does.
    pub roles: BTreeSet<Role>,
}

/// What a node may do with a disk that it finds empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatGrant {
    /// Format it, and start the cluster's quorum. At most one disk at a time in a cluster has this, and only where no other can
    /// hold anything of the cluster.
    Standalone,
    /// Format it as that of a node that joins.
    Join,
    /// Nothing: what is empty is lost.
    None,
}

impl FormatGrant {
    /// The word that `gregor storage ensure` knows it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Join => "join",
            Self::None => "none",
        }
    }
}

impl NodeIdentity {
    /// A disk that was never formatted.
    fn fresh(directory_id: String, placement: Option<Placement>) -> Self {
        Self { directory_id, claim_uid: None, formatted: false, acceptance: Acceptance::Idle, placement }
    }

    /// What the node does.
    pub fn roles(&self) -> BTreeSet<Role> {
        let both = || BTreeSet::from([Role::Broker, Role::Controller]);
        self.placement.as_ref().map_or_else(both, |placement| placement.roles.clone())
    }
}

/// How a node stands to its entry in `spec.acceptDataLoss`. A word counts only for a loss that was reported before it was
/// given, and only once, although it stays in the manifest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acceptance {
    /// Nothing is lost, nothing is said.
    #[default]
    Idle,
    /// A loss is reported; naming the node from now on accepts it.
    Open,
    /// The node is named, and that has had its effect or never had one.
    Spent,
}

/// Why an identity cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The key is missing.
    #[error("the ConfigMap has no key {KEY}")]
    NoKey,
    /// The text is not an identity.
    #[error("{KEY} is not an identity: {0}")]
    Malformed(String),
    /// A newer operator wrote it.
    #[error("{KEY} has version {0}, and this operator knows version 1: run the newer operator")]
    Version(u32),
}

/// A fresh id in Kafka's text form. Like Kafka's own it never begins with a dash, which command lines would misread.
pub fn fresh_id(mint: Mint<'_>) -> String {
    // One in 64 ids begins with a dash: 100 of them in a row mean that the source is broken, and then the dash is kept.
    let mut id = String::new();
    for _ in 0..100 {
        id = BASE64_URL_SAFE_NO_PAD.encode(mint());
        if !id.starts_with('-') {
            break;
        }
    }
    id
}

impl Identity {
    /// A new cluster with one node, whose disk may be formatted standalone. Others come when that has happened.
    pub fn mint(node_id: i32, placement: Option<Placement>, cluster_domain: &str, mint: Mint<'_>) -> Self {
        let cluster_id = fresh_id(mint);
        let directory_id = fresh_id(mint);
        Self {
            version: 1,
            cluster_id,
            standalone_grant: Some(Grant { node_id, directory_id: directory_id.clone() }),
            connections: Connections::Tls,
            cluster_domain: Some(cluster_domain.to_owned()),
            nodes: BTreeMap::from([(node_id, NodeIdentity::fresh(directory_id, placement))]),
        }
    }

    /// With further nodes, each with a directory of its own. They join: whoever calls this has seen that the permission to
    /// start a quorum is gone, and without that nothing is added.
    #[must_use]
    pub fn with_nodes(mut self, nodes: &BTreeMap<i32, Placement>, mint: Mint<'_>) -> Self {
        if self.standalone_grant.is_some() {
            return self;
        }
        for (node_id, placement) in nodes {
            if let Entry::Vacant(entry) = self.nodes.entry(*node_id) {
                entry.insert(NodeIdentity::fresh(fresh_id(mint), Some(placement.clone())));
            }
        }
        self
    }

    /// With the pools of nodes written down anew: a pool has another name, or the cluster has more than one node now.
    #[must_use]
    pub fn with_placements(mut self, placements: &BTreeMap<i32, Placement>) -> Self {
        for (node_id, placement) in placements {
            if let Some(node) = self.nodes.get_mut(node_id) {
                node.placement = Some(placement.clone());
            }
        }
        self
    }

    /// Reads it from its ConfigMap.
    pub fn parse(config_map: &Value) -> Result<Self, IdentityError> {
        let text = config_map["data"][KEY].as_str().ok_or(IdentityError::NoKey)?;
        let version: Value = serde_json::from_str(text).map_err(|error| IdentityError::Malformed(error.to_string()))?;
        match version["version"].as_u64() {
            Some(1) => {}
            Some(other) => return Err(IdentityError::Version(u32::try_from(other).unwrap_or(u32::MAX))),
            None => return Err(IdentityError::Malformed("it names no version".to_owned())),
        }
        serde_json::from_value(version).map_err(|error| IdentityError::Malformed(error.to_string()))
    }

    /// Rebuilds it from the objects that repeat it: claims, and StatefulSets that run. Every disk counts as formatted: what is
    /// not known must not be formatted. A claim knows better than a StatefulSet, which learns of a new directory only at its
    /// node's next turn.
    ///
    /// `None` if there is no such object, `Err` with an object's name if one does not say whose it is.
    pub fn rebuild<'a>(objects: impl Iterator<Item = (&'a str, &'a Value)>) -> Result<Option<Self>, String> {
        let mut identity: Option<Self> = None;
        let is_claim = |object: &Value| object["kind"] == "PersistentVolumeClaim";
        let (claims, others): (Vec<_>, Vec<_>) = objects.partition(|(_, object)| is_claim(object));
        for (name, object) in claims.into_iter().chain(others) {
            let annotation = |key: &str| object["metadata"]["annotations"][key].as_str().map(str::to_owned);
            let node_id =
                object["metadata"]["labels"][names::NODE_ID_LABEL].as_str().and_then(|id| id.parse::<i32>().ok());
            let (Some(cluster_id), Some(directory_id), Some(node_id)) =
                (annotation(names::CLUSTER_ID), annotation(names::DIRECTORY_ID), node_id)
            else {
                return Err(name.to_owned());
            };
            let said = annotation(names::NODE_CONNECTIONS);
            let connections = [Connections::Plaintext, Connections::Tls]
                .into_iter()
                .find(|connections| said.as_deref().unwrap_or(Connections::default().as_str()) == connections.as_str())
                .ok_or_else(|| name.to_owned())?;
            let identity = identity.get_or_insert_with(|| Self {
                version: 1,
                cluster_id: cluster_id.clone(),
                standalone_grant: None,
                connections,
                cluster_domain: None,
                nodes: BTreeMap::new(),
            });
            if identity.cluster_id != cluster_id || identity.connections != connections {
                return Err(name.to_owned());
            }
            // What an earlier release wrote says nothing of it.
            let domain = annotation(names::CLUSTER_DOMAIN);
            if domain.is_some() && identity.cluster_domain.is_some() && domain != identity.cluster_domain {
                return Err(name.to_owned());
            }
            identity.cluster_domain = identity.cluster_domain.take().or(domain);
            let claim_uid = is_claim(object).then(|| object["metadata"]["uid"].as_str().map(str::to_owned)).flatten();
            let placement = annotation(names::ROLES).and_then(|roles| {
                let pool = object["metadata"]["labels"][names::POOL_LABEL].as_str()?.to_owned();
                Some(Placement { pool, roles: parse_roles(&roles)? })
            });
            let node = identity
                .nodes
                .entry(node_id)
                .or_insert(NodeIdentity { formatted: true, ..NodeIdentity::fresh(directory_id.clone(), None) });
            if node.directory_id != directory_id && (is_claim(object) || node.claim_uid.is_none()) {
                return Err(name.to_owned());
            }
            node.claim_uid = node.claim_uid.take().or(claim_uid);
            node.placement = node.placement.take().or(placement);
        }
        Ok(identity)
    }

    /// What the init container of this node is told that it may do with an empty disk.
    pub fn grant(&self, node_id: i32) -> FormatGrant {
        let Some(node) = self.nodes.get(&node_id).filter(|node| !node.formatted) else { return FormatGrant::None };
        match &self.standalone_grant {
            Some(grant) if grant.node_id == node_id && grant.directory_id == node.directory_id => {
                FormatGrant::Standalone
            }
            // While one disk may start the quorum nobody joins: there is nothing to join yet.
            Some(_) => FormatGrant::None,
            None => FormatGrant::Join,
        }
    }

    /// After the disk was seen formatted: the permission is gone, and the claim is the one that holds the data.
    #[must_use]
    pub fn with_formatted(mut self, node_id: i32, claim_uid: &str) -> Self {
        if self.standalone_grant.as_ref().is_some_and(|grant| grant.node_id == node_id) {
            self.standalone_grant = None;
        }
        if let Some(node) = self.nodes.get_mut(&node_id) {
            node.formatted = true;
            node.claim_uid = Some(claim_uid.to_owned());
        }
        self
    }

    /// After a person gave up the data of a node: a new directory. That of the only node may start the quorum again, as nothing
    /// of the cluster is left; any other joins what the rest still holds.
    #[must_use]
    pub fn with_loss_accepted(mut self, node_id: i32, claim_uid: Option<&str>, mint: Mint<'_>) -> Self {
        let directory_id = fresh_id(mint);
        if self.nodes.len() <= 1 {
            self.standalone_grant = Some(Grant { node_id, directory_id: directory_id.clone() });
        }
        let placement = self.nodes.get(&node_id).and_then(|node| node.placement.clone());
        self.nodes.insert(
            node_id,
            NodeIdentity {
                claim_uid: claim_uid.map(str::to_owned),
                acceptance: Acceptance::Spent,
                ..NodeIdentity::fresh(directory_id, placement)
            },
        );
        self
    }

    /// The text in the ConfigMap.
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a struct of strings, numbers and maps with integer keys is JSON")
    }
}

fn parse_roles(text: &str) -> Option<BTreeSet<Role>> {
    text.split(',')
        .map(|word| [Role::Broker, Role::Controller].into_iter().find(|role| role.as_str() == word))
        .collect()
}
