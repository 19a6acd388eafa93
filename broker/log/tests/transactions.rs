//! Transactions of several producers against a model that knows nothing but the batches: whatever is truncated, closed, killed
//! or forgotten, the log says the same of its producers, its stable offset and its aborted transactions.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::collections::BTreeMap;

use common::*;
use gregor_log::{
    AbortedTransaction, ActiveProducer, Disk, LogConfig, MarkerEpoch, Origin, PartitionLog, disk::FaultyDisk,
};
use gregor_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId};
use gregor_wire::batch::{EndTransactionMarker, RecordBatchBuilder, ValidatedBatch};
use proptest::prelude::*;

const PRODUCERS: i64 = 4;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A producer writes so many records; in a transaction, unless it has none open and wants none.
    Write {
        producer: i64,
        records: usize,
        transactional: bool,
    },
    /// A coordinator ends a producer's transaction, or writes a marker where there is none.
    End {
        producer: i64,
        commit: bool,
        raises_epoch: bool,
    },
    Roll,
    /// Everything from a share of the log on is cut off, in percent.
    Truncate(i64),
    Close,
    Kill,
    /// A kill after which no producer snapshot is left.
    KillAndForget,
}

/// A batch as the model remembers it.
#[derive(Debug, Clone, Copy)]
struct Batch {
    first: i64,
    last: i64,
    producer: i64,
    epoch: i16,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Data { last_sequence: i32, transactional: bool },
    Marker { commit: bool },
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    last_sequence: i32,
    open_since: Option<i64>,
}

/// What the batches amount to.
#[derive(Debug, Default)]
struct Sum {
    producers: BTreeMap<i64, Producer>,
    /// Producer, first and last offset.
    aborted: Vec<(i64, i64, i64)>,
    end: i64,
}

fn sum(history: &[Batch]) -> Sum {
    let mut sum = Sum::default();
    for batch in history {
        sum.end = batch.last + 1;
        let fresh = Producer { epoch: batch.epoch, last_sequence: -1, open_since: None };
        let producer = sum.producers.entry(batch.producer).or_insert(fresh);
        if producer.epoch != batch.epoch {
            (producer.epoch, producer.last_sequence) = (batch.epoch, -1);
        }
        match batch.kind {
            Kind::Data { last_sequence, transactional } => {
                producer.last_sequence = last_sequence;
                if transactional {
                    producer.open_since.get_or_insert(batch.first);
                }
            }
            Kind::Marker { commit } => {
                if let (Some(first), false) = (producer.open_since.take(), commit) {
                    sum.aborted.push((batch.producer, first, batch.last));
                }
            }
        }
    }
    sum
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let producer = 0..PRODUCERS;
    let step = prop_oneof![
        8 => (producer.clone(), 1..4_usize, any::<bool>())
            .prop_map(|(producer, records, transactional)| Step::Write { producer, records, transactional }),
        4 => (producer, any::<bool>(), any::<bool>())
            .prop_map(|(producer, commit, raises_epoch)| Step::End { producer, commit, raises_epoch }),
        1 => Just(Step::Roll),
        1 => (0..=100_i64).prop_map(Step::Truncate),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => Just(Step::KillAndForget),
    ];
    proptest::collection::vec(step, 1..60)
}

fn run(disk: &FaultyDisk, mut log: PartitionLog, history: &mut Vec<Batch>, step: Step) -> PartitionLog {
    let Sum { producers, end, .. } = sum(history);
    let leader_epoch = LeaderEpoch(0);
    match step {
        Step::Write { producer, records, transactional } => {
            let known =
                producers.get(&producer).copied().unwrap_or(Producer { last_sequence: -1, ..Producer::default() });
            let transactional = transactional || known.open_since.is_some();
            let values = vec!["value"; records];
            let batch = produced(producer, known.epoch, known.last_sequence + 1, transactional, &values);
            let last = end + records as i64 - 1;
            let last_sequence = known.last_sequence + records as i32;
            assert_eq!(append(&mut log, &batch).last_offset, Offset(last));
            let kind = Kind::Data { last_sequence, transactional };
            history.push(Batch { first: end, last, producer, epoch: known.epoch, kind });
        }
        Step::End { producer, commit, raises_epoch } => {
            let epoch = producers.get(&producer).map_or(0, |known| known.epoch) + i16::from(raises_epoch);
            let marker = EndTransactionMarker { commit, coordinator_epoch: 0 };
            let marker =
                RecordBatchBuilder::end_transaction_marker(marker, ProducerId(producer), ProducerEpoch(epoch), NOW);
            let rule = if raises_epoch { MarkerEpoch::Later } else { MarkerEpoch::SameOrLater };
            let batch = ValidatedBatch::trusted(&marker).unwrap();
            log.append_from(Origin::Marker(rule), &batch, leader_epoch, NOW).unwrap();
            history.push(Batch { first: end, last: end, producer, epoch, kind: Kind::Marker { commit } });
        }
        Step::Roll => log.roll(NOW).unwrap(),
        Step::Truncate(percent) => {
            let to = end * percent / 100;
            log.truncate_to(Offset(to), NOW).unwrap();
            history.retain(|batch| batch.last < to);
        }
        Step::Close => return close_and_reopen(disk, log),
        Step::Kill => return kill_and_reopen(disk, log),
        Step::KillAndForget => {
            let config = LogConfig::clone(log.config());
            drop(log);
            for name in names(disk, &folder()).iter().filter(|name| name.ends_with(".snapshot")) {
                disk.remove_file(&folder().join(name)).unwrap();
            }
            return reopen(disk, options(config, Offset(0), false));
        }
    }
    log
}

fn compare(log: &mut PartitionLog, history: &[Batch]) {
    let sum = sum(history);
    let end = Offset(sum.end);
    assert_eq!(log.end_offset(), end);
    let seen = log.active_producers().map(
        |ActiveProducer { producer_id, producer_epoch, last_sequence, current_transaction_start, .. }| {
            let open_since = current_transaction_start.map(|offset| offset.0);
            (producer_id.0, Producer { epoch: producer_epoch.0, last_sequence, open_since })
        },
    );
    assert_eq!(seen.collect::<BTreeMap<_, _>>(), sum.producers);
    let stable = sum.producers.values().filter_map(|producer| producer.open_since).min().unwrap_or(sum.end);
    assert_eq!(log.last_stable_offset(end), Offset(stable));
    for from in [0, sum.end / 2, (sum.end - 1).max(0)] {
        for bound in [sum.end, i64::midpoint(from, sum.end)] {
            let seen = log.aborted_transactions(Offset(from), Offset(bound)).unwrap();
            let seen = seen.iter().map(|AbortedTransaction { producer_id, first_offset, last_offset, .. }| {
                (producer_id.0, first_offset.0, last_offset.0)
            });
            let wanted = sum.aborted.iter().copied().filter(|(_, first, last)| *last >= from && *first < bound);
            assert_eq!(seen.collect::<Vec<_>>(), wanted.collect::<Vec<_>>(), "from {from} to {bound}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn what_a_log_says_of_transactions_follows_from_its_batches_alone(steps in steps()) {
        let disk = FaultyDisk::new();
        let config = LogConfig { segment_bytes: 700, index_interval_bytes: 100, ..LogConfig::default() };
        let mut log = create(&disk, config);
        let mut history = Vec::new();
        for step in steps {
            log = run(&disk, log, &mut history, step);
            compare(&mut log, &history);
        }
    }
}
