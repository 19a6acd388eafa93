//! A real API server without nodes, an operator in this process, and stand-ins for what nodes would do: a kubelet that
//! checks disks as `gregor storage ensure` does, and brokers that hold topics and a quorum in memory.
//!
//! The API server is the one of `KUBECONFIG`; without it every test says that it was skipped.
#![allow(clippy::unwrap_used, dead_code)] // each test binary uses its part, and a test that cannot go on may panic

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use gregor_operator::admin::{Admin, ClusterAdmin, TopicAdmin};
use gregor_operator::certificates;
use gregor_operator::context::Context;
use gregor_operator::metrics::Metrics;
use gregor_operator::run::work;
use gregor_operator_api::{KafkaCluster, KafkaTopic, condition, crds, names, yaml};
use gregor_operator_plan::certificates::Served;
use gregor_operator_plan::kafka::{PartitionSeen, QuorumSeen, ReplicaSeen};
use gregor_operator_plan::quorum::VoterChange;
use gregor_operator_plan::topic::{BrokerError, TopicSeen, TopicStep};
use gregor_operator_plan::{Environment, KafkaSeen};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_mins(3);

pub const CLUSTER: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: demo}
spec:
  nodePools: [{name: combined, replicas: 1}]
  storage: {volumes: [{name: data, size: 1Gi}]}
";

/// Brokers in memory.
#[derive(Default)]
pub struct Brokers {
    pub topics: Mutex<BTreeMap<String, TopicSeen>>,
    pub refuse: Mutex<Option<String>>,
    /// Who votes, and with which directory; empty until a cluster asks, and then what its identity says of its first node.
    pub voters: Mutex<Vec<(i32, String)>>,
    /// Every node that runs, with its directory.
    pub running: Mutex<BTreeMap<i32, String>>,
    pub under_replicated: Mutex<Vec<PartitionSeen>>,
    /// Why nobody can ask about the cluster, if so.
    pub silent: Mutex<Option<String>>,
    /// What pods show by their names: what was in their Secrets when the kubelet last came to them.
    pub shown: Mutex<BTreeMap<String, Served>>,
    counter: Mutex<u32>,
}

impl ClusterAdmin for Brokers {
    fn describe_cluster<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<KafkaSeen, BrokerError>> {
        async move {
            if let Some(why) = self.silent.lock().unwrap().clone() {
                return Err(BrokerError::Unavailable(why));
            }
            let running = self.running.lock().unwrap().clone();
            let mut voters = self.voters.lock().unwrap();
            if voters.is_empty() {
                voters.extend(running.get(&0).map(|directory| (0, directory.clone())));
            }
            let replica = |id: i32, directory: &str| {
                let runs = running.get(&id).is_some_and(|known| known == directory);
                let (end_offset, behind_ms) = if runs { (100, 10) } else { (50, 60_000) };
                ReplicaSeen { id, directory_id: directory.to_owned(), end_offset, behind_ms }
            };
            let seen: Vec<ReplicaSeen> = voters.iter().map(|(id, directory)| replica(*id, directory)).collect();
            let observers = running
                .iter()
                .filter(|(id, directory)| !voters.contains(&(**id, (*directory).clone())))
                .map(|(id, directory)| replica(*id, directory));
            let quorum = QuorumSeen {
                leader: seen.iter().find(|voter| voter.is_caught_up()).map(|voter| voter.id),
                high_watermark: 100,
                observers: observers.collect(),
                voters: seen,
            };
            Ok(KafkaSeen { quorum, under_replicated: self.under_replicated.lock().unwrap().clone() })
        }
        .boxed()
    }

    fn shown<'a>(&'a self, host: &'a str, _: u16) -> BoxFuture<'a, Result<Served, BrokerError>> {
        async move {
            let pod = host.split('.').next().unwrap();
            let shown = self.shown.lock().unwrap().get(pod).cloned();
            shown.ok_or_else(|| BrokerError::Unavailable(format!("{host} shows nothing")))
        }
        .boxed()
    }

    fn change_voters<'a>(&'a self, _: &'a str, change: &'a VoterChange) -> BoxFuture<'a, Result<(), BrokerError>> {
        async move {
            let mut voters = self.voters.lock().unwrap();
            match change {
                VoterChange::Add { id, directory_id, .. } => voters.push((*id, directory_id.clone())),
                VoterChange::Remove { id, directory_id } => {
                    voters.retain(|voter| *voter != (*id, directory_id.clone()));
                }
            }
            Ok(())
        }
        .boxed()
    }
}

impl TopicAdmin for Brokers {
    fn describe<'a>(&'a self, _: &'a str, topic: &'a str) -> BoxFuture<'a, Result<Option<TopicSeen>, BrokerError>> {
        async move { Ok(self.topics.lock().unwrap().get(topic).cloned()) }.boxed()
    }

    fn carry_out<'a>(
        &'a self,
        _: &'a str,
        topic: &'a str,
        step: &'a TopicStep,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        async move {
            if let Some(said) = self.refuse.lock().unwrap().clone() {
                return Err(BrokerError::Refused(said));
            }
            let mut topics = self.topics.lock().unwrap();
            match step {
                TopicStep::Create { partitions, replicas, config } => {
                    let mut counter = self.counter.lock().unwrap();
                    *counter += 1;
                    let seen = TopicSeen {
                        id: format!("topic-{counter}"),
                        partitions: partitions.unwrap_or(1),
                        replicas: replicas.unwrap_or(1),
                        overrides: config.clone(),
                    };
                    topics.insert(topic.to_owned(), seen);
                }
                TopicStep::Grow { partitions } => topics.get_mut(topic).unwrap().partitions = *partitions,
                TopicStep::Configure { set, reset } => {
                    let overrides = &mut topics.get_mut(topic).unwrap().overrides;
                    overrides.retain(|key, _| !reset.contains(key));
                    overrides.extend(set.clone());
                }
                TopicStep::Delete => drop(topics.remove(topic)),
                _ => {}
            }
            Ok(())
        }
        .boxed()
    }
}

/// What is on the disks, by the claim's uid: the cluster id and the directory id.
#[derive(Default)]
pub struct Disks {
    pub formatted: BTreeMap<String, (String, String)>,
    pub formats: usize,
}

/// An operator at work.
pub struct Operator {
    pub metrics: Metrics,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Operator {
    pub async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.task).await.unwrap();
    }

    /// The sum of a counter, from the text that Prometheus would read.
    pub fn count(&self, metric: &str) -> u64 {
        let text = self.metrics.text();
        let lines = text.lines().filter(|line| line.starts_with(&format!("gregor_operator_{metric}")));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }
}

pub struct Lab {
    pub client: Client,
    pub namespace: String,
    pub brokers: Arc<Brokers>,
    pub disks: Arc<Mutex<Disks>>,
    kubelet: JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kubelet.abort();
    }
}

/// A client for the API server of `KUBECONFIG`, with our definitions in it.
pub async fn client() -> Option<Client> {
    if std::env::var_os("KUBECONFIG").is_none() {
        println!("skipped: KUBECONFIG names no API server; `cargo xtask test operator` starts one");
        return None;
    }
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = Client::try_default().await.expect("KUBECONFIG names an API server");
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in crds() {
        let parameters = PatchParams::apply("operator-tests").force();
        definitions.patch(&definition.name_any(), &parameters, &Patch::Apply(&definition)).await.unwrap();
    }
    gregor_operator::definitions::wait(&client, Some("default")).await;
    Some(client)
}

fn environment(cluster_domain: &str) -> Environment {
    Environment {
        image_repository: "gregor".to_owned(),
        image_tag: "0.1.0".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        image_pull_secrets: Vec::new(),
        cluster_domain: cluster_domain.to_owned(),
    }
}

/// What an operator works with that has another client than the lab's, and no brokers to ask.
pub fn context_of(client: Client) -> Context {
    let brokers: Arc<dyn Admin> = Arc::<Brokers>::default();
    Context::new(client, environment("cluster.local"), brokers, "lab", Metrics::default())
}

impl Lab {
    /// A namespace of its own with a kubelet. `None` where there is no API server.
    pub async fn start(name: &str) -> Option<Self> {
        let client = client().await?;
        let namespace = format!("{name}-{}", std::process::id());
        create_namespace(&client, &namespace).await;
        let disks = Arc::<Mutex<Disks>>::default();
        let brokers = Arc::<Brokers>::default();
        let kubelet =
            tokio::spawn(kubelet(client.clone(), namespace.clone(), Arc::clone(&disks), Arc::clone(&brokers)));
        Some(Self { client, namespace, brokers, disks, kubelet })
    }

    pub fn operator(&self) -> Operator {
        self.operator_for(&[&self.namespace])
    }

    pub fn operator_for(&self, namespaces: &[&str]) -> Operator {
        start_operator(self.context("cluster.local"), namespaces)
    }

    /// What an operator works with whose Kubernetes has this DNS domain.
    pub fn context(&self, cluster_domain: &str) -> Context {
        let environment = environment(cluster_domain);
        let brokers: Arc<dyn Admin> = Arc::clone(&self.brokers) as Arc<dyn Admin>;
        Context::new(self.client.clone(), environment, brokers, "lab", Metrics::default())
    }

    /// An operator for the lab's namespace with something of its own.
    pub fn operator_with(&self, context: Context) -> Operator {
        start_operator(context, &[&self.namespace])
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn create<K>(&self, manifest: &str) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + Debug,
    {
        let object: K = yaml::from_str(manifest).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    pub async fn patch<K>(&self, name: &str, patch: Value)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Clone + Debug,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    pub async fn delete<K>(&self, name: &str)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Clone + Debug,
    {
        self.api::<K>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until the cluster's Ready condition has this word, and speaks about its newest generation.
    pub async fn cluster_says(&self, name: &str, reason: &str) -> KafkaCluster {
        let api = self.api::<KafkaCluster>();
        let mut last = None;
        wait_until(&format!("KafkaCluster {name} says {reason}"), async || {
            last = api.get_opt(name).await.unwrap();
            let cluster = last.clone()?;
            let status = cluster.status.as_ref()?;
            let ready = condition::find(&status.conditions, condition::READY)?;
            let current = status.observed_generation == cluster.metadata.generation?;
            (current && ready.reason == reason).then_some(cluster)
        })
        .await
    }

    /// The same of a topic.
    pub async fn topic_says(&self, name: &str, reason: &str) -> KafkaTopic {
        let api = self.api::<KafkaTopic>();
        wait_until(&format!("KafkaTopic {name} says {reason}"), async || {
            let topic = api.get_opt(name).await.unwrap()?;
            let status = topic.status.as_ref()?;
            let ready = condition::find(&status.conditions, condition::READY)?;
            let current = status.observed_generation == topic.metadata.generation?;
            (current && ready.reason == reason).then_some(topic)
        })
        .await
    }

    pub async fn gone<K>(&self, name: &str)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Clone + Debug,
    {
        let api = self.api::<K>();
        wait_until(&format!("{name} is gone"), async || api.get_opt(name).await.unwrap().is_none().then_some(())).await;
    }

    pub async fn identity(&self) -> Value {
        let config_map = self.api::<ConfigMap>().get("demo-identity").await.unwrap();
        serde_json::from_str(&config_map.data.unwrap()["identity.json"]).unwrap()
    }

    pub async fn pod_uid(&self) -> Option<String> {
        self.api::<Pod>().get_opt("demo-0-0").await.unwrap().and_then(|pod| pod.uid())
    }

    pub fn wipe_disks(&self) {
        self.disks.lock().unwrap().formatted.clear();
    }

    pub fn formats(&self) -> usize {
        self.disks.lock().unwrap().formats
    }
}

fn start_operator(context: Context, namespaces: &[&str]) -> Operator {
    let (stop, stopped) = oneshot::channel::<()>();
    let ending = stopped.map(drop).boxed().shared();
    let scopes: Vec<Option<String>> = namespaces.iter().map(|name| Some((*name).to_owned())).collect();
    let metrics = context.metrics.clone();
    let context = Arc::new(context);
    let task = tokio::spawn(async move { work(context, &scopes, 4, ending).await });
    Operator { metrics, stop: Some(stop), task }
}

pub async fn create_namespace(client: &Client, name: &str) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }))
    .unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
}

/// Asks until there is an answer, and fails when there is none in time.
pub async fn wait_until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs init containers as `gregor storage ensure` would, and then the node.
async fn kubelet(client: Client, namespace: String, disks: Arc<Mutex<Disks>>, brokers: Arc<Brokers>) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Ok(list) = pods.list(&ListParams::default().labels(names::NODE_ID_LABEL)).await else { continue };
        let present: Vec<i32> = list.items.iter().filter_map(node_id).collect();
        brokers.running.lock().unwrap().retain(|id, _| present.contains(id));
        for pod in &list.items {
            mount(&client, &namespace, pod, &brokers).await;
        }
        for pod in list {
            if is_done(&pod) || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            if let Some(status) = start(&client, &namespace, &pod, &disks).await {
                if status["containerStatuses"].is_array()
                    && let Some(id) = node_id(&pod)
                {
                    let directory = pod.annotations()[names::DIRECTORY_ID].clone();
                    brokers.running.lock().unwrap().insert(id, directory);
                }
                // The pod may be gone by now.
                let patch = Patch::Merge(json!({"status": status}));
                let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
            }
        }
    }
}

/// Has a pod show what is in its Secret by now, as soon as its Secret is there.
async fn mount(client: &Client, namespace: &str, pod: &Pod, brokers: &Brokers) -> Option<()> {
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let name = volumes.iter().find_map(|volume| volume.secret.as_ref()?.secret_name.as_ref())?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let content = certificates::node(&secrets.get_opt(name).await.ok()??).ok()?;
    brokers.shown.lock().unwrap().insert(pod.name_any(), content.shown());
    Some(())
}

fn node_id(pod: &Pod) -> Option<i32> {
    pod.labels().get(names::NODE_ID_LABEL)?.parse().ok()
}

/// Whether the init container has said its last word: code 4 asks for another run.
fn is_done(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_ref());
    let ended = statuses.and_then(|all| all.first()?.state.as_ref()?.terminated.as_ref());
    ended.is_some_and(|ended| ended.exit_code != 4)
}

async fn start(client: &Client, namespace: &str, pod: &Pod, disks: &Mutex<Disks>) -> Option<Value> {
    let value = serde_json::to_value(pod).ok()?;
    let claim = value["spec"]["volumes"]
        .as_array()?
        .iter()
        .find_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())?;
    let source = &value["spec"]["initContainers"][0]["env"][0]["valueFrom"]["configMapKeyRef"];
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let claim = claims.get_opt(claim).await.ok()??.uid()?;
    let grants = config_maps.get_opt(source["name"].as_str()?).await.ok()??.data?;
    let grant = grants.get(source["key"].as_str()?)?.clone();
    let wanted = (pod.annotations()[names::CLUSTER_ID].clone(), pod.annotations()[names::DIRECTORY_ID].clone());
    let mut disks = disks.lock().unwrap();
    let refusal = match disks.formatted.get(&claim) {
        Some(found) if *found == wanted => None,
        Some(_) => Some("ForeignDisk"),
        None if grant == "none" => Some("DiskLost"),
        None => {
            disks.formats += usize::from(grant == "standalone");
            disks.formatted.insert(claim, wanted);
            None
        }
    };
    let arguments = value["spec"]["initContainers"][0]["args"].as_array()?;
    let waits = grant != "none" && arguments.iter().any(|argument| argument == "--until-recorded");
    let container = |name: &str, state: Value| json!({"name": name, "image": "gregor", "imageID": "", "ready": true, "restartCount": 0, "state": state});
    Some(match refusal {
        None if waits => json!({
            "phase": "Pending",
            "initContainerStatuses": [container("format", json!({"terminated": {"exitCode": 4}}))],
            "conditions": [{"type": "PodScheduled", "status": "True"}],
        }),
        None => json!({
            "phase": "Running",
            "initContainerStatuses": [container("format", json!({"terminated": {"exitCode": 0}}))],
            "containerStatuses": [container("gregor", json!({"running": {}}))],
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
        }),
        Some(reason) => json!({
            "phase": "Pending",
            "initContainerStatuses": [container("format", json!({"terminated": {
                "exitCode": 3,
                "message": json!({"reason": reason, "message": "found by the lab"}).to_string(),
            }}))],
            "conditions": [{"type": "PodScheduled", "status": "True"}],
        }),
    })
}
