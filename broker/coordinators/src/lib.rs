//! One runtime for coordinators, and the group coordinator on it.
