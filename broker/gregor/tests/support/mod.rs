//! What tests of whole programs share.

#![allow(dead_code, reason = "each test uses its part")]

pub mod fleet;
pub mod network;
pub mod replicas;
pub mod witnesses;
