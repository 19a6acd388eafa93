//! A small Kubernetes with a small Kafka for the plan of clusters of several nodes: pods, disks, a quorum and partitions that
//! behave as the real ones do where it matters. It asserts on the way that there is one quorum, that no node runs on a disk that
//! could still be formatted, that voters and restarts leave a majority and every partition's other replicas.
#![allow(clippy::unwrap_used, dead_code)] // a test that cannot go on may panic, and each test uses its part

pub mod pods;
#[path = "../secrets/mod.rs"]
pub mod secrets;

use std::collections::{BTreeMap, BTreeSet};

use gregor_operator_api::{KafkaCluster, names, yaml};
use gregor_operator_plan::cluster::{ClusterObserved, ClusterPlan, plan};
use gregor_operator_plan::kafka::{PartitionSeen, QuorumSeen, ReplicaSeen};
use gregor_operator_plan::quorum::VoterChange;
use gregor_operator_plan::{
    Connections, Environment, Identity, KafkaSeen, Kind, Reason, Seen, Stage, Step, Unseen, Wanted,
};
use k8s_openapi::api::core::v1::Pod;
use secrets::Secrets;
use serde_json::{Value, json};

pub const ONE: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: demo, namespace: team}
spec:
  nodePools: [{name: combined, replicas: 1}]
  storage: {volumes: [{name: data, size: 10Gi}]}
";

pub const COMBINED: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: demo, namespace: team}
spec:
  nodePools: [{name: combined, replicas: 3}]
  storage: {volumes: [{name: data, size: 10Gi}]}
";

pub const POOLS: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: demo, namespace: team}
spec:
  nodePools:
    - {name: controllers, replicas: 3, roles: [controller]}
    - {name: brokers, nodeIds: ['10-11', '20'], roles: [broker]}
  storage: {volumes: [{name: data, size: 10Gi}]}
";

pub fn environment() -> Environment {
    Environment {
        image_repository: "gregor".to_owned(),
        image_tag: "0.1.0".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        image_pull_secrets: Vec::new(),
        cluster_domain: "cluster.local".to_owned(),
    }
}

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formatted {
    pub cluster_id: String,
    pub directory_id: String,
    pub standalone: bool,
}

/// What becomes of a node with a configuration that is no good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// It ends again and again.
    Ends,
    /// Its container is never made.
    IsNotMade,
    /// It runs, and does not become ready.
    IsNotReady,
}

/// The metadata quorum, once it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quorum {
    pub voters: Vec<(i32, String)>,
}

#[derive(Clone)]
pub struct Fleet {
    pub cluster: KafkaCluster,
    pub identity: Option<Value>,
    pub objects: BTreeMap<(Kind, String), Value>,
    pub secrets: Secrets,
    pub environment: Environment,
    pub pods: BTreeMap<i32, Pod>,
    /// By the claim's uid.
    pub disks: BTreeMap<String, Option<Formatted>>,
    pub quorum: Option<Quorum>,
    /// How often a quorum was started.
    pub quorums: usize,
    pub under_replicated: Vec<PartitionSeen>,
    /// Whether nobody can ask the brokers.
    pub blind: bool,
    /// A line of server.properties with which no node runs.
    pub poison: Option<String>,
    /// What becomes of a node that has it.
    pub harm: Harm,
    /// Labels of the one Kubernetes node that all pods are on.
    pub kubernetes_labels: Option<BTreeMap<String, String>>,
    /// Objects of this kind are neither made nor changed: a quota or an admission policy stands in the way.
    pub refuses: Option<Kind>,
    pub last: Option<ClusterPlan>,
    pub stages: BTreeSet<Stage>,
    /// Nodes in the order in which their pods were deleted while they were ready.
    pub restarts: Vec<i32>,
    pub writes: usize,
    counter: u64,
}

impl Fleet {
    pub fn new(manifest: &str) -> Self {
        let mut cluster: KafkaCluster = yaml::from_str(manifest).unwrap();
        cluster.metadata.uid = Some("cluster".to_owned());
        cluster.metadata.generation = Some(1);
        Self {
            cluster,
            identity: None,
            objects: BTreeMap::new(),
            secrets: Secrets::default(),
            environment: environment(),
            pods: BTreeMap::new(),
            disks: BTreeMap::new(),
            quorum: None,
            quorums: 0,
            under_replicated: Vec::new(),
            blind: false,
            poison: None,
            harm: Harm::Ends,
            kubernetes_labels: None,
            refuses: None,
            last: None,
            stages: BTreeSet::new(),
            restarts: Vec::new(),
            writes: 0,
            counter: 0,
        }
    }

    pub fn settled(manifest: &str) -> Self {
        let mut fleet = Self::new(manifest);
        fleet.settle();
        assert_eq!(fleet.reason(), Some(Reason::Ready), "{:?}", fleet.last);
        fleet
    }

    /// The same of a cluster that was made by a release whose nodes talk in plaintext.
    pub fn of_an_older_release(manifest: &str) -> Self {
        let mut fleet = Self::new(manifest);
        fleet.reconcile();
        let identity = Identity { connections: Connections::Plaintext, ..fleet.identity().unwrap() };
        fleet.identity.as_mut().unwrap()["data"]["identity.json"] = json!(identity.text());
        fleet.settle();
        assert_eq!(fleet.reason(), Some(Reason::Ready), "{:?}", fleet.last);
        fleet
    }

    fn uid(&mut self) -> String {
        self.counter += 1;
        format!("uid-{}", self.counter)
    }

    pub fn spec(&mut self, change: impl FnOnce(&mut KafkaCluster)) {
        change(&mut self.cluster);
        self.cluster.metadata.generation = self.cluster.metadata.generation.map(|generation| generation + 1);
    }

    pub fn reason(&self) -> Option<Reason> {
        self.last.as_ref().map(|plan| plan.progress.reason())
    }

    pub fn message(&self) -> String {
        self.last.as_ref().map(|plan| plan.progress.message().to_owned()).unwrap_or_default()
    }

    pub fn identity(&self) -> Option<Identity> {
        self.identity.as_ref().and_then(|config_map| Identity::parse(config_map).ok())
    }

    pub fn object(&self, kind: Kind, name: &str) -> Option<&Value> {
        self.objects.get(&(kind, name.to_owned()))
    }

    pub fn properties(&self, id: i32) -> String {
        let pod = serde_json::to_value(&self.pods[&id]).unwrap();
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let name = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str()).unwrap();
        self.object(Kind::ConfigMap, name).unwrap()["data"]["server.properties"].as_str().unwrap().to_owned()
    }

    /// How many pods an eviction must leave.
    pub fn budget(&self) -> i64 {
        self.object(Kind::PodDisruptionBudget, "demo").unwrap()["spec"]["minAvailable"].as_i64().unwrap()
    }

    fn observed(&self) -> ClusterObserved {
        let mut observed = ClusterObserved {
            cluster: self.cluster.clone(),
            identity: self.identity.clone(),
            objects: self.objects.clone(),
            pods: self.pods.values().cloned().collect(),
            settled: BTreeMap::new(),
            kubernetes_nodes: BTreeMap::new(),
            certificates: self.secrets.observed(self.pods.keys().copied().filter(|id| self.is_ready(*id))),
            kafka: None,
            unseen: Unseen::default(),
        };
        for node in observed.asks_kubernetes_nodes() {
            observed.kubernetes_nodes.extend(self.kubernetes_labels.clone().map(|labels| (node, labels)));
        }
        if observed.asks_brokers() && self.blind {
            observed.unseen.brokers = Some("connection refused".to_owned());
        } else if observed.asks_brokers() {
            observed.kafka = self.kafka();
        }
        let hidden = self.secrets.unseen.iter().filter(|id| self.is_ready(**id));
        observed.unseen.nodes = hidden.map(|id| (*id, "no answer in time".to_owned())).collect();
        observed
    }

    pub fn is_ready(&self, id: i32) -> bool {
        let conditions = self.pods.get(&id).and_then(|pod| pod.status.as_ref()?.conditions.clone()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    fn directory(&self, id: i32) -> Option<String> {
        self.pods.get(&id)?.metadata.annotations.as_ref()?.get(names::DIRECTORY_ID).cloned()
    }

    fn follows(&self, id: i32, directory: &str) -> bool {
        self.is_ready(id) && self.directory(id).as_deref() == Some(directory)
    }

    /// Whether a majority of the voters runs.
    fn decides(&self) -> bool {
        self.quorum.as_ref().is_some_and(|quorum| {
            let up = quorum.voters.iter().filter(|(id, directory)| self.follows(*id, directory)).count();
            up > quorum.voters.len() / 2
        })
    }

    fn kafka(&self) -> Option<KafkaSeen> {
        let quorum = self.quorum.as_ref()?;
        let replica = |id: i32, directory: &str| ReplicaSeen {
            id,
            directory_id: directory.to_owned(),
            end_offset: if self.follows(id, directory) { 100 } else { 50 },
            behind_ms: if self.follows(id, directory) { 10 } else { 60_000 },
        };
        let voters: Vec<ReplicaSeen> = quorum.voters.iter().map(|(id, directory)| replica(*id, directory)).collect();
        let voting = |id: i32, directory: &str| quorum.voters.iter().any(|voter| *voter == (id, directory.to_owned()));
        let observers = self.pods.keys().filter(|id| self.is_ready(**id)).filter_map(|id| {
            let directory = self.directory(*id)?;
            (!voting(*id, &directory)).then(|| replica(*id, &directory))
        });
        let leader = voters.iter().find(|voter| voter.is_caught_up()).map(|voter| voter.id);
        Some(KafkaSeen {
            quorum: QuorumSeen {
                leader: leader.filter(|_| self.decides()),
                high_watermark: 100,
                observers: observers.collect(),
                voters,
            },
            under_replicated: self.under_replicated.clone(),
        })
    }

    /// One reconcile. Returns whether it did something.
    pub fn reconcile(&mut self) -> bool {
        let observed = self.observed();
        let mut counter = self.counter;
        let mut mint = || {
            counter += 1;
            let mut bytes = [0x41_u8; 16];
            bytes[8..].copy_from_slice(&counter.to_be_bytes());
            bytes
        };
        let planned = plan(&observed, &self.environment, &self.secrets.time(), &mut mint);
        self.counter = counter;
        self.cluster.status = Some(planned.status.clone());
        self.stages.insert(planned.stage);
        let refused = |step: &Step| match step {
            Step::Create(all) | Step::Apply(all) => all.iter().any(|wanted| Some(wanted.kind) == self.refuses),
            _ => false,
        };
        let steps = planned.beside.iter().chain(&planned.step).filter(|step| !refused(step));
        let steps: Vec<Step> = steps.cloned().collect();
        self.last = Some(planned);
        self.writes += steps.len();
        let works = !steps.is_empty();
        for step in steps {
            self.carry_out(step, &observed);
        }
        works
    }

    fn carry_out(&mut self, step: Step, observed: &ClusterObserved) {
        match step {
            Step::CreateIdentity(identity) => {
                assert!(self.identity.is_none());
                self.set_identity(identity);
            }
            Step::ReplaceIdentity(identity) => {
                let before = self.identity().unwrap();
                self.set_identity(identity);
                let after = self.identity().unwrap();
                assert_eq!(before.cluster_id, after.cluster_id, "a cluster keeps its id");
                assert!(before.nodes.keys().all(|id| after.nodes.contains_key(id)), "a node stays known");
                if before.nodes.len() > 1 {
                    assert_eq!(after.standalone_grant, None, "nobody starts a quorum beside others");
                }
            }
            Step::Create(all) => {
                for wanted in all {
                    assert!(
                        !self.objects.contains_key(&(wanted.kind, wanted.name.clone())),
                        "{} is there",
                        wanted.name
                    );
                    self.put(wanted);
                }
            }
            Step::Apply(all) => {
                for wanted in all {
                    let there = Seen::of(self.object(wanted.kind, &wanted.name).unwrap());
                    let data = [Kind::ConfigMap, Kind::PersistentVolumeClaim, Kind::StatefulSet].contains(&wanted.kind);
                    assert_eq!(wanted.seen, data.then_some(there), "{} is overwritten unseen", wanted.name);
                    self.put(wanted);
                }
            }
            Step::WriteSecrets(writes) => self.secrets.write(writes),
            Step::ChangeVoters(change) => self.change_voters(change),
            Step::TellRack { pod, uid, rack } => {
                let pod = self.pods.values_mut().find(|seen| seen.metadata.name.as_ref() == Some(&pod)).unwrap();
                assert_eq!(pod.metadata.uid.as_ref(), Some(&uid));
                pod.metadata.annotations.get_or_insert_default().insert(names::RACK.to_owned(), rack);
            }
            Step::DeletePod { name, uid, .. } => self.delete_pod(&name, &uid, observed),
            Step::Release(all) => {
                for each in all {
                    let seen = match each.kind {
                        Kind::ConfigMap => self.identity.as_mut(),
                        kind => self.objects.get_mut(&(kind, each.name)),
                    };
                    seen.unwrap()["metadata"]["ownerReferences"] = json!(each.owners);
                }
            }
            Step::Delete { kind, name, uid, .. } => {
                let gone = self.objects.remove(&(kind, name)).unwrap();
                assert_eq!(gone["metadata"]["uid"], uid);
            }
        }
    }

    fn delete_pod(&mut self, name: &str, uid: &str, observed: &ClusterObserved) {
        let id = *self.pods.iter().find(|(_, pod)| pod.metadata.name.as_deref() == Some(name)).unwrap().0;
        assert_eq!(self.pods[&id].metadata.uid.as_deref(), Some(uid));
        if self.is_ready(id) && self.pods.len() > 1 {
            let away: Vec<&i32> = self.pods.keys().filter(|other| !self.is_ready(**other)).collect();
            assert!(away.is_empty(), "node {id} is restarted while {away:?} are away");
            assert!(observed.kafka.is_some(), "node {id} is restarted unseen");
            assert_eq!(
                self.budget(),
                i64::try_from(self.identity().unwrap().nodes.len()).unwrap(),
                "nothing is evicted meanwhile"
            );
            let needed = self.under_replicated.iter().find(|partition| partition.needs(id));
            assert_eq!(needed, None, "node {id} is restarted while another replica is missing");
            self.restarts.push(id);
        }
        self.pods.remove(&id);
        self.fall_behind(id);
        if self.pods.len() > 1 && self.quorum.as_ref().is_some_and(|quorum| quorum.voters.len() > 2) {
            assert!(self.decides() || observed.kafka.as_ref().is_none_or(|kafka| kafka.quorum.leader.is_none()));
        }
    }

    /// The replica of a broker that was away is not in sync until [`catch_up`](Self::catch_up).
    fn fall_behind(&mut self, id: i32) {
        let brokers: Vec<i32> = match self.identity() {
            Some(identity) => identity
                .nodes
                .iter()
                .filter(|(_, node)| node.roles().contains(&gregor_operator_api::cluster::Role::Broker))
                .map(|(id, _)| *id)
                .collect(),
            None => return,
        };
        if !brokers.contains(&id) || brokers.len() < 2 {
            return;
        }
        if self.under_replicated.is_empty() {
            let partition =
                PartitionSeen { topic: "t".to_owned(), partition: 0, replicas: brokers.clone(), in_sync: brokers };
            self.under_replicated.push(partition);
        }
        for partition in &mut self.under_replicated {
            partition.in_sync.retain(|replica| *replica != id);
        }
    }

    /// Replicas of brokers that run come back into sync.
    pub fn catch_up(&mut self) -> bool {
        let before = self.under_replicated.clone();
        let ready: Vec<i32> = self.pods.keys().copied().filter(|id| self.is_ready(*id)).collect();
        for partition in &mut self.under_replicated {
            let back = partition.replicas.iter().copied().filter(|id| ready.contains(id));
            partition.in_sync.extend(back);
            partition.in_sync.sort_unstable();
            partition.in_sync.dedup();
        }
        self.under_replicated.retain(|partition| partition.in_sync.len() < partition.replicas.len());
        self.under_replicated != before
    }

    fn change_voters(&mut self, change: VoterChange) {
        assert!(self.decides(), "only a quorum that decides changes its voters");
        match change {
            VoterChange::Add { id, directory_id, host, port } => {
                assert!(host.starts_with(&format!("demo-{id}-0.")) && port == 9090, "{host}:{port}");
                assert!(self.follows(id, &directory_id), "who votes has read the metadata");
                assert!(self.identity().unwrap().nodes[&id].formatted, "who votes is recorded");
                let quorum = self.quorum.as_mut().unwrap();
                assert!(quorum.voters.iter().all(|(voter, _)| *voter != id), "{id} votes already");
                quorum.voters.push((id, directory_id));
            }
            VoterChange::Remove { id, directory_id } => {
                assert!(!self.follows(id, &directory_id), "who runs goes on voting");
                let quorum = self.quorum.as_mut().unwrap();
                quorum.voters.retain(|voter| *voter != (id, directory_id.clone()));
            }
        }
        assert!(self.decides(), "every change leaves a quorum that decides");
    }

    fn set_identity(&mut self, mut identity: Value) {
        identity["metadata"]["resourceVersion"] = json!(self.uid());
        self.identity = Some(identity);
    }

    fn put(&mut self, wanted: Wanted) {
        let Wanted { kind, name, mut body, .. } = wanted;
        let uid = match self.objects.get(&(kind, name.clone())) {
            Some(seen) => seen["metadata"]["uid"].as_str().unwrap().to_owned(),
            None => self.uid(),
        };
        body["metadata"]["uid"] = json!(uid);
        body["metadata"]["resourceVersion"] = json!(self.uid());
        if kind == Kind::PersistentVolumeClaim {
            self.disks.entry(uid).or_default();
        }
        if body["spec"]["ports"][0]["nodePort"].is_i64() {
            let port = |service: &Value| service["spec"]["ports"][0]["nodePort"].clone();
            let mut others = self.objects.iter().filter(|((_, other), _)| *other != name);
            let taken = others.find(|((kind, _), other)| *kind == Kind::Service && port(other) == port(&body));
            assert!(taken.is_none(), "provided port is already allocated: {name} wants the one of {taken:?}");
        }
        if kind == Kind::StatefulSet && !self.objects.contains_key(&(kind, name.clone())) {
            let volumes = body["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
            let secret = volumes.iter().find_map(|volume| volume["secret"]["secretName"].as_str());
            assert!(
                secret.is_none_or(|secret| self.secrets.metadata(secret).is_some()),
                "no node before its certificate"
            );
        }
        self.objects.insert((kind, name), body);
    }

    pub fn kill(&mut self, id: i32) {
        if self.pods.remove(&id).is_some() {
            self.fall_behind(id);
        }
    }

    /// What is on the disk of a node.
    pub fn disk(&self, id: i32) -> Option<&Formatted> {
        let claim = self.object(Kind::PersistentVolumeClaim, &format!("demo-{id}-data"))?;
        self.disks.get(claim["metadata"]["uid"].as_str()?)?.as_ref()
    }

    /// Empties the disk of a node, whatever it holds.
    pub fn wipe(&mut self, id: i32) {
        let claim = self.object(Kind::PersistentVolumeClaim, &format!("demo-{id}-data"));
        if let Some(uid) = claim.and_then(|claim| claim["metadata"]["uid"].as_str()).map(str::to_owned) {
            self.disks.insert(uid, None);
            self.kill(id);
        }
    }

    /// Lets everybody work until nobody has anything to do.
    pub fn settle(&mut self) {
        for _ in 0..1_000 {
            let worked = self.reconcile();
            let ran = self.kubelet();
            let caught_up = self.catch_up();
            if !worked && !ran && !caught_up {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.last);
    }
}
