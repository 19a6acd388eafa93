//! A small Kubernetes for the plan: it applies steps, starts the pod, checks the disk as `gregor storage ensure` does, and
//! collects what belongs to a deleted KafkaCluster. It asserts on the way that no disk is formatted that must not be.
#![allow(clippy::unwrap_used, dead_code)] // each test binary uses its part

#[path = "../secrets/mod.rs"]
pub mod secrets;

use std::collections::BTreeMap;

use gregor_operator_api::{KafkaCluster, condition, names, yaml};
use gregor_operator_plan::cluster::{ClusterObserved, ClusterPlan, plan};
use gregor_operator_plan::{Environment, Identity, Kind, Reason, Step, Unseen, Wanted};
use k8s_openapi::api::core::v1::Pod;
use secrets::Secrets;
use serde_json::{Value, json};

pub const MANIFEST: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: demo, namespace: team}
spec:
  nodePools: [{name: combined, replicas: 1}]
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
}

pub struct World {
    pub cluster: Option<KafkaCluster>,
    pub identity: Option<Value>,
    pub objects: BTreeMap<(Kind, String), Value>,
    pub secrets: Secrets,
    pub pod: Option<Pod>,
    /// By the claim's uid.
    pub disks: BTreeMap<String, Option<Formatted>>,
    pub environment: Environment,
    pub last: Option<ClusterPlan>,
    /// Whether the cluster was reported ready since the last time that its data was given up: then records may be in it.
    pub data_at_stake: bool,
    /// Whether a person named the node in acceptDataLoss while a loss was reported.
    pub loss_accepted: bool,
    /// Whether the last that was said of the disk, even to an earlier KafkaCluster, was that it is lost.
    pub loss_reported: bool,
    pub formats: usize,
    pub cluster_ids: Vec<String>,
    pub pods_started: usize,
    pub writes: usize,
    counter: u64,
}

impl World {
    pub fn new() -> Self {
        let mut world = Self {
            cluster: None,
            identity: None,
            objects: BTreeMap::new(),
            secrets: Secrets::default(),
            pod: None,
            disks: BTreeMap::new(),
            environment: environment(),
            last: None,
            data_at_stake: false,
            loss_accepted: false,
            loss_reported: false,
            formats: 0,
            cluster_ids: Vec::new(),
            pods_started: 0,
            writes: 0,
            counter: 0,
        };
        world.create_cluster();
        world
    }

    pub fn create_cluster(&mut self) {
        if self.cluster.is_none() {
            let mut cluster: KafkaCluster = yaml::from_str(MANIFEST).unwrap();
            cluster.metadata.uid = Some(self.uid());
            cluster.metadata.generation = Some(1);
            self.cluster = Some(cluster);
        }
    }

    fn uid(&mut self) -> String {
        self.counter += 1;
        format!("uid-{}", self.counter)
    }

    pub fn spec(&mut self, change: impl FnOnce(&mut KafkaCluster)) {
        if let Some(cluster) = &mut self.cluster {
            change(cluster);
            cluster.metadata.generation = cluster.metadata.generation.map(|generation| generation + 1);
        }
    }

    /// Names the node in acceptDataLoss, or takes it out.
    pub fn accept(&mut self, named: bool) {
        let reported = self.loss_reported;
        let before = self.cluster.as_ref().is_some_and(|cluster| !cluster.spec.accept_data_loss.is_empty());
        if named && !before && reported {
            self.loss_accepted = true;
        }
        self.spec(|cluster| cluster.spec.accept_data_loss = if named { vec![0] } else { Vec::new() });
    }

    pub fn reason(&self) -> Option<Reason> {
        self.last.as_ref().map(|plan| plan.progress.reason())
    }

    pub fn identity(&self) -> Option<Identity> {
        self.identity.as_ref().and_then(|config_map| Identity::parse(config_map).ok())
    }

    fn observed(&self) -> Option<ClusterObserved> {
        Some(ClusterObserved {
            cluster: self.cluster.clone()?,
            identity: self.identity.clone(),
            objects: self.objects.clone(),
            pods: self.pod.iter().cloned().collect(),
            settled: BTreeMap::new(),
            kubernetes_nodes: BTreeMap::new(),
            certificates: self.secrets.observed(self.pod.iter().map(|_| 0)),
            kafka: None,
            unseen: Unseen::default(),
        })
    }

    /// One reconcile. Returns whether it did something.
    pub fn reconcile(&mut self) -> bool {
        let Some(observed) = self.observed() else { return false };
        let no_trace = self.identity.is_none()
            && !self.objects.keys().any(|(kind, _)| matches!(kind, Kind::PersistentVolumeClaim | Kind::StatefulSet));
        let mut counter = self.counter;
        let mut mint = || {
            counter += 1;
            let mut bytes = [7_u8; 16];
            bytes[..8].copy_from_slice(&counter.to_be_bytes());
            bytes[0] = 0x41;
            bytes
        };
        let plan = plan(&observed, &self.environment, &self.secrets.time(), &mut mint);
        self.counter = counter;
        if let Some(cluster) = &mut self.cluster {
            cluster.status = Some(plan.status.clone());
        }
        let ready = condition::find(&plan.status.conditions, condition::READY).unwrap();
        if ready.status == condition::ConditionStatus::True {
            assert!(
                self.identity().unwrap().standalone_grant.is_none(),
                "ready only after the permission is withdrawn"
            );
            self.data_at_stake = true;
        }
        match plan.progress.reason() {
            Reason::DiskLost => self.loss_reported = true,
            Reason::Ready => self.loss_reported = false,
            _ => {}
        }
        let steps: Vec<Step> = plan.beside.iter().chain(&plan.step).cloned().collect();
        self.last = Some(plan);
        self.writes += steps.len();
        let works = !steps.is_empty();
        for step in steps {
            self.carry_out(step, no_trace);
        }
        works
    }

    fn carry_out(&mut self, step: Step, no_trace: bool) {
        match step {
            Step::ChangeVoters(_) | Step::TellRack { .. } => panic!("a cluster of one node needs nothing like it"),
            Step::CreateIdentity(identity) => {
                assert!(self.identity.is_none());
                if no_trace {
                    // Not a trace of an earlier life is left: nothing could tell this from a new cluster.
                    self.data_at_stake = false;
                }
                self.set_identity(identity);
            }
            Step::ReplaceIdentity(identity) => {
                let before = self.identity().unwrap();
                self.set_identity(identity);
                let after = self.identity().unwrap();
                assert_eq!(before.cluster_id, after.cluster_id, "a cluster keeps its id");
                if before.nodes[&0].directory_id != after.nodes[&0].directory_id {
                    assert!(
                        self.loss_accepted,
                        "a disk is given up only on a person's word, given after the loss was reported"
                    );
                    self.loss_accepted = false;
                    self.data_at_stake = false;
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
            Step::Apply(all) => all.into_iter().for_each(|wanted| self.put(wanted)),
            Step::WriteSecrets(writes) => self.secrets.write(writes),
            Step::DeletePod { name, uid, .. } => {
                let pod = self.pod.take().unwrap();
                assert_eq!((pod.metadata.name.unwrap(), pod.metadata.uid.unwrap()), (name, uid));
            }
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

    fn set_identity(&mut self, mut identity: Value) {
        let version = self.uid();
        identity["metadata"]["resourceVersion"] = json!(version);
        self.identity = Some(identity);
        let id = self.identity().unwrap().cluster_id;
        if self.cluster_ids.last() != Some(&id) {
            self.cluster_ids.push(id);
        }
    }

    fn put(&mut self, wanted: Wanted) {
        let Wanted { kind, name, mut body, .. } = wanted;
        let uid = match self.objects.get(&(kind, name.clone())) {
            Some(seen) => {
                assert!(seen["immutable"] != true || seen["data"] == body["data"], "{name} is immutable");
                seen["metadata"]["uid"].as_str().unwrap().to_owned()
            }
            None => self.uid(),
        };
        body["metadata"]["uid"] = json!(uid);
        if kind == Kind::PersistentVolumeClaim {
            self.disks.entry(uid).or_default();
        }
        self.objects.insert((kind, name), body);
    }

    pub fn object(&self, kind: Kind, name: &str) -> Option<&Value> {
        self.objects.get(&(kind, name.to_owned()))
    }

    /// The StatefulSet controller and the kubelet: the pod is made and its init container runs.
    pub fn kubelet(&mut self) -> bool {
        let Some(stateful_set) = self.object(Kind::StatefulSet, "demo-0").cloned() else { return false };
        let mut changed = false;
        if self.pod.is_none() {
            let mut pod = stateful_set["spec"]["template"].clone();
            pod["metadata"]["name"] = json!("demo-0-0");
            pod["metadata"]["uid"] = json!(self.uid());
            if pod["spec"]["volumes"].as_array().unwrap().iter().any(|volume| volume["secret"].is_object()) {
                assert!(self.secrets.mount(0), "no node is made before its certificate");
            }
            self.pod = Some(serde_json::from_value(pod).unwrap());
            self.pods_started += 1;
            changed = true;
        }
        changed |= self.secrets.refresh(std::iter::once(0));
        let before = self.pod.clone();
        let pod = self.pod.clone().unwrap();
        let formatted = pod
            .status
            .as_ref()
            .is_some_and(|status| status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready"));
        if !formatted {
            let status = match self.ensure(&stateful_set) {
                None => return changed,
                Some(Ok(())) => json!({
                    "initContainerStatuses": [container("format", &json!({"terminated": {"exitCode": 0}}))],
                    "containerStatuses": [container("gregor", &json!({"running": {}}))],
                    "conditions": [{"type": "Ready", "status": "True"}],
                }),
                Some(Err(reason)) => json!({
                    "initContainerStatuses": [container("format", &json!({"terminated": {
                        "exitCode": 3,
                        "message": json!({"reason": reason, "message": "as found"}).to_string(),
                    }}))],
                }),
            };
            self.pod.as_mut().unwrap().status = Some(serde_json::from_value(status).unwrap());
        }
        changed || self.pod != before
    }

    /// What `gregor storage ensure` does, with the assertion that all this is about.
    fn ensure(&mut self, stateful_set: &Value) -> Option<Result<(), &'static str>> {
        let annotations = &stateful_set["spec"]["template"]["metadata"]["annotations"];
        let wanted = Formatted {
            cluster_id: annotations[names::CLUSTER_ID].as_str().unwrap().to_owned(),
            directory_id: annotations[names::DIRECTORY_ID].as_str().unwrap().to_owned(),
        };
        let claim =
            self.object(Kind::PersistentVolumeClaim, "demo-0-data")?["metadata"]["uid"].as_str().unwrap().to_owned();
        let grant = self.object(Kind::ConfigMap, "demo-0-grant")?["data"][&wanted.directory_id].as_str()?.to_owned();
        let disk = self.disks.get_mut(&claim).unwrap();
        match disk {
            Some(found) if *found == wanted => Some(Ok(())),
            Some(_) => Some(Err("ForeignDisk")),
            None if grant == "standalone" => {
                assert!(!self.data_at_stake, "a disk is formatted although the cluster may hold records");
                *disk = Some(wanted);
                self.formats += 1;
                Some(Ok(()))
            }
            None => Some(Err("DiskLost")),
        }
    }

    pub fn kill_pod(&mut self) {
        self.pod = None;
    }

    /// Deletes the KafkaCluster and, as the garbage collector does, all that it owns.
    pub fn delete_cluster(&mut self) {
        if self.cluster.take().is_some() {
            let kept = |object: &Value| object["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty);
            self.objects.retain(|_, object| kept(object));
            self.identity = self.identity.take().filter(kept);
            self.secrets.collect();
            self.pod = None;
            self.last = None;
        }
    }

    pub fn wipe_status(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.status = None;
        }
    }

    pub fn wipe_disk(&mut self) {
        self.disks.values_mut().for_each(|disk| *disk = None);
        self.pod = None;
    }

    pub fn delete_claim(&mut self) {
        self.objects.remove(&(Kind::PersistentVolumeClaim, "demo-0-data".to_owned()));
        self.pod = None;
    }

    /// Replaces the claim by another, empty one of the same name, as somebody who wants to help might.
    pub fn swap_claim(&mut self) {
        let uid = self.uid();
        if let Some(claim) = self.objects.get_mut(&(Kind::PersistentVolumeClaim, "demo-0-data".to_owned())) {
            claim["metadata"]["uid"] = json!(uid);
            self.disks.insert(uid, None);
            self.pod = None;
        }
    }

    /// Lets everybody work until nobody has anything to do.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            let worked = self.reconcile();
            let ran = self.kubelet();
            if !worked && !ran {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.last);
    }
}

fn container(name: &str, state: &Value) -> Value {
    json!({"name": name, "image": "gregor", "imageID": "", "ready": true, "restartCount": 0, "state": state})
}
