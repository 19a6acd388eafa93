//! Replicas whose directory fails.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_a_log_goes_is_asked_when_no_move_can_bring_it_elsewhere_any_more() {
    let world = World::new(1);
    let [leader, _] = world.publish().await;
    append(&leader, "kept", false).unwrap();
    let stays = leader.take_log_if(|| {
        assert!(leader.try_lock().is_none(), "a move that ends meanwhile waits, or is seen");
        false
    });
    assert!(stays.is_none() && leader.take_log_if_offline().is_none());
    assert_eq!(end_of(&leader), 1);
    leader.directory().fail("broken");
    assert!(leader.take_log_if_offline().is_some_and(|log| !log.is_gone()));
}
