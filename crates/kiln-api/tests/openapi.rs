//! The committed document is the one that the types make, and whole.

#![cfg(feature = "openapi")]
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panic"
)]

use std::collections::BTreeSet;
use std::path::Path;

use kiln_api::openapi::{ENDPOINTS, document};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn the_committed_document_is_this_one() {
    let path = root().join("docs/openapi.json");
    let made = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("KILN_WRITE_OPENAPI").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "docs/openapi.json is not what the types say: \
         KILN_WRITE_OPENAPI=1 cargo test -p kiln-api --features openapi --test openapi"
    );
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document();
    let shapes = document["components"]["schemas"].as_object().unwrap();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        assert!(shapes.contains_key(name), "{reference}");
    }
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                found.push(reference.clone());
            }
            fields.values().for_each(|it| references(it, found));
        }
        Value::Array(items) => items.iter().for_each(|it| references(it, found)),
        _ => {}
    }
}

/// The daemon's routes, as its source names them.
#[test]
fn the_daemons_routes_are_these() {
    let mut routes = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("crates/kiln-daemon/src/v1")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for piece in text.split(".route(").skip(1) {
            let path = piece.split('"').nth(1).unwrap();
            routes.insert(path.to_owned());
        }
    }
    let told: BTreeSet<String> = ENDPOINTS.iter().map(|it| it.path.to_owned()).collect();
    assert_eq!(routes, told);
}
