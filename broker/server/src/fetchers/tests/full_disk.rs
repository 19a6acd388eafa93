//! A follower whose disk is full while it has to be synced, or that has no descriptor left to open its log.

use std::{io, path::Path};

use gregor_log::disk::{FaultyDisk, Operation};

use super::*;

const NO_SPACE: i32 = 28;
const NO_DESCRIPTORS: i32 = 24;

/// Refuses a broker to open, or to write, the file of a log's leader epochs, with this code of the system; counts how often. A sync
/// writes them down too, in a file that takes the place of the former one.
fn refuse(disk: &FaultyDisk, refused: Operation, world: &World, id: i32, code: i32) -> watch::Receiver<usize> {
    let folder = world.folders[id as usize - 1].path().to_owned();
    let (counting, counted) = watch::channel(0);
    disk.set_fault(move |operation, path: &Path| {
        let name = path.file_name()?.to_string_lossy();
        let is_epochs = path.starts_with(&folder) && name.starts_with("leader-epoch-checkpoint");
        (operation == refused && is_epochs).then(|| {
            counting.send_modify(|times| *times += 1);
            io::Error::from_raw_os_error(code)
        })
    });
    counted
}

async fn refused(times: usize, counted: &mut watch::Receiver<usize>) {
    let enough = counted.wait_for(|counted| *counted >= times);
    tokio::time::timeout(DEADLINE, enough).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_had_no_room_to_sync_goes_on_when_there_is_room() {
    let disk = FaultyDisk::new();
    let world = World::on(Arc::new(disk.clone()), &[("min.insync.replicas", "2"), ("flush.messages", "1")]);
    let [leader, follower] = world.publish().await;
    let mut was_refused = refuse(&disk, Operation::Create, &world, 2, NO_SPACE);
    let awaits = append(&leader, "one", true).unwrap().awaits.unwrap();
    refused(3, &mut was_refused).await;
    assert_eq!(end_of(&follower), 1, "it has the record");
    assert!(!is_committed(&leader, awaits), "and does not say so before it is on its disk");
    disk.clear_fault();
    until("it is synced", || is_committed(&leader, awaits)).await;
    assert_eq!(follower.with_log(|log, _| log.recovery_point()), Some(Offset(1)));
    let awaits = append(&leader, "two", true).unwrap().awaits;
    until("it goes on", || awaits.is_none_or(|awaits| is_committed(&leader, awaits))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_does_not_say_what_a_leadership_that_is_over_left_unsynced() {
    let disk = FaultyDisk::new();
    let world = World::on(Arc::new(disk.clone()), &[("min.insync.replicas", "2"), ("flush.messages", "1")]);
    let [one, two] = world.publish().await;
    let mut was_refused = refuse(&disk, Operation::Create, &world, 1, NO_SPACE);
    // A new epoch is to be written down.
    world.elect(1).await;
    append(&one, "one", true).unwrap();
    until("the other has it", || end_of(&two) == 1).await;
    world.elect(2).await;
    let before = *was_refused.borrow();
    refused(before + 5, &mut was_refused).await;
    assert_eq!(two.high_watermark(), Offset(0), "it is not on the disk of both");
    disk.clear_fault();
    until("it is committed", || two.high_watermark() == Offset(1)).await;
    assert_eq!(one.with_log(|log, _| log.recovery_point()), Some(Offset(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_could_not_open_its_log_goes_on_when_it_can() {
    let disk = FaultyDisk::new();
    let mut world = World::on(Arc::new(disk.clone()), &[]);
    let [leader, follower] = world.publish().await;
    append(&leader, "one", false).unwrap();
    until("the follower has it", || end_of(&follower) == 1).await;
    world.restart(2);
    let mut was_refused = refuse(&disk, Operation::Open, &world, 2, NO_DESCRIPTORS);
    let [leader, follower] = world.publish().await;
    refused(1, &mut was_refused).await;
    append(&leader, "two", false).unwrap();
    disk.clear_fault();
    until("it has what came since", || end_of(&follower) == 2).await;
    assert_eq!(bytes_of(&leader), bytes_of(&follower));
}
