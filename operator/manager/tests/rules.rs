//! The rules in the definitions, as a real API server applies them: what is refused, and what it says to write instead.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod lab;

use gregor_operator_api::{KafkaCluster, KafkaTopic, yaml};
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, NamespaceResourceScope};
use kube::{Client, Resource};
use lab::CLUSTER;
use serde_json::{Value, json};

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

/// Asks the API server whether it would take the manifest. Dry: nothing is left behind.
async fn create<K>(client: &Client, base: &str, patch: Value) -> Result<(), String>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let mut value: Value = yaml::from_str(base).unwrap();
    merge(&mut value, &patch);
    let object: DynamicObject = serde_json::from_value(value).unwrap();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &ApiResource::erase::<K>(&()));
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&parameters, &object).await.map(drop).map_err(|error| error.to_string())
}

const TOPIC: &str =
    "{apiVersion: gregor.dev/v1beta1, kind: KafkaTopic, metadata: {name: events}, spec: {clusterRef: {name: demo}}}";

#[tokio::test]
async fn a_cluster_that_cannot_be_served_is_refused_in_words() {
    let Some(client) = lab::client().await else { return };
    let pool = |pool: Value| json!({"spec": {"nodePools": [pool]}});
    let listener = |more: Value| {
        let mut listener = json!({"name": "outside", "port": 9094});
        merge(&mut listener, &more);
        json!({"spec": {"listeners": [listener]}})
    };
    let refused = [
        (pool(json!({"name": "a", "replicas": 1, "nodeIds": ["0"]})), "write either replicas or nodeIds"),
        (pool(json!({"name": "a"})), "write either replicas or nodeIds"),
        (pool(json!({"name": "a", "replicas": 1, "roles": ["broker"]})), "nobody would hold the metadata"),
        (pool(json!({"name": "a", "replicas": 1, "roles": ["controller"]})), "nobody would serve clients"),
        (pool(json!({"name": "a", "replicas": 1, "roles": ["broker", "broker"]})), "Duplicate"),
        (
            pool(json!({"name": "a", "replicas": 1, "rack": {"name": "r", "topologyKey": "zone"}})),
            "write either name or topologyKey",
        ),
        (json!({"spec": {"nodePools": [{"name": "a", "replicas": 1}, {"name": "a", "replicas": 1}]}}), "Duplicate"),
        (json!({"spec": {"storage": null}}), "write storage:"),
        (
            json!({"spec": {"storage": {"volumes": [{"name": "a", "size": "1Gi"}, {"name": "b", "size": "1Gi"}]}}}),
            "write one entry in volumes",
        ),
        (json!({"spec": {"storage": {"volumes": [{"name": "a", "size": "much"}]}}}), "size"),
        (json!({"spec": {"metadataVersion": "3.9"}}), "write metadataVersion: \"4.3\""),
        (json!({"metadata": {"name": "a-name-that-is-longer-than-forty-characters"}}), "at most 40 characters"),
        (json!({"metadata": {"name": "0digits"}}), "begins with a letter"),
        (listener(json!({"tls": {"secretName": "s"}})), "leave out tls"),
        (listener(json!({"name": "internal"})), "give the listener another one"),
        (listener(json!({"name": "a--b"})), "two hyphens in a row: write one"),
        (listener(json!({"port": 9092})), "for example 9094"),
        (listener(json!({"type": "NodePort"})), "write advertised:"),
        (listener(json!({"advertised": {"hostTemplate": "b{broker}"}})), "hostTemplate"),
        (
            json!({"spec": {"listeners": [{"name": "a", "port": 9094}, {"name": "b", "port": 9094}]}}),
            "give each its own",
        ),
        (json!({"spec": {"config": {"a": {"b": 1}}}}), "config.a"),
        (json!({"spec": {"config": {"a": [1]}}}), "config.a"),
        (json!({"spec": {"resources": {"requests": {"cpu": "lots"}}}}), "cpu"),
        (json!({"spec": {"acceptDataLoss": [-1]}}), "acceptDataLoss"),
        (json!({"spec": {"nodeConnections": {"certificateDays": 0}}}), "certificateDays"),
    ];
    for (patch, words) in refused {
        let said = create::<KafkaCluster>(&client, CLUSTER, patch.clone()).await;
        let said = said.expect_err(&format!("{patch} was taken"));
        assert!(said.contains(words), "{patch}: {said}");
    }
}

#[tokio::test]
async fn what_a_person_would_write_is_taken() {
    let Some(client) = lab::client().await else { return };
    let taken = [
        json!({}),
        json!({"spec": {"config": {"a": 1, "b": true, "c": "text", "d": 0.5}}}),
        json!({"spec": {"resources": {"requests": {"cpu": 1, "memory": "256Mi"}}}}),
        json!({"spec": {"nodePools": [{"name": "a", "nodeIds": ["7"], "roles": ["controller", "broker"], "rack": {"name": "r"}}]}}),
        json!({"spec": {"nodePools": [{"name": "a", "replicas": 3, "rack": {"topologyKey": "topology.kubernetes.io/zone"}}]}}),
        json!({"spec": {"nodePools": [{"name": "a", "replicas": 3, "roles": ["controller"]}, {"name": "b", "nodeIds": ["10-12", "20"], "roles": ["broker"]}]}}),
        json!({"spec": {"metadataVersion": "4.3", "version": "0.1.0", "image": "x/y:z", "restartedAt": "now", "acceptDataLoss": [0]}}),
        json!({"spec": {"podTemplate": {"spec": {"tolerations": [{"operator": "Exists"}]}}}}),
        json!({"spec": {"listeners": [{"name": "local", "port": 19092, "advertised": {"hostTemplate": "localhost", "portTemplate": "1909{nodeId}"}}]}}),
        json!({"spec": {"nodeConnections": {"certificateDays": 30, "authorityDays": 365, "certificatesRenewedAt": "2026-01-01"}}}),
        json!({"spec": {"allowedNamespaces": ["*", "blue"], "deletionPolicy": "Delete"}}),
    ];
    for patch in taken {
        let said = create::<KafkaCluster>(&client, CLUSTER, patch.clone()).await;
        assert_eq!(said, Ok(()), "{patch}");
    }
    for patch in [json!({}), json!({"spec": {"topicName": "Under_scores.and.dots", "config": {"retention.ms": -1}}})] {
        assert_eq!(create::<KafkaTopic>(&client, TOPIC, patch.clone()).await, Ok(()), "{patch}");
    }
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds/examples");
    for entry in std::fs::read_dir(examples).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for document in text.split("\n---\n") {
            let outcome = if document.contains("kind: KafkaCluster\n") {
                create::<KafkaCluster>(&client, document, json!({})).await
            } else {
                create::<KafkaTopic>(&client, document, json!({})).await
            };
            assert_eq!(outcome, Ok(()), "{document}");
        }
    }
}

#[tokio::test]
async fn a_topic_that_cannot_be_is_refused_in_words() {
    let Some(client) = lab::client().await else { return };
    let refused = [
        (json!({"spec": {"replicas": 0}}), "replicas"),
        (json!({"spec": {"topicName": ".."}}), "write another topicName"),
        (json!({"spec": {"topicName": "__consumer_offsets"}}), "write a topicName of your own"),
        (json!({"spec": {"topicName": "no spaces"}}), "topicName"),
        (json!({"spec": {"partitions": 0}}), "partitions"),
        (json!({"spec": {"clusterRef": null}}), "clusterRef"),
        (json!({"spec": {"deletionPolicy": "Maybe"}}), "deletionPolicy"),
    ];
    for (patch, words) in refused {
        let said = create::<KafkaTopic>(&client, TOPIC, patch.clone()).await;
        let said = said.expect_err(&format!("{patch} was taken"));
        assert!(said.contains(words), "{patch}: {said}");
    }
}

#[tokio::test]
async fn what_must_not_change_is_refused_in_words() {
    let Some(lab) = lab::Lab::start("change").await else { return };
    lab.create::<KafkaTopic>(&TOPIC.replace("spec: {", "spec: {topicName: one, ")).await;
    lab.create::<KafkaCluster>(CLUSTER).await;
    let topics = lab.api::<KafkaTopic>();
    let clusters = lab.api::<KafkaCluster>();
    let parameters = kube::api::PatchParams::default();
    for (patch, words) in [
        (json!({"spec": {"topicName": "two"}}), "topicName cannot be changed"),
        (json!({"spec": {"topicName": null}}), "topicName cannot be changed"),
        (json!({"spec": {"clusterRef": {"name": "other"}}}), "clusterRef cannot be changed"),
        (json!({"spec": {"clusterRef": {"namespace": "other"}}}), "clusterRef cannot be changed"),
    ] {
        let said = topics.patch("events", &parameters, &kube::api::Patch::Merge(&patch)).await.unwrap_err().to_string();
        assert!(said.contains(words), "{patch}: {said}");
    }
    let volume = |volume: Value| json!({"spec": {"storage": {"volumes": [volume]}}});
    for (patch, words) in [
        (volume(json!({"name": "data", "size": "500Mi"})), "a disk cannot shrink"),
        (
            volume(json!({"name": "data", "size": "1Gi", "storageClassName": "fast"})),
            "storageClassName cannot be changed",
        ),
    ] {
        let said = clusters.patch("demo", &parameters, &kube::api::Patch::Merge(&patch)).await.unwrap_err().to_string();
        assert!(said.contains(words), "{patch}: {said}");
    }
    let grow = volume(json!({"name": "data", "size": "2Gi"}));
    clusters.patch("demo", &parameters, &kube::api::Patch::Merge(&grow)).await.unwrap();
}
