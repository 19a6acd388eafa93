//! A small cluster for the tests of the APIs that read the image.

use gregor_metadata::Image;
use gregor_state_records::metadata::{
    FeatureLevelRecord, MetadataRecord, PartitionRecord, RegisterBrokerRecord, TopicRecord,
    register_broker_record::BrokerEndpoint,
};
use gregor_types::Uuid;

/// Brokers 1 and 2 up and 3 fenced; the topic `t` on all of them, `alone` on the one that is down, and the offsets topic.
pub(crate) fn image() -> Image {
    let mut image = image_with(&[]);
    let mut partition = |name: &str, id: u128, record: PartitionRecord| {
        add_topic(&mut image, name, id);
        image.apply(&MetadataRecord::Partition(record)).unwrap();
    };
    let record = |id: u128, replicas: &[i32], isr: &[i32], leader: i32| PartitionRecord {
        partition_id: 0,
        topic_id: Uuid(id),
        replicas: replicas.to_vec(),
        isr: isr.to_vec(),
        leader,
        leader_epoch: 4,
        partition_epoch: 0,
        ..Default::default()
    };
    partition("t", 11, record(11, &[1, 2, 3], &[1, 2], 1));
    partition("alone", 12, record(12, &[3], &[3], -1));
    partition("__consumer_offsets", 13, record(13, &[1], &[1], 1));
    image
}

/// The same brokers with other topics: names and numbers of partitions.
pub(crate) fn image_with(topics: &[(&str, i32)]) -> Image {
    let mut image = Image::default();
    let level = FeatureLevelRecord { name: "metadata.version".into(), feature_level: 30, ..Default::default() };
    image.apply(&MetadataRecord::FeatureLevel(level)).unwrap();
    for broker_id in 1..=3 {
        let endpoint = BrokerEndpoint { name: "PLAINTEXT".into(), host: "h".into(), port: 9092, ..Default::default() };
        let record = RegisterBrokerRecord {
            broker_id,
            end_points: vec![endpoint],
            fenced: broker_id == 3,
            ..Default::default()
        };
        image.apply(&MetadataRecord::RegisterBroker(record)).unwrap();
    }
    for (position, (name, partitions)) in topics.iter().enumerate() {
        let id = 100 + position as u128;
        add_topic(&mut image, name, id);
        for partition_id in 0..*partitions {
            let record = PartitionRecord {
                partition_id,
                topic_id: Uuid(id),
                replicas: vec![1],
                isr: vec![1],
                leader: 1,
                leader_epoch: 0,
                partition_epoch: 0,
                ..Default::default()
            };
            image.apply(&MetadataRecord::Partition(record)).unwrap();
        }
    }
    image
}

fn add_topic(image: &mut Image, name: &str, id: u128) {
    let record = TopicRecord { name: name.into(), topic_id: Uuid(id), ..Default::default() };
    image.apply(&MetadataRecord::Topic(record)).unwrap();
}
