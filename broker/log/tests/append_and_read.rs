//! What a leader, a follower and a reader rely on.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use common::*;
use gregor_log::{AppendError, Appended, LogConfig, PartitionLog, ReadError, ReadRequest, disk::FaultyDisk};
use gregor_types::{ErrorCode, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp};
use gregor_wire::batch::{BatchOptions, BatchView, EndTransactionMarker, RecordBatchBuilder, split_batches};

fn small_segments() -> LogConfig {
    LogConfig { segment_bytes: 1000, index_interval_bytes: 100, ..LogConfig::default() }
}

#[test]
fn records_come_back_with_their_offsets_across_segments_and_restarts() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, small_segments());
    let mut expected = Vec::new();
    for i in 0..100 {
        let values = [format!("a{i}"), format!("b{i}")];
        let info = append(&mut log, &batch(&[&values[0], &values[1]]));
        assert_eq!((info.base_offset, info.last_offset), (Offset(2 * i), Offset(2 * i + 1)));
        assert_eq!(info.log_append_time, Timestamp::NONE);
        expected.extend([(2 * i, values[0].clone()), (2 * i + 1, values[1].clone())]);
    }
    assert!(log.segments_count() > 5);
    assert_eq!(read_all(&mut log), expected);
    let mut log = close_and_reopen(&disk, log);
    assert_eq!((log.end_offset(), log.recovery_point()), (Offset(200), Offset(200)));
    assert_eq!(read_all(&mut log), expected);
    for from in [0, 1, 57, 58, 199] {
        assert_eq!(read_from(&mut log, Offset(from)), expected[from as usize..], "from {from}");
    }
    let mut log = kill_and_reopen(&disk, log);
    assert_eq!(read_all(&mut log), expected);
    assert_eq!(append(&mut log, &batch(&["more"])).base_offset, Offset(200));
}

#[test]
fn a_read_stops_at_its_bound_and_its_size_and_is_refused_outside_the_log() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig::default());
    let bytes = batch(&["x"; 10]);
    for _ in 0..50 {
        append(&mut log, &bytes);
    }
    let size = bytes.len() as u64;
    let mut read = |from, upper_bound, max_bytes, min_one_batch| {
        let request = ReadRequest { from: Offset(from), upper_bound: Offset(upper_bound), max_bytes, min_one_batch };
        log.read(&request).map(|plan| plan.len())
    };
    assert_eq!(read(0, 500, u32::MAX, false).unwrap(), 50 * size);
    assert_eq!(read(0, 30, u32::MAX, false).unwrap(), 3 * size, "the high watermark bounds it");
    assert_eq!(read(495, 500, u32::MAX, false).unwrap(), size, "the batch that holds the offset is given whole");
    assert_eq!(read(30, 30, u32::MAX, true).unwrap(), 0);
    assert_eq!(read(500, 500, u32::MAX, true).unwrap(), 0);
    assert_eq!(read(0, 500, 10, true).unwrap(), size, "one batch, however large");
    assert_eq!(read(0, 500, 10, false).unwrap(), 0);
    assert_eq!(read(0, 500, size as u32 + 5, false).unwrap(), size + 5, "the last batch may be cut off");
    for from in [-1, 501] {
        let error = read(from, 500, 100, true).unwrap_err();
        assert!(matches!(error, ReadError::OffsetOutOfRange { .. }));
        assert_eq!(error.error_code(), ErrorCode::OffsetOutOfRange);
    }
}

#[test]
fn a_batch_sent_again_is_a_duplicate_with_its_old_offsets_also_after_a_restart() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, small_segments());
    append(&mut log, &batch(&["other"]));
    for i in 0..7 {
        append(&mut log, &produced(9, 0, i, false, &["p"]));
    }
    let duplicate = |log: &mut _, sequence| match try_append(log, 0, &produced(9, 0, sequence, false, &["p"])) {
        Ok(Appended::Duplicate(info)) => Ok(info.base_offset.0),
        Ok(Appended::New(info)) => panic!("appended again at {}", info.base_offset),
        Err(error) => Err(error.error_code()),
    };
    for sequence in 2..7 {
        assert_eq!(duplicate(&mut log, sequence), Ok(1 + i64::from(sequence)));
    }
    assert_eq!(duplicate(&mut log, 1), Err(ErrorCode::OutOfOrderSequenceNumber), "only five are known");
    assert_eq!(duplicate(&mut log, 8), Err(ErrorCode::OutOfOrderSequenceNumber));
    let stale = try_append(&mut log, 0, &produced(9, -1, 7, false, &["p"])).unwrap_err();
    assert_eq!(stale.error_code(), ErrorCode::InvalidProducerEpoch);

    let mut log = kill_and_reopen(&disk, log);
    assert_eq!(duplicate(&mut log, 4), Ok(5), "recovery reads the batches themselves");
    let mut log = close_and_reopen(&disk, log);
    assert_eq!(duplicate(&mut log, 6), Ok(7), "a snapshot keeps the last one");
    assert_eq!(append(&mut log, &produced(9, 0, 7, false, &["p"])).base_offset, Offset(8));
}

#[test]
fn a_follower_takes_a_leaders_bytes_as_they_are() {
    let (leader_disk, follower_disk) = (FaultyDisk::new(), FaultyDisk::new());
    let mut leader = create(&leader_disk, LogConfig::default());
    let mut follower = create(&follower_disk, LogConfig::default());
    for (epoch, value) in [(0, "a"), (0, "b"), (3, "c")] {
        try_append(&mut leader, epoch, &batch(&[value])).unwrap();
    }
    let request = ReadRequest { from: Offset(0), upper_bound: Offset(3), max_bytes: 1 << 20, min_one_batch: true };
    let bytes = leader.read(&request).unwrap().read_all().unwrap();
    let cut = &bytes[..bytes.len() - 3];
    let info = follower.append_as_follower(cut, NOW).unwrap();
    assert_eq!((info.base_offset, info.last_offset), (Offset(0), Offset(1)), "the batch that is cut off is left out");
    let rest = split_batches(&bytes).nth(2).unwrap().unwrap();
    follower.append_as_follower(rest.bytes(), NOW).unwrap();
    assert_eq!(follower.epochs(), leader.epochs());
    assert_eq!(read_all(&mut follower), read_all(&mut leader));

    let again = follower.append_as_follower(rest.bytes(), NOW).unwrap_err();
    assert!(matches!(again, AppendError::OutOfOrderOffsets { incoming: Offset(2), end: Offset(3) }));
    let mut damaged = batch(&["x"]).to_vec();
    damaged[..8].copy_from_slice(&3_i64.to_be_bytes());
    let last = damaged.len() - 2;
    damaged[last] ^= 1;
    assert!(matches!(follower.append_as_follower(&damaged, NOW), Err(AppendError::Corrupt(_))));
    assert_eq!(follower.end_offset(), Offset(3));
}

#[test]
fn a_follower_truncates_to_the_end_of_the_older_epoch() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, small_segments());
    for epoch in [0, 0, 1, 1, 4] {
        for _ in 0..5 {
            let sequence = log.end_offset().0 as i32;
            try_append(&mut log, epoch, &produced(1, 0, sequence, false, &["v"])).unwrap();
        }
    }
    let end = log.end_offset_for_epoch(LeaderEpoch(2));
    assert_eq!((end.leader_epoch, end.end_offset), (LeaderEpoch(1), Offset(20)));
    log.truncate_to(end.end_offset, NOW).unwrap();
    assert_eq!((log.end_offset(), log.last_epoch()), (Offset(20), LeaderEpoch(1)));
    assert_eq!(read_all(&mut log).len(), 20);
    assert_eq!(append_epoch_1(&mut log), Offset(20), "the producer's sequence goes on where the log ends");
    log.truncate_to(Offset(3), NOW).unwrap();
    assert_eq!((log.end_offset(), log.segments_count()), (Offset(3), 1));
    let mut log = kill_and_reopen(&disk, log);
    assert_eq!(read_all(&mut log).len(), 3);
}

#[test]
fn a_follower_is_never_told_to_cut_its_log_amid_a_batch_that_the_leaders_log_starts_in() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig::default());
    try_append(&mut log, 6, &batch(&["a", "b"])).unwrap();
    try_append(&mut log, 7, &batch(&["c", "d", "e"])).unwrap();
    let cut = |log: &mut PartitionLog, epoch| {
        let cut = log.cut_for_epoch(LeaderEpoch(epoch)).unwrap();
        (cut.leader_epoch.0, cut.end_offset.0)
    };
    assert_eq!((cut(&mut log, 6), cut(&mut log, 7)), ((6, 2), (7, 5)));
    log.advance_start(Offset(3)).unwrap();
    assert_eq!(log.epochs(), [(LeaderEpoch(7), Offset(3))], "as Kafka keeps it");
    assert_eq!(log.end_offset_for_epoch(LeaderEpoch(6)).end_offset, Offset(3));
    assert_eq!((cut(&mut log, 6), cut(&mut log, 7)), ((6, 2), (7, 5)));
    flush(&mut log);
    let mut log = close_and_reopen(&disk, log);
    log.advance_start(Offset(3)).unwrap();
    assert_eq!((cut(&mut log, 6), cut(&mut log, 7)), ((6, 2), (7, 5)), "also of what is no more in memory");
    log.advance_start(Offset(5)).unwrap();
    assert_eq!(cut(&mut log, 7), (7, 5), "there is no batch");
}

fn append_epoch_1(log: &mut PartitionLog) -> Offset {
    try_append(log, 1, &produced(1, 0, 20, false, &["v"])).unwrap().info().base_offset
}

#[test]
fn an_epoch_in_which_nothing_was_appended_is_forgotten_by_a_truncation_to_the_end() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig::default());
    append(&mut log, &batch(&["a"]));
    log.assign_epoch_start(LeaderEpoch(5), Offset(1));
    log.truncate_to(Offset(1), NOW).unwrap();
    assert_eq!(log.last_epoch(), LeaderEpoch(0), "or the follower would be told of the divergence for ever");
    assert_eq!(read_all(&mut log).len(), 1);
}

#[test]
fn an_older_leader_epoch_is_refused() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig::default());
    log.assign_epoch_start(LeaderEpoch(5), Offset(0));
    let error = try_append(&mut log, 4, &batch(&["late"])).unwrap_err();
    assert!(matches!(error, AppendError::StaleLeaderEpoch { incoming: LeaderEpoch(4), current: LeaderEpoch(5), .. }));
    assert_eq!(log.end_offset(), Offset(0));
}

#[test]
fn an_open_transaction_holds_the_stable_offset_and_an_aborted_one_is_listed() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, small_segments());
    append(&mut log, &produced(1, 0, 0, true, &["a"; 3]));
    append(&mut log, &batch(&["plain"]));
    append(&mut log, &produced(2, 0, 0, true, &["b"; 2]));
    let marker = |commit, id| {
        let marker = EndTransactionMarker { commit, coordinator_epoch: 0 };
        RecordBatchBuilder::end_transaction_marker(marker, ProducerId(id), ProducerEpoch(0), NOW)
    };
    assert_eq!(log.last_stable_offset(Offset(6)), Offset(0));
    append(&mut log, &marker(false, 1));
    assert_eq!(log.last_stable_offset(Offset(6)), Offset(0), "the marker is not replicated yet");
    assert_eq!(log.last_stable_offset(Offset(7)), Offset(4));
    append(&mut log, &marker(true, 2));
    assert_eq!(log.last_stable_offset(Offset(8)), Offset(8));
    for _ in 0..20 {
        append(&mut log, &batch(&["filler that rolls the segment"]));
    }
    for mut log in [close_and_reopen(&disk, log)].into_iter().flat_map(|log| [kill_and_reopen(&disk, log)]) {
        let aborted = log.aborted_transactions(Offset(0), Offset(28)).unwrap();
        assert_eq!(aborted.len(), 1);
        assert_eq!((aborted[0].producer_id, aborted[0].first_offset), (ProducerId(1), Offset(0)));
        assert_eq!((aborted[0].last_offset, aborted[0].last_stable_offset), (Offset(6), Offset(4)));
        assert!(log.aborted_transactions(Offset(7), Offset(28)).unwrap().is_empty());
        assert_eq!(log.last_stable_offset(Offset(28)), Offset(28));
    }
}

#[test]
fn records_are_found_by_their_time() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, small_segments());
    for i in 0..60 {
        append(&mut log, &batch_at(Timestamp(1000 + i * 10), &["x", "y"]));
    }
    append(&mut log, &batch_at(Timestamp(1100), &["late"]));
    for mut log in [close_and_reopen(&disk, log)].into_iter().flat_map(|log| [kill_and_reopen(&disk, log)]) {
        let mut at = |timestamp| log.offset_for_timestamp(Timestamp(timestamp)).unwrap().map(|found| found.offset.0);
        assert_eq!(at(0), Some(0));
        assert_eq!(at(1000), Some(0));
        assert_eq!(at(1001), Some(2));
        assert_eq!(at(1300), Some(60));
        assert_eq!(at(1590), Some(118));
        assert_eq!(at(1591), None);
        let newest = log.max_timestamp().unwrap().unwrap();
        assert_eq!((newest.offset, newest.timestamp), (Offset(118), Timestamp(1590)));
    }
}

#[test]
fn a_full_disk_refuses_an_append_and_the_log_goes_on_when_there_is_room() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig::default());
    append(&mut log, &batch(&["one"]));
    disk.set_capacity(Some(log.size() + 20));
    let error = try_append(&mut log, 0, &batch(&["does not fit"])).unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::KafkaStorageError);
    assert_eq!(log.end_offset(), Offset(1));
    disk.set_capacity(None);
    append(&mut log, &batch(&["two"]));
    let mut log = close_and_reopen(&disk, log);
    assert_eq!(read_all(&mut log), [(0, "one".to_owned()), (1, "two".to_owned())]);
}

#[test]
fn a_batch_larger_than_a_segment_is_refused() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, small_segments());
    let error = try_append(&mut log, 0, &batch(&[&"x".repeat(2000)])).unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::RecordListTooLarge);
}

#[test]
fn the_raft_leader_appends_batches_with_offsets_of_its_own() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig::default());
    for i in 0..3 {
        let mut builder = RecordBatchBuilder::new(BatchOptions {
            base_offset: log.end_offset(),
            leader_epoch: LeaderEpoch(2 + i),
            ..BatchOptions::default()
        });
        builder.append(NOW, None, Some(b"m"), &[]);
        builder.append(NOW, None, Some(b"n"), &[]);
        log.append_as_follower(&builder.build(), NOW).unwrap();
    }
    assert_eq!(log.end_offset(), Offset(6));
    assert_eq!(log.epoch_at(Offset(3)), Some(LeaderEpoch(3)));
    log.truncate_fully_and_start_at(Offset(40), NOW).unwrap();
    assert_eq!((log.start_offset(), log.end_offset(), log.last_epoch()), (Offset(40), Offset(40), LeaderEpoch(-1)));
    append(&mut log, &batch(&["behind the snapshot"]));
    let mut log = kill_and_reopen(&disk, log);
    assert_eq!(read_all(&mut log), [(40, "behind the snapshot".to_owned())]);
    let request = ReadRequest { from: Offset(40), upper_bound: Offset(41), max_bytes: 1 << 20, min_one_batch: true };
    let bytes = log.read(&request).unwrap().read_all().unwrap();
    assert_eq!(BatchView::parse(&bytes).unwrap().leader_epoch, LeaderEpoch(0));
}

#[test]
fn a_transaction_that_began_before_the_log_start_holds_the_stable_offset_at_the_start() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig::default());
    for sequence in 0..5 {
        append(&mut log, &produced(9, 0, sequence, true, &["open"]));
    }
    log.advance_start(Offset(3)).unwrap();
    assert_eq!(log.last_stable_offset(Offset(5)), Offset(3));
}

#[test]
fn a_read_names_the_aborted_transactions_that_it_touches_and_not_those_far_behind() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig { index_interval_bytes: 1, ..LogConfig::default() });
    let abort = EndTransactionMarker { commit: false, coordinator_epoch: 0 };
    for round in 0..30 {
        append(&mut log, &produced(7, 0, round, true, &["aborted"]));
        append(&mut log, &RecordBatchBuilder::end_transaction_marker(abort, ProducerId(7), ProducerEpoch(0), NOW));
        if round == 14 {
            log.roll(NOW).unwrap();
        }
    }
    let end = log.end_offset();
    let touched = |log: &mut PartitionLog, from: i64, max_bytes: u32| {
        let request = ReadRequest { from: Offset(from), upper_bound: end, max_bytes, min_one_batch: true };
        let plan = log.read(&request).unwrap();
        let last = split_batches(&plan.read_all().unwrap()).map_while(Result::ok).last().unwrap().last_offset();
        let aborted = log.aborted_transactions_in(Offset(from), end, &plan).unwrap();
        let firsts: Vec<_> = aborted.iter().map(|one| one.first_offset.0).collect();
        (last.0, firsts)
    };
    for mut log in [close_and_reopen(&disk, log)].into_iter().flat_map(|log| [kill_and_reopen(&disk, log)]) {
        assert_eq!(touched(&mut log, 2, 1), (2, vec![2]));
        assert_eq!(touched(&mut log, 27, 1 << 20), (29, vec![26, 28]), "to the segment's end");
        assert_eq!(touched(&mut log, 59, 1 << 20), (59, vec![58]), "to the log's end");
        assert_eq!(touched(&mut log, 30, 400).1[..2], [30, 32]);
        assert!(touched(&mut log, 30, 400).1.len() < 5);
    }
}
