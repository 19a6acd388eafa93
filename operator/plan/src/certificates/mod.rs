//! The certificates with which the nodes of a cluster know each other: what is to be made, when and in which order, so that there is
//! no moment at which two nodes that run could not talk. Called by the cluster's plan with what the manager read of the Secrets
//! and saw at the nodes' ports. No private key ever comes here.
//!
//! A cluster has one authority, in the Secret `<cluster>-authority`, and each node a Secret of its own, `<cluster>-<id>-tls`, with
//! its key, its certificate and the authorities that it trusts. An authority that is to follow another is trusted by every node
//! before anything is signed by it, and an authority is forgotten when no node shows a certificate of it any more. Both are
//! believed only of what the nodes show: what is in a Secret reaches a pod when its kubelet comes to it.

mod renewal;

use std::collections::{BTreeMap, BTreeSet};

use gregor_operator_api::cluster::Role;
use serde_json::Value;

use crate::cluster::ClusterObserved;
use crate::identity::Identity;
use crate::pods::PodState;
use crate::properties::{CONTROLLER_PORT, REPLICATION_PORT};
use crate::validate::node_host;

pub use renewal::CLOCK_SKEW_SECONDS;
pub(crate) use renewal::next;

/// The name of the Secret with a cluster's authority.
pub fn authority_secret(cluster: &str) -> String {
    format!("{cluster}-authority")
}

/// The name of the Secret with a node's certificate.
pub fn node_secret(cluster: &str, node_id: i32) -> String {
    format!("{cluster}-{node_id}-tls")
}

/// What a certificate says. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The serial number in hexadecimal digits.
    pub serial: String,
    /// The common name of whom it is for.
    pub subject: String,
    /// The common name of the authority that signed it.
    pub issuer: String,
    /// The DNS names that it is good for.
    pub names: BTreeSet<String>,
    /// When it begins to be valid.
    pub not_before: i64,
    /// When it ends.
    pub not_after: i64,
}

/// The certificate of an authority that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    /// The authority's common name. No two authorities have the same.
    pub subject: String,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
    /// The certificate in PEM.
    pub pem: String,
}

/// A cluster's authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthoritySeen {
    /// The one that signs.
    pub current: Certificate,
    /// The one that will, as soon as every node trusts it.
    pub next: Option<Certificate>,
    /// Everything that nodes should trust.
    pub trusted: Vec<Trusted>,
}

/// A node's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificateSeen {
    /// The certificate.
    pub certificate: Certificate,
    /// What the node trusts when it has read its Secret.
    pub trusted: Vec<Trusted>,
}

/// A Secret, without what is secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretSeen<T> {
    /// Its metadata, without the managers of its fields.
    pub metadata: Value,
    /// What is in it, or why that cannot be read.
    pub content: Result<T, String>,
}

/// What a node shows whoever comes to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// The serial number of its certificate.
    pub serial: String,
    /// The common names of the authorities of which it takes certificates.
    pub trusted: BTreeSet<String>,
}

/// All that was read of a cluster's certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificatesSeen {
    /// The authority's Secret.
    pub authority: Option<SecretSeen<AuthoritySeen>>,
    /// The nodes' Secrets by their ids.
    pub nodes: BTreeMap<i32, SecretSeen<NodeCertificateSeen>>,
    /// What nodes that run show; of those that could be asked.
    pub served: BTreeMap<i32, Served>,
}

/// A node whose port is worth looking at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The node.
    pub node_id: i32,
    /// Its pod, whose files change with its Secret and not with another pod.
    pub pod_uid: String,
    /// Where it listens.
    pub host: String,
    /// On which port.
    pub port: u16,
    /// What it shows when it has read its Secret.
    pub expected: Option<Served>,
}

/// A certificate to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToMake {
    /// Its serial number: positive, and never shorter.
    pub serial: [u8; 16],
    /// The common name of whom it is for.
    pub subject: String,
    /// The common name of the authority that signs it; its own of an authority.
    pub issuer: String,
    /// The DNS names that it is good for.
    pub names: Vec<String>,
    /// When it begins to be valid, in seconds since 1970.
    pub not_before: i64,
    /// When it ends.
    pub not_after: i64,
}

/// A change of one Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretWrite {
    /// Its name.
    pub name: String,
    /// Its metadata; with the version that was read, unless the Secret is new.
    pub metadata: Value,
    /// What becomes of its content.
    pub change: SecretChange,
}

/// What becomes of a Secret's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretChange {
    /// A new authority that signs at once, and what is trusted beside it.
    Authority {
        /// Its certificate.
        certificate: ToMake,
        /// Those before it.
        trusted: Vec<Trusted>,
    },
    /// A new authority beside the one that signs, trusted from now on.
    NextAuthority(ToMake),
    /// The next authority signs; the key of the one before is forgotten, its certificate goes on being trusted.
    Promote,
    /// Exactly these authorities are trusted.
    Trust(Vec<Trusted>),
    /// A new key and certificate of a node, signed by the authority in this Secret, and what the node trusts.
    Node {
        /// The authority's Secret.
        authority: String,
        /// The certificate.
        certificate: ToMake,
        /// What the node trusts.
        trusted: Vec<Trusted>,
    },
}

/// Changes of Secrets, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretWrites {
    /// The changes, in this order.
    pub writes: Vec<SecretWrite>,
    /// A sentence without secrets.
    pub why: String,
}

/// What is to be done about the certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Something that nodes cannot start without.
    Begin(SecretWrites),
    /// Something that nobody waits for.
    Renew(SecretWrites),
    /// Nothing before this has passed by itself; other work goes on.
    Wait(String),
    /// Nothing before Kubernetes has deleted what belonged to an earlier KafkaCluster of this name.
    Leaving(String),
    /// Nothing before a person changes something.
    Refuse(String),
    /// Nothing.
    Done,
}

impl NodeCertificateSeen {
    /// What a node shows that has read this.
    pub fn shown(&self) -> Served {
        Served { serial: self.certificate.serial.clone(), trusted: subjects(&self.trusted) }
    }
}

fn subjects(trusted: &[Trusted]) -> BTreeSet<String> {
    trusted.iter().map(|trusted| trusted.subject.clone()).collect()
}

impl ClusterObserved {
    /// The nodes' ports that are worth looking at: those of pods that run.
    pub fn asks_ports(&self, domain: &str) -> Vec<Port> {
        let identity = self.identity.as_ref().and_then(|config_map| Identity::parse(config_map).ok());
        let Some(identity) = identity.filter(|identity| identity.connections.are_tls()) else { return Vec::new() };
        let metadata = &self.cluster.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let ports = identity.nodes.iter().filter_map(|(id, recorded)| {
            let pod = self.pod(*id).filter(|pod| matches!(pod.state, PodState::Running | PodState::Ready))?;
            let votes = recorded.roles().contains(&Role::Controller);
            let port = if votes { CONTROLLER_PORT } else { REPLICATION_PORT };
            let content = self.certificates.nodes.get(id).and_then(|seen| seen.content.as_ref().ok());
            Some(Port {
                node_id: *id,
                pod_uid: pod.uid,
                host: node_host(name, namespace, domain, *id),
                port: u16::try_from(port).unwrap_or_default(),
                expected: content.map(NodeCertificateSeen::shown),
            })
        });
        ports.collect()
    }

    /// The names of the Secrets with the cluster's certificates; none of a cluster that has no certificates at all.
    pub fn asks_secrets(&self) -> Vec<String> {
        let identity = self.identity.as_ref().and_then(|config_map| Identity::parse(config_map).ok());
        let Some(identity) = identity.filter(|identity| identity.connections.are_tls()) else { return Vec::new() };
        let cluster = self.cluster.metadata.name.as_deref().unwrap_or_default();
        let nodes = identity.nodes.keys().map(|id| node_secret(cluster, *id));
        std::iter::once(authority_secret(cluster)).chain(nodes).collect()
    }
}
