//! The image of a cluster: what the metadata records say, and what changed.
