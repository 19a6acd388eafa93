//! Looks keys up in the tables of the broker, of topics, of groups and of client metrics.

use crate::{BROKER_KEYS, CLIENT_METRICS_KEYS, ConfigKey, GROUP_KEYS, INTERNAL_KEYS, TOPIC_KEYS};

fn find(table: &'static [ConfigKey], name: &str) -> Option<&'static ConfigKey> {
    table.binary_search_by_key(&name, |key| key.name).ok().map(|index| &table[index])
}

/// The broker or controller key of this name, an internal one too.
pub fn broker_key(name: &str) -> Option<&'static ConfigKey> {
    find(BROKER_KEYS, name).or_else(|| find(INTERNAL_KEYS, name))
}

/// The topic key of this name.
pub fn topic_key(name: &str) -> Option<&'static ConfigKey> {
    find(TOPIC_KEYS, name)
}

/// The group key of this name.
pub fn group_key(name: &str) -> Option<&'static ConfigKey> {
    find(GROUP_KEYS, name)
}

/// The key of this name of a client metrics subscription.
pub fn client_metrics_key(name: &str) -> Option<&'static ConfigKey> {
    find(CLIENT_METRICS_KEYS, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_their_defaults_are_valid() {
        for table in [BROKER_KEYS, INTERNAL_KEYS, TOPIC_KEYS, GROUP_KEYS, CLIENT_METRICS_KEYS] {
            assert!(table.windows(2).all(|pair| pair[0].name < pair[1].name), "binary search needs the order");
            for key in table {
                assert!(!key.documentation.is_empty(), "{}", key.name);
                if let Some(default) = key.default {
                    key.check(default).unwrap_or_else(|error| panic!("default of {}: {error}", key.name));
                }
            }
        }
    }
}
