//! What a node's pod says about the node. Called by the cluster's plan; it reads, and concludes nothing about what to do.

use gregor_operator_api::names;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use serde::Deserialize;

/// The init container that formats or checks the disk.
pub const FORMAT_CONTAINER: &str = "format";
/// The container that runs the node.
pub const NODE_CONTAINER: &str = "gregor";
/// The exit code with which `gregor storage ensure` refuses a disk.
pub const REFUSED: i32 = 3;
/// The exit code with which it says that the disk is good and that the node has to wait.
pub const WAITS: i32 = 4;

/// Why `gregor storage ensure` refused a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The disk is empty, and nobody allowed to format it.
    DiskLost(String),
    /// The disk belongs to another cluster, node or directory.
    ForeignDisk(String),
}

/// How far a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    /// On its way out.
    Terminating,
    /// No Kubernetes node takes it.
    Unschedulable(String),
    /// The image cannot be had.
    ImagePullFailed(String),
    /// The disk was refused.
    Refused(Refusal),
    /// The disk could not be checked or formatted.
    FormatFailed(String),
    /// The node's process ends again and again.
    Crashing(String),
    /// On its way.
    Starting,
    /// The process runs and is not ready yet: it recovers or joins.
    Running,
    /// It serves.
    Ready,
}

/// A pod as the plan sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The version in which it was read.
    pub version: String,
    /// The revision of the template that it was made from.
    pub revision: String,
    /// The directory id that its disk should have.
    pub directory_id: String,
    /// Whether its disk is known to be formatted with these ids.
    pub formatted: bool,
    /// The image of the node's container.
    pub image: Option<String>,
    /// The Kubernetes node that it is on.
    pub kubernetes_node: Option<String>,
    /// The rack that it was told, if the operator told it one.
    pub rack: Option<String>,
    /// How far it is.
    pub state: PodState,
}

/// The line that `gregor storage ensure` leaves in the termination log.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TerminationMessage {
    reason: String,
    #[serde(default)]
    message: Option<String>,
}

impl PodSeen {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Self {
        let annotation =
            |key: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default();
        let format =
            pod.status.as_ref().map(statuses).unwrap_or_default().iter().find(|status| status.name == FORMAT_CONTAINER);
        let good = |exit_code: i32| exit_code == 0 || exit_code == WAITS;
        // What it said last counts while it waits for its next run.
        let formatted = format.and_then(last_end).is_some_and(|terminated| good(terminated.exit_code));
        let checked = format.and_then(terminated).is_some_and(|terminated| terminated.exit_code == 0);
        Self {
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            version: pod.metadata.resource_version.clone().unwrap_or_default(),
            revision: annotation(names::REVISION),
            directory_id: annotation(names::DIRECTORY_ID),
            formatted,
            image: pod
                .spec
                .as_ref()
                .and_then(|spec| spec.containers.iter().find(|container| container.name == NODE_CONTAINER))
                .and_then(|container| container.image.clone()),
            kubernetes_node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            rack: pod.metadata.annotations.as_ref().and_then(|all| all.get(names::RACK)).cloned(),
            state: state(pod, format, checked),
        }
    }
}

fn statuses(status: &PodStatus) -> &[ContainerStatus] {
    status.init_container_statuses.as_deref().unwrap_or_default()
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref().and_then(|state| state.terminated.as_ref())
}

fn last_end(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    terminated(status).or_else(|| status.last_state.as_ref().and_then(|state| state.terminated.as_ref()))
}

fn state(pod: &Pod, format: Option<&ContainerStatus>, checked: bool) -> PodState {
    if pod.metadata.deletion_timestamp.is_some() {
        return PodState::Terminating;
    }
    let Some(status) = pod.status.as_ref() else { return PodState::Starting };
    let condition = |type_: &str| {
        status.conditions.as_deref().unwrap_or_default().iter().find(|condition| condition.type_ == type_)
    };
    let begun = !statuses(status).is_empty();
    if let Some(scheduled) = condition("PodScheduled").filter(|condition| condition.status == "False" && !begun) {
        return PodState::Unschedulable(scheduled.message.clone().unwrap_or_default());
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let node = containers.iter().find(|status| status.name == NODE_CONTAINER);
    for container in [format, node].into_iter().flatten() {
        if let Some(message) = image_failure(container.state.as_ref()) {
            return PodState::ImagePullFailed(message);
        }
    }
    if !checked {
        return format.and_then(failed_format).unwrap_or(PodState::Starting);
    }
    if condition("Ready").is_some_and(|condition| condition.status == "True") {
        return PodState::Ready;
    }
    let Some(node) = node else { return PodState::Starting };
    let running = node.state.as_ref().is_some_and(|state| state.running.is_some());
    match last_end(node) {
        // However often it has ended before: its process votes and follows, ready or not.
        _ if running => PodState::Running,
        Some(last) => PodState::Crashing(ending(last)),
        None => PodState::Starting,
    }
}

fn image_failure(state: Option<&ContainerState>) -> Option<String> {
    let waiting = state?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"]
        .contains(&reason)
        .then(|| waiting.message.clone().unwrap_or_else(|| reason.to_owned()))
}

/// The last verdict counts while the next attempt waits or runs, so that a refusal does not flicker.
fn failed_format(status: &ContainerStatus) -> Option<PodState> {
    let last = last_end(status)?;
    if last.exit_code == 0 || last.exit_code == WAITS {
        return None;
    }
    if last.exit_code != REFUSED {
        return Some(PodState::FormatFailed(ending(last)));
    }
    let text = last.message.as_deref().unwrap_or_default().trim();
    let refusal = match serde_json::from_str::<TerminationMessage>(text) {
        Ok(message) => {
            let said = message.message.unwrap_or_else(|| text.to_owned());
            match message.reason.as_str() {
                "DiskLost" => Refusal::DiskLost(said),
                _ => Refusal::ForeignDisk(said),
            }
        }
        // Refused without a word that we know: the disk is not ours to touch.
        Err(_) => Refusal::ForeignDisk(ending(last)),
    };
    Some(PodState::Refused(refusal))
}

fn ending(terminated: &ContainerStateTerminated) -> String {
    let message = terminated.message.as_deref().map(str::trim).filter(|message| !message.is_empty());
    format!("exit code {}{}", terminated.exit_code, message.map(|message| format!(": {message}")).unwrap_or_default())
}
