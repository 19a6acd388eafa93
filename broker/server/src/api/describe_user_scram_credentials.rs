//! DescribeUserScramCredentials (KIP-554): which users have credentials in the metadata (`ScramImage.describe`). SASL is not served yet.

use std::collections::BTreeMap;

use gregor_messages::{
    DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
    describe_user_scram_credentials_request::UserName,
    describe_user_scram_credentials_response::{CredentialInfo, DescribeUserScramCredentialsResult},
};
use gregor_metadata::ScramCredentials;
use gregor_types::{ErrorCode, KString};

use super::Context;

/// Answers from the newest image.
pub(crate) async fn handle(
    context: &Context,
    request: DescribeUserScramCredentialsRequest,
    _version: i16,
) -> DescribeUserScramCredentialsResponse {
    let wanted = request.users.unwrap_or_default();
    let results = described(context.broker.image().scram_credentials(), &wanted);
    DescribeUserScramCredentialsResponse { results, ..Default::default() }
}

/// The users that are named, or all where none is. Keys and salts are nobody's business.
fn described(credentials: &ScramCredentials, wanted: &[UserName]) -> Vec<DescribeUserScramCredentialsResult> {
    let mut known = BTreeMap::<&KString, Vec<CredentialInfo>>::new();
    for credential in credentials.iter() {
        let info =
            CredentialInfo { mechanism: credential.mechanism, iterations: credential.iterations, ..Default::default() };
        known.entry(&credential.name).or_default().push(info);
    }
    let found = |user: &KString, credential_infos| DescribeUserScramCredentialsResult {
        user: user.clone(),
        credential_infos,
        ..Default::default()
    };
    if wanted.is_empty() {
        return known.into_iter().map(|(user, infos)| found(user, infos)).collect();
    }
    let mut times = BTreeMap::<&KString, usize>::new();
    for user in wanted {
        *times.entry(&user.name).or_default() += 1;
    }
    let refused = |user: &KString, error: ErrorCode, message: String| DescribeUserScramCredentialsResult {
        user: user.clone(),
        error_code: error.code(),
        error_message: Some(message.into()),
        ..Default::default()
    };
    let answer = |(user, times): (&KString, usize)| match known.get(user) {
        _ if times > 1 => refused(
            user,
            ErrorCode::DuplicateResource,
            format!("Cannot describe SCRAM credentials for the same user twice in a single request: {user}"),
        ),
        Some(infos) => found(user, infos.clone()),
        None => refused(
            user,
            ErrorCode::ResourceNotFound,
            format!("Attempt to describe a user credential that does not exist: {user}"),
        ),
    };
    times.into_iter().map(answer).collect()
}

#[cfg(test)]
mod tests {
    use gregor_metadata::Image;
    use gregor_state_records::metadata::{MetadataRecord, UserScramCredentialRecord};

    use super::*;

    /// A user, the error, and mechanisms with their iterations.
    type Described = (String, i16, Vec<(i8, i32)>);

    fn described_of(users: &[&str]) -> Vec<Described> {
        let mut image = Image::default();
        for (name, mechanism, iterations) in [("alice", 2, 8_192), ("alice", 1, 4_096), ("bob", 1, 5_000)] {
            let record = UserScramCredentialRecord { name: name.into(), mechanism, iterations, ..Default::default() };
            image.apply(&MetadataRecord::UserScramCredential(record)).unwrap();
        }
        let users: Vec<_> = users.iter().map(|name| UserName { name: (*name).into(), ..Default::default() }).collect();
        let results = described(image.scram_credentials(), &users).into_iter();
        let infos = |result: &DescribeUserScramCredentialsResult| {
            result.credential_infos.iter().map(|info| (info.mechanism, info.iterations)).collect()
        };
        results.map(|result| (result.user.to_string(), result.error_code, infos(&result))).collect()
    }

    #[test]
    fn users_are_shown_with_their_mechanisms_and_those_that_are_not_there_are_named() {
        let alice = ("alice".to_owned(), 0, vec![(1, 4_096), (2, 8_192)]);
        let bob = ("bob".to_owned(), 0, vec![(1, 5_000)]);
        assert_eq!(described_of(&[]), [alice.clone(), bob.clone()]);
        assert_eq!(described_of(&["bob"]), [bob]);
        let nobody = ("nobody".to_owned(), ErrorCode::ResourceNotFound.code(), vec![]);
        let twice = ("bob".to_owned(), ErrorCode::DuplicateResource.code(), vec![]);
        assert_eq!(described_of(&["nobody", "alice", "bob", "bob"]), [alice, twice, nobody]);
    }
}
