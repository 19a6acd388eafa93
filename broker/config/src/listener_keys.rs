//! Keys of one listener: `listener.name.<listener in lower case>.<key>`, of which the TLS keys are served.
//!
//! A listener without a key of its own has the common one, as in Apache Kafka.

use std::{collections::BTreeMap, fmt};

use crate::{
    key::{ConfigKey, Update},
    listener::Listener,
    tables::broker_key,
    value::ConfigError,
};

const PREFIX: &str = "listener.name.";

/// The texts that keys were set to. Some are secrets, so only the keys are ever shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Values(pub(crate) BTreeMap<String, String>);

/// The broker or controller key of this name, which a listener's prefix may stand before where the key is one of TLS.
pub fn prefixed_broker_key(name: &str) -> Option<&'static ConfigKey> {
    match split(name) {
        Some((_, key)) => broker_key(key),
        None => broker_key(name),
    }
}

/// Whether a key can change at run time for one listener only, under its prefix.
pub fn changes_per_listener_only(key: &ConfigKey) -> bool {
    key.name.starts_with("ssl.") && key.update == Update::PerBroker
}

/// The value of a key for one listener.
pub(crate) fn of_listener<'a>(values: &'a Values, listener: &str, key: &str) -> Option<&'a str> {
    let own = format!("{PREFIX}{}.{key}", listener.to_ascii_lowercase());
    values.0.get(&own).or_else(|| values.0.get(key)).map(String::as_str)
}

/// A key for a listener that there is not would guard nothing, whatever it was meant to guard.
///
/// A broker has keys for the listeners of controllers too, which it dials and has none of.
pub(crate) fn check_names(values: &Values, listeners: &[Listener], controllers: &[String]) -> Result<(), ConfigError> {
    let is_known = |named: &str| {
        let mut names = listeners.iter().map(|listener| &listener.bind.name).chain(controllers);
        names.any(|name| name.to_ascii_lowercase() == named)
    };
    let is_unknown = |name: &&String| split(name).is_some_and(|(named, _)| !is_known(named));
    match values.0.keys().find(is_unknown) {
        None => Ok(()),
        Some(name) => Err(ConfigError::Contradiction(format!(
            "{name} is for a listener that is neither among listeners nor among controller.listener.names; its name is to be in lower \
             case there. Correct or remove the key"
        ))),
    }
}

/// The listener, in lower case, and its key.
fn split(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix(PREFIX)?;
    let dot = rest.find(".ssl.")?;
    Some((&rest[..dot], &rest[dot + 1..]))
}

impl fmt::Debug for Values {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_key_is_known_with_and_without_a_listener_whose_name_may_have_dots() {
        let name = |key| prefixed_broker_key(key).map(|key| key.name);
        assert_eq!(name("listener.name.my.own.ssl.client.auth"), Some("ssl.client.auth"));
        assert_eq!(name("ssl.client.auth"), Some("ssl.client.auth"));
        assert_eq!(name("listener.name.x.ssl.nothing"), None);
        assert_eq!(name("listener.name.x.sasl.enabled.mechanisms"), None);
    }
}
