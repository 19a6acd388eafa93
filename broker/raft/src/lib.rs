//! KRaft: the quorum as one pure step function.
