//! Schema in, Rust out; imports the schema of a new Kafka release. Development only.
