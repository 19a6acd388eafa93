//! The controller as one pure step function: topics, partitions, brokers, configurations.
