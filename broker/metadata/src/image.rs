//! The image itself: everything that the metadata log says, at one of its offsets.

use std::{ops::Deref, sync::Arc};

use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{BrokerEpoch, BrokerId, KString, LeaderEpoch, Offset, PartitionIndex, ProducerId, TopicId, Uuid};

use crate::{
    Acls, Change, ClientQuotas, Cluster, ConfigResource, Configs, DelegationTokens, Features, KRAFT_VERSION_FEATURE,
    ScramCredentials, Topics,
};

/// All metadata of a cluster. Cloning costs a few reference counts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Image {
    pub(crate) features: Features,
    pub(crate) cluster: Cluster,
    pub(crate) topics: Topics,
    pub(crate) configs: Configs,
    pub(crate) client_quotas: ClientQuotas,
    pub(crate) next_producer_id: Option<ProducerId>,
    pub(crate) acls: Acls,
    pub(crate) scram_credentials: ScramCredentials,
    pub(crate) delegation_tokens: DelegationTokens,
    /// What this image was when the open metadata transaction began.
    before_transaction: Option<Arc<Self>>,
}

/// Where in the metadata log an image stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataPosition {
    /// The offset of the last record in it; -1 before the first.
    pub last_offset: Offset,
    /// The leader epoch of that record.
    pub epoch: LeaderEpoch,
}

/// A committed image and where it stands, as a node publishes it to its own parts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MetadataImage {
    /// The metadata.
    pub image: Image,
    /// Where it stands.
    pub position: MetadataPosition,
    /// The finalized `kraft.version`, which a control record of the quorum says and no metadata record.
    pub kraft_version: i16,
}

impl MetadataImage {
    /// Every finalized feature with its level, `kraft.version` too.
    pub fn finalized_features(&self) -> impl Iterator<Item = (&str, i16)> {
        let quorum = (self.kraft_version > 0).then_some((KRAFT_VERSION_FEATURE, self.kraft_version));
        self.image.features.iter().chain(quorum)
    }
}

/// A record that does not fit what came before it: the log is corrupt, or was written by a version that we do not know.
/// A node that meets one cannot trust its image any more and has to stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// `metadata.version` is finalized at a level of the future, or of the far past.
    #[error("metadata.version {0} is not one that this program reads: it reads 7 (3.3-IV3) to 33 (4.4-IV2)")]
    UnknownMetadataVersion(i16),
    /// A record about a topic id that does not exist.
    #[error("no topic has the id {0}")]
    UnknownTopic(TopicId),
    /// A record about a topic name that does not exist.
    #[error("no topic has the name {0:?}")]
    UnknownTopicName(KString),
    /// A second topic of one name.
    #[error("the topic {0:?} exists already")]
    TopicExists(KString),
    /// A second topic of one id.
    #[error("the topic id {0} is taken already")]
    TopicIdTaken(TopicId),
    /// A change of a partition that does not exist.
    #[error("the topic {topic} has no partition {index}")]
    UnknownPartition {
        /// The topic.
        topic: TopicId,
        /// The partition that it does not have.
        index: PartitionIndex,
    },
    /// A partition must name one directory per replica.
    #[error("{directories} directories for {replicas} replicas")]
    DirectoriesMismatch {
        /// How many directories the record has.
        directories: usize,
        /// How many replicas the partition has.
        replicas: usize,
    },
    /// A change of a broker that is not registered.
    #[error("broker {0} is not registered")]
    UnknownBroker(BrokerId),
    /// A change meant for another incarnation of a broker.
    #[error("broker {id} is registered with epoch {registered}, and the record is about epoch {record}")]
    OtherBrokerEpoch {
        /// The broker.
        id: BrokerId,
        /// The epoch of its registration.
        registered: BrokerEpoch,
        /// The epoch in the record.
        record: BrokerEpoch,
    },
    /// A record about a controller that is not registered.
    #[error("controller {0} is not registered")]
    UnknownController(BrokerId),
    /// A value that is not defined for a field.
    #[error("the field {field} cannot be {value}")]
    UnknownChange {
        /// The field, as Kafka's schema names it.
        field: &'static str,
        /// The value.
        value: i8,
    },
    /// A quota for the same entity type twice.
    #[error("a quota's entity names a type twice")]
    AmbiguousQuotaEntity,
    /// The removal of an access control entry that does not exist.
    #[error("no access control entry has the id {0}")]
    UnknownAcl(Uuid),
    /// A transaction in a transaction.
    #[error("a metadata transaction begins inside another")]
    TransactionOpen,
    /// The end of a transaction that never began.
    #[error("a metadata transaction ends that never began")]
    NoTransaction,
}

impl MetadataPosition {
    /// Before the first record.
    pub const START: Self = Self { last_offset: Offset::NONE, epoch: LeaderEpoch::NONE };
}

impl Default for MetadataPosition {
    fn default() -> Self {
        Self::START
    }
}

impl Deref for MetadataImage {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}

impl Image {
    /// Changes this image as a record of the metadata log says, and says what changed. On an error the image is as it was.
    pub fn apply(&mut self, record: &MetadataRecord) -> Result<Change, ApplyError> {
        Ok(match record {
            MetadataRecord::FeatureLevel(record) => {
                self.features.apply(record)?;
                Change::Features
            }
            MetadataRecord::RegisterBroker(record) => {
                self.cluster.register_broker(record);
                Change::Broker(BrokerId(record.broker_id))
            }
            MetadataRecord::UnregisterBroker(record) => {
                self.cluster.unregister_broker(record)?;
                Change::Broker(BrokerId(record.broker_id))
            }
            MetadataRecord::BrokerRegistrationChange(record) => {
                self.cluster.change_broker(record)?;
                Change::Broker(BrokerId(record.broker_id))
            }
            MetadataRecord::FenceBroker(record) => {
                self.cluster.set_fenced(BrokerId(record.id), BrokerEpoch(record.epoch), true)?;
                Change::Broker(BrokerId(record.id))
            }
            MetadataRecord::UnfenceBroker(record) => {
                self.cluster.set_fenced(BrokerId(record.id), BrokerEpoch(record.epoch), false)?;
                Change::Broker(BrokerId(record.id))
            }
            MetadataRecord::RegisterController(record) => {
                self.cluster.register_controller(record);
                Change::Controller(BrokerId(record.controller_id))
            }
            MetadataRecord::UnregisterController(record) => {
                let id = BrokerId(record.controller_id);
                self.cluster.unregister_controller(id)?;
                Change::Controller(id)
            }
            MetadataRecord::Topic(record) => {
                self.topics.create(record)?;
                Change::TopicCreated(record.topic_id)
            }
            MetadataRecord::Partition(record) => {
                self.topics.create_partition(record)?;
                Change::Partitions(vec![(record.topic_id, PartitionIndex(record.partition_id))])
            }
            MetadataRecord::PartitionChange(record) => {
                self.topics.change_partition(record)?;
                Change::Partitions(vec![(record.topic_id, PartitionIndex(record.partition_id))])
            }
            MetadataRecord::RemoveTopic(record) => {
                let topic = self.topics.remove(record.topic_id)?;
                self.configs.remove(&ConfigResource::topic(topic.name.clone()));
                Change::TopicDeleted(topic)
            }
            MetadataRecord::ClearElr(record) => Change::Partitions(self.topics.clear_elr(&record.topic_name)?),
            MetadataRecord::Config(record) => Change::Config(self.configs.apply(record)),
            MetadataRecord::ClientQuota(record) => {
                self.client_quotas.apply(record)?;
                Change::ClientQuotas
            }
            MetadataRecord::ProducerIds(record) => {
                self.next_producer_id = Some(ProducerId(record.next_producer_id));
                Change::ProducerIds
            }
            MetadataRecord::AccessControlEntry(record) => {
                self.acls.add(record);
                Change::Acls
            }
            MetadataRecord::RemoveAccessControlEntry(record) => {
                self.acls.remove(record.id)?;
                Change::Acls
            }
            MetadataRecord::UserScramCredential(record) => {
                self.scram_credentials.put(record);
                Change::ScramCredentials
            }
            MetadataRecord::RemoveUserScramCredential(record) => {
                self.scram_credentials.remove(record.mechanism, &record.name);
                Change::ScramCredentials
            }
            MetadataRecord::DelegationToken(record) => {
                self.delegation_tokens.put(record);
                Change::DelegationTokens
            }
            MetadataRecord::RemoveDelegationToken(record) => {
                self.delegation_tokens.remove(&record.token_id);
                Change::DelegationTokens
            }
            MetadataRecord::BeginTransaction(_) => {
                if self.before_transaction.is_some() {
                    return Err(ApplyError::TransactionOpen);
                }
                self.before_transaction = Some(Arc::new(self.clone()));
                Change::TransactionBegan
            }
            MetadataRecord::EndTransaction(_) => {
                self.before_transaction.take().ok_or(ApplyError::NoTransaction)?;
                Change::TransactionEnded
            }
            MetadataRecord::AbortTransaction(_) => {
                let before = self.before_transaction.take().ok_or(ApplyError::NoTransaction)?;
                *self = Self::clone(&before);
                Change::TransactionAborted
            }
            // Kafka 4 replays both without an effect.
            MetadataRecord::NoOp(_) | MetadataRecord::ZkMigrationState(_) => Change::Nothing,
        })
    }

    /// Whether a metadata transaction is open: then this image must not be shown to anybody (KIP-866).
    pub const fn in_transaction(&self) -> bool {
        self.before_transaction.is_some()
    }

    /// The image to show: this one, or while a transaction is open the one from before it.
    pub fn visible(&self) -> &Self {
        self.before_transaction.as_deref().unwrap_or(self)
    }

    /// The finalized features.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// Brokers and controllers.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Topics and partitions.
    pub const fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Dynamic configuration.
    pub const fn configs(&self) -> &Configs {
        &self.configs
    }

    /// Client quotas.
    pub const fn client_quotas(&self) -> &ClientQuotas {
        &self.client_quotas
    }

    /// The first producer id that was never handed out; `None` before the first block.
    pub const fn next_producer_id(&self) -> Option<ProducerId> {
        self.next_producer_id
    }

    /// Access control entries.
    pub const fn acls(&self) -> &Acls {
        &self.acls
    }

    /// SCRAM credentials.
    pub const fn scram_credentials(&self) -> &ScramCredentials {
        &self.scram_credentials
    }

    /// Delegation tokens.
    pub const fn delegation_tokens(&self) -> &DelegationTokens {
        &self.delegation_tokens
    }
}
