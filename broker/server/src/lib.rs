//! The shell of a node: listeners, connections, dispatch, and the threads around the pure crates.
