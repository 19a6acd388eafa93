//! The DNS domain of the Kubernetes that a cluster was made in. It ends the names of the nodes, which are in the metadata, in every
//! node's configuration and in the certificates: nodes that are restarted one by one could not find each other under two of them.
//! Called by the cluster's plan.

use crate::cluster::ClusterObserved;
use crate::decision::{Decision, Stage};
use crate::identity::Identity;
use crate::objects;
use crate::progress::Reason;
use crate::validate::{ValidCluster, node_host};
use crate::{Environment, Step};

impl ClusterObserved {
    /// The domain that ends the names of the cluster's nodes: the recorded one; where none is recorded that of the nodes'
    /// certificates, and where there are none either the operator's.
    pub fn domain(&self, environment: &Environment) -> String {
        let identity = self.identity.as_ref().and_then(|config_map| Identity::parse(config_map).ok());
        let recorded = identity.and_then(|identity| identity.cluster_domain);
        recorded.or_else(|| self.certified_domain()).unwrap_or_else(|| environment.cluster_domain.clone())
    }

    fn certified_domain(&self) -> Option<String> {
        let metadata = &self.cluster.metadata;
        let (name, namespace) = (metadata.name.as_deref()?, metadata.namespace.as_deref()?);
        self.certificates.nodes.iter().find_map(|(id, seen)| {
            let without_domain = node_host(name, namespace, "", *id);
            let names = &seen.content.as_ref().ok()?.certificate.names;
            names.iter().find_map(|name| name.strip_prefix(&without_domain)).map(str::to_owned)
        })
    }
}

/// Refuses another domain than the cluster has, and writes down which it is where that is not recorded.
pub(crate) fn keep(
    observed: &ClusterObserved,
    cluster: &ValidCluster,
    identity: &Identity,
    environment: &Environment,
) -> Result<(), Decision> {
    let domain = &cluster.cluster_domain;
    let told = &environment.cluster_domain;
    if domain != told {
        let message = format!(
            "this cluster was made in the DNS domain {domain}, which is in its nodes' names and certificates, and the operator is told {told}: set the operator's clusterDomain to {domain} again; a new KafkaCluster gets the new domain"
        );
        return Err(Decision::refuse(Reason::DomainChangeRefused, message));
    }
    if identity.cluster_domain.is_some() {
        return Ok(());
    }
    let identity = Identity { cluster_domain: Some(domain.clone()), ..identity.clone() };
    let step = Step::ReplaceIdentity(objects::identity(cluster, &identity, observed.identity.as_ref()));
    let message = format!("writing down that the cluster is in the DNS domain {domain}");
    Err(Decision::step(Stage::Manifest, step, Reason::Creating, message))
}
