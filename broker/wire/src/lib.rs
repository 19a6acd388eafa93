//! Bytes on the wire: primitives, limits, headers, hot views, record batches, compression.
