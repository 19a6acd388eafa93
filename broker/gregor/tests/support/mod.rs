//! What tests of whole programs share.

pub mod fleet;
