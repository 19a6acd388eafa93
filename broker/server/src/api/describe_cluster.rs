//! DescribeCluster (KIP-700, KIP-919): the brokers, or on a controller's listener the controllers.

use gregor_messages::{
    DescribeClusterRequest, DescribeClusterResponse, describe_cluster_response::DescribeClusterBroker,
};
use gregor_metadata::{Endpoint, Image};
use gregor_types::{BrokerId, ErrorCode, KString};

use super::{
    Context,
    nodes::{self, ALL_CLUSTER_OPERATIONS, OPERATIONS_OMITTED},
};

const BROKERS: i8 = 1;
const CONTROLLERS: i8 = 2;

/// Answers from the newest image.
pub(crate) async fn handle(
    context: &Context,
    request: DescribeClusterRequest,
    version: i16,
) -> DescribeClusterResponse {
    let broker = &context.broker;
    let image = broker.image();
    let asked = if version == 0 { BROKERS } else { request.endpoint_type };
    let served = if context.connection.listener.controller { CONTROLLERS } else { BROKERS };
    if asked != served {
        let known = matches!(asked, BROKERS | CONTROLLERS);
        let (error, message) = if known {
            (ErrorCode::MismatchedEndpointType, "The request was sent to an endpoint of the wrong type.")
        } else {
            (ErrorCode::UnsupportedEndpointType, "Unsupported endpoint type")
        };
        return DescribeClusterResponse {
            error_code: error.code(),
            error_message: Some(message.into()),
            ..Default::default()
        };
    }
    let listener = context.listener_name();
    let (controller, nodes) = if served == CONTROLLERS {
        let leader = broker.control.quorum_leader().borrow().leader;
        (leader.unwrap_or(BrokerId::NONE), controllers(&image, listener))
    } else {
        let fenced_too = version >= 2 && request.include_fenced_brokers;
        (nodes::controller_for_clients(&image, listener, broker.node_id), brokers(&image, listener, fenced_too))
    };
    let all = request.include_cluster_authorized_operations;
    DescribeClusterResponse {
        endpoint_type: served,
        cluster_id: broker.cluster_id.clone(),
        controller_id: controller.value(),
        brokers: nodes,
        cluster_authorized_operations: if all { ALL_CLUSTER_OPERATIONS } else { OPERATIONS_OMITTED },
        ..Default::default()
    }
}

fn brokers(image: &Image, listener: &str, fenced_too: bool) -> Vec<DescribeClusterBroker> {
    let shown = image.cluster().brokers().filter(|broker| fenced_too || !broker.fenced);
    let described = shown.filter_map(|broker| {
        let node = node(broker.id, broker.endpoint(listener)?, broker.rack.clone());
        Some(DescribeClusterBroker { is_fenced: broker.fenced, ..node })
    });
    described.collect()
}

fn controllers(image: &Image, listener: &str) -> Vec<DescribeClusterBroker> {
    let described = image.cluster().controllers().filter_map(|controller| {
        let endpoint = controller.endpoints.iter().find(|endpoint| endpoint.listener == listener)?;
        Some(node(controller.id, endpoint, None))
    });
    described.collect()
}

fn node(id: BrokerId, endpoint: &Endpoint, rack: Option<KString>) -> DescribeClusterBroker {
    DescribeClusterBroker {
        broker_id: id.value(),
        host: endpoint.host.clone(),
        port: i32::from(endpoint.port),
        rack,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::test_image::image, *};

    #[test]
    fn fenced_brokers_are_shown_only_when_asked_for() {
        let ids = |fenced_too| {
            let brokers = brokers(&image(), "PLAINTEXT", fenced_too);
            brokers.iter().map(|broker| (broker.broker_id, broker.is_fenced)).collect::<Vec<_>>()
        };
        assert_eq!(ids(false), [(1, false), (2, false)]);
        assert_eq!(ids(true), [(1, false), (2, false), (3, true)]);
    }

    #[test]
    fn a_broker_without_this_listener_is_not_shown() {
        assert!(brokers(&image(), "OTHER", true).is_empty());
    }
}
