//! What `cargo xtask up` and the tests of whole clusters share: images, the operator's installation, clients in pods,
//! generated input, and the evidence of a failure.
//!
//! It speaks to Kubernetes only through kubectl and Helm, as a person does, and to Kafka only through unmodified clients.

pub mod clients;
pub mod disks;
pub mod events;
pub mod evidence;
pub mod images;
pub mod install;
pub mod story;

use std::path::{Path, PathBuf};

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate is two folders below the root")
        .to_path_buf()
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
