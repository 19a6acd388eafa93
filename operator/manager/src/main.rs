//! The `gregor-operator` program.
fn main() {}
