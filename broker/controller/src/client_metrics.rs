//! What a client metrics subscription may have for values (KIP-714, `ClientMetricsConfigs`).
//!
//! `configs.rs` asks; subscriptions are kept in the metadata as any configuration is. Nothing is collected yet.

use std::collections::BTreeSet;

use gregor_config::client_metrics_key;
use gregor_types::{ErrorCode, KString};
use regex::RegexBuilder;

use crate::Refusal;

const INTERVAL_MS: &str = "interval.ms";
const MATCH: &str = "match";
/// What clients are told apart by.
const SELECTORS: [&str; 6] = [
    "client_instance_id",
    "client_id",
    "client_software_name",
    "client_software_version",
    "client_source_address",
    "client_source_port",
];
const INTERVAL_MS_MIN: i32 = 100;
const INTERVAL_MS_MAX: i32 = 3_600_000;
/// No pattern takes more than this when it is compiled.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Whether a subscription may have this value.
pub(crate) fn check(name: &str, value: &str) -> Result<(), Refusal> {
    let key = client_metrics_key(name).ok_or_else(|| {
        Refusal::new(ErrorCode::InvalidRequest, format!("Unknown client metrics configuration: {name}"))
    })?;
    if name == INTERVAL_MS {
        let interval = value.trim().parse::<i32>();
        if interval.is_ok_and(|interval| !(INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(&interval)) {
            let message = format!(
                "Invalid value {value} for {name}, interval must be between {INTERVAL_MS_MIN} and {INTERVAL_MS_MAX} (1 hour)"
            );
            return Err(Refusal::new(ErrorCode::InvalidRequest, message));
        }
        return key.check(value).map_err(|error| Refusal::new(ErrorCode::InvalidConfig, error.to_string()));
    }
    let items = items(name, value)?;
    if name == MATCH {
        items.into_iter().try_for_each(check_pattern)?;
    }
    Ok(())
}

/// The items of a list, none of which may be empty or there twice.
fn items<'a>(name: &str, list: &'a str) -> Result<Vec<&'a str>, Refusal> {
    if list.trim().is_empty() {
        return Ok(Vec::new());
    }
    let refused = |why: &str| {
        let message = format!("Configuration '{name}' values must not be {why}.");
        Err(Refusal::new(ErrorCode::InvalidConfig, message))
    };
    let items: Vec<&str> = list.split(',').map(str::trim).collect();
    if items.iter().collect::<BTreeSet<_>>().len() < items.len() {
        return refused("duplicated");
    }
    if items.contains(&"") {
        return refused("empty");
    }
    Ok(items)
}

/// A selector and a regular expression. Java's look-around and references to groups are refused: who sets a pattern must not be able to
/// make brokers busy with it.
fn check_pattern(item: &str) -> Result<(), Refusal> {
    let is_legal = item.split_once('=').is_some_and(|(selector, pattern)| {
        let pattern = pattern.trim();
        SELECTORS.contains(&selector.trim())
            && !pattern.is_empty()
            && !pattern.contains('=')
            && RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build().is_ok()
    });
    if is_legal {
        return Ok(());
    }
    let message = format!(
        "Illegal client matching pattern: {item}. Give one of {} and, behind an equals sign, a regular expression.",
        SELECTORS.join(", ")
    );
    Err(Refusal::new(ErrorCode::InvalidConfig, message))
}

/// The name of a subscription, as a resource has it.
pub(crate) fn check_name(name: &KString) -> Result<(), Refusal> {
    if name.is_empty() {
        return Err(Refusal::new(ErrorCode::InvalidRequest, "Subscription name can't be empty"));
    }
    Ok(())
}
