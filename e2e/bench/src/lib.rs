//! Gregor and Apache Kafka side by side, measured in one run.
