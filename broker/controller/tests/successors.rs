//! A controller that takes over from another: what it holds its brokers for, and what it makes of what was left half done.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, SECOND};
use gregor_metadata::Image;
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::ErrorCode;

#[test]
fn nobody_takes_over_the_id_of_a_broker_that_a_predecessor_had_unfenced_before_its_session_is_over() {
    let mut rig = Rig::at(30).brokers(2);
    rig.register(3, 3);
    rig.lose();
    rig.now += 60 * SECOND;
    rig.win();
    rig.commit();
    let registers = |rig: &mut Rig, id, incarnation| ErrorCode::from(rig.register(id, incarnation).error_code);
    let taken = ErrorCode::DuplicateBrokerRegistration;
    assert_eq!(registers(&mut rig, 2, 77), taken, "the new leader has not heard of it yet");
    assert_eq!(registers(&mut rig, 3, 77), ErrorCode::None, "it was fenced");
    rig.now += 8 * SECOND;
    assert_eq!(registers(&mut rig, 2, 77), taken);
    rig.now += 2 * SECOND;
    assert_eq!(registers(&mut rig, 2, 77), ErrorCode::None, "it was silent for a whole session");
}

#[test]
fn what_a_first_leader_began_to_write_and_did_not_end_is_undone_and_written_anew() {
    let mut rig = Rig::at(30);
    rig.lose();
    // Of its batch the beginning came through, without the level.
    rig.log.truncate(1);
    assert!(matches!(rig.log[0].record, MetadataRecord::BeginTransaction(_)));
    (rig.committed, rig.image) = (0, Image::default());
    rig.commit();
    assert!(rig.image.in_transaction());
    rig.win();
    rig.commit();
    assert!(matches!(rig.log[1].record, MetadataRecord::AbortTransaction(_)), "{:?}", rig.log);
    assert!(!rig.image.in_transaction());
    assert_eq!(rig.level().level(), 30);
}
