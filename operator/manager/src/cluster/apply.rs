//! Carries out one step of a cluster's plan, if this operator still leads. It never decides: every write is what the plan said, guarded
//! by the version that the plan saw.

use futures::future::join_all;
use gregor_operator_api::{KafkaCluster, names};
use gregor_operator_plan::compare::{applied, differs};
use gregor_operator_plan::{Kind, Progress, Reason, Release, Seen, Step, Wanted};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use serde_json::{Value, json};

use super::dereference::{self, resource};
use crate::certificates;
use crate::context::{Context, FIELD_MANAGER};
use crate::error::Error;
use crate::metrics::StepLabel;
use crate::status;

/// Carries out a step.
pub async fn carry_out(context: &Context, cluster: &KafkaCluster, step: &Step) -> Result<(), Error> {
    context.leads().await?;
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    let label = match step {
        Step::CreateIdentity(identity) => {
            write_identity(context, namespace, identity, true).await?;
            "create_identity"
        }
        Step::ReplaceIdentity(identity) => {
            write_identity(context, namespace, identity, false).await?;
            "replace_identity"
        }
        Step::Create(all) => {
            // One that is refused hides no other: the first that was is told when all were tried.
            let mut outcome = Ok(());
            for wanted in all {
                context.leads().await?;
                outcome = outcome.and(create(context, namespace, wanted).await);
            }
            outcome?;
            "create"
        }
        Step::Apply(all) => {
            let mut outcome = Ok(());
            for wanted in all {
                context.leads().await?;
                outcome = outcome.and(match apply(context, namespace, wanted).await {
                    Err(error)
                        if wanted.kind == Kind::PersistentVolumeClaim
                            && (error.is_invalid() || error.is_forbidden()) =>
                    {
                        leave_claim(context, namespace, cluster, wanted, &error).await
                    }
                    applied => applied,
                });
            }
            outcome?;
            "apply"
        }
        Step::WriteSecrets(writes) => {
            certificates::carry_out(context, namespace, writes).await?;
            status::tell(context, cluster, false, "CertificatesRenewed", &writes.why).await;
            "write_secrets"
        }
        Step::ChangeVoters(change) => {
            // No voter is changed of a cluster in another domain than the operator's.
            let domain = &context.environment.cluster_domain;
            let bootstrap = dereference::bootstrap(domain, namespace, &cluster.name_any());
            let doing = "changing who votes in the metadata quorum".to_owned();
            context.admin.change_voters(&bootstrap, change).await.map_err(|source| Error::Broker { doing, source })?;
            "change_voters"
        }
        Step::TellRack { pod, uid, rack } => {
            let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
            // Another uid is a conflict: the pod that was read is gone, and the next look finds its successor.
            let patch = json!({"metadata": {"uid": uid, "annotations": {names::RACK: rack}}});
            let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            let doing = format!("telling pod {pod} its rack");
            gone_is_fine(pods.patch(pod, &parameters, &Patch::Merge(&patch)).await.map(drop), doing)?;
            "tell_rack"
        }
        Step::Release(all) => {
            let released = join_all(all.iter().map(|each| release(context, namespace, each))).await;
            released.into_iter().collect::<Result<(), Error>>()?;
            "release"
        }
        Step::DeletePod { name, uid, version } => {
            let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
            gone_is_fine(pods.delete(name, &only(uid, version)).await.map(drop), format!("deleting pod {name}"))?;
            "delete_pod"
        }
        Step::Delete { kind, name, uid, version } => {
            let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource(*kind));
            let doing = format!("deleting {} {name}", kind.as_str());
            gone_is_fine(api.delete(name, &only(uid, version)).await.map(drop), doing)?;
            "delete"
        }
    };
    context.metrics.steps.get_or_create(&StepLabel { step: label }).inc();
    Ok(())
}

/// A claim that Kubernetes does not let grow keeps its size and gets the rest: it repeats the identity, and everything else of the
/// cluster must not wait for it.
async fn leave_claim(
    context: &Context,
    namespace: &str,
    cluster: &KafkaCluster,
    wanted: &Wanted,
    error: &Error,
) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let seen = api.get(&wanted.name).await.map_err(Error::kubernetes(format!("reading claim {}", wanted.name)))?;
    let mut rest = wanted.clone();
    let requests = seen.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    if let Some(size) = requests.and_then(|requests| requests.get("storage")) {
        rest.body["spec"]["resources"]["requests"]["storage"] = json!(size.0);
    }
    match apply(context, namespace, &rest).await {
        // It is not the size that is refused: it stays as it is altogether.
        Err(error) if error.is_invalid() || error.is_forbidden() => {}
        outcome => outcome?,
    }
    let hash = applied(&wanted.body).unwrap_or_default().to_owned();
    context.settle(seen.uid().unwrap_or_default(), hash);
    let said = error.api_message().unwrap_or("no reason given");
    let message = format!("the claim {} stays as it is: {said}", wanted.name);
    status::tell(context, cluster, true, "VolumeUnchanged", &message).await;
    Ok(())
}

/// What an error of a step means for the cluster, where trying the same again is no answer.
pub fn verdict(step: &Step, error: &Error) -> Option<Progress> {
    let said = error.api_message().map_or_else(|| error.to_string(), str::to_owned);
    if let (Step::ChangeVoters(_), Error::Broker { source, .. }) = (step, error) {
        let message = format!("changing who votes in the metadata quorum goes on being tried: {source}");
        return Some(Progress::working(Reason::ChangingVoters, message));
    }
    if error.is_already_exists() {
        return match step {
            Step::Create(_) | Step::WriteSecrets(_) => Some(Progress::stalled(
                Reason::NameTaken,
                format!("{said}, and it does not belong to this cluster: rename or delete it"),
            )),
            // Somebody was faster: the next look finds it.
            _ => None,
        };
    }
    if error.is_invalid() {
        let pods = match step {
            Step::Create(all) | Step::Apply(all) => all.iter().any(|wanted| wanted.kind == Kind::StatefulSet),
            _ => false,
        };
        let reason = if pods { Reason::InvalidPodTemplate } else { Reason::Rejected };
        return Some(Progress::stalled(reason, format!("Kubernetes refuses it: {said}")));
    }
    error.is_forbidden().then(|| Progress::working(Reason::Rejected, format!("Kubernetes forbids it: {said}")))
}

/// Takes owners off an object, if it still is what the plan saw.
async fn release(context: &Context, namespace: &str, each: &Release) -> Result<(), Error> {
    let Release { kind, name, uid, version, owners } = each;
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource(*kind));
    let patch = json!({"metadata": {"uid": uid, "resourceVersion": version, "ownerReferences": owners}});
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let doing = format!("releasing {} {name}", kind.as_str());
    gone_is_fine(api.patch(name, &parameters, &Patch::Merge(&patch)).await.map(drop), doing)
}

/// Of the object that the plan saw, as the plan saw it: one that has changed since is looked at again.
fn only(uid: &str, version: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: Some(version.to_owned()) }),
        ..DeleteParams::default()
    }
}

fn gone_is_fine(outcome: Result<(), kube::Error>, doing: String) -> Result<(), Error> {
    match outcome {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        outcome => outcome.map_err(Error::kubernetes(doing)),
    }
}

async fn write_identity(context: &Context, namespace: &str, identity: &Value, create: bool) -> Result<(), Error> {
    let config_map: ConfigMap =
        serde_json::from_value(identity.clone()).map_err(Error::shape("writing the identity"))?;
    let name = config_map.name_any();
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let outcome = if create {
        api.create(&parameters, &config_map).await
    } else {
        api.replace(&name, &parameters, &config_map).await
    };
    outcome.map(drop).map_err(Error::kubernetes(format!("writing ConfigMap {name}")))
}

/// Creates an object by applying it, so that every field is owned by what is applied next and goes when that leaves it out.
/// Applying would merge into an object of somebody else: the name must be free.
async fn create(context: &Context, namespace: &str, wanted: &Wanted) -> Result<(), Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource(wanted.kind));
    let doing = format!("creating {} {}", wanted.kind.as_str(), wanted.name);
    if wanted.kind == Kind::ConfigMap {
        // A permission to format must not be given where another operator has given and withdrawn it since the name was free: the
        // empty object is made by whoever comes first, and filled only in the version in which it was made.
        let labels = &wanted.body["metadata"]["labels"];
        let empty =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": wanted.name, "labels": labels}});
        let empty = serde_json::from_value(empty).map_err(Error::shape(&doing))?;
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let made = api.create(&parameters, &empty).await.map_err(Error::kubernetes(&doing))?;
        let seen = Seen { uid: made.uid().unwrap_or_default(), version: made.resource_version().unwrap_or_default() };
        return apply(context, namespace, &Wanted { seen: Some(seen), ..wanted.clone() }).await;
    }
    if api.get_opt(&wanted.name).await.map_err(Error::kubernetes(&doing))?.is_some() {
        let message = format!("{} {} exists already", wanted.kind.as_str(), wanted.name);
        let taken = Status::failure(&message, "AlreadyExists").with_code(409).boxed();
        return Err(Error::kubernetes(doing)(kube::Error::Api(taken)));
    }
    apply(context, namespace, wanted).await
}

async fn apply(context: &Context, namespace: &str, wanted: &Wanted) -> Result<(), Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource(wanted.kind));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let doing = format!("applying {} {}", wanted.kind.as_str(), wanted.name);
    let mut body = wanted.body.clone();
    if let Some(Seen { uid, version }) = &wanted.seen {
        body["metadata"]["uid"] = json!(uid);
        body["metadata"]["resourceVersion"] = json!(version);
    }
    let stored = api.patch(&wanted.name, &parameters, &Patch::Apply(&body)).await.map_err(Error::kubernetes(&doing))?;
    let uid = stored.uid().unwrap_or_default();
    let stored = serde_json::to_value(stored).map_err(Error::shape(doing))?;
    if differs(&wanted.body, &stored) {
        let hash = applied(&wanted.body).unwrap_or_default().to_owned();
        context.settle(uid, hash);
    }
    Ok(())
}
