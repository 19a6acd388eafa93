//! A topic from its first manifest to its deletion.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

use std::collections::{BTreeMap, BTreeSet};

use gregor_operator_api::value::ConfigValue;
use gregor_operator_api::{DeletionPolicy, KafkaCluster, KafkaTopic, names, yaml};
use gregor_operator_plan::topic::{
    BrokerError, ClusterSeen, TopicObserved, TopicPlan, TopicSeen, TopicStep, owned_text, plan, refused,
};
use gregor_operator_plan::{Progress, Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

const NOW: &str = "2026-01-01T00:00:00Z";

fn time(text: &str) -> Time {
    serde_json::from_value(json!(text)).unwrap()
}

fn topic(name: &str) -> KafkaTopic {
    let text = format!(
        "{{apiVersion: gregor.dev/v1beta1, kind: KafkaTopic, metadata: {{name: {name}, namespace: team}}, spec: {{clusterRef: {{name: demo}}}}}}"
    );
    let mut topic: KafkaTopic = yaml::from_str(&text).unwrap();
    topic.metadata.creation_timestamp = Some(time("2026-01-01T00:00:00Z"));
    topic
}

fn observed(topic: KafkaTopic, seen: Option<TopicSeen>) -> TopicObserved {
    TopicObserved { topic, rivals: Vec::new(), cluster: ClusterSeen::Ready, broker: Ok(seen) }
}

fn seen(partitions: i32, overrides: &[(&str, &str)]) -> TopicSeen {
    TopicSeen {
        id: "id".to_owned(),
        partitions,
        replicas: 1,
        overrides: overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

fn set(topic: &mut KafkaTopic, key: &str, value: &str) {
    topic.spec.config.insert(key.to_owned(), value.into());
}

fn hold(topic: &mut KafkaTopic) {
    topic.spec.deletion_policy = DeletionPolicy::Delete;
    topic.metadata.finalizers = Some(vec![names::TOPIC_FINALIZER.to_owned()]);
}

fn leave(topic: &mut KafkaTopic) {
    topic.metadata.deletion_timestamp = Some(time("2026-01-02T00:00:00Z"));
}

/// Carries a step out on the object and the broker, as the manager would.
fn carry_out(observed: &mut TopicObserved, step: TopicStep) {
    let metadata = &mut observed.topic.metadata;
    match step {
        TopicStep::AddFinalizer => metadata.finalizers = Some(vec![names::TOPIC_FINALIZER.to_owned()]),
        TopicStep::RemoveFinalizer => metadata.finalizers = None,
        TopicStep::RecordOwned(keys) => {
            metadata.annotations.get_or_insert_default().insert(names::OWNED_CONFIG.to_owned(), owned_text(&keys));
        }
        TopicStep::Create { partitions, replicas, config } => {
            assert!(matches!(observed.broker, Ok(None)), "only a topic that is missing is created");
            observed.broker = Ok(Some(TopicSeen {
                id: "new".to_owned(),
                partitions: partitions.unwrap_or(1),
                replicas: replicas.unwrap_or(1),
                overrides: config,
            }));
        }
        TopicStep::Grow { partitions } => {
            let seen = observed.broker.as_mut().unwrap().as_mut().unwrap();
            assert!(partitions > seen.partitions, "a topic never shrinks");
            seen.partitions = partitions;
        }
        TopicStep::Configure { set, reset } => {
            let seen = observed.broker.as_mut().unwrap().as_mut().unwrap();
            seen.overrides.retain(|key, _| !reset.contains(key));
            seen.overrides.extend(set);
        }
        TopicStep::Delete => {
            assert_eq!(observed.topic.spec.deletion_policy, DeletionPolicy::Delete);
            observed.broker = Ok(None);
        }
    }
}

fn settle(observed: &mut TopicObserved) -> TopicPlan {
    for _ in 0..20 {
        let plan = plan(observed, NOW);
        observed.topic.status = Some(plan.status.clone());
        match plan.step {
            Some(step) => carry_out(observed, step),
            None => return plan,
        }
    }
    panic!("it never comes to rest");
}

#[test]
fn a_missing_topic_is_created_with_its_configuration() {
    let mut topic = topic("events");
    topic.spec.partitions = Some(4);
    topic.spec.config.insert("retention.ms".to_owned(), ConfigValue::Integer(60_000));
    let mut observed = observed(topic, None);
    let plan = settle(&mut observed);
    assert!(matches!(plan.progress, Progress::Ready { .. }));
    assert_eq!(observed.broker.unwrap().unwrap().overrides["retention.ms"], "60000");
    assert_eq!((plan.status.partitions, plan.status.topic_name.as_deref()), (Some(4), Some("events")));
}

#[test]
fn an_adopted_topic_keeps_what_the_manifest_does_not_name() {
    let mut topic = topic("events");
    topic.spec.partitions = Some(8);
    set(&mut topic, "retention.ms", "5");
    let mut observed = observed(topic, Some(seen(4, &[("cleanup.policy", "compact"), ("retention.ms", "1")])));
    settle(&mut observed);
    let seen = observed.broker.unwrap().unwrap();
    assert_eq!(
        (seen.partitions, seen.overrides["cleanup.policy"].as_str(), seen.overrides["retention.ms"].as_str()),
        (8, "compact", "5")
    );
}

#[test]
fn a_key_taken_out_of_the_manifest_is_reset_and_no_other() {
    let mut topic = topic("events");
    set(&mut topic, "retention.ms", "5");
    set(&mut topic, "segment.bytes", "9");
    let mut observed = observed(topic, Some(seen(1, &[("cleanup.policy", "compact")])));
    settle(&mut observed);
    observed.topic.spec.config.remove("retention.ms");
    observed.topic.status = None;
    settle(&mut observed);
    let keys: BTreeSet<String> = observed.broker.unwrap().unwrap().overrides.into_keys().collect();
    assert_eq!(keys, BTreeSet::from(["cleanup.policy".to_owned(), "segment.bytes".to_owned()]));
}

#[test]
fn fewer_partitions_and_other_replicas_are_refused_in_words() {
    let mut fewer = topic("events");
    fewer.spec.partitions = Some(2);
    let plan = settle(&mut observed(fewer, Some(seen(4, &[]))));
    assert_eq!(plan.progress.reason(), Reason::PartitionsDecreaseRefused);
    assert!(plan.progress.message().contains("write partitions: 4"), "{}", plan.progress.message());
    let mut more = topic("events");
    more.spec.replicas = Some(3);
    let plan = settle(&mut observed(more, Some(seen(4, &[]))));
    assert_eq!(plan.progress.reason(), Reason::ReplicasChangeRefused);
}

#[test]
fn of_two_objects_for_one_topic_the_oldest_wins() {
    let mut younger = topic("events");
    younger.metadata.creation_timestamp = Some(time("2026-01-01T00:00:01Z"));
    let mut seen_by_younger = observed(younger.clone(), Some(seen(1, &[])));
    seen_by_younger.rivals = vec![topic("older")];
    let plan = settle(&mut seen_by_younger);
    assert_eq!(plan.progress.reason(), Reason::TopicConflict);
    assert!(plan.progress.message().contains("team/older"));
    let mut seen_by_older = observed(topic("older"), Some(seen(1, &[])));
    seen_by_older.rivals = vec![younger];
    assert_eq!(settle(&mut seen_by_older).progress.reason(), Reason::Ready);
}

#[test]
fn the_loser_of_a_conflict_deletes_nothing() {
    let mut loser = topic("events");
    loser.metadata.creation_timestamp = Some(time("2026-01-01T00:00:01Z"));
    hold(&mut loser);
    leave(&mut loser);
    let mut observed = observed(loser, Some(seen(1, &[])));
    observed.rivals = vec![topic("older")];
    settle(&mut observed);
    assert!(observed.broker.unwrap().is_some());
    assert_eq!(observed.topic.metadata.finalizers, None);
}

#[test]
fn deletion_keeps_the_topic_unless_the_manifest_says_delete() {
    let mut retained = topic("events");
    leave(&mut retained);
    let mut retained = observed(retained, Some(seen(1, &[])));
    settle(&mut retained);
    assert!(retained.broker.unwrap().is_some());

    let mut deleted = topic("events");
    deleted.spec.deletion_policy = DeletionPolicy::Delete;
    let mut deleted = observed(deleted, Some(seen(1, &[])));
    settle(&mut deleted);
    assert!(deleted.topic.metadata.finalizers.is_some(), "held while it lives");
    leave(&mut deleted.topic);
    settle(&mut deleted);
    assert_eq!((deleted.broker, deleted.topic.metadata.finalizers), (Ok(None), None));
}

#[test]
fn retain_needs_no_finalizer() {
    let mut observed = observed(topic("events"), Some(seen(1, &[])));
    settle(&mut observed);
    assert_eq!(observed.topic.metadata.finalizers, None);
    hold(&mut observed.topic);
    observed.topic.spec.deletion_policy = DeletionPolicy::Retain;
    settle(&mut observed);
    assert_eq!(observed.topic.metadata.finalizers, None);
}

#[test]
fn a_cluster_that_is_gone_holds_no_topic_object() {
    for cluster in [ClusterSeen::Gone, ClusterSeen::Forbids] {
        let mut held = topic("events");
        hold(&mut held);
        leave(&mut held);
        let mut observed = observed(held, None);
        observed.cluster = cluster;
        observed.broker = Err(BrokerError::Unavailable("not asked".to_owned()));
        settle(&mut observed);
        assert_eq!(observed.topic.metadata.finalizers, None);
    }
}

#[test]
fn waiting_for_the_cluster_is_no_failure() {
    let mut held = topic("events");
    hold(&mut held);
    leave(&mut held);
    let mut observed = observed(held, None);
    observed.cluster = ClusterSeen::NotReady { said: "node 0 is starting".to_owned(), is_whole: true };
    observed.broker = Err(BrokerError::Unavailable("connection refused".to_owned()));
    let plan = settle(&mut observed);
    assert!(matches!(plan.progress, Progress::Working { reason: Reason::ClusterNotReady, .. }));
    assert!(observed.topic.metadata.finalizers.is_some(), "the topic is still there, so the object stays");
}

#[test]
fn a_refusal_of_the_brokers_needs_a_person_and_their_silence_does_not() {
    let mut observed = observed(topic("events"), None);
    observed.broker = Err(BrokerError::Refused("INVALID_CONFIG: no".to_owned()));
    assert!(matches!(settle(&mut observed).progress, Progress::Stalled { reason: Reason::Rejected, .. }));
    observed.broker = Err(BrokerError::Unavailable("connection refused".to_owned()));
    assert!(matches!(settle(&mut observed).progress, Progress::Working { reason: Reason::ClusterUnreachable, .. }));
}

#[test]
fn a_topic_that_somebody_else_deleted_is_created_again_with_a_warning() {
    let mut observed = observed(topic("events"), Some(seen(1, &[])));
    settle(&mut observed);
    observed.broker = Ok(None);
    let plan = plan(&observed, NOW);
    assert!(matches!(plan.step, Some(TopicStep::Create { .. })));
    assert_eq!(plan.warning.unwrap().0, "TopicRecreated");
}

/// A cluster that is not ready for this reason, of whose nodes so many are ready and so many are not.
fn not_ready(wanted: i32, ready: i32, away: i32, reason: &str) -> ClusterSeen {
    let node = |id: i32| json!({"nodeId": id, "pool": "a", "ready": id < ready, "directoryId": "d"});
    let cluster = json!({
        "apiVersion": "gregor.dev/v1beta1",
        "kind": "KafkaCluster",
        "metadata": {"name": "demo", "namespace": "team"},
        "spec": {"nodePools": [{"name": "a", "replicas": wanted}]},
        "status": {
            "nodeCount": wanted,
            "nodes": (0..ready + away).map(node).collect::<Vec<_>>(),
            "conditions": [{
                "type": "Ready",
                "status": "False",
                "reason": reason,
                "message": "m",
                "lastTransitionTime": NOW,
            }],
        },
    });
    ClusterSeen::of(Some(&serde_json::from_value(cluster).unwrap()), "team")
}

#[test]
fn one_node_of_several_that_is_away_holds_up_no_topic() {
    for reason in ["Unschedulable", "Recovering", "Starting", "DiskLost", "ForeignDisk", "Rejected", "ChangingVoters"] {
        let mut observed = observed(topic("events"), None);
        observed.cluster = not_ready(3, 2, 1, reason);
        assert!(observed.cluster.is_asked());
        assert!(matches!(settle(&mut observed).progress, Progress::Ready { .. }), "{reason}");
        // It goes, too.
        hold(&mut observed.topic);
        leave(&mut observed.topic);
        settle(&mut observed);
        assert_eq!((observed.broker, observed.topic.metadata.finalizers), (Ok(None), None), "{reason}");
    }
}

#[test]
fn a_refused_manifest_of_a_cluster_that_serves_holds_up_no_topic() {
    let mut observed = observed(topic("events"), None);
    // Nothing of the manifest is known, and so nothing of the nodes.
    observed.cluster = not_ready(0, 0, 0, "InvalidConfig");
    assert!(matches!(settle(&mut observed).progress, Progress::Ready { .. }));
}

#[test]
fn a_new_topic_waits_until_its_cluster_is_made_and_those_that_are_there_do_not() {
    for (wanted, ready, away) in [(3, 1, 0), (3, 1, 2), (1, 0, 1)] {
        let mut fresh = observed(topic("events"), None);
        fresh.cluster = not_ready(wanted, ready, away, "AddingNodes");
        let plan = settle(&mut fresh);
        assert!(matches!(plan.progress, Progress::Working { reason: Reason::ClusterNotReady, .. }), "{plan:?}");
        assert_eq!(fresh.broker, Ok(None));
        let mut topic = topic("events");
        set(&mut topic, "retention.ms", "1");
        let mut there = observed(topic, Some(seen(1, &[])));
        there.cluster = not_ready(wanted, ready, away, "AddingNodes");
        assert!(matches!(settle(&mut there).progress, Progress::Ready { .. }));
    }
}

#[test]
fn what_brokers_refuse_that_are_not_all_there_passes_by() {
    let mut observed = observed(topic("events"), None);
    let said = "INVALID_REPLICATION_FACTOR: 2 brokers";
    assert!(matches!(refused(&observed, "creating", said), Progress::Stalled { reason: Reason::Rejected, .. }));
    observed.cluster = not_ready(3, 2, 1, "Starting");
    let progress = refused(&observed, "creating", said);
    assert!(matches!(progress, Progress::Working { reason: Reason::ClusterNotReady, .. }), "{progress:?}");
    assert!(progress.message().contains(said));
}

#[test]
fn other_namespaces_need_the_cluster_s_word() {
    let cluster: KafkaCluster = yaml::from_str(
        "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: demo, namespace: kafka}
spec: {nodePools: [{name: a, replicas: 1}], allowedNamespaces: [blue]}
",
    )
    .unwrap();
    assert_eq!(ClusterSeen::of(Some(&cluster), "red"), ClusterSeen::Forbids);
    assert!(matches!(ClusterSeen::of(Some(&cluster), "blue"), ClusterSeen::NotReady { .. }));
    assert!(matches!(ClusterSeen::of(Some(&cluster), "kafka"), ClusterSeen::NotReady { .. }));
    assert_eq!(ClusterSeen::of(None, "kafka"), ClusterSeen::Gone);
    let mut observed = observed(topic("events"), None);
    observed.cluster = ClusterSeen::Forbids;
    let plan = settle(&mut observed);
    assert!(plan.progress.message().contains("list team in its spec.allowedNamespaces"));
}

proptest! {
    #[test]
    fn a_topic_comes_to_rest_and_loses_nothing_that_it_does_not_own(
        before in prop::option::of((1..20_i32, prop::collection::btree_map("[a-d]", "[0-9]", 0..4))),
        manifests in prop::collection::vec((prop::option::of(1..20_i32), prop::collection::btree_map("[c-f]", "[0-9]", 0..4), any::<bool>()), 1..6),
    ) {
        let overrides = before.as_ref().map(|(_, overrides)| overrides.clone()).unwrap_or_default();
        let mut observed = observed(topic("events"), before.map(|(partitions, overrides)| TopicSeen {
            id: "id".to_owned(), partitions, replicas: 1, overrides,
        }));
        let mut largest = 0;
        for (partitions, config, wipe) in manifests {
            observed.topic.spec.partitions = partitions;
            observed.topic.spec.config = config.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
            if wipe {
                observed.topic.status = None;
            }
            settle(&mut observed);
            let seen = observed.broker.clone().unwrap().unwrap();
            prop_assert!(seen.partitions >= largest);
            largest = seen.partitions;
            let others: BTreeMap<_, _> = overrides.iter().filter(|(key, _)| key.as_str() < "c").collect();
            for (key, value) in others {
                prop_assert_eq!(seen.overrides.get(key), Some(value));
            }
            for (key, value) in &config {
                prop_assert_eq!(seen.overrides.get(key), Some(value));
            }
            for key in ["e", "f"] {
                prop_assert_eq!(seen.overrides.contains_key(key), config.contains_key(key));
            }
        }
    }
}
