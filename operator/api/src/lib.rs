//! The custom resources: KafkaCluster and KafkaTopic, their validation rules and conditions. No I/O.
