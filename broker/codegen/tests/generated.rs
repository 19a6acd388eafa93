//! The generated code that is checked in is the one that the schema gives.

use std::path::Path;

use gregor_codegen::schema;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the crate is two folders below the root")
}

#[test]
fn the_checked_in_code_is_what_the_schema_says() {
    let wrong = gregor_codegen::check(root()).unwrap();
    assert!(wrong.is_empty(), "run `cargo xtask codegen`; these files differ: {wrong:#?}");
}

#[test]
fn a_schema_file_printed_again_is_the_same_file() {
    for (file, messages) in gregor_codegen::read_schema(root()).unwrap() {
        let text = std::fs::read_to_string(root().join(gregor_codegen::SCHEMA).join(&file)).unwrap();
        assert_eq!(schema::print(&messages.iter().collect::<Vec<_>>()), text, "{file}");
    }
}

#[test]
fn every_api_of_kafka_4_4_is_in_the_schema() {
    let schema = gregor_codegen::read_schema(root()).unwrap();
    let mut requests: Vec<i16> = schema
        .values()
        .flatten()
        .filter(|message| message.kind == "request")
        .filter_map(|message| message.key)
        .collect();
    requests.sort_unstable();
    let expected: Vec<i16> = (0..=94).filter(|key| !(4..=7).contains(key)).collect();
    assert_eq!(requests, expected, "keys 0 to 94 without the four that ZooKeeper took along");
}
