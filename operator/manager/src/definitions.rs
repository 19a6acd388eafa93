//! The custom resource definitions in the API server: installing them where that is wanted, and waiting for them.

use std::time::Duration;

use gregor_operator_api::{crds, names};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};

use crate::context::FIELD_MANAGER;
use crate::error::Error;

/// Installs or upgrades the definitions, unless Helm or a newer release looks after them.
pub async fn install(client: &Client) -> Result<(), Error> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in crds() {
        let name = definition.name_any();
        let seen = api.get_opt(&name).await.map_err(Error::kubernetes(format!("reading the definition {name}")))?;
        if let Some(keeper) = seen.as_ref().and_then(keeper) {
            tracing::info!("leaving the definition {name} to {keeper}");
            continue;
        }
        api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&definition))
            .await
            .map_err(Error::kubernetes(format!("installing the definition {name}")))?;
        tracing::info!("the definition {name} is installed");
    }
    Ok(())
}

/// Who looks after a definition, if not this release.
fn keeper(definition: &CustomResourceDefinition) -> Option<&'static str> {
    if definition.labels().get(names::MANAGED_BY_LABEL).is_some_and(|value| value == "Helm") {
        return Some("Helm");
    }
    let there = definition.annotations().get(names::CRD_VERSION)?;
    (version(there) > version(env!("CARGO_PKG_VERSION"))).then_some("a newer release")
}

fn version(text: &str) -> Vec<u64> {
    text.split(['.', '-']).map_while(|part| part.parse().ok()).collect()
}

/// Waits until the API server serves our kinds. It asks for a list of each, which needs no right on definitions. Where it may not
/// list them it does not wait.
pub async fn wait(client: &Client, namespace: Option<&str>) {
    loop {
        let one = ListParams::default().limit(1);
        let clusters: Api<gregor_operator_api::KafkaCluster> = api(client, namespace);
        let topics: Api<gregor_operator_api::KafkaTopic> = api(client, namespace);
        let outcome = match clusters.list(&one).await {
            Ok(_) => topics.list(&one).await.map(drop),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => return,
            // The server knows the kinds, and what it forbids in one namespace must not hold up the others: the watches go on asking.
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                let place = namespace.map_or_else(|| "any namespace".to_owned(), |name| format!("namespace {name}"));
                tracing::warn!(
                    "no right to list KafkaClusters and KafkaTopics in {place}: {status}; give the operator its Role there, or take the namespace out of watchNamespaces"
                );
                return;
            }
            Err(error) => {
                tracing::warn!(
                    "waiting for the definitions of KafkaCluster and KafkaTopic: {error}; install the chart gregor-crds or `gregor-operator crd | kubectl apply --server-side -f -`"
                );
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

/// The API of a kind in one namespace or in all.
pub fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> CustomResourceDefinition {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut definition = CustomResourceDefinition::default();
        definition.metadata.labels = Some(map(labels));
        definition.metadata.annotations = Some(map(annotations));
        definition
    }

    #[test]
    fn definitions_of_helm_and_of_newer_releases_are_left_alone() {
        assert_eq!(keeper(&definition(&[(names::MANAGED_BY_LABEL, "Helm")], &[])), Some("Helm"));
        assert_eq!(keeper(&definition(&[], &[(names::CRD_VERSION, "99.0.0")])), Some("a newer release"));
        assert_eq!(keeper(&definition(&[], &[(names::CRD_VERSION, "0.0.1")])), None);
        assert_eq!(keeper(&definition(&[], &[])), None);
    }
}
