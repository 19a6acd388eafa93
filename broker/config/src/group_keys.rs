//! The configuration of a group.
//!
//! One row a key: name, type, default, allowed values, importance, how it changes at run time, what Gregor does with it, and its
//! documentation. Types, defaults and bounds are Apache Kafka 4.4's; the words are ours.

#![allow(clippy::enum_glob_use, clippy::unreadable_literal, reason = "a table, not code")]

use crate::key::{
    ConfigKey,
    Importance::{Low, Medium},
    Kind::*,
    Support::*,
    Update::*,
    Valid::*,
    key,
};

/// Every group key, in alphabetical order.
#[rustfmt::skip]
pub static GROUP_KEYS: &[ConfigKey] = &[
    key("consumer.assignment.interval.ms", Int, Some("1000"), AtLeast(0), Medium, ClusterWide, Ignored, "Not served yet."),
    key("consumer.heartbeat.interval.ms", Int, Some("5000"), AtLeast(1), Medium, ClusterWide, Ignored, "Not served yet."),
    key("consumer.session.timeout.ms", Int, Some("45000"), AtLeast(1), Medium, ClusterWide, Ignored, "Not served yet."),
    key("errors.deadletterqueue.copy.record.enable", Boolean, Some("false"), Any, Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("errors.deadletterqueue.topic.name", String, Some(""), Any, Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("share.assignment.interval.ms", Int, Some("1000"), AtLeast(0), Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("share.auto.offset.reset", String, Some("latest"), Any, Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("share.delivery.count.limit", Int, Some("5"), AtLeast(2), Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("share.heartbeat.interval.ms", Int, Some("5000"), AtLeast(1), Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("share.isolation.level", String, Some("read_uncommitted"), OneOf(&["read_committed", "read_uncommitted"]), Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("share.partition.max.record.locks", Int, Some("2000"), AtLeast(100), Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("share.record.lock.duration.ms", Int, Some("30000"), AtLeast(1000), Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("share.renew.acknowledge.enable", Boolean, Some("true"), Any, Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("share.session.timeout.ms", Int, Some("45000"), AtLeast(1), Medium, ClusterWide, Ignored, "Share groups are not served yet."),
    key("streams.assignment.interval.ms", Int, Some("1000"), AtLeast(0), Medium, ClusterWide, Ignored, "Not served yet."),
    key("streams.assignor.name", String, None, Any, Medium, ClusterWide, Ignored, "Not served yet."),
    key("streams.heartbeat.interval.ms", Int, Some("5000"), AtLeast(1), Medium, ClusterWide, Ignored, "Not served yet."),
    key("streams.initial.rebalance.delay.ms", Int, Some("3000"), AtLeast(0), Medium, ClusterWide, Ignored, "Not served yet."),
    key("streams.num.standby.replicas", Int, Some("0"), AtLeast(0), Medium, ClusterWide, Ignored, "Not served yet."),
    key("streams.rack.aware.assignment.tags", List, Some(""), Any, Low, ClusterWide, Ignored, "Not served yet."),
    key("streams.session.timeout.ms", Int, Some("45000"), AtLeast(1), Medium, ClusterWide, Ignored, "Not served yet."),
];
