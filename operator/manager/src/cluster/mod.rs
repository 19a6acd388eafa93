//! The reconcile of a KafkaCluster: dereference, plan, one step, status.

pub mod apply;
mod dereference;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gregor_operator_api::{KafkaCluster, KafkaClusterStatus, condition};
use gregor_operator_plan::cluster::plan;
use gregor_operator_plan::{ClusterObserved, ClusterPlan, KafkaSeen, Progress, Reason, Step, Unseen};
use kube::ResourceExt as _;
use kube::api::Api;
use kube::runtime::controller::Action;

use crate::context::Context;
use crate::error::Error;
use crate::metrics::{CertificateEnds, KindLabel, OutcomeLabel};
use crate::status;

const KIND: &str = "KafkaCluster";
/// How often a cluster at rest is looked at, although nothing was heard of it.
const AT_REST: Duration = Duration::from_mins(10);
/// How often a cluster that waits is looked at. Mostly a watch is faster.
const WAITING: Duration = Duration::from_secs(30);
/// How often a cluster is looked at that waits for its own nodes, or whose brokers are asked at rest: no watch tells what only
/// brokers know.
const WAITING_FOR_BROKERS: Duration = Duration::from_secs(2);
const ASKING_AT_REST: Duration = Duration::from_secs(30);
/// How often one is looked at that is at rest but for replicas or voters that are behind: nobody may be evicted before it is seen that
/// they are not.
const CATCHING_UP: Duration = Duration::from_secs(5);
/// How often a cluster is looked at whose certificates are being renewed: nothing tells when a kubelet has come to a Secret.
const RENEWING: Duration = Duration::from_secs(5);
/// How soon the next step follows one that was carried out.
const NEXT_STEP: Duration = Duration::from_millis(50);

/// The failure in a row that is told in the status: the first few mostly pass by.
const TOLD: u32 = 5;

/// Brings a cluster one step nearer to its manifest.
pub async fn reconcile(cluster: Arc<KafkaCluster>, context: Arc<Context>) -> Result<Action, Error> {
    let began = Instant::now();
    let outcome = context.in_time(Box::pin(look_and_step(&cluster, &context))).await;
    context.metrics.seconds.get_or_create(&KindLabel { kind: KIND }).observe(began.elapsed().as_secs_f64());
    if let Err(error) = &outcome
        && context.failures(&cluster.uid().unwrap_or_default()) + 1 >= TOLD
    {
        // Who does not lead says nothing, and nobody waits for what cannot be said.
        if let Err(error) = context.in_time(tell(&cluster, &context, error)).await {
            tracing::debug!(cluster = cluster.name_any(), "{error}");
        }
    }
    let word = match &outcome {
        Ok((reason, _)) => reason.map_or("Gone", Reason::as_str),
        Err(error) => error.label(),
    };
    context.metrics.reconciles.get_or_create(&OutcomeLabel { kind: KIND, outcome: word }).inc();
    outcome.map(|(_, action)| action)
}

/// Says in the status why a cluster is not worked on. Of the rest of the status nothing newer is known.
async fn tell(cluster: &KafkaCluster, context: &Context, error: &Error) -> Result<(), Error> {
    context.leads().await?;
    let said = error.api_message().map_or_else(|| error.to_string(), str::to_owned);
    let progress = Progress::working(Reason::Retrying, format!("it goes on being tried: {said}"));
    let before = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation.unwrap_or_default();
    let status = KafkaClusterStatus {
        conditions: progress.conditions(&before.conditions, generation, &Context::now()),
        phase: Some(phase(&progress)),
        ..before
    };
    let api: Api<KafkaCluster> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    status::write(context, &api, cluster, cluster.status.as_ref(), &status).await.map(drop)
}

/// The phase of a cluster that is not as it should be.
fn phase(progress: &Progress) -> String {
    let phase = format!("{}: {}", progress.reason().as_str(), progress.message());
    gregor_operator_plan::progress::truncate(&phase, 250)
}

/// When to try again after an error.
#[allow(clippy::needless_pass_by_value)] // the controller hands the values over
pub fn retry(cluster: Arc<KafkaCluster>, error: &Error, context: Arc<Context>) -> Action {
    let attempts = context.failed(&cluster.uid().unwrap_or_default());
    if error.is_outdated() && attempts < 5 {
        return Action::requeue(NEXT_STEP);
    }
    tracing::warn!(cluster = cluster.name_any(), namespace = cluster.namespace(), attempts, "{error}");
    Action::requeue(context.around(Error::back_off(attempts)))
}

async fn look_and_step(cluster: &KafkaCluster, context: &Context) -> Result<(Option<Reason>, Action), Error> {
    let namespace = cluster.namespace().unwrap_or_default();
    let name = cluster.name_any();
    let Some(observed) = dereference::read(context, &namespace, &name).await? else {
        context.gate.forget(&cluster.uid().unwrap_or_default());
        context.metrics.note_certificates(&cluster.uid().unwrap_or_default(), CertificateEnds::default());
        return Ok((None, Action::await_change()));
    };
    let at_rest = look_at_rest(observed.kafka.as_ref(), &observed.unseen);
    context.metrics.note_certificates(&observed.cluster.uid().unwrap_or_default(), certificate_ends(&observed));
    let mut mint = || context.random();
    let now = Context::now();
    let mut planned = plan(&observed, &context.environment, &now, &mut mint);
    let uid = observed.cluster.uid().unwrap_or_default();
    let mut stepped = false;
    let mut failed = None;
    let steps: Vec<Step> = std::mem::take(&mut planned.beside).into_iter().chain(planned.step.take()).collect();
    for step in &steps {
        match step {
            Step::WriteSecrets(writes) => tracing::info!(cluster = name, namespace, "{}", writes.why),
            Step::TellRack { pod, rack, .. } => {
                tracing::info!(cluster = name, namespace, "telling pod {pod} that it is in rack {rack}");
            }
            Step::Release(all) => {
                let names: Vec<&str> = all.iter().map(|each| each.name.as_str()).collect();
                tracing::info!(cluster = name, namespace, "{} stay when the cluster goes", names.join(", "));
            }
            _ => tracing::info!(cluster = name, namespace, "{}", planned.progress.message()),
        }
        // None of them waits for another's success: the plan made each of them possible by itself.
        match apply::carry_out(context, &observed.cluster, step).await {
            Ok(()) => stepped = true,
            Err(error) => match apply::verdict(step, &error) {
                // A person has to see it, and looking again changes nothing: it becomes the status.
                Some(progress) => say(&mut planned, progress, &observed.cluster, &now),
                None => failed = failed.or(Some(error)),
            },
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if matches!(planned.progress, Progress::Ready { .. } | Progress::Working { .. }) {
        context.succeeded(&uid);
    }
    let reason = planned.progress.reason();
    if observed.cluster.metadata.deletion_timestamp.is_some() {
        return Ok((Some(reason), Action::await_change()));
    }
    let api: Api<KafkaCluster> = Api::namespaced(context.client.clone(), &namespace);
    let before = observed.cluster.status.as_ref();
    // Between two steps only another word is worth a write: what they come to is said at their end.
    let wait = if stepped && before.is_some_and(|before| says_the_same(before, &planned.status)) {
        None
    } else {
        status::write(context, &api, &observed.cluster, before, &planned.status).await?
    };
    let next = match (&planned.progress, stepped) {
        (_, true) => NEXT_STEP,
        (Progress::Ready { .. }, false) => context.around(at_rest),
        (Progress::Working { reason, .. }, false) if only_brokers_know(*reason) => context.around(WAITING_FOR_BROKERS),
        (Progress::Working { .. } | Progress::Stalled { .. }, false) => context.around(WAITING),
    };
    let next = if planned.renewal.is_some() { next.min(context.around(RENEWING)) } else { next };
    let next = if stepped { next } else { wait.map_or(next, |wait| next.min(wait)) };
    Ok((Some(reason), Action::requeue(next)))
}

/// When a cluster is looked at again that is at rest.
fn look_at_rest(kafka: Option<&KafkaSeen>, unseen: &Unseen) -> Duration {
    match kafka {
        Some(kafka) if !kafka.under_replicated.is_empty() || !kafka.quorum.lagging().is_empty() => CATCHING_UP,
        None if unseen.is_empty() => AT_REST,
        Some(_) | None => ASKING_AT_REST,
    }
}

/// When the cluster's certificates end.
fn certificate_ends(observed: &ClusterObserved) -> CertificateEnds {
    let authority = observed.certificates.authority.as_ref().and_then(|seen| seen.content.as_ref().ok());
    let nodes = observed.certificates.nodes.values().filter_map(|seen| seen.content.as_ref().ok());
    CertificateEnds {
        authority: authority.map(|authority| authority.current.not_after),
        nodes: nodes.map(|node| node.certificate.not_after).min(),
    }
}

/// Whether what is waited for shows on no object of Kubernetes.
fn only_brokers_know(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ChangingVoters | Reason::WaitingForReplicas | Reason::WaitingForQuorum | Reason::ClusterUnreachable
    )
}

fn says_the_same(before: &KafkaClusterStatus, after: &KafkaClusterStatus) -> bool {
    let word = |status: &KafkaClusterStatus| {
        condition::find(&status.conditions, condition::READY).map(|ready| (ready.status, ready.reason.clone()))
    };
    before.observed_generation == after.observed_generation && word(before) == word(after)
}

/// Replaces what the plan would say by what its step came to.
fn say(planned: &mut ClusterPlan, progress: Progress, cluster: &KafkaCluster, now: &str) {
    let before = cluster.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    planned.status.conditions = progress.conditions(before, cluster.metadata.generation.unwrap_or_default(), now);
    planned.status.phase = Some(phase(&progress));
    planned.progress = progress;
}

#[cfg(test)]
mod tests {
    use super::*;
    use gregor_operator_plan::kafka::PartitionSeen;

    #[test]
    fn whoever_is_behind_or_cannot_be_seen_is_looked_at_sooner() {
        let level = KafkaSeen::default();
        let behind = KafkaSeen {
            under_replicated: vec![PartitionSeen {
                topic: "t".to_owned(),
                partition: 0,
                replicas: vec![0, 1],
                in_sync: vec![0],
            }],
            ..KafkaSeen::default()
        };
        let (all, silent) = (Unseen::default(), Unseen { brokers: Some("refused".to_owned()), ..Unseen::default() });
        let looks = [(None, &all), (None, &silent), (Some(&level), &all), (Some(&behind), &all)]
            .map(|(kafka, unseen)| look_at_rest(kafka, unseen));
        assert_eq!(looks, [AT_REST, ASKING_AT_REST, ASKING_AT_REST, CATCHING_UP]);
    }
}
