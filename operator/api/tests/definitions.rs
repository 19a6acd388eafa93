//! The definitions as the API server will meet them: small, bounded everywhere, with lists that merge by name, and equal
//! to the files that users install.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

use std::path::{Path, PathBuf};

use gregor_operator_api::{KafkaCluster, KafkaTopic, crds, yaml};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every schema below `spec` and `status` of every definition, with its path.
fn schemas() -> Vec<(String, Value)> {
    fn walk(path: &str, schema: &Value, found: &mut Vec<(String, Value)>) {
        found.push((path.to_owned(), schema.clone()));
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), property, found);
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], found);
        }
        if schema["additionalProperties"].is_object() {
            walk(&format!("{path}{{}}"), &schema["additionalProperties"], found);
        }
    }
    let mut found = Vec::new();
    for crd in crds() {
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"].clone();
        for part in ["spec", "status"] {
            walk(&format!("{}.{part}", crd.spec.names.kind), &schema["properties"][part], &mut found);
        }
    }
    assert!(found.len() > 80, "the walk reaches the fields: {}", found.len());
    found
}

#[test]
fn every_list_map_and_string_has_a_bound() {
    let mut unbounded = Vec::new();
    for (path, schema) in schemas() {
        let missing = match schema["type"].as_str() {
            Some("array") => schema["maxItems"].is_null(),
            Some("string") => schema["maxLength"].is_null() && schema["enum"].is_null(),
            Some("object") => {
                schema["properties"].is_null()
                    && schema["maxProperties"].is_null()
                    && schema["x-kubernetes-preserve-unknown-fields"] != true
            }
            Some("integer") => path.contains(".spec") && (schema["minimum"].is_null() || schema["maximum"].is_null()),
            _ => false,
        };
        if missing {
            unbounded.push(path);
        }
    }
    assert!(unbounded.is_empty(), "without a bound, rules get expensive: {unbounded:?}");
}

#[test]
fn every_list_says_how_it_merges() {
    for (path, schema) in schemas() {
        if schema["type"] != "array" {
            continue;
        }
        let list_type = schema["x-kubernetes-list-type"].as_str().unwrap_or_default();
        if schema["items"]["type"] == "object" {
            assert_eq!(list_type, "map", "{path}");
            for key in schema["x-kubernetes-list-map-keys"].as_array().unwrap() {
                let required = schema["items"]["required"].as_array().unwrap();
                assert!(required.contains(key), "{path}: {key} is the key, so it is required");
            }
        } else {
            assert_eq!(list_type, "set", "{path}");
        }
    }
}

#[test]
fn every_field_is_explained() {
    for (path, schema) in schemas() {
        if path.ends_with(']') || path.ends_with('}') || path.matches('.').count() < 2 {
            continue;
        }
        assert!(schema["description"].as_str().is_some_and(|text| text.len() > 5), "{path} has no description");
    }
}

#[test]
fn every_rule_says_what_to_do() {
    let mut rules = 0;
    for (path, schema) in schemas() {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules += 1;
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(message.contains(": ") || message.contains(" at most "), "{path}: {rule}");
        }
    }
    assert!(rules >= 20, "{rules} rules");
}

#[test]
fn a_definition_is_small_enough_for_client_side_apply() {
    for crd in crds() {
        let size = serde_json::to_string(&crd).unwrap().len();
        assert!(size < 200_000, "{} has {size} bytes", crd.metadata.name.as_deref().unwrap());
    }
}

#[test]
fn the_files_that_users_install_are_the_generated_ones() {
    for (folder, files) in [("crds", yaml::crd_files()), ("helm/gregor-crds/templates", yaml::chart_files())] {
        for (name, text) in files.unwrap() {
            let path = root().join(folder).join(&name);
            let there = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(there == text, "{} differs: run `cargo xtask crds`", path.display());
        }
    }
}

#[test]
fn the_examples_are_what_the_types_say() {
    let mut clusters = 0;
    let mut topics = 0;
    for entry in std::fs::read_dir(root().join("crds/examples")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for document in text.split("\n---\n") {
            let value: Value = yaml::from_str(document).unwrap();
            // What the types do not know would be dropped on the way through them.
            let through = match value["kind"].as_str().unwrap() {
                "KafkaCluster" => {
                    clusters += 1;
                    serde_json::to_value(yaml::from_str::<KafkaCluster>(document).unwrap()).unwrap()
                }
                "KafkaTopic" => {
                    topics += 1;
                    serde_json::to_value(yaml::from_str::<KafkaTopic>(document).unwrap()).unwrap()
                }
                other => panic!("an example of kind {other}"),
            };
            for (field, written) in value["spec"].as_object().unwrap() {
                assert!(!through["spec"][field].is_null(), "spec.{field}: {written} is unknown");
            }
        }
    }
    assert!(clusters >= 1 && topics >= 2);
}
