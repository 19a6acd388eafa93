//! ListConfigResources (KIP-1142): what there is that has, or could have, a configuration.

use gregor_messages::{
    ListConfigResourcesRequest, ListConfigResourcesResponse, list_config_resources_response::ConfigResource,
};
use gregor_metadata::{Image, ResourceType};
use gregor_types::{ErrorCode, KString};

use super::{Context, nodes};

const ALL: [ResourceType; 5] = [
    ResourceType::ClientMetrics,
    ResourceType::Broker,
    ResourceType::BrokerLogger,
    ResourceType::Topic,
    ResourceType::Group,
];

/// Answers from the newest image.
pub(crate) async fn handle(
    context: &Context,
    request: ListConfigResourcesRequest,
    version: i16,
) -> ListConfigResourcesResponse {
    respond(&context.broker.image(), context.listener_name(), &request, version)
}

fn respond(
    image: &Image,
    listener: &str,
    request: &ListConfigResourcesRequest,
    version: i16,
) -> ListConfigResourcesResponse {
    // Version 0 listed client metrics and knew nothing else.
    let types: Vec<_> = match request.resource_types.as_slice() {
        _ if version == 0 => vec![ResourceType::ClientMetrics],
        [] => ALL.to_vec(),
        codes => codes.iter().copied().map(ResourceType::from_code).collect(),
    };
    if types.iter().any(|resource_type| !ALL.contains(resource_type)) {
        return ListConfigResourcesResponse { error_code: ErrorCode::UnsupportedVersion.code(), ..Default::default() };
    }
    let mut config_resources = Vec::new();
    for resource_type in ALL.into_iter().filter(|known| types.contains(known)) {
        let named = names(image, listener, resource_type).into_iter().map(|resource_name| ConfigResource {
            resource_name,
            resource_type: resource_type.code(),
            ..Default::default()
        });
        config_resources.extend(named);
    }
    ListConfigResourcesResponse { config_resources, ..Default::default() }
}

fn names(image: &Image, listener: &str, resource_type: ResourceType) -> Vec<KString> {
    match resource_type {
        ResourceType::Topic => image.topics().iter().map(|topic| topic.name.clone()).collect(),
        ResourceType::Broker | ResourceType::BrokerLogger => {
            nodes::reachable(image, listener).map(|(broker, _)| broker.id.to_string().into()).collect()
        }
        _ => {
            let configured = image.configs().resources().filter(|resource| resource.resource_type == resource_type);
            configured.map(|resource| resource.name.clone()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::test_image::image, *};

    fn list(version: i16, types: &[i8]) -> (i16, Vec<String>) {
        let request = ListConfigResourcesRequest { resource_types: types.to_vec(), ..Default::default() };
        let response = respond(&image(), "PLAINTEXT", &request, version);
        let resource = |resource: &ConfigResource| format!("{}:{}", resource.resource_type, resource.resource_name);
        (response.error_code, response.config_resources.iter().map(resource).collect())
    }

    #[test]
    fn resources_are_listed_by_type_or_all() {
        assert_eq!(list(1, &[2]), (0, vec!["2:__consumer_offsets".into(), "2:alone".into(), "2:t".into()]));
        assert_eq!(list(1, &[4]), (0, vec!["4:1".into(), "4:2".into()]));
        assert_eq!(list(1, &[]).1.len(), 7);
        assert_eq!(list(0, &[]), (0, Vec::new()));
        assert_eq!(list(1, &[3]).0, ErrorCode::UnsupportedVersion.code());
    }
}
