//! `towpath secret`

use std::io::Read;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::problem::Problem;
use super::words::apart;
use super::{Context, ExitStatus, verbs};
use crate::control::view::{Done, SecretList, SecretValue};
use crate::store::now_ms;

/// The most bytes that are read of a value.
const VALUE_BYTES_MAX: u64 = 128 << 10;

/// What to do with secrets.
#[derive(Debug, Subcommand)]
pub(super) enum Secret {
    /// Sets a secret to what is on standard input, or to what you type
    Set(One),
    /// Lists the names of all secrets
    List,
    /// Deletes a secret that no flow uses
    Delete(One),
}

/// Which one.
#[derive(Debug, Args)]
pub(super) struct One {
    /// Its name: `crm_token` is `${secrets.crm_token}` in a flow
    name: String,
}

pub(super) async fn run(command: &Secret, context: &Context) -> Result<ExitStatus, Problem> {
    let client = context.client()?;
    match command {
        Secret::Set(One { name }) => {
            let request = SecretValue {
                value: value(name, context)?,
            };
            let done: Done = client
                .send(Method::PUT, &["secrets", name], &[], &request)
                .await?;
            Ok(verbs::done(&done, context))
        }
        Secret::Delete(One { name }) => {
            let path = ["secrets", name.as_str()];
            let done: Done = client.send(Method::DELETE, &path, &[], &json!({})).await?;
            Ok(verbs::done(&done, context))
        }
        Secret::List => {
            let list: SecretList = client.get(&["secrets"], &[]).await?;
            let printer = context.printer;
            if printer.is_json() {
                printer.json(&list);
            } else if list.secrets.is_empty() {
                printer.line("there are no secrets yet; `towpath secret set <name>` makes one");
            } else {
                let now = now_ms();
                let rows = list.secrets.iter().map(|secret| {
                    vec![
                        secret.name.clone(),
                        format!("{} ago", apart(now, secret.changed_at)),
                    ]
                });
                printer.line(&printer.table(&["NAME", ">SET"], rows.collect()));
            }
            Ok(ExitStatus::Done)
        }
    }
}

/// Reads the value: typed without being shown on a terminal, else standard input to its end.
fn value(name: &str, context: &Context) -> Result<String, Problem> {
    let unreadable =
        |error: &std::io::Error| Problem::could_not("cannot read the value").because(error);
    if context.printer.can_ask() {
        context
            .printer
            .note(&format!("value of `{name}` (it is not shown):"));
        let term = console::Term::stderr();
        return term.read_secure_line().map_err(|error| unreadable(&error));
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(VALUE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error))?;
    let text =
        String::from_utf8(bytes).map_err(|_| Problem::no("the value is not text in UTF-8"))?;
    // `echo` and editors end with a line break that nobody means.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}
