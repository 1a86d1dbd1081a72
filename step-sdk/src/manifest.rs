//! The manifest of a step, made from its types.

use std::collections::{BTreeMap, BTreeSet};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};
use towpath_protocol::manifest::Manifest;
use towpath_protocol::{CONTRACT, DEFAULT_PORT};

use crate::handler::Handler;

/// What a step says of itself that is not in its types.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) text: String,
    pub(crate) concurrency: Option<u32>,
    pub(crate) needs_batch: bool,
    pub(crate) ports: BTreeMap<String, Value>,
}

impl Description {
    /// The names of all ports.
    pub(crate) fn port_names(&self) -> BTreeSet<String> {
        self.ports
            .keys()
            .cloned()
            .chain([DEFAULT_PORT.to_owned()])
            .collect()
    }
}

/// Returns the JSON Schema of a type.
pub(crate) fn schema_of<T: JsonSchema>() -> Value {
    SchemaGenerator::default()
        .into_root_schema_for::<T>()
        .to_value()
}

/// Returns what describes types as they are written, not as they are read: what has a default when
/// it is read is always there when it is written.
fn written() -> SchemaGenerator {
    SchemaSettings::default().for_serialize().into_generator()
}

/// Returns the JSON Schema of what leaves by a port.
pub(crate) fn output_schema_of<T: JsonSchema>() -> Value {
    written().into_root_schema_for::<T>().to_value()
}

/// A step without configuration takes an empty `with:`, which is an object.
fn config_schema<C: JsonSchema>() -> Value {
    let schema = schema_of::<C>();
    if schema.get("type").is_some_and(|kind| kind == "null") {
        return json!({"type": "object", "additionalProperties": false});
    }
    schema
}

/// Makes the manifest.
pub(crate) fn manifest<H: Handler>(handler: &H, description: &Description) -> Manifest {
    let mut generator = SchemaGenerator::default();
    let mut ports = description.ports.clone();
    let output = handler.output_schema(&mut written());
    ports
        .entry(DEFAULT_PORT.to_owned())
        .or_insert(output.map_or(Value::Null, Schema::to_value));
    let batch = handler.batch_max();
    let two_batches = batch.and_then(|max| u32::try_from(max.saturating_mul(2)).ok());
    Manifest {
        contract: CONTRACT,
        name: description.name.clone(),
        version: description.version.clone(),
        description: description.text.clone(),
        kind: handler.kind(),
        config: Some(config_schema::<H::Config>()),
        input: handler.input_schema(&mut generator).map(Schema::to_value),
        ports,
        concurrency: description.concurrency.or(two_batches),
        batch: batch.and_then(|max| u32::try_from(max).ok()),
        registers: handler.registers(),
        needs_batch: description.needs_batch,
    }
}
