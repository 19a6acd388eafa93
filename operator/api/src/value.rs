//! Values that several kinds share: configuration values that may be written without quotes, quantities, deletion
//! policies. Never any logic beyond their text forms.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What becomes of the data when the object that describes it is deleted.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum DeletionPolicy {
    /// The data stays, and is found again when the object is created again under the same name.
    #[default]
    Retain,
    /// The data is deleted with the object, for ever.
    Delete,
}

/// The value of a configuration key. `retention.ms: 60000` and `"60000"` mean the same, `true` and `"true"` too.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(untagged)]
pub enum ConfigValue {
    /// An unquoted `true` or `false`.
    Boolean(bool),
    /// An unquoted whole number.
    Integer(i64),
    /// An unquoted number with a fraction.
    Number(f64),
    /// Text.
    Text(String),
    /// Something that is none of these. The definition keeps it out as far as it can; whoever uses the value must refuse it
    /// by name. It is here so that one bad object never blinds a watch.
    Unsupported(serde_json::Value),
}

impl ConfigValue {
    /// Whether the value is text, a number or a boolean.
    pub fn is_scalar(&self) -> bool {
        !matches!(self, Self::Unsupported(_))
    }
}

impl fmt::Display for ConfigValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) => f.write_str(value),
            Self::Unsupported(value) => write!(f, "{value}"),
        }
    }
}

impl From<&str> for ConfigValue {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl JsonSchema for ConfigValue {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ConfigValue".into()
    }

    // A structural schema cannot say "text, number or boolean". What it can do is to leave the type open and to leave no
    // room in the types that are not wanted; the operator's own validation names the key of what slips through.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-preserve-unknown-fields": true,
            "maxLength": 4096,
            "maxItems": 0,
            "maxProperties": 0,
        })
    }
}

/// Configuration by key, in Apache Kafka's own names.
pub type Config = BTreeMap<String, ConfigValue>;

/// CPU and memory of a node's container.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside, for example {cpu: 500m, memory: 256Mi}.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, ConfigValue>,
    /// What the container may use at most. Memory counts the page cache that the kernel can give back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, ConfigValue>,
}

fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        },
    })
}

/// The schema of an embedded pod template: stored as it was written, checked when the operator uses it.
pub(crate) fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "nullable": true,
    })
}
