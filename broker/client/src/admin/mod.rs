//! Administration: one method per thing that an operator of a cluster does.
//!
//! What concerns several things (topics, partitions, groups) answers for each of them; a call fails as a whole only if no broker
//! could be asked.

mod configs;
mod groups;
mod quorum;
mod records;
mod topics;

use gregor_messages::DescribeClusterRequest;
use gregor_types::{BrokerId, ErrorCode, KString};

pub use configs::{AlterOp, ConfigChange, ConfigEntry, ConfigResource, ConfigSource, ResourceKind};
pub(crate) use groups::commit_request;
pub use groups::{GroupDescription, GroupListing, GroupMember};
pub use quorum::{NewVoter, QuorumDescription, QuorumReplica};
pub use records::{ListedOffset, OffsetSpec};
pub use topics::{CreatedTopic, NewPartitions, NewTopic, TopicDescription};

use crate::{BrokerError, Client, ClientError};

/// What each thing of a call came to, by its name.
pub type Outcomes<K, T> = std::collections::BTreeMap<K, Result<T, BrokerError>>;

/// Administrative calls on a client. A clone is the same client.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

/// A cluster and its brokers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDescription {
    /// The cluster's id.
    pub cluster_id: KString,
    /// The broker that administrative requests go to.
    pub controller: Option<BrokerId>,
    /// Its brokers.
    pub nodes: Vec<NodeDescription>,
}

/// A broker of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDescription {
    /// Its `node.id`.
    pub id: BrokerId,
    /// Where it is reached.
    pub host: KString,
    /// The port.
    pub port: i32,
    /// Its rack, if it has one.
    pub rack: Option<KString>,
    /// Whether the controller keeps it from leading; only brokers since 4.0 tell.
    pub fenced: bool,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client underneath.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The cluster's id and brokers, fenced ones included where the broker can tell.
    pub async fn describe_cluster(&self) -> Result<ClusterDescription, ClientError> {
        let wait = self.client.options().request_timeout;
        let build = |version| DescribeClusterRequest { include_fenced_brokers: version >= 2, ..Default::default() };
        let response = self
            .client
            .retry(|| async {
                let (_, response) = self.client.call_any::<DescribeClusterRequest>(0..=2, wait, build).await?;
                let refused = |code| BrokerError::new("cluster", code).with_message(response.error_message.as_deref());
                ErrorCode::from(response.error_code).ok().map_err(refused)?;
                Ok(response)
            })
            .await?;
        let nodes = response.brokers.iter().map(|row| NodeDescription {
            id: BrokerId(row.broker_id),
            host: row.host.compact(),
            port: row.port,
            rack: row.rack.as_ref().map(KString::compact),
            fenced: row.is_fenced,
        });
        Ok(ClusterDescription {
            cluster_id: response.cluster_id.compact(),
            controller: (response.controller_id >= 0).then_some(BrokerId(response.controller_id)),
            nodes: nodes.collect(),
        })
    }

    fn server_wait_ms(&self) -> i32 {
        i32::try_from(self.client.options().request_timeout.as_millis() * 4 / 5).unwrap_or(i32::MAX)
    }
}

/// The outcome of one row of a response.
fn outcome<T>(what: String, code: i16, message: Option<&KString>, value: T) -> Result<T, BrokerError> {
    match ErrorCode::from(code) {
        ErrorCode::None => Ok(value),
        code => Err(BrokerError::new(what, code).with_message(message.map(KString::as_str))),
    }
}

/// The first error of a response, if it says that another broker is the controller: then all of it goes there.
fn first_not_controller(codes: impl IntoIterator<Item = i16>) -> ErrorCode {
    let moved = codes.into_iter().map(ErrorCode::from).find(|code| *code == ErrorCode::NotController);
    moved.unwrap_or(ErrorCode::None)
}
