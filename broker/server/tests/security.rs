//! What is not served of Kafka's security is refused as by an Apache Kafka that is not configured for it, on both kinds of listeners.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use gregor_messages::{
    AlterClientQuotasRequest, AlterUserScramCredentialsRequest, CreateAclsRequest, CreateDelegationTokenRequest,
    DeleteAclsRequest, DescribeAclsRequest, DescribeClientQuotasRequest, DescribeDelegationTokenRequest,
    DescribeUserScramCredentialsRequest, ExpireDelegationTokenRequest, RenewDelegationTokenRequest, Request,
    SaslAuthenticateRequest, SaslHandshakeRequest,
    alter_client_quotas_request::{EntityData, EntryData, OpData},
    alter_user_scram_credentials_request::ScramCredentialUpsertion,
    create_acls_request::AclCreation,
    delete_acls_request::DeleteAclsFilter,
};
use gregor_types::ErrorCode;
use support::{Client, Home, error};

/// The answer in each version that there is; they have to say the same.
fn in_every_version<R: Request, T: PartialEq + std::fmt::Debug>(
    client: &mut Client,
    request: &R,
    show: impl Fn(R::Response) -> T,
) -> T {
    let answers: Vec<T> = R::VERSIONS.map(|version| show(client.call(version, request))).collect();
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    answers.into_iter().next().unwrap()
}

#[test]
fn what_is_not_served_says_so_on_both_kinds_of_listeners() {
    let home = Home::new();
    let node = home.start();
    for listener in ["PLAINTEXT", "CONTROLLER"] {
        let mut client = Client::connect(node.address_of(listener));
        let client = &mut client;
        let disabled = (ErrorCode::SecurityDisabled, 1);
        let shown = in_every_version(client, &DescribeAclsRequest::default(), |answer| {
            (error(answer.error_code), answer.error_message.unwrap().to_string())
        });
        assert_eq!(shown.0, ErrorCode::SecurityDisabled, "{listener}: {}", shown.1);
        let creation = AclCreation { resource_type: 2, resource_name: "t".into(), ..Default::default() };
        let create = CreateAclsRequest { creations: vec![creation], ..Default::default() };
        let created =
            in_every_version(client, &create, |answer| (error(answer.results[0].error_code), answer.results.len()));
        assert_eq!(created, disabled);
        let delete = DeleteAclsRequest { filters: vec![DeleteAclsFilter::default()], ..Default::default() };
        let deleted = in_every_version(client, &delete, |answer| {
            (error(answer.filter_results[0].error_code), answer.filter_results.len())
        });
        assert_eq!(deleted, disabled);

        let not_allowed = ErrorCode::DelegationTokenRequestNotAllowed;
        let created = in_every_version(client, &CreateDelegationTokenRequest::default(), |answer| {
            (error(answer.error_code), answer.principal_name.to_string())
        });
        assert_eq!(created, (not_allowed, "ANONYMOUS".to_owned()));
        let renew = RenewDelegationTokenRequest::default();
        assert_eq!(in_every_version(client, &renew, |answer| error(answer.error_code)), not_allowed);
        let expire = ExpireDelegationTokenRequest::default();
        assert_eq!(in_every_version(client, &expire, |answer| error(answer.error_code)), not_allowed);
        let describe = DescribeDelegationTokenRequest::default();
        assert_eq!(in_every_version(client, &describe, |answer| error(answer.error_code)), not_allowed);

        let handshake = SaslHandshakeRequest { mechanism: "PLAIN".into(), ..Default::default() };
        let shaken = in_every_version(client, &handshake, |answer| (error(answer.error_code), answer.mechanisms.len()));
        assert_eq!(shaken, (ErrorCode::IllegalSaslState, 0));
        let authenticate = SaslAuthenticateRequest::default();
        let authenticated = in_every_version(client, &authenticate, |answer| error(answer.error_code));
        assert_eq!(authenticated, ErrorCode::IllegalSaslState);
    }
    node.stop();
}

#[test]
fn quotas_and_credentials_are_described_and_not_taken() {
    let home = Home::new();
    let node = home.start();
    let part = EntityData { entity_type: "user".into(), entity_name: Some("alice".into()), ..Default::default() };
    let operation = OpData { key: "producer_byte_rate".into(), value: 1.0, ..Default::default() };
    let entry = EntryData { entity: vec![part], ops: vec![operation], ..Default::default() };
    let quotas = AlterClientQuotasRequest { entries: vec![entry], ..Default::default() };
    let upsertion =
        ScramCredentialUpsertion { name: "alice".into(), mechanism: 1, iterations: 4_096, ..Default::default() };
    let credentials = AlterUserScramCredentialsRequest { upsertions: vec![upsertion], ..Default::default() };
    for listener in ["PLAINTEXT", "CONTROLLER"] {
        let mut client = Client::connect(node.address_of(listener));
        let altered = in_every_version(&mut client, &quotas, |answer| error(answer.entries[0].error_code));
        assert_eq!(altered, ErrorCode::UnsupportedVersion, "{listener}");
        let altered = in_every_version(&mut client, &credentials, |answer| error(answer.results[0].error_code));
        assert_eq!(altered, ErrorCode::UnsupportedSaslMechanism, "{listener}");
        let described = in_every_version(&mut client, &DescribeUserScramCredentialsRequest::default(), |answer| {
            (error(answer.error_code), answer.results.len())
        });
        assert_eq!(described, (ErrorCode::None, 0), "{listener}");
    }
    let described = in_every_version(&mut node.client(), &DescribeClientQuotasRequest::default(), |answer| {
        (error(answer.error_code), answer.entries.map(|entries| entries.len()))
    });
    assert_eq!(described, (ErrorCode::None, Some(0)));
    node.stop();
}
