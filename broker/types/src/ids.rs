//! Numbers with a meaning: offsets, epochs, ids. Plain `Copy` wrappers, ordered as their number.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The bare number, as it stands on the wire and on disk.
            pub const fn value(self) -> $inner {
                self.0
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

number! {
    /// A record's position in its partition, from 0. As an end (log end offset, high watermark) it is exclusive.
    Offset(i64)
}
number! {
    /// How often a partition has had a new leader; -1 where none is known.
    LeaderEpoch(i32)
}
number! {
    /// A node's `node.id`, broker or controller; -1 for nobody.
    BrokerId(i32)
}
number! {
    /// The offset of a broker's registration record in the metadata log; -1 where unregistered.
    BrokerEpoch(i64)
}
number! {
    /// A partition's number within its topic, from 0.
    PartitionIndex(i32)
}
number! {
    /// The id of an idempotent or transactional producer; -1 for a producer without one.
    ProducerId(i64)
}
number! {
    /// Fences older instances of the same producer id; -1 for a producer without one.
    ProducerEpoch(i16)
}
number! {
    /// Counts the rebalances of a classic consumer group; -1 for a commit outside any group.
    GenerationId(i32)
}
number! {
    /// Milliseconds since the Unix epoch, UTC; -1 where none is set.
    Timestamp(i64)
}

impl Offset {
    /// The first offset of an empty partition.
    pub const ZERO: Self = Self(0);
    /// Kafka's mark for "no offset".
    pub const NONE: Self = Self(-1);

    /// This offset moved by a number of records.
    #[must_use]
    pub const fn plus(self, records: i64) -> Self {
        Self(self.0 + records)
    }
}

impl LeaderEpoch {
    /// Kafka's mark for "no epoch known".
    pub const NONE: Self = Self(-1);

    /// The epoch that follows this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl BrokerId {
    /// Kafka's mark for "no node".
    pub const NONE: Self = Self(-1);
}

impl BrokerEpoch {
    /// Kafka's mark for "not registered".
    pub const NONE: Self = Self(-1);
}

impl ProducerId {
    /// Kafka's mark for a batch without a producer id.
    pub const NONE: Self = Self(-1);

    /// Whether this is a real producer id.
    pub const fn is_some(self) -> bool {
        self.0 >= 0
    }
}

impl ProducerEpoch {
    /// Kafka's mark for a batch without a producer epoch.
    pub const NONE: Self = Self(-1);
}

impl GenerationId {
    /// A commit by a consumer that is in no group.
    pub const NONE: Self = Self(-1);
}

impl Timestamp {
    /// Kafka's mark for "no timestamp".
    pub const NONE: Self = Self(-1);

    /// This time moved by a number of milliseconds, at the ends of the range kept there.
    #[must_use]
    pub const fn plus_ms(self, milliseconds: i64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds from `earlier` to here; negative if the clock went back.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}
