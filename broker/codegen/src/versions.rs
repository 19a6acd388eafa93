//! Ranges of versions, as the schema writes them: `none`, `3`, `2-5`, `4+`.

use std::fmt;

use anyhow::{Context, Result};

/// A range of versions, both ends included; empty if `low > high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The first version.
    pub low: i16,
    /// The last one; `i16::MAX` if open.
    pub high: i16,
}

impl Versions {
    /// No version.
    pub const NONE: Self = Self { low: 0, high: -1 };

    /// Parses the schema's notation.
    pub fn parse(text: &str) -> Result<Self> {
        let number = |text: &str| text.parse::<i16>().with_context(|| format!("{text:?} is no version"));
        if text == "none" {
            Ok(Self::NONE)
        } else if let Some(low) = text.strip_suffix('+') {
            Ok(Self { low: number(low)?, high: i16::MAX })
        } else if let Some((low, high)) = text.split_once('-') {
            Ok(Self { low: number(low)?, high: number(high)? })
        } else {
            number(text).map(|version| Self { low: version, high: version })
        }
    }

    /// Whether it has no version.
    pub fn is_none(self) -> bool {
        self.low > self.high
    }

    /// Whether it has this one.
    pub fn contains(self, version: i16) -> bool {
        (self.low..=self.high).contains(&version)
    }

    /// The versions that both have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let both = Self { low: self.low.max(other.low), high: self.high.min(other.high) };
        if both.is_none() { Self::NONE } else { both }
    }

    /// Rust that tests `v`, known to be in `range`, for being in these versions.
    pub fn condition(self, range: Self) -> Condition {
        let inside = self.and(range);
        if inside.is_none() {
            Condition::Never
        } else if inside == range {
            Condition::Always
        } else if inside.low == inside.high {
            Condition::If(format!("v == {}", inside.low))
        } else if inside.low == range.low {
            Condition::If(format!("v <= {}", inside.high))
        } else if inside.high == range.high {
            Condition::If(format!("v >= {}", inside.low))
        } else {
            Condition::If(format!("({}..={}).contains(&v)", inside.low, inside.high))
        }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_none(), self.high) {
            (true, _) => write!(formatter, "none"),
            (false, i16::MAX) => write!(formatter, "{}+", self.low),
            (false, high) if high == self.low => write!(formatter, "{high}"),
            (false, high) => write!(formatter, "{}-{high}", self.low),
        }
    }
}

/// A test on the version that is being coded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// True for every possible version.
    Always,
    /// False for every possible version.
    Never,
    /// As this Rust expression says.
    If(String),
}

impl Condition {
    /// The test as an expression.
    pub fn expression(&self) -> &str {
        match self {
            Self::Always => "true",
            Self::Never => "false",
            Self::If(expression) => expression,
        }
    }

    /// `then`, where the condition holds, and `otherwise`, where it does not. Either may be empty.
    pub fn guard(&self, then: &str, otherwise: &str) -> String {
        match self {
            Self::Always => then.to_owned(),
            Self::Never => otherwise.to_owned(),
            Self::If(_) if then.is_empty() && otherwise.is_empty() => String::new(),
            Self::If(expression) if otherwise.is_empty() => format!("if {expression} {{ {then} }}\n"),
            Self::If(expression) if then.is_empty() => format!("if !({expression}) {{ {otherwise} }}\n"),
            Self::If(expression) => format!("if {expression} {{ {then} }} else {{ {otherwise} }}\n"),
        }
    }
}
