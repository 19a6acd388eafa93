//! A partition's log in Kafka's files: append, read plan, recovery, retention, checkpoints.
