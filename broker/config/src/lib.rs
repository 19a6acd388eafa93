//! The table of configuration keys, and the server.properties that uses it.
