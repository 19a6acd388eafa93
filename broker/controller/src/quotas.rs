//! Client quotas as users change them (`ClientQuotaControlManager`).
//!
//! Nothing enforces one yet, so none is set: who sets a limit relies on it. What another Kafka has left in the metadata can be taken
//! out, which it would go on to enforce.

use gregor_messages::{
    AlterClientQuotasRequest, AlterClientQuotasResponse,
    alter_client_quotas_request::{EntityData, EntryData},
    alter_client_quotas_response,
};
use gregor_metadata::QuotaEntity;
use gregor_state_records::metadata::{ClientQuotaRecord, MetadataRecord, client_quota_record};
use gregor_types::{ErrorCode, KString};

use crate::{
    Refusal,
    plan::Plan,
    refusal::{code_of, text_of},
};

const USER: &str = "user";
const CLIENT_ID: &str = "client-id";
const IP: &str = "ip";

/// Each entry happens as a whole or not at all; they do not depend on each other.
pub(crate) fn alter(plan: &mut Plan<'_>, request: &AlterClientQuotasRequest) -> AlterClientQuotasResponse {
    let start = plan.mark();
    let mut entries = Vec::with_capacity(request.entries.len());
    for (at, entry) in request.entries.iter().enumerate() {
        let mark = plan.mark();
        let result = entity_of(&entry.entity).and_then(|entity| {
            if request.entries[..at].iter().any(|other| entity_of(&other.entity).is_ok_and(|other| other == entity)) {
                return Err(invalid("Ignoring duplicate entity".to_owned()));
            }
            alter_one(plan, entry, &entity)
        });
        let result = plan.keep(mark, result);
        entries.push(answer(entry, code_of(&result), text_of(&result)));
    }
    if request.validate_only {
        plan.undo(start);
    }
    AlterClientQuotasResponse { entries, ..Default::default() }
}

/// What is answered about an entry of a request.
pub(crate) fn answer(
    entry: &EntryData,
    error_code: i16,
    error_message: Option<KString>,
) -> alter_client_quotas_response::EntryData {
    let entity = entry.entity.iter().map(|part| alter_client_quotas_response::EntityData {
        entity_type: part.entity_type.clone(),
        entity_name: part.entity_name.clone(),
        ..Default::default()
    });
    alter_client_quotas_response::EntryData {
        error_code,
        error_message,
        entity: entity.collect(),
        ..Default::default()
    }
}

fn invalid(message: String) -> Refusal {
    Refusal::new(ErrorCode::InvalidRequest, message)
}

/// The entity that a request names, as the image knows it.
fn entity_of(parts: &[EntityData]) -> Result<QuotaEntity, Refusal> {
    let mut entity = QuotaEntity::with_capacity(parts.len());
    for part in parts {
        let kind = part.entity_type.as_str();
        if ![USER, CLIENT_ID, IP].contains(&kind) {
            return Err(invalid(format!("Unhandled client quota entity type: {kind}")));
        }
        if part.entity_name.as_ref().is_some_and(|name| name.is_empty()) {
            return Err(invalid(format!("Empty {kind} not supported")));
        }
        if entity.iter().any(|(known, _)| *known == part.entity_type) {
            return Err(invalid(format!("Invalid client quota entity, duplicate entity entry {kind}")));
        }
        entity.push((part.entity_type.clone(), part.entity_name.clone()));
    }
    entity.sort();
    match entity.as_slice() {
        [] => Err(invalid("Invalid empty client quota entity".to_owned())),
        [_, _, ..] if entity.iter().any(|(kind, _)| kind == IP) => Err(invalid(
            "Invalid quota entity combination, IP entity should not be combined with User or ClientId".to_owned(),
        )),
        _ => Ok(entity),
    }
}

fn alter_one(plan: &mut Plan<'_>, entry: &EntryData, entity: &QuotaEntity) -> Result<(), Refusal> {
    for (at, operation) in entry.ops.iter().enumerate() {
        let key = &operation.key;
        if entry.ops[..at].iter().any(|other| other.key == *key) {
            return Err(invalid(format!("Duplicate quota key {key} not updating quota for this entity")));
        }
        if !operation.remove {
            return Err(Refusal::new(
                ErrorCode::UnsupportedVersion,
                format!(
                    "{key} cannot be set: client quotas are not enforced yet. Quotas that there are can be removed."
                ),
            ));
        }
        if plan.image.client_quotas().get(entity, key).is_none() {
            continue;
        }
        let parts = entity.iter().map(|(entity_type, entity_name)| client_quota_record::EntityData {
            entity_type: entity_type.compact(),
            entity_name: entity_name.as_ref().map(KString::compact),
            ..Default::default()
        });
        plan.push(MetadataRecord::ClientQuota(ClientQuotaRecord {
            entity: parts.collect(),
            key: key.compact(),
            remove: true,
            ..Default::default()
        }));
    }
    Ok(())
}
