//! DescribeClientQuotas (KIP-546): what the metadata says of quotas (`ClientQuotasImage.describe`). None is enforced yet.

use gregor_messages::{
    DescribeClientQuotasRequest, DescribeClientQuotasResponse,
    describe_client_quotas_request::ComponentData,
    describe_client_quotas_response::{EntityData, EntryData, ValueData},
};
use gregor_metadata::{ClientQuotas, QuotaEntity};
use gregor_types::{ErrorCode, KString};

use super::Context;

const USER: &str = "user";
const CLIENT_ID: &str = "client-id";
const IP: &str = "ip";

/// What an entity must have of one type.
#[derive(Debug, PartialEq)]
enum Match {
    /// This name, or none: the default of all.
    Exact(Option<KString>),
    /// Any name, or none.
    Any,
}

/// What is asked for: types of entities, each once.
type Filter = Vec<(KString, Match)>;
/// Why a filter cannot be.
type Invalid = (ErrorCode, String);

/// Answers from the newest image.
pub(crate) async fn handle(
    context: &Context,
    request: DescribeClientQuotasRequest,
    _version: i16,
) -> DescribeClientQuotasResponse {
    match filter_of(&request.components) {
        Ok(filter) => {
            let entries = described(context.broker.image().client_quotas(), &filter, request.strict);
            DescribeClientQuotasResponse { entries: Some(entries), ..Default::default() }
        }
        Err((error, message)) => DescribeClientQuotasResponse {
            error_code: error.code(),
            error_message: Some(message.into()),
            entries: None,
            ..Default::default()
        },
    }
}

fn filter_of(components: &[ComponentData]) -> Result<Filter, Invalid> {
    let invalid = |message: String| Err((ErrorCode::InvalidRequest, message));
    let mut filter = Filter::new();
    for component in components {
        let kind = &component.entity_type;
        if kind.is_empty() {
            return invalid("Invalid empty entity type.".to_owned());
        }
        if filter.iter().any(|(known, _)| known == kind) {
            return invalid(format!("Entity type {kind} cannot appear more than once in the filter."));
        }
        if ![USER, CLIENT_ID, IP].contains(&kind.as_str()) {
            return Err((ErrorCode::UnsupportedVersion, format!("Unsupported entity type {kind}")));
        }
        let wanted = match (component.match_type, component.r#match.clone()) {
            (0, Some(name)) => Match::Exact(Some(name)),
            (0, None) => {
                return invalid("Request specified MATCH_TYPE_EXACT, but set match string to null.".to_owned());
            }
            (1, None) => Match::Exact(None),
            (2, None) => Match::Any,
            (1, Some(_)) => {
                return invalid("Request specified MATCH_TYPE_DEFAULT, but also specified a match string.".to_owned());
            }
            (2, Some(_)) => {
                return invalid(
                    "Request specified MATCH_TYPE_SPECIFIED, but also specified a match string.".to_owned(),
                );
            }
            (other, _) => return invalid(format!("Unknown match type {other}")),
        };
        filter.push((kind.clone(), wanted));
    }
    if filter.len() > 1 && filter.iter().any(|(kind, _)| kind == IP) {
        return invalid(
            "Invalid entity filter component combination. IP filter component should not be used with user or clientId \
             filter component."
                .to_owned(),
        );
    }
    Ok(filter)
}

fn matches(entity: &[(KString, Option<KString>)], filter: &[(KString, Match)], strict: bool) -> bool {
    let has = |(kind, wanted): &(KString, Match)| {
        let part = entity.iter().find(|(known, _)| known == kind);
        part.is_some_and(|(_, name)| match wanted {
            Match::Exact(wanted) => name == wanted,
            Match::Any => true,
        })
    };
    (!strict || entity.len() == filter.len()) && filter.iter().all(has)
}

fn described(quotas: &ClientQuotas, filter: &[(KString, Match)], strict: bool) -> Vec<EntryData> {
    let mut entries: Vec<(&QuotaEntity, EntryData)> = Vec::new();
    for (entity, key, value) in quotas.iter().filter(|(entity, ..)| matches(entity, filter, strict)) {
        let value = ValueData { key: key.clone(), value, ..Default::default() };
        if let Some((_, entry)) = entries.last_mut().filter(|(last, _)| *last == entity) {
            entry.values.push(value);
            continue;
        }
        let parts = entity.iter().map(|(entity_type, entity_name)| EntityData {
            entity_type: entity_type.clone(),
            entity_name: entity_name.clone(),
            ..Default::default()
        });
        entries.push((entity, EntryData { entity: parts.collect(), values: vec![value], ..Default::default() }));
    }
    entries.into_iter().map(|(_, entry)| entry).collect()
}

#[cfg(test)]
mod tests {
    use gregor_metadata::Image;
    use gregor_state_records::metadata::{ClientQuotaRecord, MetadataRecord, client_quota_record};

    use super::*;

    /// An entity, as pairs of types and names.
    type Entity<'a> = &'a [(&'a str, Option<&'a str>)];

    /// Alice's quotas, those of her client `app`, of all users by default, and of an address.
    fn image() -> Image {
        let mut image = Image::default();
        let quotas: [(Entity<'_>, &str, f64); 5] = [
            (&[(USER, Some("alice"))], "producer_byte_rate", 10.0),
            (&[(USER, Some("alice"))], "consumer_byte_rate", 20.0),
            (&[(USER, Some("alice")), (CLIENT_ID, Some("app"))], "producer_byte_rate", 5.0),
            (&[(USER, None)], "request_percentage", 50.0),
            (&[(IP, Some("127.0.0.1"))], "connection_creation_rate", 2.0),
        ];
        for (entity, key, value) in quotas {
            let part = |(entity_type, name): &(&str, Option<&str>)| client_quota_record::EntityData {
                entity_type: (*entity_type).into(),
                entity_name: name.map(Into::into),
                ..Default::default()
            };
            let entity = entity.iter().map(part).collect();
            let record = ClientQuotaRecord { entity, key: key.into(), value, ..Default::default() };
            image.apply(&MetadataRecord::ClientQuota(record)).unwrap();
        }
        image
    }

    fn component(kind: &str, match_type: i8, name: Option<&str>) -> ComponentData {
        ComponentData { entity_type: kind.into(), match_type, r#match: name.map(Into::into), ..Default::default() }
    }

    /// Keys and values of each entity that is found.
    fn found(components: &[ComponentData], strict: bool) -> Vec<Vec<(String, f64)>> {
        let filter = filter_of(components).unwrap();
        let entries = described(image().client_quotas(), &filter, strict);
        let values = |entry: EntryData| entry.values.into_iter().map(|one| (one.key.to_string(), one.value)).collect();
        entries.into_iter().map(values).collect()
    }

    #[test]
    fn entities_are_found_by_name_by_default_and_by_type() {
        assert_eq!(found(&[], false).len(), 4, "all of them");
        assert_eq!(found(&[], true).len(), 0, "no entity has no part");
        let alice = [("consumer_byte_rate".to_owned(), 20.0), ("producer_byte_rate".to_owned(), 10.0)];
        assert_eq!(found(&[component(USER, 0, Some("alice"))], true), [alice.to_vec()]);
        assert_eq!(found(&[component(USER, 0, Some("alice"))], false).len(), 2, "her client's, too");
        assert_eq!(found(&[component(USER, 1, None)], true), [[("request_percentage".to_owned(), 50.0)]]);
        assert_eq!(found(&[component(USER, 2, None)], true).len(), 2);
        assert_eq!(found(&[component(USER, 2, None), component(CLIENT_ID, 2, None)], true).len(), 1);
        assert_eq!(found(&[component(IP, 0, Some("127.0.0.1"))], true).len(), 1);
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_refused_in_kafkas_words() {
        let refused = |components: &[ComponentData]| filter_of(components).unwrap_err();
        let cases = [
            (vec![component("", 2, None)], ErrorCode::InvalidRequest, "empty entity type"),
            (vec![component("group", 2, None)], ErrorCode::UnsupportedVersion, "Unsupported entity type group"),
            (vec![component(USER, 2, None); 2], ErrorCode::InvalidRequest, "more than once"),
            (vec![component(USER, 0, None)], ErrorCode::InvalidRequest, "MATCH_TYPE_EXACT"),
            (vec![component(USER, 1, Some("a"))], ErrorCode::InvalidRequest, "MATCH_TYPE_DEFAULT"),
            (vec![component(USER, 2, Some("a"))], ErrorCode::InvalidRequest, "MATCH_TYPE_SPECIFIED"),
            (vec![component(USER, 3, None)], ErrorCode::InvalidRequest, "Unknown match type 3"),
            (
                vec![component(USER, 2, None), component(IP, 2, None)],
                ErrorCode::InvalidRequest,
                "should not be used with user",
            ),
        ];
        for (components, error, words) in cases {
            let (code, message) = refused(&components);
            assert_eq!(code, error, "{message}");
            assert!(message.contains(words), "{message:?} does not say {words:?}");
        }
    }
}
