//! Statuses: written by server-side apply with a field manager of their own, only when they differ, and not too often.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Mutex;
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

/// Writes of one object's status that may follow each other quickly: enough for a start from nothing to ready.
const BURST: u32 = 10;
/// In the long run one write in this time.
const INTERVAL: Duration = Duration::from_mins(1);
/// How long a status that only says another word for "working" waits after the last write: most such words pass by.
const PASSING: Duration = Duration::from_secs(5);
/// Objects that are remembered; the oldest memory is worth the least.
const REMEMBERED_MAX: usize = 100_000;

/// Keeps statuses from being written too often: each object has a few writes at hand and gets another each minute.
#[derive(Default)]
pub struct StatusGate {
    objects: Mutex<HashMap<String, Allowance>>,
}

struct Allowance {
    at_hand: u32,
    since: Instant,
    last: Option<Instant>,
}

impl StatusGate {
    /// Takes one write for this object, or says how long to wait for it. A `passing` one waits for a while after the last.
    pub fn take(&self, uid: &str, passing: bool, now: Instant) -> Result<(), Duration> {
        let mut objects = self.objects.lock().expect("nothing panics while it holds this lock");
        if objects.len() >= REMEMBERED_MAX {
            objects.retain(|_, allowance| now.duration_since(allowance.since) < INTERVAL * BURST);
        }
        let allowance = objects.entry(uid.to_owned()).or_insert(Allowance { at_hand: BURST, since: now, last: None });
        while allowance.at_hand < BURST && now.duration_since(allowance.since) >= INTERVAL {
            allowance.at_hand += 1;
            allowance.since += INTERVAL;
        }
        if allowance.at_hand == BURST {
            allowance.since = now;
        }
        if allowance.at_hand == 0 {
            return Err(INTERVAL.saturating_sub(now.duration_since(allowance.since)));
        }
        let quiet = allowance.last.map_or(PASSING, |last| now.duration_since(last));
        if passing && quiet < PASSING {
            return Err(PASSING.saturating_sub(quiet));
        }
        allowance.at_hand -= 1;
        allowance.last = Some(now);
        Ok(())
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, uid: &str) {
        self.objects.lock().expect("nothing panics while it holds this lock").remove(uid);
    }
}

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
    let generation = |status: &S| status.conditions().first().map(|condition| condition.observed_generation);
    let passing = before.is_some_and(|before| {
        is_working(before.conditions()) && is_working(status.conditions()) && generation(before) == generation(status)
    });
    if let Err(wait) = context.gate.take(&uid, passing, Instant::now()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_told_at_once_and_a_flapping_object_once_a_minute() {
        let gate = StatusGate::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(gate.take("a", false, start), Ok(()));
        }
        assert_eq!(gate.take("a", false, start), Err(INTERVAL));
        assert_eq!(gate.take("b", false, start), Ok(()), "objects have nothing to do with each other");
        let mut written = 0;
        for second in 1..=600 {
            written += u32::from(gate.take("a", false, start + Duration::from_secs(second)).is_ok());
        }
        assert_eq!(written, 10);
    }

    #[test]
    fn words_that_pass_by_are_not_told() {
        let gate = StatusGate::default();
        let start = Instant::now();
        assert_eq!(gate.take("a", true, start), Ok(()));
        assert_eq!(gate.take("a", true, start + Duration::from_secs(1)), Err(Duration::from_secs(4)));
        assert_eq!(gate.take("a", false, start + Duration::from_secs(2)), Ok(()), "the end is told at once");
        assert_eq!(gate.take("a", true, start + Duration::from_secs(8)), Ok(()));
    }
}
