//! What a broker does with partitions and directories as the metadata changes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use gregor_messages::{
    AssignReplicasToDirsResponse,
    assign_replicas_to_dirs_response::{DirectoryData, PartitionData, TopicData},
};
use gregor_metadata::{Changes, Image};
use gregor_node::{
    DirectoryReports, FolderFate, FoundFolder, LocalDirectory, MoveQuota, PartitionAction, ReplicaRole,
    choose_directory, is_stray, partition_actions, settle_folders,
};
use gregor_state_records::metadata::{
    MetadataRecord, PartitionChangeRecord, PartitionRecord, RemoveTopicRecord, TopicRecord,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, PartitionIndex, Uuid};

fn topic(name: &str, id: u128, replicas: &[i32], leader: i32) -> [MetadataRecord; 2] {
    let partition = PartitionRecord {
        partition_id: 0,
        topic_id: Uuid(id),
        replicas: replicas.to_vec(),
        isr: replicas.to_vec(),
        leader,
        leader_epoch: 0,
        partition_epoch: 0,
        ..Default::default()
    };
    let topic = TopicRecord { name: name.into(), topic_id: Uuid(id), ..Default::default() };
    [MetadataRecord::Topic(topic), MetadataRecord::Partition(partition)]
}

fn change(id: u128, change: impl FnOnce(&mut PartitionChangeRecord)) -> MetadataRecord {
    let mut record = PartitionChangeRecord { partition_id: 0, topic_id: Uuid(id), ..Default::default() };
    change(&mut record);
    MetadataRecord::PartitionChange(record)
}

fn remove(id: u128) -> MetadataRecord {
    MetadataRecord::RemoveTopic(RemoveTopicRecord { topic_id: Uuid(id), ..Default::default() })
}

/// What broker 1 does at these records, in words.
fn actions(image: &mut Image, records: impl IntoIterator<Item = MetadataRecord>) -> Vec<String> {
    let previous = image.clone();
    let mut changes = Changes::default();
    for record in records {
        changes.add(image.apply(&record).unwrap());
    }
    let actions = partition_actions(BrokerId(1), &previous, image, &changes);
    let told = |action: &PartitionAction| match action {
        PartitionAction::Hold { topic, index, role: ReplicaRole::Leader, .. } => format!("lead {topic}-{index}"),
        PartitionAction::Hold { topic, index, role: ReplicaRole::Follower(leader), .. } => {
            format!("follow {topic}-{index} of {leader}")
        }
        PartitionAction::Hold { topic, index, role: ReplicaRole::Leaderless, .. } => format!("hold {topic}-{index}"),
        PartitionAction::Delete { topic, index, .. } => format!("delete {topic}-{index}"),
    };
    actions.iter().map(told).collect()
}

#[test]
fn a_broker_leads_follows_and_ignores_what_the_metadata_says() {
    let mut image = Image::default();
    let records = [topic("led", 1, &[1, 2], 1), topic("followed", 2, &[2, 1], 2), topic("foreign", 3, &[2], 2)];
    let mut told = actions(&mut image, records.into_iter().flatten());
    told.sort();
    assert_eq!(told, ["follow followed-0 of 2", "lead led-0"]);
    assert_eq!(actions(&mut image, [change(1, |record| record.leader = 2)]), ["follow led-0 of 2"]);
    assert_eq!(actions(&mut image, [change(1, |record| record.leader = -1)]), ["hold led-0"]);
}

#[test]
fn a_replica_that_moved_away_is_deleted_and_one_that_came_is_held() {
    let mut image = Image::default();
    let moved = |replicas: &[i32]| {
        let replicas = replicas.to_vec();
        change(1, move |record| {
            record.directories = Some(vec![Uuid(0); replicas.len()]);
            record.replicas = Some(replicas);
        })
    };
    actions(&mut image, topic("t", 1, &[1, 2], 2));
    assert_eq!(actions(&mut image, [moved(&[2, 3])]), ["delete t-0"]);
    assert!(actions(&mut image, [moved(&[2])]).is_empty(), "it is gone already");
    assert_eq!(actions(&mut image, [moved(&[2, 1])]), ["follow t-0 of 2"]);
}

#[test]
fn a_replica_that_moved_away_just_before_its_topic_was_deleted_is_deleted() {
    let mut image = Image::default();
    actions(&mut image, topic("t", 1, &[1, 2], 2));
    let moved = change(1, |record| {
        record.directories = Some(vec![Uuid(0); 2]);
        record.replicas = Some(vec![2, 3]);
    });
    assert_eq!(actions(&mut image, [moved, remove(1)]), ["delete t-0"]);
}

#[test]
fn a_topic_created_anew_is_deleted_first() {
    let mut image = Image::default();
    actions(&mut image, topic("t", 1, &[1], 1));
    let records = std::iter::once(remove(1)).chain(topic("t", 2, &[1], 1));
    assert_eq!(actions(&mut image, records), ["delete t-0", "lead t-0"]);
}

#[test]
fn what_is_on_disk_and_not_ours_by_the_metadata_is_a_stray() {
    let mut image = Image::default();
    actions(&mut image, topic("t", 2, &[1], 1));
    actions(&mut image, topic("moved", 3, &[2], 2));
    let stray = |id: Option<u128>, name: &str, index: i32| {
        is_stray(BrokerId(1), &image, id.map(Uuid), name, PartitionIndex(index))
    };
    assert!(!stray(Some(2), "t", 0));
    assert!(!stray(None, "t", 0), "a log from before topics had ids is known by name");
    assert!(stray(Some(1), "t", 0), "created anew under its name");
    assert!(stray(Some(2), "t", 5));
    assert!(stray(Some(3), "moved", 0));
    assert!(stray(None, "gone", 0));
}

#[test]
fn a_new_replica_goes_where_the_metadata_says_or_where_there_is_least() {
    let directory = |id, partitions, cordoned| LocalDirectory { id: Uuid(id), partitions, cordoned };
    let online = [directory(501, 4, false), directory(502, 2, false), directory(503, 0, true)];
    assert_eq!(choose_directory(Uuid(501), &online), Some(Uuid(501)));
    assert_eq!(choose_directory(Uuid(503), &online), Some(Uuid(503)), "a cordon does not move what is there");
    assert_eq!(choose_directory(Uuid::DIRECTORY_UNASSIGNED, &online), Some(Uuid(502)));
    assert_eq!(choose_directory(Uuid(999), &online), Some(Uuid(502)));
    assert_eq!(choose_directory(Uuid::DIRECTORY_UNASSIGNED, &online[2..]), Some(Uuid(503)));
    assert_eq!(choose_directory(Uuid(501), &[]), None);
}

#[test]
fn directories_are_reported_in_batches_until_the_controller_has_them() {
    let mut reports = DirectoryReports::default();
    for index in 0..3_000 {
        reports.report(Uuid(1), PartitionIndex(index), Uuid(501));
    }
    let next = |reports: &mut DirectoryReports, now| {
        let request = reports.next_request(BrokerId(1), BrokerEpoch(7), now)?;
        assert_eq!((request.broker_id, request.broker_epoch), (1, 7));
        Some(
            request
                .directories
                .iter()
                .flat_map(|directory| &directory.topics)
                .map(|topic| topic.partitions.len())
                .sum(),
        )
    };
    assert_eq!(next(&mut reports, 0), Some(2_250_usize));
    assert_eq!(next(&mut reports, 0), None, "one at a time");
    reports.answered(None, 0);
    assert_eq!(next(&mut reports, 0), None, "not at once");
    let later = reports.next_deadline().unwrap();
    assert_eq!(next(&mut reports, later), Some(2_250));
    let partition =
        PartitionData { partition_index: 5, error_code: ErrorCode::OperationNotAttempted.code(), ..Default::default() };
    let topic = TopicData { topic_id: Uuid(1), partitions: vec![partition], ..Default::default() };
    let directory = DirectoryData { id: Uuid(501), topics: vec![topic], ..Default::default() };
    let response = AssignReplicasToDirsResponse { directories: vec![directory], ..Default::default() };
    reports.answered(Some(&response), later);
    let later = reports.next_deadline().unwrap();
    assert_eq!(next(&mut reports, later), Some(751), "the rest, and the one that was not taken");
    reports.answered(Some(&AssignReplicasToDirsResponse::default()), later);
    assert_eq!(reports.next_deadline(), None);
}

/// What becomes of folders, in words, where the metadata says that the replica is in directory `assigned`.
fn fates(assigned: u128, folders: &[(u128, Option<u128>, bool)]) -> Vec<FolderFate> {
    let mut image = Image::default();
    let mut records = topic("t", 2, &[1], 1);
    if let MetadataRecord::Partition(partition) = &mut records[1] {
        partition.directories = vec![Uuid(assigned)];
    }
    actions(&mut image, records);
    let folder = |(directory, topic_id, is_future): &(u128, Option<u128>, bool)| FoundFolder {
        directory: Uuid(*directory),
        topic_id: topic_id.map(Uuid),
        is_future: *is_future,
    };
    let folders: Vec<_> = folders.iter().map(folder).collect();
    settle_folders(BrokerId(1), &image, ("t", PartitionIndex(0)), &[Uuid(501), Uuid(502)], &folders)
}

#[test]
fn of_several_folders_of_a_partition_one_is_the_replica() {
    use FolderFate::{Leave, Promote, Resume, Serve, Stray};
    const MAIN: bool = false;
    const FUTURE: bool = true;
    assert_eq!(fates(501, &[(501, Some(2), MAIN)]), [Serve]);
    assert_eq!(fates(501, &[(501, Some(2), MAIN), (502, Some(2), FUTURE)]), [Serve, Resume], "the move goes on");
    assert_eq!(fates(502, &[(501, Some(2), MAIN), (502, Some(2), FUTURE)]), [Serve, Resume], "it may lack records yet");
    assert_eq!(fates(502, &[(502, Some(2), FUTURE)]), [Promote], "stopped between the two renames");
    assert_eq!(fates(0, &[(502, Some(2), FUTURE)]), [Promote]);
    assert_eq!(fates(777, &[(502, Some(2), FUTURE)]), [Leave], "the replica is in a directory that is offline");
    assert_eq!(fates(502, &[(501, Some(2), MAIN), (502, Some(2), MAIN)]), [Stray, Serve], "the metadata knows which");
    assert_eq!(fates(0, &[(501, Some(2), MAIN), (502, Some(2), MAIN)]), [Serve, Stray]);
    assert_eq!(fates(501, &[(501, Some(1), MAIN), (502, Some(2), MAIN)]), [Stray, Serve], "of a topic that is gone");
    assert_eq!(fates(501, &[(501, Some(2), MAIN), (502, Some(1), FUTURE)]), [Serve, Stray]);
    assert_eq!(fates(501, &[(501, Some(2), MAIN), (502, None, FUTURE)]), [Serve, Stray], "a copy that never began");
    assert_eq!(fates(501, &[(501, Some(2), MAIN), (501, Some(2), FUTURE)]), [Serve, Stray]);
    assert_eq!(
        fates(501, &[(501, Some(2), MAIN), (502, Some(2), FUTURE), (502, Some(2), FUTURE)]),
        [Serve, Resume, Stray]
    );
}

#[test]
fn moves_keep_to_their_rate_over_the_samples() {
    const SECOND: u64 = 1_000_000_000;
    let mut quota = MoveQuota::new(11, 1);
    assert_eq!(quota.pause(1_000, 0), 0, "nothing moved yet");
    let (mut now, mut moved) = (0, 0_u64);
    while now < 60 * SECOND {
        match quota.pause(1_000, now) {
            0 => {
                quota.moved(300, now);
                moved += 300;
                now += SECOND / 1_000;
            }
            pause => now += pause,
        }
    }
    assert!((58_000..=62_000).contains(&moved), "{moved} in a minute at 1,000 a second");
    assert!(quota.pause(0, now) > 0, "a rate of nothing moves nothing");
    assert_eq!(quota.pause(u64::MAX, now), 0);
    assert_eq!(quota.pause(1, now + 12 * SECOND), 0, "what is long ago counts no more");
}
