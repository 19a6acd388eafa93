//! ApiVersions: what this node serves, by API and by feature.
//!
//! It is the first request of every client, so it must never fail for want of a common version: KIP-511 answers an unknown
//! one in version 0, and the response's header never has tagged fields.

use bytes::Bytes;
use gregor_messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse,
    api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey},
};
use gregor_metadata::SERVED_FEATURES;
use gregor_types::ErrorCode;
use gregor_wire::{Message, Reader};

use crate::{api::Context, close::Close, dispatch::TABLE, reply::Reply};

/// The version that every client can read.
const COMMON_VERSION: i16 = 0;
/// The response's header has no tagged fields in any version, as the client does not know yet what we speak.
const HEADER_VERSION: i16 = 0;

/// Answers any version, known or not.
pub(crate) fn handle(context: &Context, body: Bytes) -> Result<Reply, Close> {
    let version = context.api_version;
    if !ApiVersionsRequest::VERSIONS.contains(&version) {
        return Reply::message(context.correlation_id, HEADER_VERSION, &unsupported(), COMMON_VERSION);
    }
    let request = ApiVersionsRequest::decode(&mut Reader::new(body), version)?;
    let response = match check(context, &request, version) {
        Ok(()) => supported(context, version),
        Err(error) => ApiVersionsResponse { error_code: error.code(), ..ApiVersionsResponse::default() },
    };
    Reply::message(context.correlation_id, HEADER_VERSION, &response, version)
}

/// KIP-511: tells the client which versions of ApiVersions it may ask with.
fn unsupported() -> ApiVersionsResponse {
    let versions = ApiVersionsRequest::VERSIONS;
    let own = ApiVersion {
        api_key: ApiKey::ApiVersions.code(),
        min_version: *versions.start(),
        max_version: *versions.end(),
        ..ApiVersion::default()
    };
    ApiVersionsResponse {
        error_code: ErrorCode::UnsupportedVersion.code(),
        api_keys: vec![own],
        ..ApiVersionsResponse::default()
    }
}

fn check(context: &Context, request: &ApiVersionsRequest, version: i16) -> Result<(), ErrorCode> {
    let broker = &context.broker;
    if version >= 3
        && !(is_software_name(&request.client_software_name) && is_software_name(&request.client_software_version))
    {
        return Err(ErrorCode::InvalidRequest);
    }
    // KIP-1242: a client whose address book is stale must find its cluster anew instead of talking to a stranger.
    let other_cluster = request.cluster_id.as_ref().is_some_and(|id| *id != broker.cluster_id);
    let other_node = request.node_id >= 0 && request.node_id != broker.node_id.value();
    if other_cluster || other_node {
        return Err(ErrorCode::RebootstrapRequired);
    }
    Ok(())
}

/// KIP-511: `[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?`, as these become labels of metrics.
fn is_software_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    ends(bytes.first()) && ends(bytes.last()) && bytes.iter().copied().all(inner)
}

fn supported(context: &Context, version: i16) -> ApiVersionsResponse {
    let controller = context.connection.listener.controller;
    let served = TABLE.iter().filter(|row| row.listeners.include(controller));
    let mut api_keys: Vec<ApiVersion> = served
        .map(|row| ApiVersion {
            api_key: row.key.code(),
            min_version: *row.advertised.start(),
            max_version: *row.advertised.end(),
            ..ApiVersion::default()
        })
        .collect();
    api_keys.sort_by_key(|api| api.api_key);
    // KAFKA-17492: older clients cannot read a feature whose lowest level is 0.
    let supported_features = SERVED_FEATURES
        .iter()
        .filter(|feature| version >= 4 || feature.min > 0)
        .map(|feature| SupportedFeatureKey {
            name: feature.name.into(),
            min_version: feature.min,
            max_version: feature.max,
            ..SupportedFeatureKey::default()
        })
        .collect();
    let image = context.broker.image();
    let finalized_features = image
        .finalized_features()
        .map(|(name, level)| FinalizedFeatureKey {
            name: name.into(),
            max_version_level: level,
            min_version_level: level,
            ..FinalizedFeatureKey::default()
        })
        .collect();
    ApiVersionsResponse {
        api_keys,
        supported_features,
        finalized_features_epoch: image.position.last_offset.value(),
        finalized_features,
        ..ApiVersionsResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::row;

    #[test]
    fn software_names_are_fit_for_a_label() {
        for good in ["apache-kafka-java", "4.4.0", "a"] {
            assert!(is_software_name(good), "{good:?}");
        }
        for bad in ["", "-java", "java-", "ja va", "jävä"] {
            assert!(!is_software_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn produce_is_advertised_from_zero_and_served_from_three() {
        let produce = row(ApiKey::Produce.code(), false).unwrap();
        assert_eq!((*produce.advertised.start(), *produce.served.start()), (0, 3));
        assert!(row(ApiKey::Produce.code(), true).is_none(), "a controller takes no records");
    }

    #[test]
    fn every_api_stands_in_the_table_once() {
        for row in TABLE {
            let same = TABLE.iter().filter(|other| other.key == row.key && row.listeners == other.listeners);
            assert_eq!(same.count(), 1, "{}", row.key.name());
        }
    }
}
