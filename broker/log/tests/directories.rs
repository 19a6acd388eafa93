//! A log directory from its formatting to its clean shutdown, on the real file system.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::{fs, path::Path, sync::Arc};

use common::{NOW, append, batch, partition, read_all};
use gregor_log::{
    CheckpointKind, DirectoryError, Disk, LogConfig, LogDirectory, MetaProperties, PartitionDirectoryKind,
    disk::{FaultyDisk, RealDisk},
};
use gregor_types::{BrokerEpoch, BrokerId, Offset, TopicPartition, Uuid};

fn open(path: &Path) -> LogDirectory {
    LogDirectory::open(Arc::new(RealDisk), path.to_owned()).unwrap()
}

#[test]
fn a_directory_is_handed_from_one_program_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let properties = MetaProperties {
        version: 1,
        cluster_id: "cluster".into(),
        node_id: BrokerId(4),
        directory_id: Some(Uuid(0x1234_5678 << 64)),
    };
    LogDirectory::format(&RealDisk, folder.path(), &properties).unwrap();
    let topic_id = Uuid(77 << 80);
    {
        let directory = open(folder.path());
        assert_eq!(directory.meta_properties(), Some(&properties));
        assert!(!directory.was_clean());
        let mut log =
            directory.create_partition(partition(), Some(topic_id), Arc::new(LogConfig::default()), NOW).unwrap();
        append(&mut log, &batch(&["a", "b"]));
        let metadata = fs::read_to_string(folder.path().join("t-0/partition.metadata")).unwrap();
        assert_eq!(metadata, format!("version: 0\ntopic_id: {topic_id}"));
        let flushed = log.close().unwrap().complete().unwrap();
        log.flushed(flushed);
        directory.write_checkpoint(CheckpointKind::RecoveryPoint, [(partition(), log.recovery_point())]).unwrap();
        directory.write_checkpoint(CheckpointKind::HighWatermark, [(partition(), Offset(2))]).unwrap();
        directory.finish_clean_shutdown(BrokerEpoch(31)).unwrap();
    }
    let marker = fs::read_to_string(folder.path().join(".kafka_cleanshutdown")).unwrap();
    assert_eq!(marker, r#"{"brokerEpoch":31,"version":0}"#);
    let directory = open(folder.path());
    assert_eq!(directory.previous_broker_epoch(), Some(BrokerEpoch(31)));
    assert!(!folder.path().join(".kafka_cleanshutdown").exists(), "a crash from here on is to be seen");
    assert_eq!(directory.checkpoint(CheckpointKind::HighWatermark, &partition()), Some(Offset(2)));
    let found = directory.find_partitions().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(directory.topic_id(&found[0]).unwrap(), Some(topic_id));
    let mut resting = directory.survey(found[0].clone()).unwrap();
    assert_eq!((resting.topic_id(), resting.end_offset()), (Some(topic_id), Some(Offset(2))));
    let mut log = resting.open(Arc::new(LogConfig::default()), NOW).unwrap();
    assert_eq!((log.topic_id(), log.recovery_point()), (Some(topic_id), Offset(2)));
    assert_eq!(read_all(&mut log).len(), 2);

    let mut plan_of_a_slow_reader = log
        .read(&gregor_log::ReadRequest {
            from: Offset(0),
            upper_bound: Offset(2),
            max_bytes: 1 << 20,
            min_one_batch: true,
        })
        .unwrap();
    let deleted = directory.delete_partition(log, Uuid(9)).unwrap();
    assert!(!folder.path().join("t-0").exists());
    let found = directory.find_partitions().unwrap();
    assert_eq!((found[0].kind, &found[0].topic_partition), (PartitionDirectoryKind::Deleted, &partition()));
    deleted.remove().unwrap();
    assert!(directory.find_partitions().unwrap().is_empty());
    assert!(!std::mem::take(&mut plan_of_a_slow_reader).read_all().unwrap().is_empty());
}

#[test]
fn a_stray_replica_is_put_aside_and_never_removed() {
    let folder = tempfile::tempdir().unwrap();
    let directory = open(folder.path());
    drop(directory.create_partition(partition(), None, Arc::new(LogConfig::default()), NOW).unwrap());
    let found = directory.find_partitions().unwrap().remove(0);
    let path = directory.set_stray(directory.survey(found).unwrap(), Uuid(3)).unwrap();
    assert!(path.join("00000000000000000000.log").exists());
    assert_eq!(directory.find_partitions().unwrap()[0].kind, PartitionDirectoryKind::Stray);
}

#[test]
fn a_foreign_folder_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("remote-log-index-cache")).unwrap();
    fs::write(folder.path().join("a-file-is-tolerated"), "").unwrap();
    let directory = open(folder.path());
    assert!(directory.find_partitions().unwrap().is_empty());
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    let error = directory.find_partitions().unwrap_err();
    assert!(matches!(error, DirectoryError::Foreign(_)));
    assert!(error.to_string().contains("lost+found"), "{error}");
}

#[test]
fn two_programs_cannot_have_one_directory() {
    let disk = FaultyDisk::new();
    let first = LogDirectory::open(Arc::new(disk.clone()), "/logs".into()).unwrap();
    let second = LogDirectory::open(Arc::new(disk.clone()), "/logs".into()).unwrap_err();
    assert!(matches!(second, DirectoryError::Locked(_)), "{second}");
    drop(first);
    LogDirectory::open(Arc::new(disk), "/logs".into()).unwrap();
}

#[test]
fn a_torn_checkpoint_only_makes_the_start_slower() {
    let disk = FaultyDisk::new();
    let directory = LogDirectory::open(Arc::new(disk.clone()), "/logs".into()).unwrap();
    let other = TopicPartition::new("other", 3);
    directory.write_checkpoint(CheckpointKind::RecoveryPoint, [(other.clone(), Offset(7))]).unwrap();
    drop(directory);
    let path = Path::new("/logs/recovery-point-offset-checkpoint");
    disk.open(path).unwrap().truncate(3).unwrap();
    let directory = LogDirectory::open(Arc::new(disk), "/logs".into()).unwrap();
    assert_eq!(directory.checkpoint(CheckpointKind::RecoveryPoint, &other), None);
}
