//! The plan of a KafkaTopic: which one step brings the topic nearer to its manifest, and what to say about it.
//!
//! It creates, grows, configures and adopts. It never shrinks a topic, never changes what the manifest does not name, and
//! deletes only under `deletionPolicy: Delete`.

use std::collections::{BTreeMap, BTreeSet};

use gregor_operator_api::{DeletionPolicy, KafkaCluster, KafkaTopic, KafkaTopicStatus, condition, names};

use crate::progress::{Progress, Reason};
use crate::validate::valid_values;

/// What is known of the KafkaCluster that a topic names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterSeen {
    /// There is none, or it is being deleted.
    Gone,
    /// It does not allow topics from this namespace.
    Forbids,
    /// It is not as its manifest wants it. Its brokers are asked all the same: where they serve, they serve topics too.
    NotReady {
        /// Why.
        said: String,
        /// Whether a new topic would find its brokers: not while the cluster is being made.
        is_whole: bool,
    },
    /// It is as its manifest wants it.
    Ready,
}

impl ClusterSeen {
    /// What this cluster means for topics of this namespace.
    pub fn of(cluster: Option<&KafkaCluster>, namespace: &str) -> Self {
        let Some(cluster) = cluster.filter(|cluster| cluster.metadata.deletion_timestamp.is_none()) else {
            return Self::Gone;
        };
        let own = cluster.metadata.namespace.as_deref() == Some(namespace);
        let allowed = |listed: &String| listed == "*" || listed == namespace;
        if !own && !cluster.spec.allowed_namespaces.iter().any(allowed) {
            return Self::Forbids;
        }
        let conditions = cluster.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        match condition::find(conditions, condition::READY) {
            Some(ready) if ready.status == condition::ConditionStatus::True => Self::Ready,
            Some(ready) => Self::NotReady { said: ready.message.clone(), is_whole: is_whole(cluster) },
            None => Self::NotReady { said: "the operator has not looked at it yet".to_owned(), is_whole: false },
        }
    }

    /// Whether the brokers are asked.
    pub fn is_asked(&self) -> bool {
        matches!(self, Self::NotReady { .. } | Self::Ready)
    }
}

/// Whether every node that the manifest asks for was added, and most of them are ready. Of a manifest that is refused the status
/// lists no nodes, and those that there are serve on.
fn is_whole(cluster: &KafkaCluster) -> bool {
    let Some(status) = &cluster.status else { return false };
    let count = status.nodes.len();
    let away = status.nodes.iter().filter(|node| !node.ready).count();
    i32::try_from(count).is_ok_and(|count| count >= status.node_count) && away * 2 <= count
}

/// A topic as the brokers describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicSeen {
    /// Its id.
    pub id: String,
    /// How many partitions it has.
    pub partitions: i32,
    /// How many replicas its first partition has.
    pub replicas: i32,
    /// The configuration that was set for this topic itself; defaults are not in it.
    pub overrides: BTreeMap<String, String>,
}

/// Why the brokers did not do what they were asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// They could not be asked, or may answer otherwise later.
    #[error("{0}")]
    Unavailable(String),
    /// They refuse, and will again until the manifest changes.
    #[error("{0}")]
    Refused(String),
}

/// All that was read of a topic.
#[derive(Debug, Clone)]
pub struct TopicObserved {
    /// The KafkaTopic.
    pub topic: KafkaTopic,
    /// Every other KafkaTopic that the operator sees and that names the same topic of the same cluster.
    pub rivals: Vec<KafkaTopic>,
    /// The cluster.
    pub cluster: ClusterSeen,
    /// What the brokers say; asked only if the cluster is there and allows it.
    pub broker: Result<Option<TopicSeen>, BrokerError>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicStep {
    /// Hold the object until its topic is deleted.
    AddFinalizer,
    /// Let the object go.
    RemoveFinalizer,
    /// Write down which configuration keys this object owns.
    RecordOwned(BTreeSet<String>),
    /// Create the topic.
    Create {
        /// How many partitions; the broker's default if not said.
        partitions: Option<i32>,
        /// How many replicas; the broker's default if not said.
        replicas: Option<i32>,
        /// Its configuration.
        config: BTreeMap<String, String>,
    },
    /// Grow it to so many partitions.
    Grow {
        /// The new total.
        partitions: i32,
    },
    /// Change its configuration.
    Configure {
        /// Keys to set.
        set: BTreeMap<String, String>,
        /// Keys to give back to the default.
        reset: BTreeSet<String>,
    },
    /// Delete the topic with its data.
    Delete,
}

/// What to do next, and what to say.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicPlan {
    /// The step, if there is one.
    pub step: Option<TopicStep>,
    /// How far the topic is.
    pub progress: Progress,
    /// The status as it should be.
    pub status: KafkaTopicStatus,
    /// A warning for people, once.
    pub warning: Option<(&'static str, String)>,
}

/// Plans a topic. `now` is RFC 3339.
pub fn plan(observed: &TopicObserved, now: &str) -> TopicPlan {
    let (step, progress) = match decide(observed) {
        Ok((step, progress)) => (Some(step), progress),
        Err(progress) => (None, progress),
    };
    let topic = &observed.topic;
    let generation = topic.metadata.generation.unwrap_or_default();
    let before = topic.status.clone().unwrap_or_default();
    let seen = observed.broker.as_ref().ok().and_then(Option::as_ref);
    let vanished = before.topic_id.is_some() && matches!(step, Some(TopicStep::Create { .. }));
    TopicPlan {
        status: KafkaTopicStatus {
            observed_generation: generation,
            conditions: progress.conditions(&before.conditions, generation, now),
            topic_name: Some(topic.topic_name().to_owned()),
            topic_id: seen.map(|seen| seen.id.clone()),
            partitions: seen.map(|seen| seen.partitions),
            replicas: seen.map(|seen| seen.replicas),
        },
        warning: vanished.then(|| {
            let message = format!(
                "the topic {} was deleted by somebody else, with its data; it is created again, empty",
                topic.topic_name()
            );
            ("TopicRecreated", message)
        }),
        step,
        progress,
    }
}

type Outcome = Result<(TopicStep, Progress), Progress>;

#[allow(clippy::unnecessary_wraps)] // so that every way out of `decide` reads alike
fn step(step: TopicStep, message: impl Into<String>) -> Outcome {
    Ok((step, Progress::working(Reason::TopicUpdating, message)))
}

fn decide(observed: &TopicObserved) -> Outcome {
    let topic = &observed.topic;
    let held = topic.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == names::TOPIC_FINALIZER);
    let deletes = topic.spec.deletion_policy == DeletionPolicy::Delete;
    if topic.metadata.deletion_timestamp.is_some() {
        return if held {
            release(observed, deletes)
        } else {
            Err(Progress::working(Reason::TopicDeleting, "being deleted"))
        };
    }
    let config =
        valid_values(&topic.spec.config).map_err(|invalid| Progress::stalled(invalid.reason, invalid.message))?;
    if let Some(winner) = older_rival(observed) {
        let name = format!(
            "{}/{}",
            winner.metadata.namespace.as_deref().unwrap_or_default(),
            winner.metadata.name.as_deref().unwrap_or_default()
        );
        if held {
            return step(TopicStep::RemoveFinalizer, format!("the topic belongs to the KafkaTopic {name}"));
        }
        let message =
            format!("the topic {} belongs to the older KafkaTopic {name}: delete one of the two", topic.topic_name());
        return Err(Progress::stalled(Reason::TopicConflict, message));
    }
    reachable(observed)?;
    if deletes && !held {
        return step(
            TopicStep::AddFinalizer,
            "deletionPolicy is Delete: holding the object until its topic is deleted",
        );
    }
    if !deletes && held {
        return step(TopicStep::RemoveFinalizer, "deletionPolicy is Retain: the object may go at any time");
    }
    let owned = owned_keys(topic);
    let wanted: BTreeSet<String> = config.keys().cloned().collect();
    if !wanted.is_subset(&owned) {
        // Written down first: a key that is set and forgotten could never be taken back.
        return step(
            TopicStep::RecordOwned(&owned | &wanted),
            "writing down which configuration keys belong to this object",
        );
    }
    let Ok(Some(seen)) = &observed.broker else {
        if let ClusterSeen::NotReady { said, is_whole: false } = &observed.cluster {
            return Err(waits_for(topic.cluster().1, said));
        }
        let create = TopicStep::Create { partitions: topic.spec.partitions, replicas: topic.spec.replicas, config };
        return step(create, "creating the topic");
    };
    adjust(topic, seen, &config, &owned)
}

/// An object that goes, with a finalizer of ours: the topic goes first, where that is wanted and possible.
fn release(observed: &TopicObserved, deletes: bool) -> Outcome {
    let let_go = |message: &str| Ok((TopicStep::RemoveFinalizer, Progress::working(Reason::TopicDeleting, message)));
    if !deletes {
        return let_go("the topic and its data stay");
    }
    if older_rival(observed).is_some() {
        return let_go("the topic belongs to another KafkaTopic and stays");
    }
    match &observed.cluster {
        ClusterSeen::Gone => return let_go("the cluster is gone, and the topic with it"),
        ClusterSeen::Forbids => {
            return let_go("the cluster no longer allows topics of this namespace: the topic stays");
        }
        ClusterSeen::NotReady { .. } | ClusterSeen::Ready => reachable(observed)?,
    }
    match &observed.broker {
        Ok(None) => let_go("the topic is deleted"),
        _ => Ok((TopicStep::Delete, Progress::working(Reason::TopicDeleting, "deleting the topic with its data"))),
    }
}

/// Whether the brokers have answered; the reason if not.
fn reachable(observed: &TopicObserved) -> Result<(), Progress> {
    let (namespace, name) = observed.topic.cluster();
    match &observed.cluster {
        ClusterSeen::Gone => {
            let message = format!(
                "there is no KafkaCluster {name} in namespace {namespace}: create it, or correct clusterRef in a new KafkaTopic"
            );
            Err(Progress::working(Reason::ClusterNotFound, message))
        }
        ClusterSeen::Forbids => {
            let own = observed.topic.metadata.namespace.as_deref().unwrap_or_default();
            let message = format!(
                "the KafkaCluster {namespace}/{name} does not allow topics from here: list {own} in its spec.allowedNamespaces"
            );
            Err(Progress::stalled(Reason::NamespaceNotAllowed, message))
        }
        ClusterSeen::NotReady { .. } | ClusterSeen::Ready => match (&observed.broker, &observed.cluster) {
            (Ok(_), _) => Ok(()),
            (Err(BrokerError::Unavailable(_)), ClusterSeen::NotReady { said, .. }) => Err(waits_for(name, said)),
            (Err(BrokerError::Unavailable(said)), _) => Err(Progress::working(
                Reason::ClusterUnreachable,
                format!("the brokers of {name} do not answer: {said}"),
            )),
            (Err(BrokerError::Refused(said)), _) => Err(Progress::stalled(Reason::Rejected, said.clone())),
        },
    }
}

/// Nothing goes on until the cluster does.
fn waits_for(cluster: &str, said: &str) -> Progress {
    Progress::working(Reason::ClusterNotReady, format!("waiting for the KafkaCluster {cluster}: {said}"))
}

/// What the brokers' refusal of a step means: that of brokers which are not all there passes by.
pub fn refused(observed: &TopicObserved, doing: &str, said: &str) -> Progress {
    match &observed.cluster {
        ClusterSeen::NotReady { said: why, .. } => {
            let (_, name) = observed.topic.cluster();
            waits_for(name, &format!("{why}; {doing}: {said}"))
        }
        _ => Progress::stalled(Reason::Rejected, format!("{doing}: {said}")),
    }
}

fn adjust(
    topic: &KafkaTopic,
    seen: &TopicSeen,
    config: &BTreeMap<String, String>,
    owned: &BTreeSet<String>,
) -> Outcome {
    let set: BTreeMap<String, String> = config
        .iter()
        .filter(|(key, value)| seen.overrides.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let reset: BTreeSet<String> =
        owned.iter().filter(|key| !config.contains_key(*key) && seen.overrides.contains_key(*key)).cloned().collect();
    if !set.is_empty() || !reset.is_empty() {
        let keys: Vec<&str> = set.keys().chain(&reset).map(String::as_str).collect();
        let message = format!("configuring {}", keys.join(", "));
        return step(TopicStep::Configure { set, reset }, message);
    }
    let wanted: BTreeSet<String> = config.keys().cloned().collect();
    if *owned != wanted {
        return step(TopicStep::RecordOwned(wanted), "writing down which configuration keys belong to this object");
    }
    match topic.spec.partitions {
        Some(partitions) if partitions > seen.partitions => {
            return step(
                TopicStep::Grow { partitions },
                format!("growing from {} to {partitions} partitions", seen.partitions),
            );
        }
        Some(partitions) if partitions < seen.partitions => {
            let message = format!(
                "the topic has {} partitions and Kafka has no way to remove one: write partitions: {0}, or create another topic with {partitions}",
                seen.partitions
            );
            return Err(Progress::stalled(Reason::PartitionsDecreaseRefused, message));
        }
        _ => {}
    }
    if let Some(replicas) = topic.spec.replicas.filter(|replicas| *replicas != seen.replicas) {
        let message = format!(
            "the topic has {} replicas, and this release does not move replicas: write replicas: {0} instead of {replicas}",
            seen.replicas
        );
        return Err(Progress::stalled(Reason::ReplicasChangeRefused, message));
    }
    Err(Progress::ready("the topic is as the manifest says"))
}

/// Of several objects for one topic the oldest wins; the name decides between those of the same second.
fn older_rival(observed: &TopicObserved) -> Option<&KafkaTopic> {
    let age = |topic: &KafkaTopic| {
        let metadata = &topic.metadata;
        (metadata.creation_timestamp.as_ref().map(|time| time.0), metadata.namespace.clone(), metadata.name.clone())
    };
    let own = age(&observed.topic);
    observed
        .rivals
        .iter()
        .filter(|rival| rival.metadata.deletion_timestamp.is_none() && age(rival) < own)
        .min_by_key(|rival| age(rival))
}

/// The configuration keys that this object has set, from its annotation.
pub fn owned_keys(topic: &KafkaTopic) -> BTreeSet<String> {
    let text = topic.metadata.annotations.as_ref().and_then(|all| all.get(names::OWNED_CONFIG)).map(String::as_str);
    text.unwrap_or_default().split(',').filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

/// The annotation for these keys.
pub fn owned_text(keys: &BTreeSet<String>) -> String {
    keys.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}
