//! What a leadership promised, once it is over.

use std::thread;

use gregor_log::CheckpointKind;

use super::*;
use crate::storage::Flush;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_cut_while_its_append_ended_is_not_acknowledged() {
    let world = World::with(&[("min.insync.replicas", "1"), ("flush.messages", "1")]);
    world.cut_off(2);
    let [one, two] = world.publish().await;
    let (held, appended) = {
        let (holding, held) = std::sync::mpsc::channel();
        let (letting_go, let_go) = std::sync::mpsc::channel::<()>();
        let directory = one.directory();
        let holder = thread::spawn(move || {
            let _held = directory.hold_flush_requests();
            holding.send(()).unwrap();
            // Until the other end is dropped.
            let _ = let_go.recv();
        });
        held.recv().unwrap();
        // One that was asked for before would do for the append, too.
        one.flush(now());
        let one = Arc::clone(&one);
        ((letting_go, holder), thread::spawn(move || append(&one, "cut", true)))
    };
    until("it is in the log", || end_of(&one) == 1).await;
    world.elect(2).await;
    append(&two, "instead", false).unwrap();
    world.heal();
    until("the new leader's is committed here", || one.high_watermark() == Offset(1)).await;
    assert_eq!(bytes_of(&one), bytes_of(&two));
    let (letting_go, holder) = held;
    drop(letting_go);
    holder.join().unwrap();
    let awaits = appended.join().unwrap().unwrap().awaits.expect("what is committed is another record");
    assert_eq!(one.check(awaits), Err(ErrorCode::NotLeaderOrFollower));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_leads_nothing_by_an_election_from_before_it_registered() {
    let mut world = World::new(1);
    let [one, two] = world.publish().await;
    append(&one, "kept", false).unwrap();
    until("the follower has it", || end_of(&two) == 1).await;
    // It comes back, perhaps with nothing of what it had, and the controller does not know that yet.
    world.incarnation = Uuid(5);
    world.restart(1);
    let [one, two] = world.publish().await;
    assert_eq!(one.leadership(BrokerId(1)).0, None);
    assert_eq!(append(&one, "too early", false).err(), Some(ErrorCode::NotLeaderOrFollower));
    // The controller had it go on to lead.
    world.publish_with(&registration(1, 200, Uuid(5))).await;
    assert_eq!(one.leadership(BrokerId(1)).0, Some(BrokerId(1)));
    append(&one, "in time", false).unwrap();
    until("the follower has that", || end_of(&two) == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_follows_nobody_before_it_registered() {
    let mut world = World::new(1);
    let [one, two] = world.publish().await;
    append(&one, "both have it", false).unwrap();
    until("the follower has it", || end_of(&two) == 1).await;
    world.incarnation = Uuid(5);
    world.restart(2);
    let [one, two] = world.publish().await;
    assert_eq!(two.leadership(BrokerId(2)).0, None, "what it fetched would be taken for what its earlier run has");
    append(&one, "unheard of", false).unwrap();
    world.publish_with(&registration(2, 200, Uuid(5))).await;
    assert_eq!(two.leadership(BrokerId(2)).0, Some(BrokerId(1)));
    until("the follower has all", || end_of(&two) == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_is_not_taken_for_checked_at_the_next_start() {
    let world = World::with(&[("min.insync.replicas", "1"), ("flush.messages", "1")]);
    let [one, two] = world.publish().await;
    append(&one, "both", true).unwrap();
    until("both have it", || end_of(&two) == 1).await;
    world.cut_off(2);
    for _ in 0..5 {
        append(&one, "only here", false).unwrap();
    }
    one.flush(now());
    let broker = Arc::clone(&locked(&world.cluster.brokers)[&1]);
    broker.checkpoint(CheckpointKind::RecoveryPoint);
    let written = || {
        let file = one.directory().path.join("recovery-point-offset-checkpoint");
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().last().unwrap().rsplit(' ').next().unwrap().parse::<i64>().unwrap()
    };
    assert!(written() >= 5, "{}", written());
    world.cut_off(1);
    world.elect(2).await;
    append(&two, "instead", false).unwrap();
    world.heal();
    until("the logs are the same", || bytes_of(&one) == bytes_of(&two)).await;
    assert!(written() <= 1, "{}", written());
    one.directory().checkpoint(CheckpointKind::RecoveryPoint, vec![(one.name(), Offset(5))]);
    assert!(written() <= 1, "who asked before the cut writes it down after it: {}", written());
    append(&two, "and more", false).unwrap();
    until("the logs are the same", || bytes_of(&one) == bytes_of(&two)).await;
    one.flush(now());
    broker.checkpoint(CheckpointKind::RecoveryPoint);
    assert!(written() >= 2, "{}", written());
}
