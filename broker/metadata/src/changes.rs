//! What a run of records changed, for those who act on it: a broker's partitions, its configuration, its caches.
//!
//! A change names a thing and never holds its new value, which is in the image: applying the same record twice, or two records to one
//! thing, leaves one entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use gregor_types::{BrokerId, PartitionIndex, TopicId};

use crate::{ConfigResource, Image, Topic};

/// What one record changed; [`Changes`] collects them.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Nothing that anybody looks at.
    Nothing,
    /// A finalized feature level.
    Features,
    /// A broker registered, changed or went.
    Broker(BrokerId),
    /// A controller registered or went.
    Controller(BrokerId),
    /// A topic was created.
    TopicCreated(TopicId),
    /// A topic was deleted, with its configuration; this is what it was.
    TopicDeleted(Arc<Topic>),
    /// Partitions were created or changed.
    Partitions(Vec<(TopicId, PartitionIndex)>),
    /// A configuration value was set or removed.
    Config(ConfigResource),
    /// A client quota.
    ClientQuotas,
    /// The next producer id.
    ProducerIds,
    /// Access control entries.
    Acls,
    /// SCRAM credentials.
    ScramCredentials,
    /// Delegation tokens.
    DelegationTokens,
    /// A metadata transaction began: what follows counts only when it ends.
    TransactionBegan,
    /// The transaction ended well.
    TransactionEnded,
    /// The transaction was given up: the image is what it was when it began.
    TransactionAborted,
}

/// What changed between two images.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Changes {
    /// Whether a finalized feature level changed.
    pub features: bool,
    /// Brokers that registered, changed or went.
    pub brokers: BTreeSet<BrokerId>,
    /// Controllers that registered or went.
    pub controllers: BTreeSet<BrokerId>,
    /// Topics that are new.
    pub topics_created: BTreeSet<TopicId>,
    /// Topics that are gone, as they were.
    pub topics_deleted: BTreeMap<TopicId, Arc<Topic>>,
    /// Partitions that are new or changed; those of deleted topics are not among them.
    pub partitions: BTreeSet<(TopicId, PartitionIndex)>,
    /// Resources whose configuration changed; deleted topics are not among them.
    pub configs: BTreeSet<ConfigResource>,
    /// Whether a client quota changed.
    pub client_quotas: bool,
    /// Whether the next producer id changed.
    pub producer_ids: bool,
    /// Whether an access control entry changed.
    pub acls: bool,
    /// Whether a SCRAM credential changed.
    pub scram_credentials: bool,
    /// Whether a delegation token changed.
    pub delegation_tokens: bool,
    before_transaction: Option<Box<Self>>,
}

impl Changes {
    /// Adds what one record changed.
    pub fn add(&mut self, change: Change) {
        match change {
            Change::Nothing => {}
            Change::Features => self.features = true,
            Change::Broker(id) => {
                self.brokers.insert(id);
            }
            Change::Controller(id) => {
                self.controllers.insert(id);
            }
            Change::TopicCreated(id) => {
                self.topics_created.insert(id);
            }
            Change::TopicDeleted(topic) => self.delete_topic(topic),
            Change::Partitions(partitions) => self.partitions.extend(partitions),
            Change::Config(resource) => {
                self.configs.insert(resource);
            }
            Change::ClientQuotas => self.client_quotas = true,
            Change::ProducerIds => self.producer_ids = true,
            Change::Acls => self.acls = true,
            Change::ScramCredentials => self.scram_credentials = true,
            Change::DelegationTokens => self.delegation_tokens = true,
            Change::TransactionBegan => self.before_transaction = Some(Box::new(self.clone())),
            Change::TransactionEnded => self.before_transaction = None,
            Change::TransactionAborted => {
                if let Some(before) = self.before_transaction.take() {
                    *self = *before;
                }
            }
        }
    }

    /// What changed from one image to another, by comparing all of them: for an image that was loaded from a snapshot.
    pub fn between(old: &Image, new: &Image) -> Self {
        let mut changes = Self {
            features: old.features != new.features,
            client_quotas: old.client_quotas != new.client_quotas,
            producer_ids: old.next_producer_id != new.next_producer_id,
            acls: old.acls != new.acls,
            scram_credentials: old.scram_credentials != new.scram_credentials,
            delegation_tokens: old.delegation_tokens != new.delegation_tokens,
            ..Self::default()
        };
        for broker in old.cluster.brokers().chain(new.cluster.brokers()) {
            if old.cluster.broker(broker.id) != new.cluster.broker(broker.id) {
                changes.brokers.insert(broker.id);
            }
        }
        for controller in old.cluster.controllers().chain(new.cluster.controllers()) {
            if old.cluster.controller(controller.id) != new.cluster.controller(controller.id) {
                changes.controllers.insert(controller.id);
            }
        }
        for topic in old.topics.iter() {
            if new.topics.by_id(topic.id).is_none() {
                changes.topics_deleted.insert(topic.id, topic.clone());
            }
        }
        for topic in new.topics.iter() {
            let before = old.topics.by_id(topic.id);
            if before.is_none() {
                changes.topics_created.insert(topic.id);
            }
            for (index, partition) in topic.partitions() {
                if before.and_then(|before| before.partition(index)) != Some(partition) {
                    changes.partitions.insert((topic.id, index));
                }
            }
        }
        for resource in old.configs.resources().chain(new.configs.resources()) {
            if !old.configs.of(resource).eq(new.configs.of(resource)) {
                changes.configs.insert(resource.clone());
            }
        }
        for topic in changes.topics_deleted.values() {
            if new.topics.by_name(&topic.name).is_none() {
                changes.configs.remove(&ConfigResource::topic(topic.name.clone()));
            }
        }
        changes
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn delete_topic(&mut self, topic: Arc<Topic>) {
        let first = (topic.id, PartitionIndex(i32::MIN));
        let last = (topic.id, PartitionIndex(i32::MAX));
        let partitions: Vec<_> = self.partitions.range(first..=last).copied().collect();
        for partition in partitions {
            self.partitions.remove(&partition);
        }
        self.configs.remove(&ConfigResource::topic(topic.name.clone()));
        // A topic that came and went since the last image never was, as far as a listener can see.
        if !self.topics_created.remove(&topic.id) {
            self.topics_deleted.insert(topic.id, topic);
        }
    }
}
