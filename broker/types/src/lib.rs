//! Newtypes, identifiers and error codes that every other crate speaks in.
