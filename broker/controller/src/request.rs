//! The requests that the controller decides, their responses, and a refusal of each.

use gregor_messages::{
    AllocateProducerIdsRequest, AllocateProducerIdsResponse, AlterClientQuotasRequest, AlterClientQuotasResponse,
    AlterConfigsRequest, AlterConfigsResponse, AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse,
    AlterPartitionRequest, AlterPartitionResponse, AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse,
    AssignReplicasToDirsRequest, AssignReplicasToDirsResponse, BrokerHeartbeatRequest, BrokerHeartbeatResponse,
    BrokerRegistrationRequest, BrokerRegistrationResponse, ControllerRegistrationRequest,
    ControllerRegistrationResponse, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest,
    CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse, ElectLeadersRequest, ElectLeadersResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsResponse, UnregisterBrokerRequest, UnregisterBrokerResponse, UnregisterControllerRequest,
    UnregisterControllerResponse, UpdateFeaturesRequest, UpdateFeaturesResponse, alter_configs_response,
    create_partitions_response::CreatePartitionsTopicResult, create_topics_response::CreatableTopicResult,
    delete_topics_response::DeletableTopicResult, incremental_alter_configs_response,
};

use crate::{Refusal, credentials, elections, quotas};

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($request:ident -> $response:ident),)*) => {
        /// A request that the controller decides.
        #[derive(Debug, Clone, PartialEq)]
        pub enum ControllerRequest {
            $($(#[$doc])* $name($request),)*
        }

        /// The answer to a [`ControllerRequest`] of the same name.
        #[derive(Debug, Clone, PartialEq)]
        pub enum ControllerResponse {
            $($(#[$doc])* $name($response),)*
        }

        $(
            impl From<$request> for ControllerRequest {
                fn from(request: $request) -> Self {
                    Self::$name(request)
                }
            }

            impl From<$response> for ControllerResponse {
                fn from(response: $response) -> Self {
                    Self::$name(response)
                }
            }

            impl TryFrom<ControllerResponse> for $response {
                type Error = ControllerResponse;

                fn try_from(response: ControllerResponse) -> Result<Self, ControllerResponse> {
                    match response {
                        ControllerResponse::$name(response) => Ok(response),
                        other => Err(other),
                    }
                }
            }
        )*
    };
}

requests! {
    /// Creates topics.
    CreateTopics(CreateTopicsRequest -> CreateTopicsResponse),
    /// Deletes topics, by name or id.
    DeleteTopics(DeleteTopicsRequest -> DeleteTopicsResponse),
    /// Adds partitions to topics.
    CreatePartitions(CreatePartitionsRequest -> CreatePartitionsResponse),
    /// Replaces whole configurations.
    AlterConfigs(AlterConfigsRequest -> AlterConfigsResponse),
    /// Changes single configuration values.
    IncrementalAlterConfigs(IncrementalAlterConfigsRequest -> IncrementalAlterConfigsResponse),
    /// Changes client quotas.
    AlterClientQuotas(AlterClientQuotasRequest -> AlterClientQuotasResponse),
    /// Changes SCRAM credentials.
    AlterUserScramCredentials(AlterUserScramCredentialsRequest -> AlterUserScramCredentialsResponse),
    /// A broker starts.
    BrokerRegistration(BrokerRegistrationRequest -> BrokerRegistrationResponse),
    /// A broker is alive, and says what it wants.
    BrokerHeartbeat(BrokerHeartbeatRequest -> BrokerHeartbeatResponse),
    /// A broker is gone for good.
    UnregisterBroker(UnregisterBrokerRequest -> UnregisterBrokerResponse),
    /// A block of producer ids for a broker.
    AllocateProducerIds(AllocateProducerIdsRequest -> AllocateProducerIdsResponse),
    /// A controller starts (KIP-919).
    ControllerRegistration(ControllerRegistrationRequest -> ControllerRegistrationResponse),
    /// A controller is gone for good (KIP-1312).
    UnregisterController(UnregisterControllerRequest -> UnregisterControllerResponse),
    /// A leader's in-sync replicas changed.
    AlterPartition(AlterPartitionRequest -> AlterPartitionResponse),
    /// A broker says in which directories its replicas are (KIP-858).
    AssignReplicasToDirs(AssignReplicasToDirsRequest -> AssignReplicasToDirsResponse),
    /// Elects preferred or unclean leaders.
    ElectLeaders(ElectLeadersRequest -> ElectLeadersResponse),
    /// Moves partitions between brokers, or ends a move.
    AlterPartitionReassignments(AlterPartitionReassignmentsRequest -> AlterPartitionReassignmentsResponse),
    /// Which partitions are on their way.
    ListPartitionReassignments(ListPartitionReassignmentsRequest -> ListPartitionReassignmentsResponse),
    /// Raises or lowers finalized feature levels.
    UpdateFeatures(UpdateFeaturesRequest -> UpdateFeaturesResponse),
}

impl ControllerRequest {
    /// The response that refuses all of this request for one reason.
    pub fn refused(&self, refusal: &Refusal) -> ControllerResponse {
        let error_code = refusal.number();
        match self {
            Self::CreateTopics(request) => {
                let refuse = |topic: &gregor_messages::create_topics_request::CreatableTopic| CreatableTopicResult {
                    name: topic.name.clone(),
                    error_code,
                    error_message: refusal.text(),
                    ..Default::default()
                };
                let topics = request.topics.iter().map(refuse).collect();
                CreateTopicsResponse { topics, ..Default::default() }.into()
            }
            Self::DeleteTopics(request) => {
                let by_name = request.topic_names.iter().map(|name| DeletableTopicResult {
                    name: Some(name.clone()),
                    error_code,
                    error_message: refusal.text(),
                    ..Default::default()
                });
                let by_state = request.topics.iter().map(|topic| DeletableTopicResult {
                    name: topic.name.clone(),
                    topic_id: topic.topic_id,
                    error_code,
                    error_message: refusal.text(),
                    ..Default::default()
                });
                DeleteTopicsResponse { responses: by_name.chain(by_state).collect(), ..Default::default() }.into()
            }
            Self::CreatePartitions(request) => {
                let results = request.topics.iter().map(|topic| CreatePartitionsTopicResult {
                    name: topic.name.clone(),
                    error_code,
                    error_message: refusal.text(),
                    ..Default::default()
                });
                CreatePartitionsResponse { results: results.collect(), ..Default::default() }.into()
            }
            Self::AlterConfigs(request) => {
                let responses =
                    request.resources.iter().map(|resource| alter_configs_response::AlterConfigsResourceResponse {
                        error_code,
                        error_message: refusal.text(),
                        resource_type: resource.resource_type,
                        resource_name: resource.resource_name.clone(),
                        ..Default::default()
                    });
                AlterConfigsResponse { responses: responses.collect(), ..Default::default() }.into()
            }
            Self::IncrementalAlterConfigs(request) => {
                let responses = request.resources.iter().map(|resource| {
                    incremental_alter_configs_response::AlterConfigsResourceResponse {
                        error_code,
                        error_message: refusal.text(),
                        resource_type: resource.resource_type,
                        resource_name: resource.resource_name.clone(),
                        ..Default::default()
                    }
                });
                IncrementalAlterConfigsResponse { responses: responses.collect(), ..Default::default() }.into()
            }
            Self::AlterClientQuotas(request) => {
                let entries = request.entries.iter().map(|entry| quotas::answer(entry, error_code, refusal.text()));
                AlterClientQuotasResponse { entries: entries.collect(), ..Default::default() }.into()
            }
            Self::AlterUserScramCredentials(request) => credentials::refused(request, refusal).into(),
            Self::BrokerRegistration(_) => BrokerRegistrationResponse { error_code, ..Default::default() }.into(),
            Self::BrokerHeartbeat(_) => BrokerHeartbeatResponse { error_code, ..Default::default() }.into(),
            Self::UnregisterBroker(_) => {
                UnregisterBrokerResponse { error_code, error_message: refusal.text(), ..Default::default() }.into()
            }
            Self::AllocateProducerIds(_) => AllocateProducerIdsResponse { error_code, ..Default::default() }.into(),
            Self::ControllerRegistration(_) => {
                ControllerRegistrationResponse { error_code, error_message: refusal.text(), ..Default::default() }
                    .into()
            }
            Self::UnregisterController(_) => {
                UnregisterControllerResponse { error_code, error_message: refusal.text(), ..Default::default() }.into()
            }
            Self::AlterPartition(_) => AlterPartitionResponse { error_code, ..Default::default() }.into(),
            Self::AssignReplicasToDirs(_) => AssignReplicasToDirsResponse { error_code, ..Default::default() }.into(),
            Self::ElectLeaders(request) => elections::refused(request, refusal).into(),
            Self::AlterPartitionReassignments(_) => {
                AlterPartitionReassignmentsResponse { error_code, error_message: refusal.text(), ..Default::default() }
                    .into()
            }
            Self::UpdateFeatures(_) => {
                UpdateFeaturesResponse { error_code, error_message: refusal.text(), ..Default::default() }.into()
            }
            Self::ListPartitionReassignments(_) => {
                ListPartitionReassignmentsResponse { error_code, error_message: refusal.text(), ..Default::default() }
                    .into()
            }
        }
    }
}
