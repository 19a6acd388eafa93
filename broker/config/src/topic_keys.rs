//! The configuration of a topic.
//!
//! One row a key: name, type, default, allowed values, importance, how it changes at run time, what Gregor does with it, and its
//! documentation. Types, defaults and bounds are Apache Kafka 4.4's; the words are ours.

#![allow(clippy::enum_glob_use, clippy::unreadable_literal, reason = "a table, not code")]

use crate::key::{ConfigKey, Importance::Medium, Kind::*, Support::*, Update::*, Valid::*, key};

/// Every topic key, in alphabetical order.
#[rustfmt::skip]
pub static TOPIC_KEYS: &[ConfigKey] = &[
    key("cleanup.policy", List, Some("delete"), ListOf(&["compact", "delete"]), Medium, ClusterWide, Served, "What happens to old segments: deleted, compacted, or both; empty keeps them for ever."),
    key("compression.gzip.level", Int, Some("-1"), GzipLevel, Medium, ClusterWide, Served, "Level used when the broker itself compresses with gzip."),
    key("compression.lz4.level", Int, Some("9"), Within(1, 17), Medium, ClusterWide, Served, "Level used when the broker itself compresses with lz4; this codec has one speed here, so only the range is checked."),
    key("compression.type", String, Some("producer"), OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]), Medium, ClusterWide, Served, "How batches are stored: as the producer sent them, or compressed anew with the named codec."),
    key("compression.zstd.level", Int, Some("3"), Within(-131072, 22), Medium, ClusterWide, Served, "Level used when the broker itself compresses with zstd."),
    key("delete.retention.ms", Long, Some("86400000"), AtLeast(0), Medium, ClusterWide, Served, "How long tombstones and transaction markers stay after their first compaction."),
    key("errors.deadletterqueue.group.enable", Boolean, Some("false"), Any, Medium, ClusterWide, Refused, "Share groups are not served yet."),
    key("file.delete.delay.ms", Long, Some("60000"), AtLeast(0), Medium, ClusterWide, Served, "How long a deleted segment's files stay on disk under a .deleted name."),
    key("flush.messages", Long, Some("9223372036854775807"), AtLeast(1), Medium, ClusterWide, Served, "Records after which a partition is synced to disk; at 1 a record is synced before it is acknowledged."),
    key("flush.ms", Long, Some("9223372036854775807"), AtLeast(0), Medium, ClusterWide, Served, "The longest a record waits to be synced to disk."),
    key("follower.replication.throttled.replicas", List, Some(""), ThrottledReplicas, Medium, ClusterWide, Served, "Replicas that follow no faster than follower.replication.throttled.rate of their brokers while they are out of sync."),
    key("index.interval.bytes", Int, Some("4096"), AtLeast(0), Medium, ClusterWide, Served, "Bytes of log between two entries of the offset index."),
    key("leader.replication.throttled.replicas", List, Some(""), ThrottledReplicas, Medium, ClusterWide, Served, "Leaders that give replicas out of sync no more than leader.replication.throttled.rate of their brokers."),
    key("local.retention.bytes", Long, Some("-2"), AtLeast(-2), Medium, ClusterWide, Ignored, "Tiered storage is not served yet."),
    key("local.retention.ms", Long, Some("-2"), AtLeast(-2), Medium, ClusterWide, Ignored, "Tiered storage is not served yet."),
    key("max.compaction.lag.ms", Long, Some("9223372036854775807"), AtLeast(1), Medium, ClusterWide, Served, "A record that waits longer is compacted whatever the dirty share of its log is."),
    key("max.decompressed.message.bytes", Int, Some("2147483639"), Within(1, 2147483639), Medium, ClusterWide, Served, "Largest size of a produced batch once decompressed."),
    key("max.message.bytes", Int, Some("1048588"), AtLeast(0), Medium, ClusterWide, Served, "Largest record batch that is accepted, as it stands on the wire."),
    key("message.timestamp.after.max.ms", Long, Some("3600000"), AtLeast(0), Medium, ClusterWide, Served, "How far ahead of the broker's clock a record's timestamp may be."),
    key("message.timestamp.before.max.ms", Long, Some("9223372036854775807"), AtLeast(0), Medium, ClusterWide, Served, "How far behind the broker's clock a record's timestamp may be."),
    key("message.timestamp.type", String, Some("CreateTime"), OneOf(&["CreateTime", "LogAppendTime"]), Medium, ClusterWide, Served, "Whether records carry the producer's time or the time of their append."),
    key("min.cleanable.dirty.ratio", Double, Some("0.5"), Fraction { min: 0.0, max: 1.0 }, Medium, ClusterWide, Served, "The share of a log that was never compacted above which it is."),
    key("min.compaction.lag.ms", Long, Some("0"), AtLeast(0), Medium, ClusterWide, Served, "Records younger than this are not compacted."),
    key("min.insync.replicas", Int, Some("1"), AtLeast(1), Medium, ClusterWide, Served, "In-sync replicas that must hold a record before acks=all acknowledges it."),
    key("preallocate", Boolean, Some("false"), Any, Medium, ClusterWide, Served, "Whether a new segment's file gets its full size at once."),
    key("remote.copy.lag.bytes", Long, Some("-1"), AtLeast(-1), Medium, ClusterWide, Ignored, "Tiered storage is not served yet."),
    key("remote.copy.lag.ms", Long, Some("0"), AtLeast(-1), Medium, ClusterWide, Ignored, "Tiered storage is not served yet."),
    key("remote.log.copy.disable", Boolean, Some("false"), Any, Medium, ClusterWide, Ignored, "Tiered storage is not served yet."),
    key("remote.log.delete.on.disable", Boolean, Some("false"), Any, Medium, ClusterWide, Ignored, "Tiered storage is not served yet."),
    key("remote.storage.enable", Boolean, Some("false"), Any, Medium, ClusterWide, Refused, "Tiered storage is not served yet."),
    key("retention.bytes", Long, Some("-1"), Any, Medium, ClusterWide, Served, "Size of a partition above which old segments are deleted; -1 for no bound."),
    key("retention.ms", Long, Some("604800000"), AtLeast(-1), Medium, ClusterWide, Served, "Age in milliseconds after which a segment is deleted; -1 for never."),
    key("segment.bytes", Int, Some("1073741824"), AtLeast(1048576), Medium, ClusterWide, Served, "Largest size of a segment's file."),
    key("segment.index.bytes", Int, Some("10485760"), AtLeast(4), Medium, ClusterWide, Served, "Largest offset index of a segment; a full one rolls the segment."),
    key("segment.jitter.ms", Long, Some("0"), AtLeast(0), Medium, ClusterWide, Served, "Random part taken off segment.ms, so that segments do not all roll at once."),
    key("segment.ms", Long, Some("604800000"), AtLeast(1), Medium, ClusterWide, Served, "Milliseconds after which a new segment is begun even if the old one is not full."),
    key("unclean.leader.election.enable", Boolean, Some("false"), Any, Medium, ClusterWide, Served, "Whether a replica that was not in sync may lead when no other is left; it loses records."),
];
