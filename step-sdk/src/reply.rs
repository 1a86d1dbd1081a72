//! What a handler returns: nothing, one output, many, or outputs with ports.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::context::About;
use crate::error::{Result, StepError};
use crate::link::Link;
use crate::write::Envelope;

/// What a handler returns: any type that is JSON and has a schema, [`Many`], or [`Outputs`].
///
/// A value that is `null` as JSON (`()`, `None`) emits nothing. Not to be implemented by steps.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the output of a step",
    note = "derive `serde::Serialize` and `schemars::JsonSchema` for it, or return `()`, `Many` or `Outputs`"
)]
pub trait Reply: 'static {
    #[doc(hidden)]
    fn schema(generator: &mut SchemaGenerator) -> Option<Schema>;

    #[doc(hidden)]
    fn send(self, to: Recipient<'_>) -> impl Future<Output = Result<()>>;
}

/// The message that outputs belong to.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Recipient<'a> {
    pub(crate) link: &'a Link,
    pub(crate) about: &'a About,
}

impl<T: Serialize + JsonSchema + 'static> Reply for T {
    fn schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        let schema = generator.root_schema_for::<T>();
        let is_null = schema.get("type").and_then(|kind| kind.as_str()) == Some("null");
        (!is_null).then_some(schema)
    }

    async fn send(self, to: Recipient<'_>) -> Result<()> {
        to.link
            .emit(to.about.id, &to.about.emitted, &Envelope::default(), &self)
            .await
    }
}

/// Many outputs of one message.
///
/// ```
/// use towpath_step::{Context, Many, Result};
///
/// async fn split(text: String, _: &Context<()>) -> Result<Many<String>> {
///     Ok(text.lines().map(str::to_owned).collect())
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Many<T>(pub Vec<T>);

impl<T> FromIterator<T> for Many<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

impl<T: Serialize + JsonSchema + 'static> Reply for Many<T> {
    fn schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        <T as Reply>::schema(generator)
    }

    async fn send(self, to: Recipient<'_>) -> Result<()> {
        for value in &self.0 {
            to.link
                .emit(to.about.id, &to.about.emitted, &Envelope::default(), value)
                .await?;
        }
        Ok(())
    }
}

/// Outputs that name the ports they leave by.
///
/// ```
/// use towpath_step::{Context, Outputs, Result};
///
/// async fn sort(cents: u64, _: &Context<()>) -> Result<Outputs> {
///     Ok(if cents == 0 { Outputs::to("rejected", cents) } else { Outputs::one(cents) })
/// }
/// ```
#[derive(Debug, Default)]
pub struct Outputs {
    outputs: Vec<(Option<String>, Box<RawValue>)>,
    unwritable: Option<String>,
}

impl Outputs {
    /// No output.
    pub fn none() -> Self {
        Self::default()
    }

    /// One output by the port `out`.
    pub fn one<T: Serialize>(value: T) -> Self {
        Self::none().and(value)
    }

    /// One output by a port.
    pub fn to<T: Serialize>(port: &str, value: T) -> Self {
        Self::none().and_to(port, value)
    }

    /// Adds an output by the port `out`.
    #[must_use]
    pub fn and<T: Serialize>(self, value: T) -> Self {
        self.add(None, value)
    }

    /// Adds an output by a port.
    #[must_use]
    pub fn and_to<T: Serialize>(self, port: &str, value: T) -> Self {
        self.add(Some(port.to_owned()), value)
    }

    fn add<T: Serialize>(mut self, port: Option<String>, value: T) -> Self {
        match serde_json::value::to_raw_value(&value) {
            Ok(raw) => self.outputs.push((port, raw)),
            Err(error) => self.unwritable = Some(error.to_string()),
        }
        self
    }
}

impl Reply for Outputs {
    fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
        None
    }

    async fn send(self, to: Recipient<'_>) -> Result<()> {
        if let Some(error) = self.unwritable {
            return Err(StepError::permanent(format!(
                "an output cannot be JSON: {error}"
            )));
        }
        for (port, value) in &self.outputs {
            let envelope = Envelope {
                port: port.as_deref(),
                ..Envelope::default()
            };
            to.link
                .emit(to.about.id, &to.about.emitted, &envelope, value)
                .await?;
        }
        Ok(())
    }
}
