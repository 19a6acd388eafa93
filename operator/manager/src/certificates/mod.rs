//! The certificates of clusters' nodes: what their Secrets say, without what is secret in them, and the little that is done to them.
//! Called by the reconcile of a KafkaCluster; which certificate is made when is the plan's.
//!
//! A private key is made or read here, written to its Secret, and forgotten. It never comes into a log, an event, a status, or the
//! plan.

mod handshake;
mod make;
mod read;
mod write;

pub use handshake::look;
pub use read::{authority, node, seen};
pub(crate) use write::carry_out;

#[cfg(test)]
mod tests;
