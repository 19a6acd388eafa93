//! One decision in the making: records that fit one another, over the image as they leave it.

use std::sync::Arc;

use gregor_metadata::{BrokerRegistration, Image, MetadataVersion, VersionedRecord};
use gregor_state_records::metadata::{BeginTransactionRecord, EndTransactionRecord, MetadataRecord};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, KString, Offset};

use crate::{ControllerConfig, MAX_BYTES_PER_BATCH, MAX_RECORDS_PER_BATCH, Nanos, Refusal};

/// The image as a decision leaves it, and the records that made it so.
pub(crate) type Decided = (Image, Vec<VersionedRecord>);

/// What a decision is made from.
pub(crate) struct Base<'a> {
    pub(crate) image: &'a Image,
    pub(crate) config: &'a ControllerConfig,
    pub(crate) offset: Offset,
    pub(crate) now: Nanos,
}

impl Base<'_> {
    /// Decides. What does not fit one batch is decided once more as a metadata transaction (KIP-868), so that it all counts or nothing
    /// does, wherever this leader's log ends; `decide` comes to the same whenever it is asked.
    pub(crate) fn plan<T>(
        &self,
        random: &mut dyn FnMut() -> u64,
        mut decide: impl FnMut(&mut Plan<'_>) -> T,
    ) -> (T, Decided) {
        let mut plan = Plan::new(self.image.clone(), self.config, self.offset, self.now, random);
        let result = decide(&mut plan);
        if plan.fits_one_batch() || !self.image.features().metadata_version().has_transactions() {
            return (result, plan.finish());
        }
        let mut plan = Plan::new(self.image.clone(), self.config, self.offset, self.now, random);
        plan.push(MetadataRecord::BeginTransaction(BeginTransactionRecord::default()));
        let result = decide(&mut plan);
        plan.push(MetadataRecord::EndTransaction(EndTransactionRecord::default()));
        (result, plan.finish())
    }
}

/// What a decision is made from, and what it has come to so far. Dropping one undoes it: nothing else has seen its records.
pub(crate) struct Plan<'a> {
    pub(crate) image: Image,
    pub(crate) config: &'a ControllerConfig,
    pub(crate) now: Nanos,
    pub(crate) random: &'a mut dyn FnMut() -> u64,
    base: Offset,
    records: Vec<VersionedRecord>,
    /// At least as many bytes as the records take.
    bytes: usize,
}

/// A point in a plan to go back to.
pub(crate) struct Mark {
    image: Image,
    records: usize,
    bytes: usize,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(
        image: Image,
        config: &'a ControllerConfig,
        base: Offset,
        now: Nanos,
        random: &'a mut dyn FnMut() -> u64,
    ) -> Self {
        Self { image, config, now, random, base, records: Vec::new(), bytes: 0 }
    }

    /// The finalized `metadata.version`.
    pub(crate) fn version(&self) -> MetadataVersion {
        self.image.features().metadata_version()
    }

    /// The offset at which the next record will land.
    pub(crate) fn next_offset(&self) -> Offset {
        self.base.plus(self.records.len() as i64)
    }

    /// The registration of a broker that says which incarnation it is.
    pub(crate) fn registered(&self, id: BrokerId, epoch: BrokerEpoch) -> Result<Arc<BrokerRegistration>, Refusal> {
        let broker = self.image.cluster().broker(id).ok_or_else(|| {
            Refusal::new(ErrorCode::StaleBrokerEpoch, format!("No broker registration found for broker id {id}"))
        })?;
        if broker.epoch != epoch {
            return Err(Refusal::new(
                ErrorCode::StaleBrokerEpoch,
                format!("Expected broker epoch {}, but got broker epoch {epoch}", broker.epoch),
            ));
        }
        Ok(Arc::clone(broker))
    }

    /// Adds a record. It must fit the image: a controller that contradicts itself must not write.
    pub(crate) fn push(&mut self, record: MetadataRecord) {
        self.push_at(self.version(), record);
    }

    /// Adds a record of a new cluster, whose level is not finalized yet.
    pub(crate) fn push_at(&mut self, level: MetadataVersion, record: MetadataRecord) {
        self.image.apply(&record).expect("a decision's records fit the image that it was made from");
        let record =
            VersionedRecord::at(level, record).expect("decisions ask what the finalized level knows before they write");
        self.bytes += size_bound(&record.record);
        self.records.push(record);
    }

    /// Remembers this point.
    pub(crate) fn mark(&self) -> Mark {
        Mark { image: self.image.clone(), records: self.records.len(), bytes: self.bytes }
    }

    /// Keeps what came since a point if it is good and the whole plan still fits one batch; else goes back. For what a user asks:
    /// all of it happens, or nothing.
    pub(crate) fn keep<T>(&mut self, mark: Mark, result: Result<T, Refusal>) -> Result<T, Refusal> {
        let result = match result {
            Ok(_) if !self.fits_one_batch() => Err(too_large()),
            result => result,
        };
        if result.is_err() {
            self.undo(mark);
        }
        result
    }

    fn fits_one_batch(&self) -> bool {
        self.records.len() <= MAX_RECORDS_PER_BATCH && self.bytes <= MAX_BYTES_PER_BATCH
    }

    /// The same for what must happen however much it is, such as fencing a broker that leads more partitions than one batch holds:
    /// it is appended in several batches, and only a record that fits none is refused.
    pub(crate) fn keep_any<T>(&mut self, mark: Mark, result: Result<T, Refusal>) -> Result<T, Refusal> {
        let fits = self.records[mark.records..].iter().all(|record| size_bound(&record.record) <= MAX_BYTES_PER_BATCH);
        let result = match result {
            Ok(_) if !fits => Err(too_large()),
            result => result,
        };
        if result.is_err() {
            self.undo(mark);
        }
        result
    }

    /// Undoes everything since a point, as for a request that only asks whether it would work.
    pub(crate) fn undo(&mut self, mark: Mark) {
        self.records.truncate(mark.records);
        self.bytes = mark.bytes;
        self.image = mark.image;
    }

    pub(crate) fn finish(self) -> Decided {
        (self.image, self.records)
    }
}

/// Cuts records into batches that the quorum takes.
pub(crate) fn batches(records: Vec<VersionedRecord>) -> Vec<Vec<VersionedRecord>> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut bytes = 0;
    for record in records {
        let size = size_bound(&record.record);
        if batch.len() == MAX_RECORDS_PER_BATCH || (bytes + size > MAX_BYTES_PER_BATCH && !batch.is_empty()) {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += size;
        batch.push(record);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

fn too_large() -> Refusal {
    Refusal::new(ErrorCode::PolicyViolation, "Unable to perform excessively large batch operation.")
}

/// No fewer bytes than the record takes in a batch. What has texts from a request is measured by them.
fn size_bound(record: &MetadataRecord) -> usize {
    const SMALL: usize = 192;
    let endpoint = |name: &KString, host: &KString| 32 + name.len() + host.len();
    SMALL
        + match record {
            MetadataRecord::Config(config) => {
                let value = config.value.as_ref().map_or(0, |value| value.len());
                config.resource_name.len() + config.name.len() + value
            }
            MetadataRecord::RegisterBroker(broker) => {
                let endpoints = broker.end_points.iter().map(|one| endpoint(&one.name, &one.host));
                let features = broker.features.iter().map(|feature| 16 + feature.name.len());
                let rack = broker.rack.as_ref().map_or(0, |rack| rack.len());
                endpoints.sum::<usize>() + features.sum::<usize>() + rack + 16 * broker.log_dirs.len()
            }
            MetadataRecord::RegisterController(controller) => {
                let endpoints = controller.end_points.iter().map(|one| endpoint(&one.name, &one.host));
                let features = controller.features.iter().map(|feature| 16 + feature.name.len());
                endpoints.sum::<usize>() + features.sum::<usize>()
            }
            MetadataRecord::BrokerRegistrationChange(change) => {
                16 * (change.log_dirs.len() + change.cordoned_log_dirs.as_ref().map_or(0, Vec::len))
            }
            MetadataRecord::Topic(topic) => topic.name.len(),
            MetadataRecord::Partition(partition) => 40 * partition.replicas.len(),
            MetadataRecord::PartitionChange(change) => {
                let lists = [
                    &change.isr,
                    &change.replicas,
                    &change.removing_replicas,
                    &change.adding_replicas,
                    &change.eligible_leader_replicas,
                    &change.last_known_elr,
                ];
                let directories = change.directories.as_ref().map_or(0, Vec::len);
                lists.into_iter().flatten().map(|list| 4 * list.len()).sum::<usize>() + 16 * directories
            }
            MetadataRecord::FeatureLevel(feature) => feature.name.len(),
            MetadataRecord::ClientQuota(quota) => {
                let names = quota.entity.iter().map(|part| part.entity_name.as_ref().map_or(0, |name| name.len()));
                quota.key.len() + names.sum::<usize>()
            }
            MetadataRecord::RemoveUserScramCredential(credential) => credential.name.len(),
            _ => 0,
        }
}
