//! Tells the controller in which log directory each replica of this broker really is (KIP-858), where the metadata does not say so:
//! the broker chose the directory itself, was given a directory by hand, or lost the directory that a replica was to leave.
//!
//! `node.rs` starts it as a task. What to tell and when is decided by [`DirectoryReports`]; this looks and asks.

use std::{sync::Arc, time::Duration};

use gregor_node::{DirectoryReports, is_to_be_reported};
use gregor_types::{BrokerEpoch, BrokerId, Offset};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    control::ControlHandle,
    controller_link::{ControllerLink, LinkError},
    partitions::Partitions,
};

/// Changes gather for so long before the replicas are looked through.
const GATHERING: Duration = Duration::from_millis(500);
/// How long the controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs until the partitions' thread ends, or the control thread does.
pub(crate) async fn run(
    node_id: BrokerId,
    partitions: Arc<Partitions>,
    mut applied: watch::Receiver<Offset>,
    control: ControlHandle,
    link: Arc<ControllerLink>,
) {
    let start = Instant::now();
    let mut reports = DirectoryReports::default();
    loop {
        tokio::select! {
            changed = applied.changed() => {
                if changed.is_err() {
                    return;
                }
                sleep(GATHERING).await;
            }
            // A move waits for it, or was given up.
            () = partitions.moves.announced.notified() => {}
        }
        applied.mark_unchanged();
        find_unknown(node_id, &partitions, &control, &mut reports);
        let queued = &partitions.metrics().sampled.queued_assignments;
        queued.set(reports.queued() as i64);
        while let Some(due) = reports.next_deadline() {
            tokio::time::sleep_until(start + Duration::from_nanos(due)).await;
            let epoch = control.broker_epoch();
            if epoch == BrokerEpoch::NONE {
                sleep(GATHERING).await;
                continue;
            }
            let now = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let Some(request) = reports.next_request(node_id, epoch, now()) else { break };
            let answer = match link.ask(request, PATIENCE).await {
                Ok(response) => Some(response),
                Err(LinkError::Closed) => return,
                Err(error) => {
                    tracing::debug!(%error, "the controller was not told where replicas are");
                    None
                }
            };
            reports.answered(answer.as_ref(), now());
            queued.set(reports.queued() as i64);
        }
    }
}

/// Notes the replicas that lie elsewhere than the metadata says.
fn find_unknown(node_id: BrokerId, partitions: &Partitions, control: &ControlHandle, reports: &mut DirectoryReports) {
    let image = control.image();
    if !image.features().metadata_version().has_directory_assignment() {
        return;
    }
    let online: Vec<_> = partitions.storage().online().map(|directory| directory.id).collect();
    for held in partitions.all() {
        let known = image.topics().partition(held.topic_id, held.index);
        let assigned = known.and_then(|partition| partition.directory_of(node_id));
        let announced = held.announced_directory();
        if assigned.is_some_and(|assigned| is_to_be_reported(assigned, announced, &online)) {
            reports.report(held.topic_id, held.index, announced);
        }
    }
}
