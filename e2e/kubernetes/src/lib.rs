//! A real Kubernetes anywhere: a given cluster, kind, k3d or minikube; else a rig of namespaces on this machine.
//!
//! Called by `cargo xtask up|down|rig|test` and by the tests of the operator and of whole clusters. Tests ask a [`Cluster`]
//! for [`Capabilities`], never for the name of its provider. Nothing here knows what Gregor is.

mod cluster;
pub mod hash;
pub mod oci;
pub mod packages;
pub mod process;
pub mod programs;
mod provider;
mod rig;

pub use cluster::{Capabilities, Cluster, Helm, NodeFault};
pub use provider::Provider;
pub use rig::Rig;
