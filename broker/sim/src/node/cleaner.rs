//! The cleaner of a simulated node: what the server's `cleaner.rs` does on its threads, in steps between which everything else
//! goes on, and at each of which the machine may go off.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use gregor_log::{CleanedSegment, Cleaning, CleaningOptions, CleaningStep, LogError, disk::SyncToken};
use gregor_raft::Nanos;
use gregor_types::{Timestamp, Uuid};

use super::Partition;
use crate::{
    Random,
    clock::{MILLISECOND, SECOND},
    network::Place,
};

/// How long it sleeps when there is nothing to do.
const BACKOFF: Nanos = SECOND / 2;
const STEP_BYTES: u64 = 400;
/// Memory for keys: of a few, or of all.
const MEMORY_BYTES: [usize; 2] = [24 * 8, 1 << 16];

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Cleaner {
    random: Random,
    next: Nanos,
    round: Option<Round>,
    /// Logs that it cannot clean, until the next start.
    uncleanable: BTreeSet<Place>,
}

#[derive(Debug)]
struct Round {
    place: Place,
    topic_id: Uuid,
    cleaning: Cleaning,
    /// A cleaned segment whose names are on their way to the disk.
    swap: Option<(SyncToken, CleanedSegment)>,
}

/// How a step of a round ended.
#[derive(Debug, PartialEq, Eq)]
enum Stepped {
    More,
    /// The log is clean as far as it could be.
    Clean,
    /// The log was changed meanwhile.
    Given,
}

impl Cleaner {
    pub(super) fn new(random: Random, now: Nanos) -> Self {
        Self { random, next: now + BACKOFF, round: None, uncleanable: BTreeSet::new() }
    }

    /// When it goes on.
    pub(super) const fn next_time(&self) -> Nanos {
        self.next
    }

    /// Goes on if it is time; whether a log became cleaner, so that a checkpoint is due.
    pub(super) fn on_time(
        &mut self,
        partitions: &mut BTreeMap<Place, Partition>,
        now: Nanos,
        wall: Timestamp,
    ) -> Result<bool, LogError> {
        if self.next > now {
            return Ok(false);
        }
        self.next = now + self.random.between(MILLISECOND / 10, 30 * MILLISECOND);
        let Some(mut round) = self.round.take() else {
            self.round = self.begin(partitions, wall)?;
            if self.round.is_none() {
                self.next = now + BACKOFF;
            }
            return Ok(false);
        };
        // Of a deleted partition, the folder is about to go with all that is in it.
        let held = partitions.get_mut(&round.place).filter(|held| held.topic_id == round.topic_id);
        let Some(held) = held else { return Ok(false) };
        match round.step(held, wall) {
            Ok(Stepped::More) => self.round = Some(round),
            Ok(ended) => return Ok(ended == Stepped::Clean),
            Err(error) if error.is_disk_full() => self.next = now + SECOND,
            Err(LogError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !held.log.has_sources_of(&round.cleaning) => {}
            Err(LogError::Malformed { .. }) => {
                self.uncleanable.insert(round.place);
            }
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    /// Begins with one of the logs that are due.
    fn begin(
        &mut self,
        partitions: &mut BTreeMap<Place, Partition>,
        wall: Timestamp,
    ) -> Result<Option<Round>, LogError> {
        let mut due = Vec::new();
        for (place, held) in partitions {
            if !held.log.config().compact || self.uncleanable.contains(place) {
                continue;
            }
            let cleanable = held.log.cleanable(held.high_watermark(), wall)?;
            if cleanable.is_due(held.log.config()) {
                due.push((place, held, cleanable));
            }
        }
        if due.is_empty() {
            return Ok(None);
        }
        let (place, held, cleanable) = due.swap_remove(self.random.below(due.len() as u64) as usize);
        let options = CleaningOptions { memory_bytes: *self.random.pick(&MEMORY_BYTES), load_factor: 0.9, now: wall };
        let cleaning = held.log.begin_cleaning(&cleanable, &options);
        Ok(Some(Round { place: place.clone(), topic_id: held.topic_id, cleaning, swap: None }))
    }

    /// The node stops: nothing is left of a round that is under way, but a swap that has begun.
    pub(super) fn stop(self, partitions: &mut BTreeMap<Place, Partition>, wall: Timestamp) -> Result<(), LogError> {
        let Some(mut round) = self.round else { return Ok(()) };
        let Some(held) = partitions.get_mut(&round.place).filter(|held| held.topic_id == round.topic_id) else {
            return Ok(());
        };
        if round.swap.is_some() {
            round.step(held, wall)?;
        }
        round.cleaning.abandon()
    }
}

impl Round {
    fn step(&mut self, held: &mut Partition, wall: Timestamp) -> Result<Stepped, LogError> {
        if let Some((token, cleaned)) = self.swap.take() {
            token.complete().map_err(|source| LogError::Io { path: held.log.directory().to_owned(), source })?;
            let is_done = held.log.complete_swap(&cleaned, wall)?;
            return Ok(if is_done { Stepped::More } else { Stepped::Given });
        }
        Ok(match self.cleaning.step(STEP_BYTES)? {
            CleaningStep::More => Stepped::More,
            CleaningStep::Swap(cleaned) => match held.log.begin_swap(&cleaned)? {
                Some(token) => {
                    self.swap = Some((token, cleaned));
                    Stepped::More
                }
                None => Stepped::Given,
            },
            CleaningStep::Done(to) => {
                if held.log.note_cleaned(&self.cleaning, to) {
                    Stepped::Clean
                } else {
                    Stepped::Given
                }
            }
        })
    }
}
