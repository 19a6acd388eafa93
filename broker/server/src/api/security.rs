//! What is asked of an authorizer, of delegation tokens and of SASL, none of which is served: the answers are those of an Apache Kafka
//! that has none of them configured, so that tools and clients say why.

use gregor_messages::{
    CreateAclsRequest, CreateAclsResponse, CreateDelegationTokenRequest, CreateDelegationTokenResponse,
    DeleteAclsRequest, DeleteAclsResponse, DescribeAclsRequest, DescribeAclsResponse, DescribeDelegationTokenRequest,
    DescribeDelegationTokenResponse, ExpireDelegationTokenRequest, ExpireDelegationTokenResponse,
    RenewDelegationTokenRequest, RenewDelegationTokenResponse, SaslAuthenticateRequest, SaslAuthenticateResponse,
    SaslHandshakeRequest, SaslHandshakeResponse, create_acls_response::AclCreationResult,
    delete_acls_response::DeleteAclsFilterResult,
};
use gregor_types::{ErrorCode, KString};

use super::Context;

const NO_AUTHORIZER: &str = "No Authorizer is configured.";
/// Who is known by no certificate (`KafkaPrincipal.ANONYMOUS`).
const ANONYMOUS: &str = "ANONYMOUS";
const USER: &str = "User";
/// The first version that says who asked for a token.
const FIRST_VERSION_WITH_REQUESTER: i16 = 3;
/// What stands for a time where there is no token.
const NO_TIME: i64 = -1;

/// No access control entries are shown.
pub(crate) async fn describe_acls(_: &Context, _: DescribeAclsRequest, _: i16) -> DescribeAclsResponse {
    DescribeAclsResponse {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some("No Authorizer is configured on the broker".into()),
        ..Default::default()
    }
}

/// None is created.
pub(crate) async fn create_acls(_: &Context, request: CreateAclsRequest, _: i16) -> CreateAclsResponse {
    let refused = AclCreationResult {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some(NO_AUTHORIZER.into()),
        ..Default::default()
    };
    CreateAclsResponse { results: vec![refused; request.creations.len()], ..Default::default() }
}

/// None is deleted.
pub(crate) async fn delete_acls(_: &Context, request: DeleteAclsRequest, _: i16) -> DeleteAclsResponse {
    let refused = DeleteAclsFilterResult {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some(NO_AUTHORIZER.into()),
        ..Default::default()
    };
    DeleteAclsResponse { filter_results: vec![refused; request.filters.len()], ..Default::default() }
}

/// Why there are no tokens: for who is not known by a certificate there never are. What a broker forwards it has looked at before.
fn no_tokens(context: &Context) -> ErrorCode {
    let connection = &context.connection;
    if connection.not_controller.is_none() && connection.principal.name() == ANONYMOUS {
        ErrorCode::DelegationTokenRequestNotAllowed
    } else {
        ErrorCode::DelegationTokenAuthDisabled
    }
}

/// No token is created.
pub(crate) async fn create_token(
    context: &Context,
    request: CreateDelegationTokenRequest,
    version: i16,
) -> CreateDelegationTokenResponse {
    let requester = KString::from(context.connection.principal.name());
    let owner = request.owner_principal_name.filter(|name| !name.is_empty());
    let owner_type = request.owner_principal_type.filter(|_| owner.is_some());
    let mut response = CreateDelegationTokenResponse {
        error_code: no_tokens(context).code(),
        principal_type: owner_type.unwrap_or_else(|| USER.into()),
        principal_name: owner.unwrap_or_else(|| requester.clone()),
        issue_timestamp_ms: NO_TIME,
        expiry_timestamp_ms: NO_TIME,
        max_timestamp_ms: NO_TIME,
        ..Default::default()
    };
    if version >= FIRST_VERSION_WITH_REQUESTER {
        response.token_requester_principal_type = USER.into();
        response.token_requester_principal_name = requester;
    }
    response
}

/// No token lives longer.
pub(crate) async fn renew_token(
    context: &Context,
    _: RenewDelegationTokenRequest,
    _: i16,
) -> RenewDelegationTokenResponse {
    let error_code = no_tokens(context).code();
    RenewDelegationTokenResponse { error_code, expiry_timestamp_ms: NO_TIME, ..Default::default() }
}

/// No token ends.
pub(crate) async fn expire_token(
    context: &Context,
    _: ExpireDelegationTokenRequest,
    _: i16,
) -> ExpireDelegationTokenResponse {
    let error_code = no_tokens(context).code();
    ExpireDelegationTokenResponse { error_code, expiry_timestamp_ms: NO_TIME, ..Default::default() }
}

/// No token is shown.
pub(crate) async fn describe_tokens(
    context: &Context,
    _: DescribeDelegationTokenRequest,
    _: i16,
) -> DescribeDelegationTokenResponse {
    DescribeDelegationTokenResponse { error_code: no_tokens(context).code(), ..Default::default() }
}

/// A listener without SASL has nothing to shake hands about: its client is configured for another.
pub(crate) async fn sasl_handshake(_: &Context, _: SaslHandshakeRequest, _: i16) -> SaslHandshakeResponse {
    SaslHandshakeResponse { error_code: ErrorCode::IllegalSaslState.code(), ..Default::default() }
}

/// The same of what would follow.
pub(crate) async fn sasl_authenticate(_: &Context, _: SaslAuthenticateRequest, _: i16) -> SaslAuthenticateResponse {
    SaslAuthenticateResponse {
        error_code: ErrorCode::IllegalSaslState.code(),
        error_message: Some("SaslAuthenticate request received after successful authentication".into()),
        ..Default::default()
    }
}
