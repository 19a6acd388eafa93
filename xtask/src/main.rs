//! `cargo xtask`: the commands a developer of Gregor types.
fn main() {}
