//! What a JSON Schema says of a value, as far as two schemas can be compared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The most shapes of one schema. Of what has more, nothing is known.
const SHAPES_MAX: usize = 32;

/// How deep references and combinations are followed in one place.
const DEPTH_MAX: usize = 16;

/// A set of JSON types. A number is whole, or it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Types(u8);

impl Types {
    pub(super) const NULL: Self = Self(1);
    pub(super) const BOOL: Self = Self(2);
    pub(super) const WHOLE: Self = Self(4);
    pub(super) const BROKEN: Self = Self(8);
    pub(super) const TEXT: Self = Self(16);
    pub(super) const LIST: Self = Self(32);
    pub(super) const OBJECT: Self = Self(64);
    pub(super) const NONE: Self = Self(0);
    pub(super) const ALL: Self = Self(127);

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of these that are not among others.
    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn has(self, other: Self) -> bool {
        self.and(other) == other
    }

    pub(super) fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOL,
            Value::Number(number) if number.as_f64().is_none_or(|it| it.fract() != 0.0) => {
                Self::BROKEN
            }
            Value::Number(_) => Self::WHOLE,
            Value::String(_) => Self::TEXT,
            Value::Array(_) => Self::LIST,
            Value::Object(_) => Self::OBJECT,
        }
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOL,
            "integer" => Self::WHOLE,
            "number" => Self::WHOLE.or(Self::BROKEN),
            "string" => Self::TEXT,
            "array" => Self::LIST,
            "object" => Self::OBJECT,
            _ => return None,
        })
    }

    /// `text or nothing`.
    pub(super) fn words(self) -> String {
        if self == Self::ALL {
            return "anything".to_owned();
        }
        let number = Self::WHOLE.or(Self::BROKEN);
        let names = [
            (Self::OBJECT, "an object"),
            (Self::LIST, "a list"),
            (Self::TEXT, "text"),
            (number, "a number"),
            (Self::WHOLE, "a whole number"),
            (Self::BROKEN, "a number that is not whole"),
            (Self::BOOL, "true or false"),
            (Self::NULL, "null"),
        ];
        let is_number = self.has(number);
        let words: Vec<&str> = names
            .into_iter()
            .filter(|(types, _)| self.has(*types))
            .filter(|(types, _)| *types == number || !(is_number && number.has(*types)))
            .map(|(_, word)| word)
            .collect();
        words.join(" or ")
    }
}

/// One of the forms that a value may have.
#[derive(Debug, Clone)]
pub(super) struct Shape<'s> {
    pub(super) types: Types,
    /// The only values there are; none if there are others.
    pub(super) values: Option<Vec<&'s Value>>,
    pub(super) properties: BTreeMap<&'s str, &'s Value>,
    pub(super) required: BTreeSet<&'s str>,
    /// There are no other properties.
    pub(super) is_closed: bool,
    /// What each item of a list is.
    pub(super) items: Option<&'s Value>,
    /// There is at least one item.
    pub(super) has_items: bool,
}

impl Shape<'_> {
    fn any() -> Self {
        Self {
            types: Types::ALL,
            values: None,
            properties: BTreeMap::new(),
            required: BTreeSet::new(),
            is_closed: false,
            items: None,
            has_items: false,
        }
    }

    /// What is both.
    fn and(&self, other: &Self) -> Self {
        let values = match (&self.values, &other.values) {
            (Some(mine), Some(theirs)) => Some(
                mine.iter()
                    .filter(|it| theirs.contains(it))
                    .copied()
                    .collect(),
            ),
            (mine, theirs) => mine.clone().or_else(|| theirs.clone()),
        };
        let mut both = self.clone();
        both.types = self.types.and(other.types);
        both.values = values;
        for (name, schema) in &other.properties {
            // Of what both speak of, only one is known; that is less than is known, not more.
            both.properties.entry(name).or_insert(schema);
        }
        both.required.extend(&other.required);
        // Who closes an object does not see what the other one knows.
        both.is_closed = (self.is_closed && other.properties.is_empty())
            || (other.is_closed && self.properties.is_empty());
        both.items = self.items.or(other.items);
        both.has_items |= other.has_items;
        both
    }
}

/// The shapes that a schema allows; the one that knows nothing if that is too much to say.
/// Each schema that is looked at takes one of `fuel`.
pub(super) fn shapes<'s>(root: &'s Value, schema: &'s Value, fuel: &mut usize) -> Vec<Shape<'s>> {
    expand(root, schema, DEPTH_MAX, fuel).unwrap_or_else(|| vec![Shape::any()])
}

fn expand<'s>(
    root: &'s Value,
    schema: &'s Value,
    depth: usize,
    fuel: &mut usize,
) -> Option<Vec<Shape<'s>>> {
    let depth = depth.checked_sub(1)?;
    *fuel = fuel.checked_sub(1)?;
    let keys = match schema {
        Value::Bool(false) => return Some(Vec::new()),
        Value::Object(keys) => keys,
        _ => return Some(vec![Shape::any()]),
    };
    let mut all = vec![plain(schema)];
    if let Some(reference) = keys.get("$ref") {
        let pointer = reference.as_str()?.strip_prefix('#')?;
        all = both(&all, &expand(root, root.pointer(pointer)?, depth, fuel)?)?;
    }
    for part in keys
        .get("allOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        all = both(&all, &expand(root, part, depth, fuel)?)?;
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(parts) = keys.get(key).and_then(Value::as_array) {
            let mut either = Vec::new();
            for part in parts {
                either.extend(expand(root, part, depth, fuel)?);
            }
            all = both(&all, &either)?;
        }
    }
    all.retain(|shape| shape.types != Types::NONE);
    Some(all)
}

fn both<'s>(one: &[Shape<'s>], other: &[Shape<'s>]) -> Option<Vec<Shape<'s>>> {
    if one.len() * other.len() > SHAPES_MAX {
        return None;
    }
    let pairs = one
        .iter()
        .flat_map(|one| other.iter().map(|it| one.and(it)));
    Some(pairs.collect())
}

/// What a schema says itself, without what it refers to.
fn plain(schema: &Value) -> Shape<'_> {
    let mut shape = Shape::any();
    shape.types = match schema.get("type") {
        Some(Value::String(name)) => Types::named(name).unwrap_or(Types::ALL),
        Some(Value::Array(names)) => {
            let types = names.iter().filter_map(Value::as_str).map(Types::named);
            types
                .collect::<Option<Vec<_>>>()
                .map_or(Types::ALL, |types| {
                    types.into_iter().fold(Types::NONE, Types::or)
                })
        }
        _ => Types::ALL,
    };
    let values = match (schema.get("const"), schema.get("enum")) {
        (Some(only), _) => Some(vec![only]),
        (None, Some(Value::Array(values))) => Some(values.iter().collect()),
        _ => None,
    };
    if let Some(values) = values {
        let types = values.iter().map(|it| Types::of(it));
        shape.types = shape.types.and(types.fold(Types::NONE, Types::or));
        shape.values = Some(values);
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let properties = properties
            .iter()
            .map(|(name, schema)| (name.as_str(), schema));
        shape.properties = properties.collect();
    }
    if let Some(required) = schema.get("required").and_then(Value::as_array) {
        shape.required = required.iter().filter_map(Value::as_str).collect();
    }
    shape.is_closed = schema.get("additionalProperties") == Some(&Value::Bool(false))
        && schema.get("patternProperties").is_none();
    if schema.get("prefixItems").is_none() {
        shape.items = schema.get("items").filter(|it| it.is_object());
    }
    shape.has_items = schema
        .get("minItems")
        .and_then(Value::as_u64)
        .is_some_and(|count| count > 0);
    shape
}
