//! A follower whose disk is full while it has to be synced.

use std::{io, path::Path};

use gregor_log::disk::{FaultyDisk, Operation};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_had_no_room_to_sync_goes_on_when_there_is_room() {
    let disk = FaultyDisk::new();
    let world = World::on(Arc::new(disk.clone()), &[("min.insync.replicas", "2"), ("flush.messages", "1")]);
    let [leader, follower] = world.publish().await;
    // A sync writes down the leader epochs too, in a file that takes the place of the former one.
    let full = world.folders[1].path().to_owned();
    let (refused, mut was_refused) = watch::channel(0);
    disk.set_fault(move |operation, path: &Path| {
        let name = path.file_name()?.to_string_lossy();
        let is_epochs = path.starts_with(&full) && name.starts_with("leader-epoch-checkpoint");
        (operation == Operation::Create && is_epochs).then(|| {
            refused.send_modify(|times| *times += 1);
            io::Error::from_raw_os_error(28)
        })
    });
    let awaits = append(&leader, "one", true).unwrap().awaits.unwrap();
    tokio::time::timeout(DEADLINE, was_refused.wait_for(|times| *times > 2)).await.unwrap().unwrap();
    assert_eq!(end_of(&follower), 1, "it has the record");
    assert!(!is_committed(&leader, awaits), "and does not say so before it is on its disk");
    disk.clear_fault();
    until("it is synced", || is_committed(&leader, awaits)).await;
    assert_eq!(follower.with_log(|log, _| log.recovery_point()), Some(Offset(1)));
    let awaits = append(&leader, "two", true).unwrap().awaits;
    until("it goes on", || awaits.is_none_or(|awaits| is_committed(&leader, awaits))).await;
}
