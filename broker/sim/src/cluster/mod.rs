//! A world of several nodes in one thread: a quorum, its controllers and brokers, made of the production's code, on a network and on
//! machines that fail, and what they are held to.
//!
//! [`run`] plays one seed. `world.rs` is the place to begin: it knows what happens, and `trouble.rs` what goes wrong. `machine.rs`
//! and `process.rs` say what a node is, `replicas.rs`, `held.rs`, `replica.rs` and `fetching.rs` how it holds partitions, `wire.rs` how messages
//! fare, `letters.rs` what is in them, `clients/` who uses it all; `ledger.rs`, `laws.rs`, `progress.rs`,
//! `durability.rs` and `audit.rs` what must be true.
//!
//! The quorum, the controller, the driver of the control thread, the image, the broker's life, leaders, followers and fetchers, and the log
//! are what a real node runs. What is the simulation's own is the shell around replicas, which does in steps what the server does
//! on its threads and tasks.

mod audit;
mod clients;
mod counting;
mod durability;
mod fetching;
mod held;
mod laws;
mod ledger;
mod letters;
mod machine;
mod process;
mod progress;
mod replica;
mod replicas;
mod sessions;
mod trouble;
mod wire;
mod world;

pub use trouble::FAULTS;
pub use world::{Outcome, run};
