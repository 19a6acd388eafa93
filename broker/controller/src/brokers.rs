//! The life of a broker as the controller sees it: registration, heartbeats, fencing, controlled shutdown, and its end
//! (`ClusterControlManager`, `BrokerHeartbeatManager`).

use std::collections::BTreeSet;

use gregor_messages::{
    AllocateProducerIdsRequest, AllocateProducerIdsResponse, BrokerHeartbeatRequest, BrokerHeartbeatResponse,
    BrokerRegistrationRequest, BrokerRegistrationResponse, ControllerRegistrationRequest,
    ControllerRegistrationResponse, UnregisterBrokerRequest, UnregisterBrokerResponse, UnregisterControllerRequest,
    UnregisterControllerResponse,
};
use gregor_metadata::{BrokerRegistration, METADATA_VERSION_FEATURE};
use gregor_state_records::metadata::{
    BrokerRegistrationChangeRecord, MetadataRecord, ProducerIdsRecord, RegisterBrokerRecord, RegisterControllerRecord,
    UnregisterBrokerRecord, UnregisterControllerRecord,
    register_broker_record::{BrokerEndpoint, BrokerFeature},
    register_controller_record::{ControllerEndpoint, ControllerFeature},
};
use gregor_types::{BrokerEpoch, BrokerId, DirectoryId, ErrorCode, Offset, ProducerId, planted::planted};

use crate::{
    PRODUCER_ID_BLOCK, Refusal, elections,
    plan::Plan,
    refusal::{code_of, text_of},
    sessions::Sessions,
};

const FENCE: i8 = 1;
const UNFENCE: i8 = -1;

/// Where a broker is on its way between starting and stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BrokerState {
    Fenced,
    Unfenced,
    ControlledShutdown,
    ShutdownNow,
}

pub(crate) fn register(
    plan: &mut Plan<'_>,
    sessions: &mut Sessions,
    request: &BrokerRegistrationRequest,
) -> BrokerRegistrationResponse {
    let mark = plan.mark();
    let result = try_register(plan, sessions, request);
    match plan.keep_any(mark, result) {
        Ok(epoch) => {
            let expires = plan.now + plan.config.session_timeout;
            sessions.touch(BrokerId(request.broker_id), epoch, Offset::NONE, expires);
            BrokerRegistrationResponse { broker_epoch: epoch.value(), ..Default::default() }
        }
        Err(refusal) => BrokerRegistrationResponse { error_code: refusal.number(), ..Default::default() },
    }
}

fn try_register(
    plan: &mut Plan<'_>,
    sessions: &Sessions,
    request: &BrokerRegistrationRequest,
) -> Result<BrokerEpoch, Refusal> {
    if request.cluster_id != plan.config.cluster_id {
        return Err(Refusal::new(
            ErrorCode::InconsistentClusterId,
            format!("Expected cluster ID {}, but got cluster ID {}", plan.config.cluster_id, request.cluster_id),
        ));
    }
    let id = BrokerId(request.broker_id);
    let version = plan.version();
    let existing = plan.image.cluster().broker(id).cloned();
    if let Some(existing) = &existing
        && existing.incarnation != request.incarnation_id
        && !existing.in_controlled_shutdown
        && sessions.is_alive(existing, plan.config.broker.node_id, plan.now)
    {
        return Err(Refusal::new(
            ErrorCode::DuplicateBrokerRegistration,
            "Another broker is registered with that broker id. If the broker was recently restarted this should self-resolve \
             once the heartbeat manager expires the broker's session.",
        ));
    }
    check_features(plan, request)?;
    if version.has_directory_assignment() {
        check_directories(plan, id, &request.log_dirs)?;
    }
    let same = existing.as_ref().filter(|existing| existing.incarnation == request.incarnation_id);
    let epoch = same.map_or(BrokerEpoch(plan.next_offset().value()), |same| same.epoch);
    let mut log_dirs = if version.has_directory_assignment() { request.log_dirs.clone() } else { Vec::new() };
    log_dirs.sort_unstable();
    let record = RegisterBrokerRecord {
        broker_id: request.broker_id,
        incarnation_id: request.incarnation_id,
        broker_epoch: epoch.value(),
        end_points: request
            .listeners
            .iter()
            .map(|listener| BrokerEndpoint {
                name: listener.name.clone(),
                host: listener.host.clone(),
                port: listener.port,
                security_protocol: listener.security_protocol,
                ..Default::default()
            })
            .collect(),
        features: request
            .features
            .iter()
            .map(|feature| BrokerFeature {
                name: feature.name.clone(),
                min_supported_version: feature.min_supported_version,
                max_supported_version: feature.max_supported_version,
                ..Default::default()
            })
            .collect(),
        rack: request.rack.clone(),
        fenced: same.is_none_or(|same| same.fenced),
        in_controlled_shutdown: same.is_some_and(|same| same.in_controlled_shutdown),
        log_dirs,
        ..Default::default()
    };
    let is_new = same.is_none();
    // KIP-966: it says so that it stopped in peace, and has on its disks what it had then.
    let stopped_cleanly =
        existing.as_ref().is_some_and(|existing| existing.epoch.value() == request.previous_broker_epoch)
            || planted("unclean-stop-unnoticed");
    // The registration comes first in its batch: its offset is the broker's epoch.
    plan.push(MetadataRecord::RegisterBroker(record));
    if is_new && stopped_cleanly {
        elections::leave(plan, id, |_, _, _| true);
    } else if is_new {
        elections::lose(plan, id);
    }
    Ok(epoch)
}

fn check_features(plan: &Plan<'_>, request: &BrokerRegistrationRequest) -> Result<(), Refusal> {
    if !request.features.iter().any(|feature| feature.name == METADATA_VERSION_FEATURE) {
        return Err(Refusal::new(ErrorCode::InvalidRegistration, "Request features do not contain 'metadata.version'"));
    }
    for (name, level) in plan.image.features().iter() {
        let supported = request.features.iter().find(|feature| feature.name == name);
        let (min, max) =
            supported.map_or((0, 0), |feature| (feature.min_supported_version, feature.max_supported_version));
        if !(min..=max).contains(&level) {
            return Err(Refusal::new(
                ErrorCode::UnsupportedVersion,
                format!(
                    "Unable to register because the broker does not support finalized version {level} of {name}. The broker \
                     wants a version between {min} and {max}, inclusive."
                ),
            ));
        }
    }
    Ok(())
}

fn check_directories(plan: &Plan<'_>, id: BrokerId, directories: &[DirectoryId]) -> Result<(), Refusal> {
    let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidRegistration, message));
    if directories.is_empty() {
        return invalid("No directories specified in request".to_owned());
    }
    if directories.iter().any(|directory| directory.is_reserved()) {
        return invalid("Reserved directory ID in request".to_owned());
    }
    let mut sorted = directories.to_vec();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return invalid("Duplicate directory ID in request".to_owned());
    }
    for other in plan.image.cluster().brokers().filter(|broker| broker.id != id) {
        if let Some(taken) = other.directories.iter().find(|directory| directories.contains(directory)) {
            return invalid(format!("Broker {} is already registered with directory {taken}", other.id));
        }
    }
    Ok(())
}

pub(crate) fn heartbeat(
    plan: &mut Plan<'_>,
    sessions: &mut Sessions,
    request: &BrokerHeartbeatRequest,
) -> BrokerHeartbeatResponse {
    let mark = plan.mark();
    let result = try_heartbeat(plan, sessions, request);
    match plan.keep_any(mark, result) {
        Ok((state, is_caught_up)) => BrokerHeartbeatResponse {
            is_caught_up,
            is_fenced: matches!(state, BrokerState::Fenced | BrokerState::ShutdownNow),
            should_shut_down: state == BrokerState::ShutdownNow,
            ..Default::default()
        },
        Err(refusal) => BrokerHeartbeatResponse { error_code: refusal.number(), ..Default::default() },
    }
}

fn try_heartbeat(
    plan: &mut Plan<'_>,
    sessions: &mut Sessions,
    request: &BrokerHeartbeatRequest,
) -> Result<(BrokerState, bool), Refusal> {
    let id = BrokerId(request.broker_id);
    let broker = plan.registered(id, BrokerEpoch(request.broker_epoch))?;
    let offset = Offset(request.current_metadata_offset);
    sessions.touch(id, broker.epoch, offset, plan.now + plan.config.session_timeout);
    let is_caught_up = offset.value() >= broker.epoch.value();
    let current = state_of(&broker);
    // A process that was on its way down when it was fenced does not come back; its successor registers anew.
    let may_serve = is_caught_up && !broker.in_controlled_shutdown;
    let next = next_state(plan, sessions, request, current, may_serve);
    if next != current {
        match next {
            BrokerState::Fenced | BrokerState::ShutdownNow => fence(plan, id),
            BrokerState::Unfenced => unfence(plan, &broker),
            BrokerState::ControlledShutdown => begin_shutdown(plan, &broker),
        }
    }
    if next == BrokerState::ControlledShutdown {
        // Until the others have read that this broker leads nothing any more, clients may still be sent to it.
        let moved = plan.next_offset().plus(-1);
        if let Some(session) = sessions.get_mut(id)
            && (current != next || session.shutdown_offset.is_none())
        {
            session.shutdown_offset = Some(moved);
        }
    }
    take_offline(plan, id, &request.offline_log_dirs);
    cordon(plan, id, request.cordoned_log_dirs.as_deref());
    Ok((next, is_caught_up))
}

fn state_of(broker: &BrokerRegistration) -> BrokerState {
    match (broker.fenced, broker.in_controlled_shutdown) {
        (true, _) => BrokerState::Fenced,
        (false, true) => BrokerState::ControlledShutdown,
        (false, false) => BrokerState::Unfenced,
    }
}

fn next_state(
    plan: &Plan<'_>,
    sessions: &Sessions,
    request: &BrokerHeartbeatRequest,
    current: BrokerState,
    may_serve: bool,
) -> BrokerState {
    let id = BrokerId(request.broker_id);
    match current {
        BrokerState::Fenced if request.want_shut_down => BrokerState::ShutdownNow,
        BrokerState::Fenced if request.want_fence || !may_serve => BrokerState::Fenced,
        BrokerState::Fenced => BrokerState::Unfenced,
        BrokerState::Unfenced if request.want_fence && request.want_shut_down => BrokerState::ShutdownNow,
        BrokerState::Unfenced if request.want_fence => BrokerState::Fenced,
        BrokerState::Unfenced if !request.want_shut_down => BrokerState::Unfenced,
        BrokerState::Unfenced if elections::leads_any(&plan.image, id) => BrokerState::ControlledShutdown,
        BrokerState::Unfenced => BrokerState::ShutdownNow,
        BrokerState::ControlledShutdown | BrokerState::ShutdownNow => {
            let moved = sessions.get(id).and_then(|session| session.shutdown_offset);
            let read = sessions.lowest_active_offset(&plan.image);
            let others_know = moved.is_some_and(|moved| read.is_none_or(|read| read >= moved));
            if others_know && !elections::leads_any(&plan.image, id) {
                BrokerState::ShutdownNow
            } else {
                BrokerState::ControlledShutdown
            }
        }
    }
}

/// Fences a broker: it leads nothing, is in no in-sync replicas, and no client is sent to it.
pub(crate) fn fence(plan: &mut Plan<'_>, id: BrokerId) {
    let Some(broker) = plan.image.cluster().broker(id).cloned() else { return };
    if broker.fenced {
        return;
    }
    if !planted("fenced-stays-in-sync") {
        elections::leave(plan, id, |_, _, _| true);
    }
    plan.push(registration_change(&broker, |change| change.fenced = FENCE));
}

fn unfence(plan: &mut Plan<'_>, broker: &BrokerRegistration) {
    plan.push(registration_change(broker, |change| change.fenced = UNFENCE));
    elections::join(plan, broker.id);
}

fn begin_shutdown(plan: &mut Plan<'_>, broker: &BrokerRegistration) {
    plan.push(registration_change(broker, |change| change.in_controlled_shutdown = 1));
    elections::leave(plan, broker.id, |_, _, _| true);
}

/// KIP-858: directories that failed; their replicas are gone, those in other directories stay.
fn take_offline(plan: &mut Plan<'_>, id: BrokerId, offline: &[DirectoryId]) {
    let Some(broker) = plan.image.cluster().broker(id).cloned() else { return };
    let (gone, online): (Vec<_>, Vec<_>) =
        broker.directories.iter().copied().partition(|directory| offline.contains(directory));
    // A change record cannot say "none": a broker whose last directory fails stops by itself.
    if gone.is_empty() || online.is_empty() || !plan.version().has_directory_assignment() {
        return;
    }
    elections::leave(plan, id, |_, _, partition| {
        partition.directory_of(id).is_some_and(|directory| gone.contains(&directory))
    });
    plan.push(registration_change(&broker, |change| change.log_dirs = online));
}

/// KIP-1066: directories that get no new replicas.
fn cordon(plan: &mut Plan<'_>, id: BrokerId, cordoned: Option<&[DirectoryId]>) {
    let Some(cordoned) = cordoned.filter(|_| plan.version().has_cordoned_directories()) else { return };
    let Some(broker) = plan.image.cluster().broker(id).cloned() else { return };
    // A registration says nothing of cordons: the first heartbeat of an incarnation does, even that there are none.
    let known = broker.cordoned_directories.as_ref().map(|known| known.iter().collect::<BTreeSet<_>>());
    if known != Some(cordoned.iter().collect()) {
        plan.push(registration_change(&broker, |change| change.cordoned_log_dirs = Some(cordoned.to_vec())));
    }
}

pub(crate) fn unregister(
    plan: &mut Plan<'_>,
    sessions: &mut Sessions,
    request: &UnregisterBrokerRequest,
) -> UnregisterBrokerResponse {
    let id = BrokerId(request.broker_id);
    let result = match plan.image.cluster().broker(id).cloned() {
        Some(broker) => {
            let mark = plan.mark();
            elections::lose(plan, id);
            plan.push(MetadataRecord::UnregisterBroker(UnregisterBrokerRecord {
                broker_id: id.value(),
                broker_epoch: broker.epoch.value(),
                ..Default::default()
            }));
            plan.keep_any(mark, Ok(()))
        }
        None => {
            Err(Refusal::new(ErrorCode::BrokerIdNotRegistered, format!("Broker ID {id} is not currently registered")))
        }
    };
    if result.is_ok() {
        sessions.remove(id);
    }
    UnregisterBrokerResponse { error_code: code_of(&result), error_message: text_of(&result), ..Default::default() }
}

pub(crate) fn allocate_producer_ids(
    plan: &mut Plan<'_>,
    request: &AllocateProducerIdsRequest,
) -> AllocateProducerIdsResponse {
    let id = BrokerId(request.broker_id);
    let result = plan.registered(id, BrokerEpoch(request.broker_epoch)).and_then(|broker| {
        let start = plan.image.next_producer_id().unwrap_or(ProducerId(0));
        let next = start.value().checked_add(i64::from(PRODUCER_ID_BLOCK)).ok_or_else(|| {
            Refusal::new(
                ErrorCode::UnknownServerError,
                "Exhausted all producerIds as the next block's end is beyond 2^63.",
            )
        })?;
        plan.push(MetadataRecord::ProducerIds(ProducerIdsRecord {
            broker_id: id.value(),
            broker_epoch: broker.epoch.value(),
            next_producer_id: next,
            ..Default::default()
        }));
        Ok(start)
    });
    match result {
        Ok(start) => AllocateProducerIdsResponse {
            producer_id_start: start.value(),
            producer_id_len: PRODUCER_ID_BLOCK,
            ..Default::default()
        },
        Err(refusal) => AllocateProducerIdsResponse { error_code: refusal.number(), ..Default::default() },
    }
}

pub(crate) fn register_controller(
    plan: &mut Plan<'_>,
    request: &ControllerRegistrationRequest,
) -> ControllerRegistrationResponse {
    if !plan.version().has_controller_registration() {
        return ControllerRegistrationResponse {
            error_code: ErrorCode::UnsupportedVersion as i16,
            error_message: Some("The current MetadataVersion is too old to support controller registrations.".into()),
            ..Default::default()
        };
    }
    let mark = plan.mark();
    plan.push(MetadataRecord::RegisterController(RegisterControllerRecord {
        controller_id: request.controller_id,
        incarnation_id: request.incarnation_id,
        zk_migration_ready: request.zk_migration_ready,
        end_points: request
            .listeners
            .iter()
            .map(|listener| ControllerEndpoint {
                name: listener.name.clone(),
                host: listener.host.clone(),
                port: listener.port,
                security_protocol: listener.security_protocol,
                ..Default::default()
            })
            .collect(),
        features: request
            .features
            .iter()
            .map(|feature| ControllerFeature {
                name: feature.name.clone(),
                min_supported_version: feature.min_supported_version,
                max_supported_version: feature.max_supported_version,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }));
    let result = plan.keep_any(mark, Ok(()));
    ControllerRegistrationResponse {
        error_code: code_of(&result),
        error_message: text_of(&result),
        ..Default::default()
    }
}

/// KIP-1312: a controller is gone for good, and stands in the way of no feature any more. One that runs all the same registers again.
pub(crate) fn unregister_controller(
    plan: &mut Plan<'_>,
    request: &UnregisterControllerRequest,
) -> UnregisterControllerResponse {
    let result = try_unregister_controller(plan, request.controller_id);
    UnregisterControllerResponse { error_code: code_of(&result), error_message: text_of(&result), ..Default::default() }
}

fn try_unregister_controller(plan: &mut Plan<'_>, controller_id: i32) -> Result<(), Refusal> {
    let id = BrokerId(controller_id);
    if id == plan.config.broker.node_id {
        return Err(Refusal::new(ErrorCode::InvalidRequest, "Controller cannot unregister itself while it is active."));
    }
    let record =
        MetadataRecord::UnregisterController(UnregisterControllerRecord { controller_id, ..Default::default() });
    if plan.version().record_version(&record).is_none() {
        return Err(Refusal::new(
            ErrorCode::UnsupportedVersion,
            "The current MetadataVersion is too old to support controller unregistration.",
        ));
    }
    if plan.image.cluster().controller(id).is_none() {
        return Err(Refusal::new(
            ErrorCode::ControllerIdNotRegistered,
            format!("Controller ID {id} is not currently registered."),
        ));
    }
    plan.push(record);
    Ok(())
}

fn registration_change(
    broker: &BrokerRegistration,
    change: impl FnOnce(&mut BrokerRegistrationChangeRecord),
) -> MetadataRecord {
    let mut record = BrokerRegistrationChangeRecord {
        broker_id: broker.id.value(),
        broker_epoch: broker.epoch.value(),
        ..Default::default()
    };
    change(&mut record);
    MetadataRecord::BrokerRegistrationChange(record)
}
