//! Texts into values, with errors that say the key, the value and what is allowed.

use std::str::FromStr;

use crate::key::{ConfigKey, Kind, Valid};

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value of the wrong type or outside its bounds.
    #[error("Invalid value {value} for configuration {key}: {allowed}")]
    Invalid {
        /// The key.
        key: String,
        /// Its value; hidden for passwords.
        value: String,
        /// What would have been right.
        allowed: String,
    },
    /// A key without a default is missing.
    #[error("Missing required configuration \"{0}\" which has no default value.")]
    Missing(&'static str),
    /// A key that guards access, data or durability and is not served.
    #[error(
        "{key}={value} asks for something that this release does not do: {why} Remove the key, or set it to its default \
         ({default}), to go on without."
    )]
    NotServed {
        /// The key.
        key: String,
        /// Its value; hidden for passwords.
        value: String,
        /// What is missing.
        why: &'static str,
        /// The value that would be accepted.
        default: &'static str,
    },
    /// A key that no table has.
    #[error("Unknown topic config name: {0}")]
    UnknownTopicKey(String),
    /// Two keys that do not go together, or one that needs another.
    #[error("{0}")]
    Contradiction(String),
}

impl ConfigKey {
    /// Whether this text is a legal value.
    pub fn check(&self, text: &str) -> Result<(), ConfigError> {
        let text = text.trim();
        match self.kind {
            Kind::Boolean => {
                if !text.eq_ignore_ascii_case("true") && !text.eq_ignore_ascii_case("false") {
                    return Err(self.invalid(text, "expected true or false"));
                }
            }
            Kind::Int => self.check_number::<i32>(text, "a 32-bit whole number")?,
            Kind::Short => self.check_number::<i16>(text, "a 16-bit whole number")?,
            Kind::Long => self.check_number::<i64>(text, "a 64-bit whole number")?,
            Kind::Double => {
                let number: f64 = text.parse().map_err(|_| self.invalid(text, "expected a number"))?;
                if let Valid::Fraction { min, max } = self.valid
                    && !(min..=max).contains(&number)
                {
                    return Err(self.invalid(text, &format!("expected a number from {min} to {max}")));
                }
            }
            Kind::String | Kind::Class | Kind::Password | Kind::List => {}
        }
        self.check_words(text)
    }

    fn check_number<T: FromStr + Into<i64>>(&self, text: &str, what: &str) -> Result<(), ConfigError> {
        let number: i64 = text.parse::<T>().map_err(|_| self.invalid(text, &format!("expected {what}")))?.into();
        match self.valid {
            Valid::AtLeast(min) if number < min => Err(self.invalid(text, &format!("Value must be at least {min}"))),
            Valid::Within(min, max) if !(min..=max).contains(&number) => {
                Err(self.invalid(text, &format!("Value must be from {min} to {max}")))
            }
            Valid::GzipLevel if number != -1 && !(1..=9).contains(&number) => {
                Err(self.invalid(text, "Value must be from 1 to 9, or -1 for the default"))
            }
            _ => Ok(()),
        }
    }

    fn check_words(&self, text: &str) -> Result<(), ConfigError> {
        match self.valid {
            Valid::OneOf(words) if !words.contains(&text) => {
                Err(self.invalid(text, &format!("String must be one of: {}", words.join(", "))))
            }
            Valid::OneOfIgnoreCase(words) if !words.iter().any(|word| word.eq_ignore_ascii_case(text)) => {
                Err(self.invalid(text, &format!("String must be one of (case insensitive): {}", words.join(", "))))
            }
            Valid::ListOf(words) => match split_list(text).find(|item| !words.contains(item)) {
                Some(_) => Err(self.invalid(text, &format!("each item must be one of: {}", words.join(", ")))),
                None => Ok(()),
            },
            Valid::ThrottledReplicas => {
                let is_pair = |item: &str| {
                    item.split_once(':')
                        .is_some_and(|(left, right)| left.parse::<u32>().is_ok() && right.parse::<u32>().is_ok())
                };
                if text == "*" || split_list(text).all(is_pair) {
                    Ok(())
                } else {
                    Err(self.invalid(text, "expected * or a list such as 0:101,1:102 (partition:broker)"))
                }
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn invalid(&self, value: &str, allowed: &str) -> ConfigError {
        ConfigError::Invalid { key: self.name.to_owned(), value: self.shown(value), allowed: allowed.to_owned() }
    }

    /// The value as it may be shown: passwords are hidden.
    pub fn shown(&self, value: &str) -> String {
        if self.kind == Kind::Password { "[hidden]".to_owned() } else { value.chars().take(256).collect() }
    }
}

/// The items of a list value: separated by commas, spaces around them ignored, empty ones dropped.
pub(crate) fn split_list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use crate::{broker_key, topic_key};

    #[test]
    fn a_wrong_value_is_refused_with_key_value_and_what_is_allowed() {
        let error = |key: &str, value: &str| topic_key(key).unwrap().check(value).unwrap_err().to_string();
        assert_eq!(
            error("retention.ms", "soon"),
            "Invalid value soon for configuration retention.ms: expected a 64-bit whole number"
        );
        assert_eq!(
            error("segment.bytes", "10"),
            "Invalid value 10 for configuration segment.bytes: Value must be at least 1048576"
        );
        assert!(error("cleanup.policy", "delete,keep").contains("compact, delete"));
        assert!(error("min.cleanable.dirty.ratio", "1.5").contains("from 0 to 1"));
        assert!(error("leader.replication.throttled.replicas", "1-2").contains("0:101"));
    }

    #[test]
    fn passwords_are_never_shown() {
        let key = broker_key("ssl.key.password").unwrap();
        assert_eq!(key.shown("hunter2"), "[hidden]");
    }
}
