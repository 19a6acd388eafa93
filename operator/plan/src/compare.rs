//! Whether an object in the API server is as it should be. Called for every object of every plan, so that an operator at
//! rest writes nothing; it never changes anything.

use gregor_operator_api::names;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The first ten hexadecimal digits of the SHA-256 of a value's JSON, whose maps are sorted.
pub fn hash(value: &Value) -> String {
    hash_text(&value.to_string())
}

/// The same of a text.
pub fn hash_text(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let first = digest.iter().take(5).fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    format!("{first:010x}")
}

/// Writes into the object the hash of what it is, by which [`differs`] knows what was applied.
pub fn stamp(mut body: Value) -> Value {
    let hash = hash(&body);
    if let Some(metadata) = body["metadata"].as_object_mut() {
        let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(serde_json::Map::default()));
        annotations[names::APPLIED] = Value::String(hash);
    }
    body
}

/// The hash of what was applied last to an object, or is to be.
pub fn applied(object: &Value) -> Option<&str> {
    object["metadata"]["annotations"][names::APPLIED].as_str()
}

/// Whether the object has to be applied: something else was applied last, or somebody has changed what we wrote.
pub fn differs(wanted: &Value, seen: &Value) -> bool {
    applied(wanted) != applied(seen) || !contains(seen, wanted)
}

/// Whether everything in `wanted` is in `seen` too. What the API server or others added does not count.
fn contains(seen: &Value, wanted: &Value) -> bool {
    match (seen, wanted) {
        (Value::Object(seen), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| match seen.get(key) {
            Some(seen) => contains(seen, wanted),
            None => is_empty(wanted),
        }),
        (Value::Array(seen), Value::Array(wanted)) => contains_list(seen, wanted),
        (Value::String(seen), Value::String(wanted)) => {
            seen == wanted || matches!((quantity(seen), quantity(wanted)), (Some(a), Some(b)) if same(a, b))
        }
        (Value::Number(_), Value::Number(_)) => seen.as_f64() == wanted.as_f64(),
        _ => seen == wanted,
    }
}

fn contains_list(seen: &[Value], wanted: &[Value]) -> bool {
    // Lists of named things are merged by that name, whatever their order.
    for key in ["uid", "name", "mountPath"] {
        if !wanted.is_empty() && wanted.iter().all(|item| item[key].is_string()) {
            return wanted
                .iter()
                .all(|wanted| seen.iter().any(|seen| seen[key] == wanted[key] && contains(seen, wanted)));
        }
    }
    seen.len() == wanted.len() && seen.iter().zip(wanted).all(|(seen, wanted)| contains(seen, wanted))
}

/// What the API server drops because it means nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

#[allow(clippy::float_cmp)] // both sides come from the same arithmetic, and "nearly the same quantity" is another quantity
fn same(a: f64, b: f64) -> bool {
    a == b
}

/// A quantity as a number. The API server writes `1000m` as `1`.
pub fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '.' | '+' | '-')) {
        return None;
    }
    for (suffix, factor) in SUFFIXES {
        if let Some(number) = text.strip_suffix(suffix) {
            return number.parse::<f64>().ok().map(|number| number * factor);
        }
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_server_added_is_no_difference() {
        let wanted =
            stamp(json!({"metadata": {"name": "a"}, "spec": {"ports": [{"name": "x", "port": 1}], "flag": false}}));
        let mut seen = wanted.clone();
        seen["metadata"]["uid"] = json!("u");
        seen["spec"]["ports"][0]["protocol"] = json!("TCP");
        seen["spec"].as_object_mut().unwrap().remove("flag");
        assert!(!differs(&wanted, &seen));
    }

    #[test]
    fn what_somebody_changed_or_what_we_took_out_is_a_difference() {
        let wanted = stamp(json!({"metadata": {"name": "a"}, "spec": {"port": 1}}));
        let mut changed = wanted.clone();
        changed["spec"]["port"] = json!(2);
        assert!(differs(&wanted, &changed));
        let before = stamp(json!({"metadata": {"name": "a"}, "spec": {"port": 1, "other": 3}}));
        assert!(differs(&wanted, &before), "a field that is no longer wanted is still there");
    }

    #[test]
    fn quantities_are_compared_by_value() {
        assert!(contains(&json!("1"), &json!("1000m")));
        assert!(contains(&json!("1Gi"), &json!("1024Mi")));
        assert!(!contains(&json!("1Gi"), &json!("1G")));
        assert!(!contains(&json!("Retain"), &json!("Delete")));
    }
}
