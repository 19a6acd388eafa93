//! The operator and KafkaTopics against a real API server, with brokers in memory.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod lab;

use gregor_operator_api::{KafkaCluster, KafkaTopic, condition, names};
use gregor_operator_plan::topic::TopicSeen;
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};
use lab::{CLUSTER, Lab, create_namespace, wait_until};
use serde_json::json;

fn manifest(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: gregor.dev/v1beta1, kind: KafkaTopic, metadata: {{name: {name}}}, spec: {{clusterRef: {{name: demo}}{spec}}}}}"
    )
}

async fn ready(name: &str) -> Option<(Lab, lab::Operator)> {
    let lab = Lab::start(name).await?;
    let operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    Some((lab, operator))
}

fn seen(lab: &Lab, topic: &str) -> Option<TopicSeen> {
    lab.brokers.topics.lock().unwrap().get(topic).cloned()
}

#[tokio::test]
async fn a_topic_is_created_grown_and_configured() {
    let Some((lab, _operator)) = ready("topic").await else { return };
    lab.create::<KafkaTopic>(&manifest("events", ", partitions: 2, config: {retention.ms: 60000, preallocate: true}"))
        .await;
    let topic = lab.topic_says("events", "Ready").await;
    assert_eq!(topic.status.unwrap().partitions, Some(2));
    let overrides = seen(&lab, "events").unwrap().overrides;
    assert_eq!((overrides["retention.ms"].as_str(), overrides["preallocate"].as_str()), ("60000", "true"));
    let patch = json!({"spec": {"partitions": 5, "config": {"preallocate": null, "segment.bytes": 1_048_576}}});
    lab.patch::<KafkaTopic>("events", patch).await;
    lab.topic_says("events", "Ready").await;
    let topic = seen(&lab, "events").unwrap();
    let keys: Vec<&str> = topic.overrides.keys().map(String::as_str).collect();
    assert_eq!((topic.partitions, keys), (5, vec!["retention.ms", "segment.bytes"]));
    lab.patch::<KafkaTopic>("events", json!({"spec": {"partitions": 1}})).await;
    let refused = lab.topic_says("events", "PartitionsDecreaseRefused").await;
    let ready = condition::find(&refused.status.as_ref().unwrap().conditions, "Ready").unwrap().clone();
    assert!(ready.message.contains("write partitions: 5"), "{}", ready.message);
    assert_eq!(seen(&lab, "events").unwrap().partitions, 5);
}

#[tokio::test]
async fn deleting_keeps_the_topic_unless_the_manifest_says_delete() {
    let Some((lab, _operator)) = ready("keep").await else { return };
    lab.create::<KafkaTopic>(&manifest("kept", "")).await;
    lab.create::<KafkaTopic>(&manifest("dropped", ", deletionPolicy: Delete")).await;
    let kept = lab.topic_says("kept", "Ready").await;
    let dropped = lab.topic_says("dropped", "Ready").await;
    assert!(kept.finalizers().is_empty());
    assert_eq!(dropped.finalizers(), [names::TOPIC_FINALIZER]);
    lab.delete::<KafkaTopic>("kept").await;
    lab.delete::<KafkaTopic>("dropped").await;
    lab.gone::<KafkaTopic>("kept").await;
    lab.gone::<KafkaTopic>("dropped").await;
    assert!(seen(&lab, "kept").is_some() && seen(&lab, "dropped").is_none());
    let id = seen(&lab, "kept").unwrap().id;
    lab.create::<KafkaTopic>(&manifest("kept", "")).await;
    let adopted = lab.topic_says("kept", "Ready").await;
    assert_eq!(adopted.status.unwrap().topic_id, Some(id));
}

#[tokio::test]
async fn of_two_objects_for_one_topic_the_older_wins() {
    let Some((lab, _operator)) = ready("twice").await else { return };
    lab.create::<KafkaTopic>(&manifest("a", ", topicName: Shared_Topic")).await;
    lab.topic_says("a", "Ready").await;
    // Creation times have seconds; of the same second the first name wins, which is `a` too.
    lab.create::<KafkaTopic>(&manifest("b", ", topicName: Shared_Topic, partitions: 7")).await;
    let loser = lab.topic_says("b", "TopicConflict").await;
    let message = &condition::find(&loser.status.as_ref().unwrap().conditions, "Ready").unwrap().message;
    assert!(message.contains(&format!("{}/a", lab.namespace)), "{message}");
    assert_eq!(seen(&lab, "Shared_Topic").unwrap().partitions, 1);
    lab.delete::<KafkaTopic>("a").await;
    lab.patch::<KafkaTopic>("b", json!({"metadata": {"labels": {"look": "again"}}})).await;
    lab.topic_says("b", "Ready").await;
    assert_eq!(seen(&lab, "Shared_Topic").unwrap().partitions, 7);
}

#[tokio::test]
async fn a_topic_waits_for_its_cluster() {
    let Some(lab) = Lab::start("early").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaTopic>(&manifest("events", "")).await;
    let early = lab.topic_says("events", "ClusterNotFound").await;
    let conditions = early.status.unwrap().conditions;
    assert_eq!(condition::find(&conditions, "Stalled").unwrap().status, condition::ConditionStatus::False);
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.topic_says("events", "Ready").await;
}

#[tokio::test]
async fn another_namespace_needs_the_cluster_s_word() {
    let Some(lab) = Lab::start("house").await else { return };
    let other = format!("{}-guest", lab.namespace);
    create_namespace(&lab.client, &other).await;
    let _operator = lab.operator_for(&[&lab.namespace, &other]);
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    let guests: Api<KafkaTopic> = Api::namespaced(lab.client.clone(), &other);
    let text = manifest("events", "").replace("{name: demo}", &format!("{{name: demo, namespace: {}}}", lab.namespace));
    let topic: KafkaTopic = gregor_operator_api::yaml::from_str(&text).unwrap();
    guests.create(&PostParams::default(), &topic).await.unwrap();
    let says = async |reason: &str| {
        wait_until(reason, async || {
            let topic = guests.get("events").await.unwrap();
            let status = topic.status?;
            (condition::find(&status.conditions, "Ready")?.reason == reason).then_some(())
        })
        .await;
    };
    says("NamespaceNotAllowed").await;
    assert!(seen(&lab, "events").is_none());
    lab.patch::<KafkaCluster>("demo", json!({"spec": {"allowedNamespaces": [other]}})).await;
    says("Ready").await;
    assert!(seen(&lab, "events").is_some());
}

#[tokio::test]
async fn what_brokers_refuse_is_said_in_their_words() {
    let Some((lab, _operator)) = ready("refuse").await else { return };
    *lab.brokers.refuse.lock().unwrap() = Some("topic events: INVALID_CONFIG: no such key".to_owned());
    lab.create::<KafkaTopic>(&manifest("events", ", config: {nonsense: 1}")).await;
    let refused = lab.topic_says("events", "Rejected").await;
    let conditions = refused.status.unwrap().conditions;
    let stalled = condition::find(&conditions, "Stalled").unwrap();
    assert_eq!(stalled.status, condition::ConditionStatus::True);
    assert!(stalled.message.contains("INVALID_CONFIG: no such key"));
}
