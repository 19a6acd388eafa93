//! SCRAM credentials as users change them (`ScramControlManager`).
//!
//! SASL is not served yet, so no credential is taken in: nothing here would ever look at it. What another Kafka has left in the metadata
//! can be taken out.

use std::collections::BTreeMap;

use gregor_messages::{
    AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse,
    alter_user_scram_credentials_response::AlterUserScramCredentialsResult,
};
use gregor_state_records::metadata::{MetadataRecord, RemoveUserScramCredentialRecord};
use gregor_types::{ErrorCode, KString};

use crate::{
    Refusal,
    plan::Plan,
    refusal::{code_of, text_of},
};

/// SCRAM-SHA-256 and SCRAM-SHA-512.
const MECHANISMS: [i8; 2] = [1, 2];

/// What a request wants for a user.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    Delete,
    Put,
}

/// One answer for each user. Each is changed or not whatever becomes of the others.
pub(crate) fn alter(
    plan: &mut Plan<'_>,
    request: &AlterUserScramCredentialsRequest,
) -> AlterUserScramCredentialsResponse {
    let mut results = Vec::new();
    for (user, wanted) in users(request) {
        let mark = plan.mark();
        let result = match wanted.as_slice() {
            [(wanted, mechanism)] => alter_one(plan, user, *wanted, *mechanism),
            _ => Err(Refusal::new(
                ErrorCode::DuplicateResource,
                "A user credential cannot be altered twice in the same request",
            )),
        };
        let result = plan.keep(mark, result);
        results.push(answer(user, code_of(&result), text_of(&result)));
    }
    AlterUserScramCredentialsResponse { results, ..Default::default() }
}

/// The same refusal for every user of a request.
pub(crate) fn refused(
    request: &AlterUserScramCredentialsRequest,
    refusal: &Refusal,
) -> AlterUserScramCredentialsResponse {
    let results = users(request).into_keys().map(|user| answer(user, refusal.number(), refusal.text()));
    AlterUserScramCredentialsResponse { results: results.collect(), ..Default::default() }
}

/// Every user of a request, with what is wanted and for which mechanism.
fn users(request: &AlterUserScramCredentialsRequest) -> BTreeMap<&KString, Vec<(Wanted, i8)>> {
    let deletions = request.deletions.iter().map(|one| (&one.name, Wanted::Delete, one.mechanism));
    let upsertions = request.upsertions.iter().map(|one| (&one.name, Wanted::Put, one.mechanism));
    let mut users = BTreeMap::<_, Vec<_>>::new();
    for (user, wanted, mechanism) in deletions.chain(upsertions) {
        users.entry(user).or_default().push((wanted, mechanism));
    }
    users
}

fn answer(user: &KString, error_code: i16, error_message: Option<KString>) -> AlterUserScramCredentialsResult {
    AlterUserScramCredentialsResult { user: user.clone(), error_code, error_message, ..Default::default() }
}

fn alter_one(plan: &mut Plan<'_>, user: &KString, wanted: Wanted, mechanism: i8) -> Result<(), Refusal> {
    let record = MetadataRecord::RemoveUserScramCredential(RemoveUserScramCredentialRecord {
        name: user.compact(),
        mechanism,
        ..Default::default()
    });
    let refuse = |code, message: &str| Err(Refusal::new(code, message));
    if plan.version().record_version(&record).is_none() {
        return refuse(ErrorCode::UnsupportedVersion, "The current metadata.version does not support SCRAM");
    }
    if user.is_empty() {
        return refuse(ErrorCode::UnacceptableCredential, "Username must not be empty");
    }
    if !MECHANISMS.contains(&mechanism) {
        return refuse(ErrorCode::UnsupportedSaslMechanism, "Unknown SCRAM mechanism");
    }
    match wanted {
        Wanted::Put => refuse(
            ErrorCode::UnsupportedSaslMechanism,
            "SASL is not served yet, so no credentials are taken for it. Credentials that there are can be deleted.",
        ),
        Wanted::Delete if plan.image.scram_credentials().get(mechanism, user).is_none() => {
            refuse(ErrorCode::ResourceNotFound, "Attempt to delete a user credential that does not exist")
        }
        Wanted::Delete => {
            plan.push(record);
            Ok(())
        }
    }
}
