//! This node as a broker and as a controller in its own cluster: what it says of itself, and where it stands.

use gregor_messages::{
    ControllerRegistrationRequest,
    controller_registration_request::{Feature, Listener},
};
use gregor_metadata::{Image, SERVED_FEATURES};
use gregor_node::{BrokerLifecycle, BrokerPhase};

use super::{BrokerState, open::ControlOptions};

/// Kafka's state of a broker in this phase of its life.
pub(super) fn state(lifecycle: &BrokerLifecycle) -> BrokerState {
    let epoch = lifecycle.epoch();
    match lifecycle.phase() {
        BrokerPhase::Registering => BrokerState::Starting,
        BrokerPhase::CatchingUp | BrokerPhase::Recovering => BrokerState::Recovery(epoch),
        BrokerPhase::Running => BrokerState::Running(epoch),
        BrokerPhase::ControlledShutdown => BrokerState::PendingControlledShutdown(epoch),
        BrokerPhase::Stopped => BrokerState::ShuttingDown(epoch),
    }
}

/// The registration of this controller (KIP-919), where the level knows it and this incarnation has not made it yet.
pub(super) fn controller_registration(
    options: &ControlOptions,
    image: &Image,
) -> Option<ControllerRegistrationRequest> {
    let registered = image.cluster().controller(options.config.node_id);
    let known = registered.is_some_and(|controller| controller.incarnation == options.broker.incarnation);
    if known || !image.features().metadata_version().has_controller_registration() {
        return None;
    }
    let protocol = |name: &str| options.config.listener(name).map_or(0, |listener| listener.protocol.id());
    let listener = |endpoint: &gregor_raft::Endpoint| Listener {
        name: endpoint.name.clone(),
        host: endpoint.host.clone(),
        port: endpoint.port,
        security_protocol: protocol(&endpoint.name),
        ..Default::default()
    };
    let features = SERVED_FEATURES.iter().map(|feature| Feature {
        name: feature.name.into(),
        min_supported_version: feature.min,
        max_supported_version: feature.max,
        ..Default::default()
    });
    Some(ControllerRegistrationRequest {
        controller_id: options.config.node_id.value(),
        incarnation_id: options.broker.incarnation,
        zk_migration_ready: false,
        listeners: options.controller_endpoints.iter().map(listener).collect(),
        features: features.collect(),
        ..Default::default()
    })
}
