//! The traps of a follower, one by one.

use gregor_types::{PartitionIndex, TopicId};

use super::*;
use crate::{EpochEnd, LeaderMarks};

const CONFIG: FetcherConfig = FetcherConfig { backoff_ms: 1_000, first_backoff_ms: 100 };
const NOW: Timestamp = Timestamp(1_000_000);

/// A log by its epochs: where each starts, and where the log ends.
struct Log {
    epochs: Vec<(i32, i64)>,
    end: i64,
}

impl FollowerLog for Log {
    fn position(&self) -> LogPosition {
        position(self.end, self.epochs.last().map_or(-1, |(epoch, _)| *epoch))
    }

    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        let later = self.epochs.partition_point(|(known, _)| *known <= epoch.value());
        let end = self.epochs.get(later).map_or(self.end, |(_, start)| *start);
        let (epoch, _) = self.epochs.get(later.checked_sub(1)?)?;
        Some(EpochEnd { epoch: LeaderEpoch(*epoch), end: Offset(end) })
    }
}

fn position(end: i64, last_epoch: i32) -> LogPosition {
    LogPosition { start: Offset(0), end: Offset(end), last_epoch: LeaderEpoch(last_epoch) }
}

fn partition(index: i32) -> FollowedPartition {
    FollowedPartition { topic_id: TopicId::from_bytes([7; 16]), partition: PartitionIndex(index) }
}

fn log(end: i64) -> Log {
    Log { epochs: vec![(2, 0)], end }
}

fn good(high_watermark: i64) -> PartitionAnswer {
    let leader = LeaderMarks { high_watermark: Offset(high_watermark), log_start: Offset(0) };
    PartitionAnswer { error: ErrorCode::None, leader, diverging: None }
}

fn bad(error: ErrorCode) -> PartitionAnswer {
    PartitionAnswer { error, ..good(-1) }
}

fn diverging(epoch: i32, end: i64) -> PartitionAnswer {
    PartitionAnswer { diverging: Some(EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) }), ..good(100) }
}

/// Follows partitions 0 to `count` at epoch 5, each with a log that ends at 10 in epoch 2.
fn fetcher(count: i32) -> Fetcher {
    let mut fetcher = Fetcher::new(CONFIG);
    for index in 0..count {
        assert_eq!(fetcher.follow(partition(index), LeaderEpoch(5), position(10, 2), Offset(4)), FollowerStep::Nothing);
    }
    fetcher
}

fn fetch(fetcher: &mut Fetcher, now: Timestamp) -> FetchPlan {
    match fetcher.next(None, now) {
        NextRequest::Fetch(plan) => plan,
        other => panic!("no fetch, but {other:?}"),
    }
}

fn wanted(plan: &FetchPlan) -> Vec<i32> {
    plan.wanted.iter().map(|(partition, _)| partition.partition.value()).collect()
}

/// Asks, and has the answer name what was asked for.
fn exchange(fetcher: &mut Fetcher, now: Timestamp) -> FetchPlan {
    let plan = fetch(fetcher, now);
    let named: Vec<_> = plan.wanted.iter().map(|(partition, _)| *partition).collect();
    assert!(fetcher.on_fetched(plan.number, ErrorCode::None, 9, named.into_iter(), now));
    plan
}

fn answer(fetcher: &mut Fetcher, index: i32, answer: PartitionAnswer, log: &Log) -> FollowerStep {
    fetcher.on_answer(partition(index), &answer, log, NOW)
}

#[test]
fn a_fetch_asks_for_what_follows_the_log_by_the_epoch_of_its_last_record() {
    let plan = fetch(&mut fetcher(1), NOW);
    let asked = FetchPosition {
        offset: Offset(10),
        log_start: Offset(0),
        leader_epoch: LeaderEpoch(5),
        last_fetched_epoch: LeaderEpoch(2),
    };
    assert_eq!((plan.session_id, plan.session_epoch), (0, 0));
    assert_eq!(plan.wanted, [(partition(0), asked)]);
}

#[test]
fn a_session_is_told_what_changed_and_no_more() {
    let mut fetcher = fetcher(3);
    exchange(&mut fetcher, NOW);
    let step = answer(&mut fetcher, 1, good(20), &log(10));
    let leader = LeaderMarks { high_watermark: Offset(20), log_start: Offset(0) };
    assert_eq!(step, FollowerStep::Append { leader_epoch: LeaderEpoch(5), from: Offset(10), leader });
    fetcher.on_log_changed(partition(1), position(15, 5), NOW);
    assert_eq!(fetcher.lag(partition(1)), Some(5));
    let plan = exchange(&mut fetcher, NOW);
    assert_eq!((plan.session_id, plan.session_epoch, wanted(&plan)), (9, 1, vec![1]));
    fetcher.unfollow(partition(0));
    let plan = exchange(&mut fetcher, NOW);
    assert_eq!((plan.session_epoch, wanted(&plan), plan.forgotten), (2, vec![], vec![partition(0)]));
    let plan = fetch(&mut fetcher, NOW);
    assert_eq!((plan.session_epoch, wanted(&plan), plan.forgotten), (3, vec![], vec![]), "it waits for records");
}

#[test]
fn a_lost_session_is_begun_anew_with_every_partition_those_first_that_waited_longest() {
    let mut fetcher = fetcher(3);
    exchange(&mut fetcher, NOW);
    for index in [0, 2] {
        answer(&mut fetcher, index, good(20), &log(10));
        fetcher.on_log_changed(partition(index), position(15, 5), NOW);
    }
    let plan = fetch(&mut fetcher, NOW);
    let none = std::iter::empty();
    assert!(!fetcher.on_fetched(plan.number, ErrorCode::FetchSessionIdNotFound, 0, none, NOW));
    let plan = fetch(&mut fetcher, NOW);
    assert_eq!((plan.session_id, plan.session_epoch, wanted(&plan)), (0, 0, vec![1, 0, 2]));
    assert!(!fetcher.on_fetched(plan.number, ErrorCode::FetchSessionIdNotFound, 0, std::iter::empty(), NOW));
    assert_eq!(fetcher.next(None, NOW), NextRequest::Wait(Some(NOW.plus_ms(200))), "not over and over");
}

#[test]
fn a_request_that_fails_ends_the_session_and_pauses_longer_each_time() {
    let mut fetcher = fetcher(1);
    exchange(&mut fetcher, NOW);
    let mut now = NOW;
    for pause in [100, 200, 400, 800, 1_000, 1_000] {
        let plan = fetch(&mut fetcher, now);
        fetcher.on_request_failed(plan.number, now);
        now = now.plus_ms(pause);
        assert_eq!(fetcher.next(None, now.plus_ms(-1)), NextRequest::Wait(Some(now)));
    }
    let plan = exchange(&mut fetcher, now);
    assert_eq!((plan.session_id, plan.session_epoch), (9, 0), "the leader closes the session that it may have");
}

#[test]
fn an_answer_that_names_what_was_not_asked_for_is_not_used() {
    let mut fetcher = fetcher(2);
    let plan = fetch(&mut fetcher, NOW);
    assert!(!fetcher.on_fetched(plan.number, ErrorCode::None, 9, [partition(0)].into_iter(), NOW), "one is missing");
    let later = NOW.plus_ms(100);
    exchange(&mut fetcher, later);
    let plan = fetch(&mut fetcher, later);
    assert!(!fetcher.on_fetched(plan.number, ErrorCode::None, 9, [partition(7)].into_iter(), later));
    assert!(!fetcher.on_fetched(plan.number, ErrorCode::None, 9, std::iter::empty(), later), "answered already");
}

#[test]
fn a_log_is_cut_where_its_history_and_the_leaders_part() {
    let epochs = vec![(2, 0), (3, 40), (5, 60)];
    let cut = |leaders_epoch, leaders_end| {
        let mut fetcher = Fetcher::new(CONFIG);
        fetcher.follow(partition(0), LeaderEpoch(9), position(80, 5), Offset(70));
        exchange(&mut fetcher, NOW);
        let log = Log { epochs: epochs.clone(), end: 80 };
        match answer(&mut fetcher, 0, diverging(leaders_epoch, leaders_end), &log) {
            FollowerStep::Truncate { to, .. } => to.value(),
            other => panic!("no cut, but {other:?}"),
        }
    };
    assert_eq!(cut(5, 75), 75, "the leader has less of the last epoch, though 70 were committed for all we knew");
    assert_eq!(cut(3, 50), 50, "the leader's epoch 3 ends earlier than ours");
    assert_eq!(cut(3, 70), 60, "ours ends earlier than the leader's");
    assert_eq!(cut(4, 70), 60, "we have nothing of epoch 4: what we have before it is compared next");
    assert_eq!(cut(1, 30), 30, "we know nothing so old");
    assert_eq!(cut(1, 90), 80);
}

#[test]
fn after_a_cut_the_next_fetch_compares_what_is_left() {
    let mut fetcher = fetcher(1);
    exchange(&mut fetcher, NOW);
    let log = Log { epochs: vec![(1, 0), (2, 6)], end: 10 };
    let step = answer(&mut fetcher, 0, diverging(1, 8), &log);
    assert_eq!(step, FollowerStep::Truncate { leader_epoch: LeaderEpoch(5), to: Offset(6) });
    assert!(fetch(&mut fetcher, NOW).forgotten == [partition(0)], "it is not fetched while it is cut");
    fetcher.on_log_changed(partition(0), position(6, 1), NOW);
    let plan = fetch(&mut fetcher, NOW);
    assert_eq!((plan.wanted[0].1.offset, plan.wanted[0].1.last_fetched_epoch), (Offset(6), LeaderEpoch(1)));
}

#[test]
fn a_cut_that_cuts_nothing_is_not_asked_for_at_once_again() {
    let mut fetcher = fetcher(1);
    exchange(&mut fetcher, NOW);
    answer(&mut fetcher, 0, diverging(2, 30), &log(10));
    fetcher.on_log_changed(partition(0), position(10, 2), NOW);
    let plan = fetch(&mut fetcher, NOW);
    assert_eq!((wanted(&plan), plan.forgotten), (vec![], vec![partition(0)]));
}

#[test]
fn a_log_without_epochs_is_cut_to_the_high_watermark() {
    let mut fetcher = Fetcher::new(CONFIG);
    let step = fetcher.follow(partition(0), LeaderEpoch(5), position(10, -1), Offset(4));
    assert_eq!(step, FollowerStep::Truncate { leader_epoch: LeaderEpoch(5), to: Offset(4) });
    assert_eq!(fetcher.next(None, NOW), NextRequest::Wait(None));
    fetcher.on_log_changed(partition(0), position(4, -1), NOW);
    assert_eq!(fetch(&mut fetcher, NOW).wanted[0].1.last_fetched_epoch, LeaderEpoch::NONE);
}

#[test]
fn an_answer_to_a_request_of_another_leadership_or_position_is_not_used() {
    let mut fetcher = fetcher(2);
    exchange(&mut fetcher, NOW);
    fetcher.follow(partition(0), LeaderEpoch(6), position(10, 2), Offset(4));
    assert_eq!(answer(&mut fetcher, 0, good(20), &log(10)), FollowerStep::Nothing, "asked for in epoch 5");
    fetcher.on_log_changed(partition(1), position(8, 2), NOW);
    assert_eq!(answer(&mut fetcher, 1, good(20), &log(8)), FollowerStep::Nothing, "asked for at offset 10");
    fetcher.unfollow(partition(1));
    assert_eq!(answer(&mut fetcher, 1, good(20), &log(8)), FollowerStep::Nothing);
    assert_eq!(wanted(&fetch(&mut fetcher, NOW)), [0]);
}

#[test]
fn an_older_leadership_does_not_take_a_partition_back() {
    let mut fetcher = fetcher(1);
    fetcher.follow(partition(0), LeaderEpoch(4), position(3, 2), Offset(0));
    assert_eq!(fetch(&mut fetcher, NOW).wanted[0].1.leader_epoch, LeaderEpoch(5));
}

#[test]
fn a_partition_with_an_error_pauses_and_the_others_go_on() {
    use ErrorCode as E;
    for error in [E::NotLeaderOrFollower, E::UnknownLeaderEpoch, E::UnknownTopicId, E::KafkaStorageError] {
        let mut fetcher = fetcher(2);
        exchange(&mut fetcher, NOW);
        assert_eq!(answer(&mut fetcher, 0, bad(error), &log(10)), FollowerStep::Nothing);
        let plan = exchange(&mut fetcher, NOW);
        assert_eq!(plan.forgotten, [partition(0)]);
        let plan = exchange(&mut fetcher, NOW.plus_ms(100));
        assert_eq!(wanted(&plan), [0], "{error:?}");
        answer(&mut fetcher, 0, bad(error), &log(10));
        exchange(&mut fetcher, NOW.plus_ms(199));
        assert_eq!(wanted(&fetch(&mut fetcher, NOW.plus_ms(200))), [0], "after {error:?} again");
    }
}

#[test]
fn a_fenced_partition_stands_still_until_the_metadata_has_the_newer_epoch() {
    let mut fetcher = fetcher(1);
    exchange(&mut fetcher, NOW);
    answer(&mut fetcher, 0, bad(ErrorCode::FencedLeaderEpoch), &log(10));
    assert!(fetcher.is_stopped(partition(0)));
    exchange(&mut fetcher, NOW);
    assert_eq!(fetcher.next(None, NOW.plus_ms(1_000_000)), NextRequest::Wait(None));
    fetcher.follow(partition(0), LeaderEpoch(6), position(10, 2), Offset(4));
    assert_eq!(wanted(&fetch(&mut fetcher, NOW)), [0]);
}

fn look_up(fetcher: &mut Fetcher, end: LogSide) -> OffsetLookUp {
    let asked = OffsetLookUp { partition: partition(0), leader_epoch: LeaderEpoch(5), end };
    assert_eq!(fetcher.next(None, NOW), NextRequest::LookUp(vec![asked]));
    asked
}

#[test]
fn a_follower_that_has_more_than_its_leader_is_cut_to_the_leaders_end() {
    let mut fetcher = fetcher(1);
    exchange(&mut fetcher, NOW);
    answer(&mut fetcher, 0, bad(ErrorCode::OffsetOutOfRange), &log(10));
    let asked = look_up(&mut fetcher, LogSide::Latest);
    let step = fetcher.on_looked_up(&asked, Ok(Offset(7)), &log(10), NOW);
    assert_eq!(step, FollowerStep::Truncate { leader_epoch: LeaderEpoch(5), to: Offset(7) });
}

#[test]
fn a_follower_behind_the_start_of_its_leader_starts_over_there() {
    let mut fetcher = fetcher(1);
    exchange(&mut fetcher, NOW);
    answer(&mut fetcher, 0, bad(ErrorCode::OffsetOutOfRange), &log(10));
    let asked = look_up(&mut fetcher, LogSide::Latest);
    assert_eq!(fetcher.on_looked_up(&asked, Ok(Offset(90)), &log(10), NOW), FollowerStep::Nothing);
    let asked = look_up(&mut fetcher, LogSide::Earliest);
    let step = fetcher.on_looked_up(&asked, Ok(Offset(50)), &log(10), NOW);
    assert_eq!(step, FollowerStep::StartOver { leader_epoch: LeaderEpoch(5), at: Offset(50) });
    fetcher.on_log_changed(partition(0), position(50, -1), NOW);
    assert_eq!(wanted(&exchange(&mut fetcher, NOW)), [0]);
}

#[test]
fn a_look_up_that_finds_nothing_wrong_is_not_made_over_and_over() {
    let mut fetcher = fetcher(1);
    exchange(&mut fetcher, NOW);
    answer(&mut fetcher, 0, bad(ErrorCode::OffsetOutOfRange), &log(10));
    let latest = look_up(&mut fetcher, LogSide::Latest);
    fetcher.on_looked_up(&latest, Ok(Offset(90)), &log(10), NOW);
    let earliest = look_up(&mut fetcher, LogSide::Earliest);
    fetcher.on_looked_up(&earliest, Ok(Offset(5)), &log(10), NOW);
    let _ = exchange(&mut fetcher, NOW);
    assert_eq!(fetcher.next(None, NOW), NextRequest::Wait(Some(NOW.plus_ms(100))));
}

#[test]
fn a_look_up_that_fails_is_made_again_after_a_pause() {
    let mut fetcher = fetcher(1);
    exchange(&mut fetcher, NOW);
    answer(&mut fetcher, 0, bad(ErrorCode::OffsetOutOfRange), &log(10));
    let asked = look_up(&mut fetcher, LogSide::Latest);
    fetcher.on_looked_up(&asked, Err(ErrorCode::NotLeaderOrFollower), &log(10), NOW);
    exchange(&mut fetcher, NOW);
    assert_eq!(fetcher.next(None, NOW), NextRequest::Wait(Some(NOW.plus_ms(100))));
    assert_eq!(fetcher.next(None, NOW.plus_ms(100)), NextRequest::LookUp(vec![asked]));
    fetcher.follow(partition(0), LeaderEpoch(6), position(10, 2), Offset(4));
    assert_eq!(fetcher.on_looked_up(&asked, Ok(Offset(7)), &log(10), NOW), FollowerStep::Nothing, "of an older epoch");
}

#[test]
fn a_step_that_fails_is_tried_again_unless_the_log_is_broken() {
    let mut fetcher = fetcher(2);
    exchange(&mut fetcher, NOW);
    for (index, failure) in [(0, StepFailure::Transient), (1, StepFailure::Permanent)] {
        answer(&mut fetcher, index, good(20), &log(10));
        fetcher.on_step_failed(partition(index), failure, NOW);
    }
    exchange(&mut fetcher, NOW);
    assert_eq!(wanted(&fetch(&mut fetcher, NOW.plus_ms(100))), [0]);
    assert!(fetcher.is_stopped(partition(1)));
}

#[test]
fn a_throttle_holds_back_what_is_behind_and_nothing_that_is_in_sync() {
    let mut fetcher = fetcher(3);
    let until = NOW.plus_ms(500);
    exchange(&mut fetcher, NOW);
    answer(&mut fetcher, 1, good(10), &log(10));
    fetcher.on_log_changed(partition(1), position(10, 2), NOW);
    fetcher.set_throttled(partition(0), true);
    fetcher.set_throttled(partition(1), true);
    let NextRequest::Fetch(plan) = fetcher.next(Some(until), NOW) else { panic!("the others go on") };
    assert_eq!(plan.forgotten, [partition(0)]);
    assert!(fetcher.on_fetched(plan.number, ErrorCode::None, 9, std::iter::empty(), NOW));
    assert_eq!(wanted(&fetch(&mut fetcher, until)), [0], "the quota is kept again");
}

#[test]
fn partitions_are_spread_over_fetchers_as_apache_spreads_them() {
    assert_eq!(fetcher_index("topic", PartitionIndex(3), 1), 0);
    // "topic".hashCode() is 110546223; 31 times that, plus 3, is -868034380 in 32 bits.
    assert_eq!(fetcher_index("topic", PartitionIndex(3), 7), 868_034_380 % 7);
    assert_eq!(fetcher_index("", PartitionIndex(i32::MIN), 5), 0, "the one number without an absolute value");
}
