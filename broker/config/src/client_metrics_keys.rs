//! The configuration of a client metrics subscription (KIP-714).
//!
//! One row a key: name, type, default, allowed values, importance, how it changes at run time, what Gregor does with it, and its
//! documentation. Types, defaults and bounds are Apache Kafka 4.4's; the words are ours.

#![allow(clippy::enum_glob_use, clippy::unreadable_literal, reason = "a table, not code")]

use crate::key::{ConfigKey, Importance::Medium, Kind::*, Support::*, Update::*, Valid::*, key};

/// Every key of a subscription, in alphabetical order.
#[rustfmt::skip]
pub static CLIENT_METRICS_KEYS: &[ConfigKey] = &[
    key("interval.ms", Int, Some("300000"), Within(100, 3600000), Medium, ClusterWide, Ignored, "How often clients push their metrics. Kept and shown; metrics are not collected yet."),
    key("match", List, Some(""), Any, Medium, ClusterWide, Ignored, "Which clients are meant, as selector=pattern; all where there is none. Kept and shown; metrics are not collected yet."),
    key("metrics", List, Some(""), Any, Medium, ClusterWide, Ignored, "What the names of the metrics begin with; * for all of them. Kept and shown; metrics are not collected yet."),
];
