//! What is known of one configuration key.

/// A configuration key: a row of one of the tables.
#[derive(Debug)]
pub struct ConfigKey {
    /// The key as users write it.
    pub name: &'static str,
    /// The type of its value.
    pub kind: Kind,
    /// The default as text; `None` where there is none (the key is required, or unset means something of its own).
    pub default: Option<&'static str>,
    /// What values are allowed.
    pub valid: Valid,
    /// How much users should care.
    pub importance: Importance,
    /// How the value can change while the broker runs.
    pub update: Update,
    /// What Gregor does with it.
    pub support: Support,
    /// What it is for; for a key that is not served, why nothing comes of it.
    pub documentation: &'static str,
}

/// The type of a value, as DescribeConfigs tells it (`ConfigDef.Type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "Kafka's type names")]
pub enum Kind {
    Boolean,
    String,
    Int,
    Short,
    Long,
    Double,
    List,
    Class,
    Password,
}

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Valid {
    /// Whatever its type allows.
    Any,
    /// A number of at least this.
    AtLeast(i64),
    /// A number from the first to the second, both included.
    Within(i64, i64),
    /// A fraction in a closed range.
    Fraction {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
    },
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// One of these words, in any case.
    OneOfIgnoreCase(&'static [&'static str]),
    /// A list of these words.
    ListOf(&'static [&'static str]),
    /// 1 to 9, or -1 for the codec's own default.
    GzipLevel,
    /// `*`, or a list of `partition:broker`.
    ThrottledReplicas,
}

/// How much users should care about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "Kafka's names")]
pub enum Importance {
    High,
    Medium,
    Low,
}

/// How a value can change while the broker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// Only by a restart.
    ReadOnly,
    /// For one broker, by IncrementalAlterConfigs.
    PerBroker,
    /// For one broker or all, by IncrementalAlterConfigs.
    ClusterWide,
}

/// What Gregor does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It works as in Apache Kafka.
    Served,
    /// Its absence harms nothing: a value is checked and named in a warning.
    Ignored,
    /// It guards access, data or durability and does not work yet: any value but the default stops the start.
    Refused,
}

impl Kind {
    /// The number of this type in DescribeConfigs.
    pub const fn code(self) -> i8 {
        match self {
            Self::Boolean => 1,
            Self::String => 2,
            Self::Int => 3,
            Self::Short => 4,
            Self::Long => 5,
            Self::Double => 6,
            Self::List => 7,
            Self::Class => 8,
            Self::Password => 9,
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "a row of the table")]
pub(crate) const fn key(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    valid: Valid,
    importance: Importance,
    update: Update,
    support: Support,
    documentation: &'static str,
) -> ConfigKey {
    ConfigKey { name, kind, default, valid, importance, update, support, documentation }
}
