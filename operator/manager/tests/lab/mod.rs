//! A real API server without nodes, an operator in this process, and stand-ins for what nodes would do: a kubelet that
//! checks disks as `gregor storage ensure` does, and brokers that hold topics in memory.
//!
//! The API server is the one of `KUBECONFIG`; without it every test says that it was skipped.
#![allow(clippy::unwrap_used, dead_code)] // each test binary uses its part, and a test that cannot go on may panic

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use gregor_operator::admin::TopicAdmin;
use gregor_operator::context::Context;
use gregor_operator::metrics::Metrics;
use gregor_operator::run::work;
use gregor_operator_api::{KafkaCluster, KafkaTopic, condition, crds, names, yaml};
use gregor_operator_plan::Environment;
use gregor_operator_plan::topic::{BrokerError, TopicSeen, TopicStep};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_mins(1);

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
    counter: Mutex<u32>,
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

impl Lab {
    /// A namespace of its own with a kubelet. `None` where there is no API server.
    pub async fn start(name: &str) -> Option<Self> {
        let client = client().await?;
        let namespace = format!("{name}-{}", std::process::id());
        create_namespace(&client, &namespace).await;
        let disks = Arc::<Mutex<Disks>>::default();
        let kubelet = tokio::spawn(kubelet(client.clone(), namespace.clone(), Arc::clone(&disks)));
        Some(Self { client, namespace, brokers: Arc::default(), disks, kubelet })
    }

    pub fn operator(&self) -> Operator {
        self.operator_for(&[&self.namespace])
    }

    pub fn operator_for(&self, namespaces: &[&str]) -> Operator {
        let environment = Environment {
            image_repository: "gregor".to_owned(),
            image_tag: "0.1.0".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            image_pull_secrets: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
        };
        let metrics = Metrics::default();
        let brokers: Arc<dyn TopicAdmin> = Arc::clone(&self.brokers) as Arc<dyn TopicAdmin>;
        let context = Arc::new(Context::new(self.client.clone(), environment, brokers, "lab", metrics.clone()));
        let (stop, stopped) = oneshot::channel::<()>();
        let ending = stopped.map(drop).boxed().shared();
        let scopes: Vec<Option<String>> = namespaces.iter().map(|name| Some((*name).to_owned())).collect();
        let task = tokio::spawn(async move { work(context, &scopes, 4, ending).await });
        Operator { metrics, stop: Some(stop), task }
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
async fn kubelet(client: Client, namespace: String, disks: Arc<Mutex<Disks>>) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Ok(list) = pods.list(&ListParams::default().labels(names::NODE_ID_LABEL)).await else { continue };
        for pod in list {
            let done = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_ref()).is_some();
            if done || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            if let Some(status) = start(&client, &namespace, &pod, &disks).await {
                // The pod may be gone by now.
                let patch = Patch::Merge(json!({"status": status}));
                let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
            }
        }
    }
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
        None if grant == "standalone" => {
            disks.formats += 1;
            disks.formatted.insert(claim, wanted);
            None
        }
        None => Some("DiskLost"),
    };
    let container = |name: &str, state: Value| json!({"name": name, "image": "gregor", "imageID": "", "ready": true, "restartCount": 0, "state": state});
    Some(match refusal {
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
