//! A consumer of what is committed: reads a partition from its start, one answer after the other, then goes on to another.

use gregor_replication::FollowedPartition;
use gregor_types::{ErrorCode, Offset};
use gregor_wire::batch::split_batches;

use super::{Client, View};
use crate::{
    cluster::letters::{Answer, CallId, Question},
    network::Batches,
    promises::Value,
};

/// So often nothing new, and it goes on to another partition.
const IDLE_MAX: u32 = 5;
const DECOMPRESSED_BYTES_MAX: usize = 1 << 20;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Reader {
    reading: Option<Reading>,
    asking: Option<CallId>,
}

#[derive(Debug)]
struct Reading {
    place: FollowedPartition,
    from: Offset,
    idle: u32,
}

impl Client for Reader {
    fn wake(&mut self, view: &mut View<'_>) {
        // Where there was nothing new there hardly is by now.
        let is_idle = self.reading.as_ref().is_some_and(|reading| reading.idle > 0);
        view.wake_in(if is_idle { 300 } else { 100 });
        if self.asking.is_some() {
            return;
        }
        let Some(image) = view.image.clone() else { return };
        if self.reading.as_ref().is_none_or(|reading| view.ledger.may_be_gone(reading.place.topic_id)) {
            let places = view.ledger.places();
            if places.is_empty() {
                return;
            }
            let place = *view.random.pick(&places);
            self.reading = Some(Reading { place, from: Offset::ZERO, idle: 0 });
        }
        let Some(Reading { place, from, .. }) = self.reading else { return };
        let leader = image.topics().partition(place.topic_id, place.partition).and_then(|partition| partition.leader);
        if let Some(leader) = leader {
            self.asking = Some(view.ask(leader, Question::Read(place, from)));
        }
    }

    fn hear(&mut self, call: CallId, answer: Option<Answer>, view: &mut View<'_>) {
        if self.asking.take_if(|asking| *asking == call).is_none() {
            return;
        }
        let Some(reading) = &mut self.reading else { return };
        if let Some(Answer::Refused(ErrorCode::OffsetOutOfRange)) = answer {
            // What it wants next may have been deleted.
            reading.from = reading.from.max(view.ledger.deleted(reading.place));
        }
        let Some(Answer::Read(records, high_watermark)) = answer else { return };
        let before = reading.from;
        if let Err(wrong) = reading.take_in(&records, high_watermark, view) {
            let name = view.ledger.name(reading.place);
            view.ledger.violated(format!("{name} as read from {before}: {wrong}"));
        }
        reading.idle = if reading.from == before { reading.idle + 1 } else { 0 };
        if reading.idle > IDLE_MAX {
            self.reading = None;
        }
    }
}

impl Reading {
    fn take_in(&mut self, records: &Batches, high_watermark: Offset, view: &mut View<'_>) -> Result<(), String> {
        for batch in split_batches(&records.0) {
            let Ok(batch) = batch else { break };
            batch.check_crc().map_err(|error| format!("a damaged batch is served: {error}"))?;
            if batch.base_offset > self.from {
                return Err(format!("{} stands where {} is due", batch.base_offset, self.from));
            }
            if batch.next_offset() > high_watermark {
                return Err(format!("it gives {} to whom may read to {high_watermark}", batch.last_offset()));
            }
            for record in &batch.records(DECOMPRESSED_BYTES_MAX).map_err(|error| error.to_string())? {
                let record = record.map_err(|error| error.to_string())?;
                if let Some(value) = record.value.and_then(Value::parse)
                    && record.offset >= self.from
                {
                    view.ledger.stands(self.place, record.offset, value, "a read");
                }
            }
            self.from = batch.next_offset();
        }
        Ok(())
    }
}
