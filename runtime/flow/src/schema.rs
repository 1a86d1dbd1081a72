//! The JSON Schema of a flow file, for editors. It says less than [`crate::check`]: what a file
//! must look like, not whether it makes sense.

use serde_json::{Map, Value, json};

use crate::document::AUTH_TYPES;
use crate::keys::{self, Key};
use crate::limits;
use crate::text;
use crate::webhook::BodyType;

/// The schema: JSON Schema 2020-12, kept in `docs/flow.schema.json`.
pub fn schema() -> Value {
    let trigger = object(&[keys::STEP, keys::TRIGGER], &["id"]);
    let mut action = object(&[keys::STEP, keys::ACTION], &["id"]);
    action["oneOf"] = json!([{ "required": ["image"] }, { "required": ["to"] }]);
    let mut schema = object(&[keys::FLOW], &["flow", "trigger", "actions"]);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Towpath flow");
    schema["description"] = json!("One trigger and the actions that follow it.");
    schema["$defs"] = json!({
        "name": {
            "type": "string",
            "pattern": format!("^[a-z][a-z0-9-]{{0,{}}}$", limits::NAME_CHARS_MAX - 1),
        },
        "duration": { "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$", "examples": ["30s", "5m"] },
        "size": { "type": "string", "pattern": "^[0-9]+(KiB|MiB|GiB)$", "examples": ["256MiB"] },
        "image": { "type": "string", "minLength": 1, "pattern": "^[^\\s$]+$", "examples": ["towpath/jq:1"] },
        "after": { "type": "string", "minLength": 1, "examples": ["orders", "orders.rejected"] },
        "retry": object(&[keys::RETRY], &[]),
        "autoscale": autoscale(),
        "batch": object_of(&[keys::BATCH], &["max"], batch_value),
        "webhook": object_of(&[keys::WEBHOOK], &[], webhook_value),
        "auth": object_of(&[keys::AUTH], &["type"], auth_value),
        "handshake": object_of(&[keys::HANDSHAKE], &["type"], handshake_value),
        "trigger": trigger,
        "action": action,
    });
    schema["$defs"]["trigger"]["oneOf"] = json!([
        { "required": ["every", "image"] },
        { "required": ["cron", "image"] },
        { "required": ["stream", "image"] },
        { "required": ["webhook"] },
        { "required": ["from"] },
    ]);
    schema
}

fn object(tables: &[&[Key]], required: &[&str]) -> Value {
    object_of(tables, required, value)
}

/// `replicas` as a mapping: its `max` is another one than that of `retry`.
fn autoscale() -> Value {
    let mut schema = object_of(&[keys::AUTOSCALE], &["max"], autoscale_value);
    schema["oneOf"] = json!([
        { "required": ["backlog_per_replica"] },
        { "required": ["latency"] },
    ]);
    schema
}

fn autoscale_value(key: &str) -> Value {
    let whole = |range: &std::ops::RangeInclusive<u64>| json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() });
    match key {
        "min" => {
            let mut schema = whole(&limits::REPLICAS_MIN);
            schema["default"] = json!(1);
            schema
        }
        "max" => whole(&limits::REPLICAS),
        "backlog_per_replica" => whole(&limits::BACKLOG_PER_REPLICA),
        "latency" => json!({ "$ref": "#/$defs/duration" }),
        // A test holds that every key has a case above.
        _ => json!({ "not": {} }),
    }
}

fn webhook_value(key: &str) -> Value {
    match key {
        "auth" => json!({ "anyOf": [{ "const": "none" }, { "$ref": "#/$defs/auth" }] }),
        "types" => json!({
            "type": "array",
            "items": { "enum": BodyType::ALL.map(|(word, _)| word) },
            "minItems": 1,
        }),
        "id" => json!({
            "type": "string",
            "pattern": "^(header|body)\\..+$",
            "examples": ["header.x-shop-id", "body.event.id"],
        }),
        "rate" => json!({
            "type": "string",
            "pattern": "^ *[0-9]+ */ *[smh] *$",
            "examples": ["100/s"],
        }),
        "handshake" => json!({ "anyOf": [{ "enum": ["slack"] }, { "$ref": "#/$defs/handshake" }] }),
        "reply" => json!({ "$ref": "#/$defs/duration" }),
        // A test holds that every key has a case above.
        _ => json!({ "not": {} }),
    }
}

fn auth_value(key: &str) -> Value {
    let text =
        || json!({ "type": "string", "minLength": 1, "maxLength": limits::WEBHOOK_TEXT_CHARS_MAX });
    match key {
        "type" => json!({ "enum": AUTH_TYPES }),
        "secret" => json!({
            "anyOf": [
                { "type": "string" },
                {
                    "type": "array",
                    "items": { "type": "string" },
                    "minItems": 1,
                    "maxItems": limits::WEBHOOK_SECRETS_MAX,
                },
            ],
        }),
        "user" | "header" | "query" | "prefix" => text(),
        "algorithm" => json!({ "enum": ["sha256", "sha512", "sha1"], "default": "sha256" }),
        "encoding" => json!({ "enum": ["hex", "base64"], "default": "hex" }),
        "tolerance" => json!({
            "$ref": "#/$defs/duration",
            "default": text::duration(limits::WEBHOOK_TOLERANCE_DEFAULT),
        }),
        // A test holds that every key has a case above.
        _ => json!({ "not": {} }),
    }
}

fn handshake_value(key: &str) -> Value {
    match key {
        "type" => json!({ "enum": ["slack", "meta"] }),
        _ => auth_value(key),
    }
}

/// `batch`: its `max` is a number of messages.
fn batch_value(key: &str) -> Value {
    match key {
        "max" => json!({
            "type": "integer",
            "minimum": limits::BATCH_MAX.start(),
            "maximum": limits::BATCH_MAX.end(),
        }),
        "wait" => {
            json!({ "anyOf": [{ "$ref": "#/$defs/duration" }, { "const": 0 }], "default": 0 })
        }
        // A test holds that every key has a case above.
        _ => json!({ "not": {} }),
    }
}

fn object_of(tables: &[&[Key]], required: &[&str], value: fn(&str) -> Value) -> Value {
    let properties: Map<String, Value> = tables
        .iter()
        .flat_map(|table| table.iter())
        .map(|key| {
            let mut schema = value(key.name);
            schema["description"] = json!(key.about);
            (key.name.to_owned(), schema)
        })
        .collect();
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// The schema of what stands behind a key.
fn value(key: &str) -> Value {
    let whole = |range: &std::ops::RangeInclusive<u64>| json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() });
    let real = |range: &std::ops::RangeInclusive<f64>| json!({ "type": "number", "minimum": range.start(), "maximum": range.end() });
    let with_default = |mut schema: Value, default: Value| {
        schema["default"] = default;
        schema
    };
    let filter = |example| json!({ "type": "string", "minLength": 1, "maxLength": limits::CONDITION_BYTES_MAX, "examples": [example] });
    let retry = limits::RETRY_DEFAULT;
    let wait = |ms| json!(text::duration(std::time::Duration::from_millis(ms)));
    match key {
        "flow" | "id" => json!({ "$ref": "#/$defs/name" }),
        "description" => json!({ "type": "string", "maxLength": limits::DESCRIPTION_CHARS_MAX }),
        "trigger" => json!({ "$ref": "#/$defs/trigger" }),
        "track" => json!({ "type": "boolean" }),
        "actions" => json!({
            "type": "array",
            "items": { "$ref": "#/$defs/action" },
            "minItems": 1,
            "maxItems": limits::ACTIONS_MAX,
        }),
        "image" => json!({ "$ref": "#/$defs/image" }),
        "with" => json!({ "type": ["object", "null"] }),
        "env" => json!({
            "type": ["object", "null"],
            "propertyNames": { "pattern": "^[A-Za-z_][A-Za-z0-9_]*$" },
            "additionalProperties": { "type": "string" },
        }),
        "command" => json!({ "type": "array", "items": { "type": "string" } }),
        "mode" => json!({ "enum": ["frames", "lines"], "default": "frames" }),
        "replicas" => with_default(
            json!({ "anyOf": [whole(&limits::REPLICAS), { "$ref": "#/$defs/autoscale" }] }),
            json!(1),
        ),
        "concurrency" => whole(&limits::CONCURRENCY),
        "timeout" => json!({
            "anyOf": [{ "$ref": "#/$defs/duration" }, { "const": 0 }],
            "default": text::duration(limits::TIMEOUT_DEFAULT),
        }),
        "retry" => json!({ "anyOf": [{ "$ref": "#/$defs/retry" }, { "type": "null" }] }),
        "memory" => json!({
            "$ref": "#/$defs/size",
            "default": text::size(limits::MEMORY_BYTES_DEFAULT),
        }),
        "cpus" => with_default(real(&limits::CPUS), json!(limits::CPUS_DEFAULT)),
        "pids" => with_default(whole(&limits::PIDS), json!(limits::PIDS_DEFAULT)),
        "once" | "writable" => json!({ "type": "boolean", "default": false }),
        "privileges" => json!({ "enum": ["image"] }),
        "folders" => json!({ "anyOf": [
            { "type": "object", "additionalProperties": { "enum": ["read", "write"] } },
            { "type": "null" },
        ] }),
        "every" | "initial" | "max" => {
            let schema = json!({ "$ref": "#/$defs/duration" });
            match key {
                "initial" => with_default(schema, wait(retry.initial_ms)),
                "max" => with_default(schema, wait(retry.max_ms)),
                _ => schema,
            }
        }
        "stream" => json!({ "const": true }),
        "cron" => {
            json!({ "type": "string", "minLength": 1, "examples": ["0 6 * * MON-FRI", "@daily"] })
        }
        "timezone" => json!({
            "type": "string",
            "minLength": 1,
            "default": crate::cron::ZONE_DEFAULT,
            "examples": ["Europe/Berlin"],
        }),
        "overlap" => json!({ "enum": ["skip", "queue-one"], "default": "skip" }),
        "missed" => json!({ "enum": ["skip", "once"] }),
        "webhook" => json!({ "anyOf": [{ "const": true }, { "$ref": "#/$defs/webhook" }] }),
        "after" => json!({
            "anyOf": [
                { "$ref": "#/$defs/after" },
                { "type": "array", "items": { "$ref": "#/$defs/after" }, "minItems": 1, "uniqueItems": true },
            ],
        }),
        "from" => json!({ "const": "flows" }),
        "to" => json!({
            "type": "string",
            "pattern": format!("^flow/[a-z][a-z0-9-]{{0,{}}}$", limits::NAME_CHARS_MAX - 1),
            "examples": ["flow/invoices"],
        }),
        "order_by" => filter(".customer.id"),
        "partitions" => with_default(
            whole(&limits::PARTITIONS),
            json!(limits::PARTITIONS_DEFAULT),
        ),
        "when" => filter(".total > 100"),
        "rate" => {
            json!({ "type": "string", "pattern": "^[0-9]+/(s|m|h)$", "examples": ["10/s", "600/m"] })
        }
        "batch" => json!({ "$ref": "#/$defs/batch" }),
        "validate" => json!({ "enum": ["off", "warn", "dead-letter"], "default": "off" }),
        "attempts" => with_default(whole(&limits::RETRY_ATTEMPTS), json!(retry.attempts)),
        "factor" => with_default(real(&limits::RETRY_FACTOR), json!(retry.factor)),
        "jitter" => with_default(real(&limits::RETRY_JITTER), json!(retry.jitter)),
        // A test holds that every key has a case above.
        _ => json!({ "not": {} }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Table = (&'static [Key], fn(&str) -> Value);

    #[test]
    fn every_key_has_a_schema() {
        let tables = [
            keys::FLOW,
            keys::STEP,
            keys::TRIGGER,
            keys::ACTION,
            keys::RETRY,
        ];
        for key in tables.iter().flat_map(|table| table.iter()) {
            assert_ne!(value(key.name), json!({ "not": {} }), "{}", key.name);
        }
        let tables: [Table; 3] = [
            (keys::WEBHOOK, webhook_value),
            (keys::AUTH, auth_value),
            (keys::HANDSHAKE, handshake_value),
        ];
        for (table, value) in tables {
            for key in table {
                assert_ne!(value(key.name), json!({ "not": {} }), "{}", key.name);
            }
        }
        for key in keys::BATCH {
            assert_ne!(batch_value(key.name), json!({ "not": {} }), "{}", key.name);
        }
        for key in keys::AUTOSCALE {
            let schema = autoscale_value(key.name);
            assert_ne!(schema, json!({ "not": {} }), "{}", key.name);
        }
    }
}
