//! Statuses: written by server-side apply with a field manager of their own, only when they differ, and not too often.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use gregor_operator_api::condition::{self, Condition};
use kube::api::{Api, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::context::{Context, STATUS_MANAGER};
use crate::error::Error;

/// A status that says how the object is.
pub trait Conditions {
    /// The conditions in it.
    fn conditions(&self) -> &[Condition];
}

impl Conditions for gregor_operator_api::KafkaClusterStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Conditions for gregor_operator_api::KafkaTopicStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

/// Writes the status where it differs. `Some` says how long to wait for a write that has to wait.
pub async fn write<K, S>(
    context: &Context,
    api: &Api<K>,
    object: &K,
    before: Option<&S>,
    status: &S,
) -> Result<Option<Duration>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    S: Serialize + PartialEq + Conditions,
{
    if before == Some(status) {
        return Ok(None);
    }
    let uid = object.uid().unwrap_or_default();
    let generation = |status: &S| status.conditions().first().map_or(0, |condition| condition.observed_generation);
    let passing = before.is_some_and(|before| {
        is_working(before.conditions()) && is_working(status.conditions()) && generation(before) == generation(status)
    });
    if let Err(wait) = context.gate.take(&uid, generation(status), passing, Instant::now()) {
        return Ok(Some(wait));
    }
    let name = object.name_any();
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name},
        "status": status,
    });
    let parameters = PatchParams::apply(STATUS_MANAGER).force();
    api.patch_status(&name, &parameters, &Patch::Apply(&patch))
        .await
        .map_err(Error::kubernetes(format!("writing the status of {name}")))?;
    context.metrics.status_writes.inc();
    announce(context, object, before.map(Conditions::conditions), status.conditions()).await;
    Ok(None)
}

/// Whether the conditions say that the operator works or waits.
fn is_working(conditions: &[Condition]) -> bool {
    condition::find(conditions, condition::RECONCILING)
        .is_some_and(|reconciling| reconciling.status == condition::ConditionStatus::True)
}

/// Tells an event when the word of the Ready condition has changed.
async fn announce<K>(context: &Context, object: &K, before: Option<&[Condition]>, after: &[Condition])
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let word =
        |conditions: &[Condition]| condition::find(conditions, condition::READY).map(|ready| ready.reason.clone());
    let Some(ready) = condition::find(after, condition::READY) else { return };
    if before.and_then(word).as_deref() == Some(&ready.reason) {
        return;
    }
    let stalled = condition::find(after, condition::STALLED)
        .is_some_and(|stalled| stalled.status == condition::ConditionStatus::True);
    tell(context, object, stalled, &ready.reason, &ready.message).await;
}

/// Tells an event. Nobody's work depends on it: a failure is logged and forgotten.
pub async fn tell<K>(context: &Context, object: &K, warning: bool, reason: &str, message: &str)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(gregor_operator_plan::progress::truncate(message, 1000)),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &object.object_ref(&())).await {
        tracing::debug!("the event {reason} of {} was not told: {error}", object.name_any());
    }
}
