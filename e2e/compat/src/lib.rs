//! Unmodified clients and Apache's own tools against Gregor.
