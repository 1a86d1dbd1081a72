//! The configuration, compiled: from a message to a request.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;
use towpath_step_http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Url, header};
use towpath_step_template::{Json, Template, Templates, Values, values};

use crate::config::Config;

/// The header that tells the server which message this is.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What is known of a message beside its body.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// What is sent as `Idempotency-Key`.
    pub id: &'a str,
    /// Which try it is.
    pub attempt: u32,
    /// What the step before said beside the body.
    pub headers: &'a BTreeMap<String, String>,
}

/// A configuration whose templates are compiled.
#[derive(Debug)]
pub struct Plan {
    templates: Templates,
    method: Template,
    url: Template,
    headers: Headers,
    body: Option<Json>,
    check: Option<(Template, Headers)>,
}

/// The name of each header, its place in the configuration, its value.
type Headers = Vec<(HeaderName, String, Template)>;

impl Plan {
    /// Compiles a configuration; an error says what is wrong with it.
    pub fn new(config: &Config) -> Result<Self, String> {
        let mut templates = Templates::new();
        let method = templates.add("method", &config.method)?;
        if let Template::Fixed(text) = &method {
            read_method(text)?;
        }
        let url = templates.add("url", &config.url)?;
        if let Template::Fixed(text) = &url {
            read_target(text)?;
        }
        let headers = read_headers(&mut templates, "headers", &config.headers)?;
        let body = config.body.as_ref();
        let body = body
            .map(|body| Json::new(&mut templates, "body", body))
            .transpose()?;
        let check = config.check.as_ref();
        let check = check.map(|check| {
            let url = templates.add("check.url", &check.url)?;
            if let Template::Fixed(text) = &url {
                read_target(text)?;
            }
            let (place, headers) = match &check.headers {
                Some(headers) => ("check.headers", headers),
                None => ("headers", &config.headers),
            };
            Ok::<_, String>((url, read_headers(&mut templates, place, headers)?))
        });
        let check = check.transpose()?;
        Ok(Self {
            templates,
            method,
            url,
            headers,
            body,
            check,
        })
    }

    /// Makes the question whether a message was sent before; none if the flow gives none.
    pub fn check(&self, body: &RawValue, about: About<'_>) -> Result<Option<Request>, String> {
        let Some((url, headers)) = &self.check else {
            return Ok(None);
        };
        let values = read_values(body, about)?;
        Ok(Some(Request {
            method: Method::GET,
            url: read_target(&self.templates.text(url, &values)?)?,
            headers: self.fill_headers(headers, &values)?,
            body: None,
        }))
    }

    /// Makes the request for a message; an error says why there can be none.
    pub fn request(&self, body: &RawValue, about: About<'_>) -> Result<Request, String> {
        let values = read_values(body, about)?;
        let method = read_method(&self.templates.text(&self.method, &values)?)?;
        let url = read_target(&self.templates.text(&self.url, &values)?)?;
        let mut headers = self.fill_headers(&self.headers, &values)?;
        if !headers.contains_key(IDEMPOTENCY_KEY) {
            headers.insert(IDEMPOTENCY_KEY, read_header("message.id", about.id)?);
        }
        let content = self.content(&method, &headers, body, &values)?;
        if content.is_some() {
            headers
                .entry(header::CONTENT_TYPE)
                .or_insert(HeaderValue::from_static("application/json"));
        }
        Ok(Request {
            method,
            url,
            headers,
            body: content,
        })
    }

    fn fill_headers(&self, headers: &Headers, values: &Values) -> Result<HeaderMap, String> {
        let mut filled = HeaderMap::new();
        for (name, place, template) in headers {
            let text = self.templates.text(template, values)?;
            filled.insert(name.clone(), read_header(place, &text)?);
        }
        Ok(filled)
    }

    fn content(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: &RawValue,
        values: &Values,
    ) -> Result<Option<Bytes>, String> {
        let Some(planned) = &self.body else {
            let has_none = matches!(*method, Method::GET | Method::HEAD | Method::DELETE);
            return Ok((!has_none).then(|| Bytes::copy_from_slice(body.get().as_bytes())));
        };
        let is_json = headers.get(header::CONTENT_TYPE).is_none_or(|kind| {
            let kind = kind.to_str().unwrap_or_default().to_ascii_lowercase();
            let kind = kind.split(';').next().unwrap_or_default().trim();
            kind == "application/json" || kind.ends_with("+json")
        });
        let content = match (is_json, planned) {
            // A form, XML, plain text: what the author wrote is what is sent.
            (false, Json::Text(template)) => self.templates.text(template, values)?.into_bytes(),
            _ => planned
                .fill(&self.templates, values)?
                .to_string()
                .into_bytes(),
        };
        Ok(Some(content.into()))
    }
}

fn read_values(body: &RawValue, about: About<'_>) -> Result<Values, String> {
    values(body, about.id, about.attempt, about.headers)
        .map_err(|error| format!("cannot read the body: {error}"))
}

fn read_headers(
    templates: &mut Templates,
    place: &str,
    headers: &BTreeMap<String, String>,
) -> Result<Headers, String> {
    let headers = headers.iter().map(|(name, value)| {
        let place = format!("{place}.{name}");
        let header = HeaderName::try_from(name.as_str())
            .map_err(|_| format!("`{name}` is not the name of a header"))?;
        let template = templates.add(&place, value)?;
        if let Template::Fixed(text) = &template {
            read_header(&place, text)?;
        }
        Ok((header, place, template))
    });
    headers.collect()
}

fn read_method(text: &str) -> Result<Method, String> {
    let method = text.trim().to_ascii_uppercase();
    Method::from_bytes(method.as_bytes()).map_err(|_| format!("`{text}` is not a method"))
}

fn read_header(place: &str, text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text)
        .map_err(|_| format!("`{place}` has a character that no header can have"))
}

/// Reads a URL of which no segment climbs. No error quotes it: a query may hold a secret.
fn read_target(text: &str) -> Result<Url, String> {
    let url = towpath_step_http::read_url(text)?;
    let path = text.split(['?', '#']).next().unwrap_or_default();
    let climbs = path.split('/').any(|segment| {
        let segment = segment.to_ascii_lowercase().replace("%2e", ".");
        segment == "." || segment == ".."
    });
    if climbs {
        return Err("`url` has a path segment `.` or `..`, which would lead elsewhere".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(config: Value, body: &Value) -> Result<Request, String> {
        let config: Config = serde_json::from_value(config).unwrap();
        let body = RawValue::from_string(body.to_string()).unwrap();
        let headers = BTreeMap::new();
        Plan::new(&config)?.request(
            &body,
            About {
                id: "00ff",
                attempt: 1,
                headers: &headers,
            },
        )
    }

    fn sent(config: Value, body: &Value) -> String {
        let request = request(config, body).unwrap();
        String::from_utf8(request.body.unwrap().to_vec()).unwrap()
    }

    #[test]
    fn the_parts_are_filled_in() {
        let config = json!({
            "method": "{{ \"put\" if .id else \"post\" }}",
            "url": "http://crm:8080/deals/{{ .id }}",
            "headers": {"authorization": "Bearer hush", "x-name": "{{ .name }}"},
            "body": {"deal": "{{ .id }}", "tags": ["a", "{{ .name }}"], "n": 1, "x": "no {{ id }}"},
        });
        let request = request(config, &json!({"id": 7, "name": "Ada"})).unwrap();
        assert_eq!(request.method, Method::PUT);
        assert_eq!(request.url.as_str(), "http://crm:8080/deals/7");
        assert_eq!(request.headers["x-name"], "Ada");
        assert_eq!(request.headers["authorization"], "Bearer hush");
        assert_eq!(request.headers["idempotency-key"], "00ff");
        assert_eq!(request.headers["content-type"], "application/json");
        let body: Value = serde_json::from_slice(&request.body.unwrap()).unwrap();
        assert_eq!(
            body,
            json!({"deal": 7, "tags": ["a", "Ada"], "n": 1, "x": "no 7"})
        );
    }

    #[test]
    fn the_body_is_the_message_unless_said_otherwise() {
        assert_eq!(sent(json!({"url": "http://x/"}), &json!([1, 2])), "[1,2]");
        let get = request(json!({"url": "http://x/", "method": "GET"}), &json!(1)).unwrap();
        assert_eq!((get.body, get.headers.get("content-type")), (None, None));
        let text = json!({"url": "http://x/", "body": "hello {{ . }}"});
        assert_eq!(sent(text, &json!(1)), "\"hello 1\"");
        let form = json!({"url": "http://x/", "body": "a={{ .a }}", "headers": {"Content-Type": "application/x-www-form-urlencoded"}});
        assert_eq!(sent(form, &json!({"a": 1})), "a=1");
        assert_eq!(
            sent(json!({"url": "http://x/", "body": null}), &json!(3)),
            "3"
        );
    }

    #[test]
    fn a_flow_may_choose_its_own_idempotency_key() {
        let config = json!({"url": "http://x/", "headers": {"Idempotency-Key": "order-{{ .id }}"}});
        let request = request(config, &json!({"id": 7})).unwrap();
        assert_eq!(request.headers["idempotency-key"], "order-7");
    }

    #[track_caller]
    fn refused(config: Value, body: &Value, expect: &str) {
        assert_eq!(request(config, body).unwrap_err(), expect);
    }

    #[test]
    fn what_cannot_be_sent_says_why() {
        let id = json!({"id": ".."});
        let climbs = "`url` has a path segment `.` or `..`, which would lead elsewhere";
        refused(json!({"url": "http://x/deals/{{ .id }}"}), &id, climbs);
        refused(
            json!({"url": "http://x/deals/%2E{{ .id | safe }}"}),
            &json!({"id": "%2e"}),
            climbs,
        );
        refused(
            json!({"url": "x/y"}),
            &id,
            "`url` is not a URL: relative URL without a base",
        );
        refused(
            json!({"url": "ftp://x/y"}),
            &id,
            "`url` begins with `ftp:`, not with `http:` or `https:`",
        );
        refused(
            json!({"url": "http://x/", "method": "a b"}),
            &id,
            "`a b` is not a method",
        );
        refused(
            json!({"url": "http://x/", "headers": {"a b": "c"}}),
            &id,
            "`a b` is not the name of a header",
        );
        refused(
            json!({"url": "http://x/", "headers": {"a": "{{ .a }}"}}),
            &json!({"a": "x\r\nset-cookie: y"}),
            "`headers.a` has a character that no header can have",
        );
    }
}
