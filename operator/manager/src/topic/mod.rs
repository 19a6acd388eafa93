//! The reconcile of a KafkaTopic: dereference, plan, one step, status.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gregor_operator_api::{KafkaCluster, KafkaTopic, names};
use gregor_operator_plan::properties::INTERNAL_PORT;
use gregor_operator_plan::topic::{BrokerError, ClusterSeen, TopicObserved, TopicStep, owned_text, plan, refused};
use gregor_operator_plan::{Progress, Reason};
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use serde_json::json;

use crate::context::{Context, FIELD_MANAGER};
use crate::error::Error;
use crate::metrics::{KindLabel, OutcomeLabel, StepLabel};
use crate::status;

const KIND: &str = "KafkaTopic";
/// How often a topic at rest is compared with the brokers.
const AT_REST: Duration = Duration::from_mins(5);
/// How often a topic that waits is looked at. A change of its cluster is faster.
const WAITING: Duration = Duration::from_secs(15);
/// How soon the next step follows one that was carried out.
const NEXT_STEP: Duration = Duration::from_millis(20);

/// Brings a topic one step nearer to its manifest.
pub async fn reconcile(topic: Arc<KafkaTopic>, context: Arc<Context>) -> Result<Action, Error> {
    let began = Instant::now();
    let outcome = context.in_time(Box::pin(look_and_step(&topic, &context))).await;
    context.metrics.seconds.get_or_create(&KindLabel { kind: KIND }).observe(began.elapsed().as_secs_f64());
    let word = match &outcome {
        Ok((reason, _)) => reason.map_or("Gone", Reason::as_str),
        Err(error) => error.label(),
    };
    context.metrics.reconciles.get_or_create(&OutcomeLabel { kind: KIND, outcome: word }).inc();
    outcome.map(|(_, action)| action)
}

/// When to try again after an error.
#[allow(clippy::needless_pass_by_value)] // the controller hands the values over
pub fn retry(topic: Arc<KafkaTopic>, error: &Error, context: Arc<Context>) -> Action {
    let attempts = context.failed(&topic.uid().unwrap_or_default());
    if error.is_outdated() && attempts < 5 {
        return Action::requeue(NEXT_STEP);
    }
    tracing::warn!(topic = topic.name_any(), namespace = topic.namespace(), attempts, "{error}");
    Action::requeue(context.around(Error::back_off(attempts)))
}

async fn look_and_step(topic: &KafkaTopic, context: &Context) -> Result<(Option<Reason>, Action), Error> {
    let namespace = topic.namespace().unwrap_or_default();
    let name = topic.name_any();
    let api: Api<KafkaTopic> = Api::namespaced(context.client.clone(), &namespace);
    let Some(topic) = api.get_opt(&name).await.map_err(Error::kubernetes(format!("reading KafkaTopic {name}")))? else {
        context.gate.forget(&topic.uid().unwrap_or_default());
        return Ok((None, Action::await_change()));
    };
    let bootstrap = bootstrap(context, &topic);
    let observed = dereference(context, topic, &bootstrap).await?;
    let now = Context::now();
    let mut planned = plan(&observed, &now);
    let topic = &observed.topic;
    let uid = topic.uid().unwrap_or_default();
    if let Some((reason, message)) = &planned.warning {
        status::tell(context, topic, true, reason, message).await;
    }
    let mut stepped = false;
    if let Some(step) = &planned.step {
        tracing::info!(topic = name, namespace, "{}", planned.progress.message());
        match carry_out(context, &api, topic, &bootstrap, step).await {
            Ok(()) => stepped = true,
            Err(Error::Broker { doing, source }) => {
                planned.progress = match source {
                    BrokerError::Unavailable(said) => {
                        Progress::working(Reason::ClusterUnreachable, format!("{doing}: {said}"))
                    }
                    BrokerError::Refused(said) => refused(&observed, &doing, &said),
                };
                let before = topic.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
                planned.status.conditions =
                    planned.progress.conditions(before, topic.metadata.generation.unwrap_or_default(), &now);
            }
            Err(error) => return Err(error),
        }
        if stepped && *step == TopicStep::RemoveFinalizer && topic.metadata.deletion_timestamp.is_some() {
            return Ok((Some(planned.progress.reason()), Action::await_change()));
        }
    }
    context.succeeded(&uid);
    let reason = planned.progress.reason();
    let next = match (&planned.progress, stepped) {
        (_, true) => NEXT_STEP,
        (Progress::Ready { .. }, false) => context.around(AT_REST),
        (Progress::Working { .. } | Progress::Stalled { .. }, false) => context.around(WAITING),
    };
    // Between two steps there is nothing worth a write: what they come to is said at their end.
    if stepped && topic.status.is_some() {
        return Ok((Some(reason), Action::requeue(next)));
    }
    let wait = status::write(context, &api, topic, topic.status.as_ref(), &planned.status).await?;
    let next = if stepped { next } else { wait.map_or(next, |wait| next.min(wait)) };
    Ok((Some(reason), Action::requeue(next)))
}

/// The only reads: the cluster, rivals for the topic's name, and what the brokers say.
async fn dereference(context: &Context, topic: KafkaTopic, bootstrap: &str) -> Result<TopicObserved, Error> {
    let (cluster_namespace, cluster_name) = topic.cluster();
    let clusters: Api<KafkaCluster> = Api::namespaced(context.client.clone(), cluster_namespace);
    let cluster = match clusters.get_opt(cluster_name).await {
        Ok(cluster) => cluster,
        // A namespace that this operator does not look after holds no cluster of ours.
        Err(kube::Error::Api(status)) if status.is_forbidden() => None,
        Err(error) => return Err(Error::kubernetes(format!("reading KafkaCluster {cluster_name}"))(error)),
    };
    let namespace = topic.namespace().unwrap_or_default();
    let seen = ClusterSeen::of(cluster.as_ref(), &namespace);
    let rivals = rivals(context, &topic, cluster.as_ref());
    let broker = if seen.is_asked() {
        context.admin.describe(bootstrap, topic.topic_name()).await
    } else {
        Err(BrokerError::Unavailable("there is no cluster to ask".to_owned()))
    };
    Ok(TopicObserved { topic, rivals, cluster: seen, broker })
}

/// Other objects that name the same topic of the same cluster and are allowed to.
fn rivals(context: &Context, topic: &KafkaTopic, cluster: Option<&KafkaCluster>) -> Vec<KafkaTopic> {
    let stores = context.topics.read().expect("nothing panics while it holds this lock");
    stores
        .iter()
        .flat_map(kube::runtime::reflector::Store::state)
        .filter(|other| {
            other.uid() != topic.uid()
                && other.cluster() == topic.cluster()
                && other.topic_name() == topic.topic_name()
                && ClusterSeen::of(cluster, &other.namespace().unwrap_or_default()) != ClusterSeen::Forbids
        })
        .map(|other| (*other).clone())
        .collect()
}

fn bootstrap(context: &Context, topic: &KafkaTopic) -> String {
    let (namespace, name) = topic.cluster();
    format!("{name}-bootstrap.{namespace}.svc.{}:{INTERNAL_PORT}", context.environment.cluster_domain)
}

async fn carry_out(
    context: &Context,
    api: &Api<KafkaTopic>,
    topic: &KafkaTopic,
    bootstrap: &str,
    step: &TopicStep,
) -> Result<(), Error> {
    context.leads().await?;
    let name = topic.name_any();
    let label = match step {
        TopicStep::AddFinalizer => {
            write_finalizers(api, topic, true).await?;
            "add_finalizer"
        }
        TopicStep::RemoveFinalizer => {
            write_finalizers(api, topic, false).await?;
            "remove_finalizer"
        }
        TopicStep::RecordOwned(keys) => {
            let annotations = if keys.is_empty() { json!({}) } else { json!({names::OWNED_CONFIG: owned_text(keys)}) };
            let patch = json!({
                "apiVersion": "gregor.dev/v1beta1",
                "kind": KIND,
                "metadata": {"name": name, "annotations": annotations},
            });
            api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&patch))
                .await
                .map_err(Error::kubernetes(format!("annotating KafkaTopic {name}")))?;
            "record_owned"
        }
        TopicStep::Create { .. } | TopicStep::Grow { .. } | TopicStep::Configure { .. } | TopicStep::Delete => {
            let (doing, label) = match step {
                TopicStep::Create { .. } => ("creating", "create_topic"),
                TopicStep::Grow { .. } => ("growing", "grow_topic"),
                TopicStep::Configure { .. } => ("configuring", "configure_topic"),
                _ => ("deleting", "delete_topic"),
            };
            let doing = format!("{doing} the topic {}", topic.topic_name());
            context
                .admin
                .carry_out(bootstrap, topic.topic_name(), step)
                .await
                .map_err(|source| Error::Broker { doing, source })?;
            label
        }
    };
    context.metrics.steps.get_or_create(&StepLabel { step: label }).inc();
    Ok(())
}

/// Sets or removes our finalizer and no other, at exactly the version that was read.
async fn write_finalizers(api: &Api<KafkaTopic>, topic: &KafkaTopic, held: bool) -> Result<(), Error> {
    let mut finalizers: Vec<String> = topic.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != names::TOPIC_FINALIZER);
    if held {
        finalizers.push(names::TOPIC_FINALIZER.to_owned());
    }
    let name = topic.name_any();
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": topic.resource_version()}});
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&name, &parameters, &Patch::Merge(&patch))
        .await
        .map(drop)
        .map_err(Error::kubernetes(format!("writing the finalizers of KafkaTopic {name}")))
}
