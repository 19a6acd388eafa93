//! Topics by name: what a legal name is, and a partition of one.

use std::fmt;

use crate::{KString, PartitionIndex};

/// A partition of a topic, by name. Displays as Kafka names its directory: `topic-0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: KString,
    /// The partition's number in it.
    pub partition: PartitionIndex,
}

/// Why a name cannot be a topic's (`org.apache.kafka.common.internals.Topic`). The texts are Kafka's contract with its users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicNameError {
    /// The empty name.
    #[error("a topic's name cannot be empty")]
    Empty,
    /// `.` and `..` are folders.
    #[error("a topic cannot be named {0:?}")]
    Dots(String),
    /// A name is part of a file name, so it has a bound.
    #[error("a topic's name has at most {MAX_NAME_LENGTH} characters; this one has {0}")]
    TooLong(usize),
    /// A character outside `[a-zA-Z0-9._-]`.
    #[error("a topic's name consists of ASCII letters, digits, '.', '_' and '-'; {0:?} has something else")]
    BadCharacter(String),
}

const MAX_NAME_LENGTH: usize = 249;

impl TopicPartition {
    /// A partition of a topic.
    pub fn new(topic: impl Into<KString>, partition: impl Into<PartitionIndex>) -> Self {
        Self { topic: topic.into(), partition: partition.into() }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.topic, self.partition)
    }
}

/// Whether a topic can have this name.
pub fn check_topic_name(name: &str) -> Result<(), TopicNameError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match name {
        "" => Err(TopicNameError::Empty),
        "." | ".." => Err(TopicNameError::Dots(name.to_owned())),
        _ if name.len() > MAX_NAME_LENGTH => Err(TopicNameError::TooLong(name.len())),
        _ if !name.bytes().all(legal) => Err(TopicNameError::BadCharacter(name.to_owned())),
        _ => Ok(()),
    }
}

/// Whether clients are told that this topic is internal: coordinators own what is in it.
pub fn is_internal_topic(name: &str) -> bool {
    matches!(name, "__consumer_offsets" | "__transaction_state" | "__share_group_state")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for name in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(250)] {
            assert!(check_topic_name(name).is_err(), "{name:?}");
        }
        for name in ["a", "a.b", "_-.", &"x".repeat(249)] {
            assert_eq!(check_topic_name(name), Ok(()), "{name:?}");
        }
    }
}
