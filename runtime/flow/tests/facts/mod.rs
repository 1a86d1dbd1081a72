//! The world that the test flows live in.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use towpath_flow::{Facts, FlowFact, ImageFact};
use towpath_protocol::CONTRACT;
use towpath_protocol::manifest::{Kind, Manifest};

/// Everything is known.
pub(crate) fn facts() -> Facts {
    let known = |manifest| ImageFact::Known(Some(manifest));
    let jq = json!({
        "type": "object",
        "properties": { "filter": { "type": "string", "description": "The jq program.\n\nOne output a message." } },
        "required": ["filter"],
        "additionalProperties": false,
    });
    let mut future = manifest("future", Kind::Action, None, &["out"]);
    future.contract = CONTRACT + 1;
    let broken_schema = json!({ "type": "nonsense" });
    let images = BTreeMap::from([
        (
            "towpath/http-poll:1",
            known(manifest(
                "http-poll",
                Kind::Poll,
                Some(http_poll()),
                &["out"],
            )),
        ),
        (
            "towpath/jq:1",
            known(manifest("jq", Kind::Action, Some(jq), &["out"])),
        ),
        (
            "towpath/log:1",
            known(manifest("log", Kind::Action, Some(log()), &[])),
        ),
        (
            "towpath/split:1",
            known(manifest("split", Kind::Action, None, &["large", "small"])),
        ),
        (
            "towpath/webhook:1",
            known(manifest("webhook", Kind::Webhook, None, &["out"])),
        ),
        (
            "towpath/reply:1",
            known(manifest("reply", Kind::Action, None, &["out", "reply"])),
        ),
        ("towpath/future:1", known(future)),
        (
            "towpath/schema:1",
            known(manifest(
                "schema",
                Kind::Action,
                Some(broken_schema),
                &["out"],
            )),
        ),
        ("towpath/orders:1", known(orders())),
        ("towpath/crm:1", known(takes("crm", &crm()))),
        ("towpath/bulk:1", known(bulk())),
        ("towpath/aggregate:1", known(aggregate())),
        ("towpath/post:1", known(takes("post", &post()))),
        (
            "towpath/odd:1",
            known(takes("odd", &json!({ "type": "nonsense" }))),
        ),
        (
            "towpath/broken:1",
            ImageFact::Unreadable("expected value at line 1 column 1".to_owned()),
        ),
        ("towpath/plain:1", ImageFact::Known(None)),
        ("towpath/lgo:1", ImageFact::Missing),
        ("elsewhere/thing:2", ImageFact::Missing),
    ]);
    Facts {
        images: images
            .into_iter()
            .map(|(name, fact)| (name.to_owned(), fact))
            .collect(),
        secrets: Some(BTreeSet::from(["crm_token".to_owned()])),
        flows: Some(BTreeMap::from([
            ("invoices".to_owned(), flow(true, &[])),
            ("hooked".to_owned(), flow(false, &[])),
            ("ping".to_owned(), flow(true, &["pong"])),
            ("pong".to_owned(), flow(true, &["a"])),
        ])),
        folders: Some(BTreeSet::from(["inbox".to_owned()])),
        conditions: BTreeMap::from([
            (".total > 100".to_owned(), Ok(())),
            (".customer".to_owned(), Ok(())),
            (
                ".customer |".to_owned(),
                Err("the condition is wrong at line 1, column 12: expected term, found `the end` (`.customer |`)".to_owned()),
            ),
            (
                ".total >".to_owned(),
                Err("the condition is wrong at line 1, column 9: expected term, found `the end` (`.total >`)".to_owned()),
            ),
        ]),
        env: Some(
            ["CRM_HOST", "TIMEOUT", "LEVEL"]
                .into_iter()
                .map(str::to_owned)
                .collect(),
        ),
    }
}

fn flow(takes: bool, to: &[&str]) -> FlowFact {
    FlowFact {
        takes,
        to: to.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn manifest(name: &str, kind: Kind, config: Option<Value>, ports: &[&str]) -> Manifest {
    Manifest {
        contract: CONTRACT,
        name: name.to_owned(),
        version: "1.0.0".to_owned(),
        description: String::new(),
        kind,
        config,
        input: None,
        ports: ports
            .iter()
            .map(|port| ((*port).to_owned(), Value::Null))
            .collect(),
        concurrency: None,
        batch: None,
        registers: false,
        needs_batch: false,
    }
}

fn takes(name: &str, input: &Value) -> Manifest {
    let mut manifest = manifest(name, Kind::Action, None, &["out"]);
    manifest.input = Some(input.clone());
    manifest
}

fn bulk() -> Manifest {
    let mut manifest = manifest("bulk", Kind::Action, None, &["out"]);
    manifest.batch = Some(500);
    manifest
}

fn aggregate() -> Manifest {
    let mut manifest = manifest("aggregate", Kind::Action, None, &["out"]);
    manifest.batch = Some(1_000);
    manifest.needs_batch = true;
    manifest
}

fn orders() -> Manifest {
    let mut manifest = manifest("orders", Kind::Poll, None, &["out", "lines"]);
    let out = json!({
        "type": "object",
        "properties": {
            "id": { "type": "string" },
            "cents": { "type": "string" },
            "note": { "type": ["string", "null"] },
        },
        "required": ["id", "cents", "note"],
        "additionalProperties": false,
    });
    manifest.ports.insert("out".to_owned(), out);
    let lines = json!({ "type": "array", "items": { "type": "object" } });
    manifest.ports.insert("lines".to_owned(), lines);
    manifest
}

fn crm() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": { "type": "string" },
            "cents": { "type": "integer" },
            "customer": { "type": "object" },
            "note": { "type": "string" },
        },
        "required": ["id", "cents", "customer"],
    })
}

fn post() -> Value {
    json!({
        "type": "object",
        "properties": { "id": { "type": "string" }, "note": { "type": "string" } },
        "required": ["id", "note"],
    })
}

/// With the shapes that `schemars` makes of Rust types.
fn http_poll() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "url": { "type": "string", "description": "The address of the list." },
            "cursor": { "type": ["string", "null"] },
            "timeout": { "type": "integer", "minimum": 1 },
            "wait": { "type": "string", "pattern": "^[0-9]+s$", "examples": ["5s", "30s"] },
            "next": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
            "auth": {
                "type": "object",
                "properties": { "user": { "type": "string" } },
                "required": ["user"],
            },
            "method": { "enum": ["GET", "POST"] },
            "headers": { "type": "object", "additionalProperties": { "type": "string" } },
            "page": { "anyOf": [{ "$ref": "#/$defs/Page" }, { "type": "null" }] },
            "limits": { "type": "array", "items": { "type": "integer" } },
            "either": { "anyOf": [{ "type": "string" }, { "type": "integer" }] },
        },
        "required": ["url"],
        "additionalProperties": false,
        "$defs": {
            "Page": {
                "type": "object",
                "properties": {
                    "style": { "$ref": "#/$defs/Style" },
                    "size": { "type": "integer", "minimum": 1 },
                    "number": { "type": "integer" },
                },
                "additionalProperties": false,
            },
            "Style": {
                "oneOf": [
                    { "const": "link", "description": "By the link header." },
                    { "type": "string", "enum": ["cursor", "number"] },
                ],
            },
        },
    })
}

fn log() -> Value {
    json!({
        "type": "object",
        "properties": { "level": { "enum": ["info", "debug"] } },
        "additionalProperties": false,
    })
}
