//! Every record that Kafka keeps in its own topics, generated from our own schema, and their framing.
