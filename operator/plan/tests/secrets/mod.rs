//! The Secrets of one cluster, `demo`, for the plan's tests: what the manager would make of the plan's writes, with names in the
//! place of keys and signatures; and what the files in the pods hold of them. It asserts on the way that a write is made of what was
//! read, and that nothing is signed by a key that is not there.
#![allow(clippy::unwrap_used, dead_code)] // each test binary uses its part, and a test that cannot go on may panic

use std::collections::{BTreeMap, BTreeSet};

use gregor_operator_plan::certificates::{
    AuthoritySeen, Certificate, CertificatesSeen, NodeCertificateSeen, SecretChange, SecretSeen, SecretWrite,
    SecretWrites, ToMake, Trusted,
};
use serde_json::{Value, json};

/// 2026-01-01T00:00:00Z.
pub const BEGINNING: i64 = 1_767_225_600;
pub const DAY: i64 = 86_400;

#[derive(Clone)]
pub struct Secrets {
    pub seen: CertificatesSeen,
    /// What is in the files of each node's pod.
    pub mounted: BTreeMap<i32, NodeCertificateSeen>,
    /// Nodes whose kubelet does not come to their Secrets.
    pub slow: BTreeSet<i32>,
    /// Nodes whose ports the operator does not reach.
    pub unseen: BTreeSet<i32>,
    /// Seconds since 1970.
    pub now: i64,
    pub writes: Vec<String>,
    version: u64,
}

impl Default for Secrets {
    fn default() -> Self {
        Self {
            seen: CertificatesSeen::default(),
            mounted: BTreeMap::new(),
            slow: BTreeSet::new(),
            unseen: BTreeSet::new(),
            now: BEGINNING,
            writes: Vec::new(),
            version: 0,
        }
    }
}

fn certificate(make: &ToMake) -> Certificate {
    Certificate {
        serial: format!("{:032x}", u128::from_be_bytes(make.serial)),
        subject: make.subject.clone(),
        issuer: make.issuer.clone(),
        names: make.names.iter().cloned().collect(),
        not_before: make.not_before,
        not_after: make.not_after,
    }
}

fn trusted(make: &ToMake) -> Trusted {
    Trusted { subject: make.subject.clone(), not_after: make.not_after, pem: format!("PEM of {}", make.subject) }
}

impl Secrets {
    /// The time in RFC 3339.
    pub fn time(&self) -> String {
        k8s_openapi::jiff::Timestamp::from_second(self.now).unwrap().to_string()
    }

    /// What the manager reads, and sees at the ports of these nodes.
    pub fn observed(&self, running: impl Iterator<Item = i32>) -> CertificatesSeen {
        let mut seen = self.seen.clone();
        let shown =
            running.filter(|id| !self.unseen.contains(id)).filter_map(|id| Some((id, self.mounted.get(&id)?.shown())));
        seen.served = shown.collect();
        seen
    }

    pub fn authority(&self) -> &AuthoritySeen {
        self.seen.authority.as_ref().unwrap().content.as_ref().unwrap()
    }

    pub fn node(&self, id: i32) -> &NodeCertificateSeen {
        self.seen.nodes[&id].content.as_ref().unwrap()
    }

    /// The serial numbers of the nodes' certificates.
    pub fn serials(&self) -> BTreeMap<i32, String> {
        self.seen.nodes.keys().map(|id| (*id, self.node(*id).certificate.serial.clone())).collect()
    }

    pub fn metadata(&self, name: &str) -> Option<&Value> {
        let nodes = self.seen.nodes.values().map(|seen| &seen.metadata);
        self.seen.authority.iter().map(|seen| &seen.metadata).chain(nodes).find(|metadata| metadata["name"] == name)
    }

    pub fn write(&mut self, writes: SecretWrites) {
        self.writes.push(writes.why);
        for SecretWrite { name, mut metadata, change } in writes.writes {
            let before = self.metadata(&name).map_or(Value::Null, |metadata| metadata["resourceVersion"].clone());
            assert_eq!(metadata["resourceVersion"], before, "{name} is written at the version that was read");
            assert_eq!(metadata["ownerReferences"][0]["kind"], "KafkaCluster");
            self.version += 1;
            metadata["resourceVersion"] = json!(self.version.to_string());
            if name == "demo-authority" {
                self.write_authority(metadata, change);
            } else {
                self.write_node(&name, metadata, change);
            }
        }
    }

    fn write_authority(&mut self, metadata: Value, change: SecretChange) {
        let before = self.seen.authority.as_ref().and_then(|seen| seen.content.clone().ok());
        let content = match (change, before) {
            (SecretChange::Authority { certificate: make, trusted: mut before }, _) => {
                before.push(trusted(&make));
                AuthoritySeen { current: certificate(&make), next: None, trusted: before }
            }
            (SecretChange::NextAuthority(make), Some(mut before)) => {
                before.trusted.push(trusted(&make));
                AuthoritySeen { next: Some(certificate(&make)), ..before }
            }
            (SecretChange::Promote, Some(before)) => {
                AuthoritySeen { current: before.next.unwrap(), next: None, trusted: before.trusted }
            }
            (SecretChange::Trust(trusted), Some(before)) => AuthoritySeen { trusted, ..before },
            (change, before) => panic!("{change:?} of {before:?}"),
        };
        self.seen.authority = Some(SecretSeen { metadata, content: Ok(content) });
    }

    fn write_node(&mut self, name: &str, metadata: Value, change: SecretChange) {
        let id: i32 = name.strip_prefix("demo-").unwrap().strip_suffix("-tls").unwrap().parse().unwrap();
        let content = match change {
            SecretChange::Node { authority, certificate: make, trusted } => {
                assert_eq!(authority, "demo-authority");
                assert_eq!(make.issuer, self.authority().current.subject, "there is one key to sign with");
                assert!(make.not_after <= self.authority().current.not_after);
                NodeCertificateSeen { certificate: certificate(&make), trusted }
            }
            SecretChange::Trust(trusted) => NodeCertificateSeen { trusted, ..self.node(id).clone() },
            change => panic!("{change:?} of a node"),
        };
        self.seen.nodes.insert(id, SecretSeen { metadata, content: Ok(content) });
    }

    /// A pod begins with what is in its Secret; it does not without one.
    pub fn mount(&mut self, id: i32) -> bool {
        let Some(Ok(content)) = self.seen.nodes.get(&id).map(|seen| seen.content.clone()) else { return false };
        self.mounted.insert(id, content);
        true
    }

    /// The kubelets look at the Secrets of these pods. Files stay when a Secret is gone.
    pub fn refresh(&mut self, pods: impl Iterator<Item = i32>) -> bool {
        let before = self.mounted.clone();
        for id in pods.filter(|id| !self.slow.contains(id)).collect::<Vec<_>>() {
            self.mount(id);
        }
        self.mounted != before
    }

    /// Why one of these nodes could not talk with another, if so.
    pub fn quarrel(&self, running: &[i32]) -> Option<String> {
        for (one, other) in running.iter().flat_map(|one| running.iter().map(move |other| (one, other))) {
            let (mine, theirs) = (self.mounted.get(one)?, self.mounted.get(other)?);
            if self.now >= theirs.certificate.not_after {
                return Some(format!("the certificate of node {other} has ended"));
            }
            let vouches =
                |trusted: &Trusted| trusted.subject == theirs.certificate.issuer && self.now < trusted.not_after;
            if !mine.trusted.iter().any(vouches) {
                return Some(format!(
                    "node {one} does not trust {}, which vouches for node {other}",
                    theirs.certificate.issuer
                ));
            }
        }
        None
    }

    /// What belongs to a deleted KafkaCluster goes.
    pub fn collect(&mut self) {
        self.seen = CertificatesSeen::default();
        self.mounted.clear();
    }
}
