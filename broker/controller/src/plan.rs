//! One decision in the making: records that fit one another, over the image as they leave it.

use gregor_metadata::{Image, MetadataVersion, VersionedRecord};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{ErrorCode, Offset};

use crate::{ControllerConfig, MAX_RECORDS_PER_BATCH, Nanos, Refusal};

/// What a decision is made from, and what it has come to so far. Dropping one undoes it: nothing else has seen its records.
pub(crate) struct Plan<'a> {
    pub(crate) image: Image,
    pub(crate) config: &'a ControllerConfig,
    pub(crate) now: Nanos,
    pub(crate) random: &'a mut dyn FnMut() -> u64,
    base: Offset,
    records: Vec<VersionedRecord>,
}

/// A point in a plan to go back to.
pub(crate) struct Mark {
    image: Image,
    records: usize,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(
        image: Image,
        config: &'a ControllerConfig,
        base: Offset,
        now: Nanos,
        random: &'a mut dyn FnMut() -> u64,
    ) -> Self {
        Self { image, config, now, random, base, records: Vec::new() }
    }

    /// The finalized `metadata.version`.
    pub(crate) fn version(&self) -> MetadataVersion {
        self.image.features().metadata_version()
    }

    /// The offset at which the next record will land.
    pub(crate) fn next_offset(&self) -> Offset {
        self.base.plus(self.records.len() as i64)
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
        self.records.push(record);
    }

    /// Remembers this point.
    pub(crate) fn mark(&self) -> Mark {
        Mark { image: self.image.clone(), records: self.records.len() }
    }

    /// Goes back to a point, or, if what came since is good, checks that the plan still fits one batch and goes back if not.
    pub(crate) fn keep<T>(&mut self, mark: Mark, result: Result<T, Refusal>) -> Result<T, Refusal> {
        let result = match result {
            Ok(_) if self.records.len() > MAX_RECORDS_PER_BATCH => {
                Err(Refusal::new(ErrorCode::PolicyViolation, "Unable to perform excessively large batch operation."))
            }
            result => result,
        };
        if result.is_err() {
            self.records.truncate(mark.records);
            self.image = mark.image;
        }
        result
    }

    /// Undoes everything, as for a request that only asks whether it would work.
    pub(crate) fn undo(&mut self, mark: Mark) {
        self.records.truncate(mark.records);
        self.image = mark.image;
    }

    pub(crate) fn finish(self) -> (Image, Vec<VersionedRecord>) {
        (self.image, self.records)
    }
}
