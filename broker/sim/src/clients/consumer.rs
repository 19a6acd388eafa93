//! A consumer: reads a partition from its start, one batch after the other, then goes on to another.

use std::collections::BTreeSet;

use gregor_log::AbortedTransaction;
use gregor_types::{ErrorCode, Offset, ProducerId};
use gregor_wire::batch::{BatchView, ControlRecordType, split_batches};

use super::{Client, View};
use crate::{
    network::{Fetched, Place, Request, Response},
    promises::Value,
};

/// So often nothing new, and it goes on to another partition.
const IDLE_MAX: u32 = 3;
const DECOMPRESSED_BYTES_MAX: usize = 1 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub struct Consumer {
    read_committed: bool,
    reading: Option<Reading>,
    asking: Option<u64>,
}

#[derive(Debug)]
struct Reading {
    place: Place,
    from: Option<Offset>,
    /// Producers whose transaction is aborted where the reader stands.
    aborted: BTreeSet<ProducerId>,
    idle: u32,
}

impl Consumer {
    /// A consumer of all that is committed, or only of what no transaction can undo.
    pub const fn new(read_committed: bool) -> Self {
        Self { read_committed, reading: None, asking: None }
    }
}

impl Client for Consumer {
    fn wake(&mut self, world: &mut View<'_>) {
        world.wake_in(50);
        if self.asking.is_some() {
            return;
        }
        let there = |reading: &Reading| world.promises.is_there(&reading.place.topic);
        if !self.reading.as_ref().is_some_and(there) {
            let places = world.promises.places();
            if places.is_empty() {
                return;
            }
            let place = world.random.pick(&places).clone();
            self.reading = Some(Reading { place, from: None, aborted: BTreeSet::new(), idle: 0 });
        }
        if let Some(reading) = &self.reading {
            let (place, from) = (reading.place.clone(), reading.from);
            self.asking = Some(world.ask(Request::Fetch { place, from, read_committed: self.read_committed }));
        }
    }

    fn hear(&mut self, number: u64, response: Response, world: &mut View<'_>) {
        if self.asking.take_if(|asking| *asking == number).is_none() {
            return;
        }
        let Some(reading) = &mut self.reading else { return };
        if !world.promises.is_there(&reading.place.topic) {
            return;
        }
        match response {
            Response::Fetched(fetched) => {
                let before = reading.from;
                if let Err(wrong) = reading.take_in(&fetched, self.read_committed, world) {
                    world.promises.violated(format!("{} as read from {before:?}: {wrong}", reading.place));
                }
                reading.idle = if reading.from == before { reading.idle + 1 } else { 0 };
                if reading.idle > IDLE_MAX {
                    self.reading = None;
                }
            }
            Response::Refused(ErrorCode::OffsetOutOfRange) => {
                (reading.from, reading.aborted) = (None, BTreeSet::new());
            }
            Response::Refused(ErrorCode::CorruptMessage) if world.promises.rotten_from(&reading.place).is_some() => {
                self.reading = None;
            }
            Response::Refused(ErrorCode::CorruptMessage) => {
                let what = format!("{}: a damaged batch, on a disk that loses no bits", reading.place);
                world.promises.violated(what);
            }
            _ => {}
        }
    }
}

impl Reading {
    fn take_in(&mut self, fetched: &Fetched, read_committed: bool, world: &mut View<'_>) -> Result<(), String> {
        if fetched.last_stable > fetched.high_watermark {
            return Err(format!("stable to {}, committed to {}", fetched.last_stable, fetched.high_watermark));
        }
        let bound = if read_committed { fetched.last_stable } else { fetched.high_watermark };
        let mut aborted: Vec<&AbortedTransaction> = fetched.aborted.iter().collect();
        aborted.sort_by_key(|transaction| transaction.first_offset);
        let mut aborted = aborted.into_iter().peekable();
        let mut from = self.from.unwrap_or(fetched.log_start);
        for batch in split_batches(&fetched.records.0) {
            let Ok(batch) = batch else { break };
            batch.check_crc().map_err(|error| format!("a damaged batch is served: {error}"))?;
            if batch.base_offset > from && !world.promises.is_compacted(&self.place.topic) {
                return Err(format!("{} stands where {from} is due", batch.base_offset));
            }
            if batch.next_offset() > bound {
                return Err(format!("it gives {} to whom may read to {bound}", batch.last_offset()));
            }
            while let Some(begun) = aborted.next_if(|begun| begun.first_offset <= batch.last_offset()) {
                self.aborted.insert(begun.producer_id);
            }
            self.take_batch(&batch, from, read_committed, world)?;
            from = batch.next_offset();
        }
        self.from = Some(from);
        Ok(())
    }

    /// One batch, as a client of Kafka's filters it.
    fn take_batch(
        &mut self,
        batch: &BatchView<'_>,
        from: Offset,
        read_committed: bool,
        world: &mut View<'_>,
    ) -> Result<(), String> {
        let records = batch.records(DECOMPRESSED_BYTES_MAX).map_err(|error| error.to_string())?;
        for record in &records {
            let record = record.map_err(|error| error.to_string())?;
            if batch.is_control() {
                if record.key.and_then(ControlRecordType::from_key) == Some(ControlRecordType::Abort) {
                    self.aborted.remove(&batch.producer_id);
                }
                continue;
            }
            let hidden = read_committed && batch.is_transactional() && self.aborted.contains(&batch.producer_id);
            let (Some(value), false) = (Value::of(&record), hidden || record.offset < from) else {
                continue;
            };
            world.promises.stands(&self.place, record.offset.value(), value, "a read");
            if read_committed {
                world.promises.shown_as_committed(&self.place, record.offset.value(), value);
            }
        }
        Ok(())
    }
}
