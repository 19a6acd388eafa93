//! What the calls return can be given to a multi-threaded runtime: a compile-time promise.

use std::time::Duration;

use gregor_client::{
    Admin, Client, ClientOptions, Consumer, Producer, ProducerRecord, StartOffset,
    types::{BrokerId, TopicPartition, Uuid},
};

fn is_send<T: Send>(_: &T) {}

#[allow(dead_code, reason = "it only has to compile")]
fn every_call(client: &Client, admin: &Admin, producer: Producer, mut consumer: Consumer) {
    is_send(&Client::connect("", ClientOptions::default()));
    is_send(&client.call(&gregor_client::messages::DescribeQuorumRequest::default()));
    is_send(&admin.describe_cluster());
    is_send(&admin.describe_quorum());
    is_send(&admin.remove_voter(BrokerId(0), Uuid::default()));
    is_send(&admin.create_topics(&[], false));
    is_send(&admin.delete_topics(&[]));
    is_send(&admin.create_partitions(&[], false));
    is_send(&admin.list_topics());
    is_send(&admin.describe_topics(&[]));
    is_send(&admin.describe_configs(&[]));
    is_send(&admin.incremental_alter_configs(&[], false));
    is_send(&admin.list_offsets(&[], false));
    is_send(&admin.delete_records(&[]));
    is_send(&admin.list_groups());
    is_send(&admin.describe_group(""));
    is_send(&admin.delete_groups(&[]));
    is_send(&admin.list_group_offsets(""));
    is_send(&admin.alter_group_offsets("", &std::collections::BTreeMap::new()));
    is_send(&admin.delete_group_offsets("", &[]));
    is_send(&producer.send(ProducerRecord::default()));
    is_send(&producer.flush());
    is_send(&producer.close());
    is_send(&consumer.assign([(TopicPartition::new("", 0), StartOffset::Earliest)]));
    is_send(&consumer.subscribe([]));
    is_send(&consumer.poll(Duration::ZERO));
    is_send(&consumer.commit());
    is_send(&consumer.close());
}

#[test]
fn every_call_can_be_spawned() {
    let _: fn(&Client, &Admin, Producer, Consumer) = every_call;
}
