//! Starts everything and ends everything: health, the Lease, the watches, the controllers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _, Shared};
use gregor_operator_api::{KafkaCluster, KafkaTopic, names};
use gregor_operator_plan::Environment;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::{Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt as _};
use kube_lease_manager::LeaseManagerBuilder;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::admin::{Admin, KafkaAdmin};
use crate::cli::Options;
use crate::context::{Context, FIELD_MANAGER};
use crate::fence::Fence;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::{cluster, definitions, topic};

/// Seconds that a Lease is valid after it was last renewed.
const LEASE_SECONDS: u64 = 15;
/// Seconds before its end at which it is renewed.
const LEASE_GRACE_SECONDS: u64 = 5;
/// How long the answer to a request about the Lease may take: such a request has to be tried again before the Lease is over.
const LEASE_ANSWER: Duration = Duration::from_secs(3);
/// How long this operator may not be seen to lead, or the Lease not be there, until the process ends to begin anew: twice what a Lease
/// lasts, as an API server that is away for a moment is no reason.
const LEASE_LOST: Duration = Duration::from_secs(2 * LEASE_SECONDS);

/// A future that is done when everything is to end; each controller waits for a copy.
pub type Ending = Shared<BoxFuture<'static, ()>>;

/// Runs the operator until it is told to stop or loses its Lease.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    // Fails only if one is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let metrics = Metrics::default();
    let health = Health::new(metrics.clone());
    let mut server = tokio::spawn(health.clone().serve(options.listen));
    let ending = told_to_stop()?;
    let mut told = ending.clone();
    let work = lead_and_work(options, metrics, health, ending);
    tokio::select! {
        outcome = work => outcome,
        served = &mut server => served.context("the health server ended")?,
        () = &mut told => {
            // The controllers end by the same word; what they are in the middle of may take a moment.
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(())
        }
    }
}

async fn lead_and_work(options: &Options, metrics: Metrics, health: Health, ending: Ending) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("no Kubernetes: neither a service account nor KUBECONFIG")?;
    if options.install_crds {
        definitions::install(&client).await?;
    }
    let scopes = options.scopes();
    for scope in &scopes {
        definitions::wait(&client, scope.as_deref()).await;
    }
    health.set_ready();
    let leasing = lease_client().await?;
    let fence = Fence::new(&leasing, &options.lease_namespace, &options.lease_name, &options.identity);
    let mut leads = take_lease(options, leasing).await?;
    tracing::info!("ready; waiting for the Lease {}/{}", options.lease_namespace, options.lease_name);
    tokio::select! {
        leading = leads.wait_for(|leads| *leads) => drop(leading.context("the Lease could not be watched")?),
        error = fence.gone(LEASE_LOST) => return Err(error).context("beginning anew to make the Lease"),
    }
    tracing::info!(namespaces = ?options.namespaces, "leading");
    metrics.leader.set(1.0);
    let environment = Environment {
        image_repository: options.broker_image.clone(),
        image_tag: options.broker_tag.clone(),
        image_pull_policy: options.image_pull_policy.clone(),
        image_pull_secrets: options.image_pull_secrets.iter().filter(|name| !name.is_empty()).cloned().collect(),
        cluster_domain: options.cluster_domain.clone(),
    };
    let admin: Arc<dyn Admin> = Arc::new(KafkaAdmin::start().context("a thread for the brokers cannot be started")?);
    let context = Context::new(client, environment, admin, &options.identity, metrics).fenced(fence.clone());
    let context = Arc::new(context);
    tokio::select! {
        () = work(context, &scopes, options.concurrency, ending) => Ok(()),
        lost = leads.wait_for(|leads| !*leads) => {
            drop(lost);
            // Another one may lead by now: end at once, and begin again from nothing.
            bail!("the Lease {}/{} is lost", options.lease_namespace, options.lease_name)
        }
        error = fence.lost(LEASE_LOST) => Err(error).context("beginning anew to take the Lease"),
    }
}

/// A client for the Lease alone.
async fn lease_client() -> anyhow::Result<Client> {
    let config = kube::Config::infer().await.context("no Kubernetes: neither a service account nor KUBECONFIG")?;
    Client::try_from(answered(config, LEASE_ANSWER)).context("no client for the Lease")
}

/// Requests that end: the manager of the Lease sets them no limit, and must not wait on a connection that is dead without a sign of
/// it. Not for watches, which are silent for long.
fn answered(mut config: kube::Config, limit: Duration) -> kube::Config {
    config.read_timeout = Some(limit);
    config.write_timeout = Some(limit);
    config.connect_timeout = Some(limit);
    config.reset_reader_on_write = true;
    config
}

async fn take_lease(options: &Options, client: Client) -> anyhow::Result<watch::Receiver<bool>> {
    let manager = LeaseManagerBuilder::new(client, &options.lease_name)
        .with_namespace(&options.lease_namespace)
        .with_identity(&options.identity)
        .with_field_manager(format!("{FIELD_MANAGER}-{}", options.identity))
        .with_duration(LEASE_SECONDS)
        .with_grace(LEASE_GRACE_SECONDS)
        .build()
        .await
        .with_context(|| format!("the Lease {}/{} cannot be used", options.lease_namespace, options.lease_name))?;
    let (leads, _task) = manager.watch().await;
    Ok(leads)
}

fn told_to_stop() -> anyhow::Result<Ending> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let told = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop");
    };
    Ok(told.boxed().shared())
}

/// Runs the controllers of every scope until `ending`.
pub async fn work(context: Arc<Context>, scopes: &[Option<String>], concurrency: u16, ending: Ending) {
    let mut controllers: Vec<BoxFuture<'static, ()>> = Vec::new();
    for scope in scopes {
        controllers.push(clusters(&context, scope.as_deref(), concurrency, ending.clone()).boxed());
        controllers.push(topics(&context, scope.as_deref(), concurrency, ending.clone()).boxed());
    }
    futures::future::join_all(controllers).await;
}

fn clusters(
    context: &Arc<Context>,
    scope: Option<&str>,
    concurrency: u16,
    ending: Ending,
) -> impl Future<Output = ()> + Send + use<> {
    let client = &context.client;
    let controller = Controller::new(definitions::api::<KafkaCluster>(client, scope), watcher::Config::default());
    let controller = watch_owned::<ConfigMap>(controller, client, scope);
    let controller = watch_owned::<PersistentVolumeClaim>(controller, client, scope);
    let controller = watch_owned::<PodDisruptionBudget>(controller, client, scope);
    let controller = watch_owned::<Service>(controller, client, scope);
    let controller = watch_owned::<ServiceAccount>(controller, client, scope);
    let controller = watch_owned::<StatefulSet>(controller, client, scope);
    let controller = watch_owned::<Pod>(controller, client, scope);
    controller
        .with_config(Config::default().concurrency(concurrency))
        .graceful_shutdown_on(ending)
        .run(cluster::reconcile, cluster::retry, Arc::clone(context))
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!("{error}");
            }
        })
}

/// Wakes a cluster when something with its label changes. Labels and not owners: what holds data has no owner. Only metadata
/// is watched, as a reconcile reads afresh.
fn watch_owned<K>(
    controller: Controller<KafkaCluster>,
    client: &Client,
    scope: Option<&str>,
) -> Controller<KafkaCluster>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api = definitions::api::<PartialObjectMeta<K>>(client, scope);
    let labelled = watcher::Config::default().labels(names::CLUSTER_LABEL);
    controller.watches(api, labelled, |object| {
        let cluster = object.labels().get(names::CLUSTER_LABEL).cloned();
        cluster.zip(object.namespace()).map(|(name, namespace)| ObjectRef::new(&name).within(&namespace))
    })
}

fn topics(
    context: &Arc<Context>,
    scope: Option<&str>,
    concurrency: u16,
    ending: Ending,
) -> impl Future<Output = ()> + Send + use<> {
    let client = &context.client;
    let controller = Controller::new(definitions::api::<KafkaTopic>(client, scope), watcher::Config::default());
    let store = controller.store();
    context.topics.write().expect("nothing panics while it holds this lock").push(store.clone());
    controller
        .watches(definitions::api::<KafkaCluster>(client, scope), watcher::Config::default(), move |cluster| {
            topics_of(&store, &cluster)
        })
        .with_config(Config::default().concurrency(concurrency))
        .graceful_shutdown_on(ending)
        .run(topic::reconcile, topic::retry, Arc::clone(context))
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!("{error}");
            }
        })
}

/// The topics that wait for news of a cluster.
fn topics_of(store: &Store<KafkaTopic>, cluster: &KafkaCluster) -> Vec<ObjectRef<KafkaTopic>> {
    let namespace = cluster.namespace().unwrap_or_default();
    let name = cluster.name_any();
    let names_it = |topic: &Arc<KafkaTopic>| topic.cluster() == (namespace.as_str(), name.as_str());
    store.state().iter().filter(|topic| names_it(topic)).map(|topic| ObjectRef::from_obj(topic.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::Lease;

    #[tokio::test]
    async fn a_request_about_the_lease_ends_though_no_answer_comes() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // It takes connections, and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let config = kube::Config::new(format!("http://{}", silent.local_addr().unwrap()).parse().unwrap());
        let client = Client::try_from(answered(config, Duration::from_millis(100))).unwrap();
        let leases: kube::Api<Lease> = kube::Api::namespaced(client, "default");
        let answer = tokio::time::timeout(Duration::from_secs(30), leases.get("gregor-operator")).await;
        assert!(answer.expect("it ends").is_err());
    }
}
