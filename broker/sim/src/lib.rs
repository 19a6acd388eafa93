//! A world in one thread that a seed replays: simulated time, disks that fail, nodes made of the production's code, clients, and
//! the promises that nodes are held to.
//!
//! [`run`] plays one seed and says what it came to, or which promise was broken. `world.rs` is the place to begin: it knows what
//! happens; `node/` what a node is made of; `clients/` who uses it; `promises.rs` and `audit.rs` what must be true. There is one
//! node, and all that it does for clients. [`cluster::run`] plays a world of several nodes: how they agree and copy.
//!
//! Above all of the broker: nothing depends on it.

mod audit;
pub mod clients;
pub mod clock;
pub mod cluster;
pub mod network;
pub mod node;
pub mod promises;
mod random;
mod trace;
mod world;

/// What it plays is small things that come and go: the system's allocator is slower at them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub use random::Random;
pub use world::{Finding, Options, Outcome, run};
