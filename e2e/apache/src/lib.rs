//! The real Apache Kafka from its released jars: fetched, started, its tools run.
