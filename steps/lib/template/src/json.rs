//! JSON with templates in place of its texts.

use serde_json::{Map, Value};

use crate::template::{Template, Templates, Values};

/// JSON whose texts are templates: one that is a single expression keeps the type of its value.
#[derive(Debug)]
pub enum Json {
    /// Neither a text nor something that has texts in it.
    Fixed(Value),
    /// A text.
    Text(Template),
    /// A list.
    List(Vec<Json>),
    /// An object.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Compiles the templates in it. `place` is its place in the configuration.
    pub fn new(templates: &mut Templates, place: &str, value: &Value) -> Result<Self, String> {
        Ok(match value {
            Value::String(text) => Self::Text(templates.add(place, text)?),
            Value::Array(list) => {
                let list = list.iter().enumerate();
                let list = list
                    .map(|(index, value)| Self::new(templates, &format!("{place}.{index}"), value));
                Self::List(list.collect::<Result<_, _>>()?)
            }
            Value::Object(object) => {
                let object = object.iter().map(|(name, value)| {
                    let value = Self::new(templates, &format!("{place}.{name}"), value)?;
                    Ok((name.clone(), value))
                });
                Self::Object(object.collect::<Result<_, String>>()?)
            }
            fixed => Self::Fixed(fixed.clone()),
        })
    }

    /// Fills it in.
    pub fn fill(&self, templates: &Templates, values: &Values) -> Result<Value, String> {
        Ok(match self {
            Self::Fixed(value) => value.clone(),
            Self::Text(template) => templates.json(template, values)?,
            Self::List(list) => {
                let list = list.iter().map(|value| value.fill(templates, values));
                Value::Array(list.collect::<Result<_, _>>()?)
            }
            Self::Object(object) => {
                let object = object
                    .iter()
                    .map(|(name, value)| Ok((name.clone(), value.fill(templates, values)?)));
                Value::Object(object.collect::<Result<Map<_, _>, String>>()?)
            }
        })
    }
}
