//! Answers the request that a flow began with: status, headers and body from templates. The message
//! goes on, unchanged, to whatever follows.

use std::collections::BTreeMap;
use std::future::{Ready, ready};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use towpath_step::{Answer, Context, REPLY_PORT, Result, StepError};
use towpath_step_template::{Json, Template, Templates, Values, values};

/// `with:` of the step. `status`, the values of `headers` and the texts in `body` are templates:
/// `{{ .customer.name }}` is a field of the message's body.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The HTTP status: a number, or a template that gives one.
    #[serde(default)]
    #[schemars(default)]
    pub status: Status,
    /// Headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body: any JSON, with templates inside its texts; a text that is one `{{ … }}` and nothing
    /// else keeps the type of its value. The message's body if left out.
    #[serde(default)]
    pub body: Option<Value>,
}

/// A status.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Status {
    /// Always the same.
    Fixed(u16),
    /// A template.
    Template(String),
}

impl Default for Status {
    fn default() -> Self {
        Self::Fixed(200)
    }
}

/// The configuration, compiled.
#[derive(Debug)]
pub struct Plan {
    templates: Templates,
    status: Template,
    headers: Vec<(String, Template)>,
    body: Option<Json>,
}

/// Compiles the templates, and looks at what can be looked at before there is a message.
pub fn setup(config: &Config) -> Ready<Result<Plan>> {
    ready(Plan::new(config).map_err(StepError::permanent))
}

/// Answers, and passes the message on.
pub async fn reply(body: Box<RawValue>, ctx: &Context<Config, Plan>) -> Result<Box<RawValue>> {
    let id = ctx.message_id().to_string();
    let values = values(&body, &id, ctx.attempt(), ctx.headers())?;
    let answer = ctx.state.answer(&body, &values);
    ctx.emit_to(REPLY_PORT, answer.map_err(StepError::permanent)?)
        .await?;
    Ok(body)
}

impl Plan {
    fn new(config: &Config) -> std::result::Result<Self, String> {
        let mut templates = Templates::new();
        let status = match &config.status {
            Status::Fixed(status) => Template::Fixed(status.to_string()),
            Status::Template(text) => templates.add("status", text)?,
        };
        let headers = config.headers.iter().map(|(name, value)| {
            let template = templates.add(&format!("headers.{name}"), value)?;
            Ok((name.clone(), template))
        });
        let headers = headers.collect::<std::result::Result<Vec<_>, String>>()?;
        let body = config.body.as_ref();
        let body = body.map(|body| Json::new(&mut templates, "body", body));
        let body = body.transpose()?;
        let fixed = |template: &Template| match template {
            Template::Fixed(text) => Some(text.clone()),
            Template::Filled(_) | Template::Typed(..) => None,
        };
        Answer {
            status: fixed(&status).map_or(Ok(200), |text| read_status(&text))?,
            headers: headers
                .iter()
                .map(|(name, value)| (name.clone(), fixed(value).unwrap_or_default()))
                .collect(),
            body: None,
        }
        .check()?;
        Ok(Self {
            templates,
            status,
            headers,
            body,
        })
    }

    fn answer(&self, message: &RawValue, values: &Values) -> std::result::Result<Answer, String> {
        let status = read_status(&self.templates.text(&self.status, values)?)?;
        let headers = self.headers.iter().map(|(name, template)| {
            let value = self.templates.text(template, values)?;
            Ok((name.clone(), value))
        });
        let headers = headers.collect::<std::result::Result<_, String>>()?;
        let body = match &self.body {
            // These have none, whatever the message is.
            _ if matches!(status, 204 | 205 | 304) => None,
            None => Some(message.to_owned()),
            Some(body) => {
                let body = body.fill(&self.templates, values)?;
                Some(to_raw_value(&body).map_err(|error| error.to_string())?)
            }
        };
        let answer = Answer {
            status,
            headers,
            body,
        };
        answer.check()?;
        Ok(answer)
    }
}

fn read_status(text: &str) -> std::result::Result<u16, String> {
    let text = text.trim();
    text.parse()
        .map_err(|_| format!("the status `{text}` is not a number from 200 to 599"))
}
