//! AlterConfigs and IncrementalAlterConfigs: what this node cannot use of its own, or what is another node's, is refused before it is
//! passed on.
//!
//! The controller judges keys and values (`controller/src/configs.rs`), and sees no files of another node. So whoever gets the
//! request reads the stores of its TLS listeners as they would be (`ConfigAdminManager.preprocess`); a change that keeps a
//! listener from using them is never in the metadata.

use std::{collections::BTreeMap, sync::Arc};

use gregor_controller::{Refusal, values_after};
use gregor_messages::{
    AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    alter_configs_request::AlterableConfig, alter_configs_response, incremental_alter_configs_response,
};
use gregor_metadata::{ConfigResource, Image, ResourceType};
use gregor_types::{ErrorCode, KString};

use super::{Broker, Context, forward};

type Values = BTreeMap<KString, KString>;

/// A handler that takes out of a request what cannot be, asks the controller for the rest, and answers for both.
macro_rules! checked_first {
    ($(#[$documentation:meta])* $name:ident, $request:ident, $response:ident, $responses:ident, $values_of:path) => {
        $(#[$documentation])*
        pub(crate) async fn $name(context: &Context, mut request: $request, version: i16) -> $response {
            let mut refused = misdirected!(context, request);
            refused.extend(unusable!(context, request, $values_of));
            refused.sort_unstable_by_key(|(at, _)| *at);
            let mut answers = Vec::with_capacity(refused.len());
            for (at, why) in refused.into_iter().rev() {
                let resource = request.resources.remove(at);
                let answer = $responses::AlterConfigsResourceResponse {
                    error_code: ErrorCode::InvalidRequest.code(),
                    error_message: Some(why.into()),
                    resource_type: resource.resource_type,
                    resource_name: resource.resource_name,
                    ..Default::default()
                };
                answers.push((at, answer));
            }
            let mut response = $response::default();
            if answers.is_empty() || !request.resources.is_empty() {
                response = forward::handle(context, request, version).await;
            }
            for (at, answer) in answers.into_iter().rev() {
                response.responses.insert(at.min(response.responses.len()), answer);
            }
            response
        }
    };
}

/// Where the request names another node, and why that is refused: only that node can look at what its listeners would use. A
/// controller is asked for any of them.
macro_rules! misdirected {
    ($context:ident, $request:ident) => {{
        let resources = $request.resources.iter().enumerate();
        let of_nodes = resources.filter(|(_, resource)| {
            !$context.connection.listener.controller
                && resource.resource_type == ResourceType::Broker.code()
                && !resource.resource_name.is_empty()
        });
        let wrong =
            of_nodes.filter_map(|(at, resource)| Some((at, other_node(&resource.resource_name, &$context.broker)?)));
        wrong.collect::<Vec<(usize, String)>>()
    }};
}

/// Where the request names this node and what its listeners could not use of that. Who names a node twice, or asks for what is no
/// change at all, hears of it from the controller.
macro_rules! unusable {
    ($context:ident, $request:ident, $values_of:path) => {{
        let own = own_resource(&$context.broker);
        let is_own = |at: &usize| {
            let resource = &$request.resources[*at];
            resource.resource_type == own.resource_type.code() && resource.resource_name == own.name
        };
        let mut ours = (0..$request.resources.len()).filter(is_own);
        match (ours.next(), ours.next()) {
            (Some(at), None) => match $values_of(&$context.broker.image(), &own, &$request.resources[at].configs) {
                Ok(values) => check($context, values).await.err().map(|why| (at, why)),
                Err(_) => None,
            },
            _ => None,
        }
    }};
}

checked_first!(
    /// Makes the values of each resource those that are named.
    replace,
    AlterConfigsRequest,
    AlterConfigsResponse,
    alter_configs_response,
    values_named
);
checked_first!(
    /// Changes the values that are named.
    change,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
    incremental_alter_configs_response,
    values_after
);

/// The values of a resource after AlterConfigs: those that are named, whatever it had.
fn values_named(_: &Image, _: &ConfigResource, configs: &[AlterableConfig]) -> Result<Values, Refusal> {
    let no_value = || Refusal::new(ErrorCode::InvalidRequest, "a key is named without a value");
    let value = |config: &AlterableConfig| Ok((config.name.clone(), config.value.clone().ok_or_else(no_value)?));
    configs.iter().map(value).collect()
}

/// What a name says that is not this node's.
fn other_node(name: &str, broker: &Broker) -> Option<String> {
    match name.parse::<i32>() {
        Err(_) => Some(format!("Node id must be an integer, but it is: {name}")),
        Ok(id) if id != broker.node_id.value() => {
            Some(format!("Unexpected broker id, expected {}, but received {name}", broker.node_id))
        }
        Ok(_) => None,
    }
}

fn own_resource(broker: &Broker) -> ConfigResource {
    ConfigResource::new(ResourceType::Broker, broker.node_id.to_string())
}

/// Reads what the listeners would read if these were the node's own values. Files that are slow to read hold up nobody else.
async fn check(context: &Context, values: Values) -> Result<(), String> {
    let broker = Arc::clone(&context.broker);
    if broker.tls_listeners.is_empty() && broker.outwards.is_plaintext() {
        return Ok(());
    }
    let checked = move || {
        let image = broker.image();
        let before = broker.partitions.effective_config(&image);
        let common = ConfigResource::all_brokers();
        let dynamic = image.configs().of(&common).chain(&values);
        // What does not fit together otherwise is for the controller to say.
        let Ok(after) = broker.config.with_dynamic(dynamic.map(|(key, value)| (key.as_str(), value.as_str()))) else {
            return Ok(());
        };
        broker.tls_listeners.iter().try_for_each(|listener| listener.check(&before, &after))?;
        broker.outwards.check(&before, &after)
    };
    let checked = tokio::task::spawn_blocking(checked).await;
    let checked =
        checked.unwrap_or_else(|_| Err("reading the TLS stores ended in a panic; look into the node's log".to_owned()));
    let named = &context.broker.node_id;
    checked
        .map_err(|why| format!("Invalid config value for resource ConfigResource(type=BROKER, name='{named}'): {why}"))
}
