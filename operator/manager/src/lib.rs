//! The manager: reads, asks `plan` what to do, does one step, and says what it did. The program in `main.rs` runs it; tests
//! run it against a real API server.
//!
//! It decides nothing that could lose data: that is `plan`'s. It keeps nothing between two reconciles that it could not
//! read again.

pub mod admin;
pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod context;
pub mod definitions;
pub mod error;
pub mod fence;
pub mod gate;
pub mod health;
pub mod metrics;
pub mod run;
pub mod status;
pub mod topic;
