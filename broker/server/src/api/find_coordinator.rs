//! FindCoordinator: which broker coordinates a group. The topic that groups are kept in is created on the first question.

use gregor_messages::{FindCoordinatorRequest, FindCoordinatorResponse, find_coordinator_response::Coordinator};
use gregor_types::{ErrorCode, KString};

use super::{Context, topic_creation::create_on_first_use};
use crate::groups::OFFSETS_TOPIC;

/// The first version that asks about several keys.
const BATCHED: i16 = 4;
const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
const SHARE: i8 = 2;

/// Answers a request.
pub(crate) async fn handle(
    context: &Context,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    if version >= BATCHED {
        let mut coordinators = Vec::with_capacity(request.coordinator_keys.len());
        for key in request.coordinator_keys {
            coordinators.push(find(context, key, request.key_type).await);
        }
        return FindCoordinatorResponse { coordinators, ..Default::default() };
    }
    let found = find(context, request.key, request.key_type).await;
    FindCoordinatorResponse {
        error_code: found.error_code,
        error_message: found.error_message,
        node_id: found.node_id,
        host: found.host,
        port: found.port,
        ..Default::default()
    }
}

async fn find(context: &Context, key: KString, key_type: i8) -> Coordinator {
    let found = match key_type {
        GROUP => group_coordinator(context, &key).await,
        // Both Java's client and librdkafka end a producer for good on this code, and show the message.
        TRANSACTION => Err((
            ErrorCode::ClusterAuthorizationFailed,
            Some("This broker does not serve transactions yet: use a producer without transactional.id.".to_owned()),
        )),
        SHARE => Err((ErrorCode::InvalidRequest, Some("This broker does not serve share groups yet.".to_owned()))),
        _ => Err((ErrorCode::InvalidRequest, Some(format!("There is no coordinator of the type {key_type}.")))),
    };
    match found {
        Ok(coordinator) => Coordinator { key, ..coordinator },
        Err((error, message)) => Coordinator {
            key,
            node_id: -1,
            port: -1,
            error_code: error.code(),
            error_message: message.map(KString::from),
            ..Default::default()
        },
    }
}

async fn group_coordinator(context: &Context, group: &str) -> Result<Coordinator, (ErrorCode, Option<String>)> {
    let broker = &context.broker;
    let missing = broker.image().topics().by_name(&OFFSETS_TOPIC).is_none();
    if missing && let Err(error) = create_on_first_use(broker, &OFFSETS_TOPIC).await {
        tracing::warn!(%error, "the topic {} cannot be created", &*OFFSETS_TOPIC);
        return Err((
            ErrorCode::CoordinatorNotAvailable,
            Some(format!("{} cannot be created: {error}", &*OFFSETS_TOPIC)),
        ));
    }
    let coordinator = broker.groups.coordinator_of(group).map_err(|error| (error, None))?;
    let image = broker.image();
    let unreachable = (ErrorCode::CoordinatorNotAvailable, None);
    let (host, port, _) = context.endpoint_of(&image, coordinator).ok_or(unreachable)?;
    Ok(Coordinator { node_id: coordinator.value(), host, port: i32::from(port), ..Default::default() })
}
