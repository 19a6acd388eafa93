//! Every RPC of Kafka's protocol as a Rust struct, generated from our own schema.
