//! One outgoing connection to a broker: versions, correlation, back-off.
