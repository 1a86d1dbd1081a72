//! Which one a request is: what its sender calls it.
//!
//! # Invariants
//!
//! - `an_id_is_never_made_of_what_is_in_a_body`, other than the one field that the flow names: two
//!   orders may well be alike.

use serde_json::Value;
use towpath_flow::webhook::IdField;

use super::Request;

/// The name of a request, unique within its flow, if it has one: from the field that the flow
/// names, else from `Idempotency-Key`, else from `webhook-id`.
pub(super) fn of(field: Option<&IdField>, request: &Request, body: &str) -> Option<String> {
    let header = |name: &str| {
        let value = request.header(name)?.trim();
        (!value.is_empty()).then(|| value.to_owned())
    };
    let named = match field {
        Some(IdField::Header(name)) => header(name),
        Some(IdField::Body(keys)) => in_body(keys, body),
        None => None,
    };
    // Names of different kinds cannot be mistaken for each other: no header has a line break in it.
    named
        .map(|id| format!("id\n{id}"))
        .or_else(|| header("idempotency-key"))
        .or_else(|| header("webhook-id").map(|id| format!("webhook-id\n{id}")))
}

/// A text or a number behind some keys.
fn in_body(keys: &[String], body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    let found = keys.iter().try_fold(&body, |value, key| match value {
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        _ => value.get(key),
    })?;
    match found {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request {
        let header = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Request {
            headers: headers.iter().map(header).collect(),
            ..Request::default()
        }
    }

    #[test]
    fn the_field_that_the_flow_names_comes_first() {
        let body = r#"{"event":{"id":"e1","number":17,"list":[{"id":"x"}]},"id":null}"#;
        let keys =
            |path: &str| IdField::Body(path.split('.').map(str::to_owned).collect::<Vec<_>>());
        let check = |field: Option<IdField>, headers: &[(&str, &str)], expect: Option<&str>| {
            let found = of(field.as_ref(), &request(headers), body);
            assert_eq!(found.as_deref(), expect);
        };
        check(Some(keys("event.id")), &[], Some("id\ne1"));
        check(Some(keys("event.number")), &[], Some("id\n17"));
        check(Some(keys("event.list.0.id")), &[], Some("id\nx"));
        check(
            Some(keys("id")),
            &[("webhook-id", "w")],
            Some("webhook-id\nw"),
        );
        check(Some(keys("event.nosuch")), &[], None);
        let shop = || Some(IdField::Header("x-shop-id".to_owned()));
        check(
            shop(),
            &[("X-Shop-Id", "s"), ("Idempotency-Key", "k")],
            Some("id\ns"),
        );
        check(shop(), &[("Idempotency-Key", "k")], Some("k"));
        check(
            None,
            &[("webhook-id", "w"), ("idempotency-key", "k")],
            Some("k"),
        );
    }

    #[test]
    fn an_id_is_never_made_of_what_is_in_a_body() {
        assert_eq!(of(None, &request(&[]), r#"{"id":"1"}"#), None);
        assert_eq!(of(None, &request(&[("idempotency-key", " ")]), "{}"), None);
    }
}
