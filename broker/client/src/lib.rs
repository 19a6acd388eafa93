//! An asynchronous Kafka client: metadata, produce, fetch, administration, groups.
