//! What becomes of work that fails again and again: an API server that is silent, and one that forbids.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod lab;

use std::sync::Arc;
use std::time::Duration;

use gregor_operator::error::Error;
use gregor_operator::{cluster, definitions};
use gregor_operator_api::{KafkaCluster, yaml};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::Api;
use kube::{Client, Config};
use lab::{CLUSTER, Lab, wait_until};

/// A client with this name and no rights but those that somebody gives it.
async fn nobody(name: &str) -> Client {
    let mut config = Config::infer().await.unwrap();
    config.auth_info.impersonate = Some(name.to_owned());
    Client::try_from(config).unwrap()
}

#[tokio::test]
async fn an_answer_that_never_comes_ends_the_attempt() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // It takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let client = Client::try_from(Config::new(url.parse().unwrap())).unwrap();
    let mut context = lab::context_of(client);
    context.patience = Duration::from_millis(100);
    let cluster: KafkaCluster = yaml::from_str(CLUSTER).unwrap();
    let outcome = cluster::reconcile(Arc::new(cluster), Arc::new(context)).await;
    assert!(matches!(outcome, Err(Error::Late { .. })), "{outcome:?}");
}

#[tokio::test]
async fn what_is_forbidden_in_one_namespace_holds_up_no_start() {
    let Some(_) = lab::client().await else { return };
    // It comes back at all: nobody will give it the right.
    definitions::wait(&nobody("nobody").await, Some("default")).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_told_in_the_status() {
    let Some(lab) = Lab::start("unread").await else { return };
    let cluster = Arc::new(lab.create::<KafkaCluster>(CLUSTER).await);
    let user = format!("reads-little-{}", lab.namespace);
    lab.create::<Role>(
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: little}, rules: [{apiGroups: [gregor.dev], resources: [kafkaclusters, kafkaclusters/status], verbs: [get, patch]}]}",
    )
    .await;
    lab.create::<RoleBinding>(&format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: little}}, roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: little}}, subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {user}}}]}}"
    ))
    .await;
    let client = nobody(&user).await;
    let allowed: Api<KafkaCluster> = Api::namespaced(client.clone(), &lab.namespace);
    wait_until("the right is given", async || allowed.get("demo").await.ok()).await;
    let context = Arc::new(lab::context_of(client));
    for _ in 0..5 {
        let error = cluster::reconcile(Arc::clone(&cluster), Arc::clone(&context)).await.unwrap_err();
        cluster::retry(Arc::clone(&cluster), &error, Arc::clone(&context));
    }
    let status = lab.api::<KafkaCluster>().get("demo").await.unwrap().status.unwrap();
    let phase = status.phase.unwrap();
    assert!(phase.starts_with("Retrying: ") && phase.contains("demo-identity"), "{phase}");
    assert_eq!(status.observed_generation, 0, "the manifest was not looked at");
}
