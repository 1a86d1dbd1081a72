//! A dead letter as JSON, with everything in it: what is exported, and what filters see.

use serde::Serialize;
use serde_json::value::RawValue;
use towpath_protocol::message::{Message, PastAttempt};

use super::super::runs::word;
use crate::store::dead_letters::KeptLetter;

/// The letter, as it is written.
#[derive(Serialize)]
struct Exported<'a> {
    id: u64,
    state: String,
    flow: &'a str,
    step: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<&'a str>,
    version: u32,
    connection: &'a str,
    run: Option<String>,
    message_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    group: &'a str,
    cause: String,
    reason: &'a str,
    chain: &'a [String],
    attempts: &'a [PastAttempt],
    replica: u32,
    at: u64,
    repeats: u64,
    last_at: u64,
    replays: u32,
    job: Option<u64>,
    headers: Option<&'a RawValue>,
    lineage: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_body: Option<&'a RawValue>,
    body: &'a RawValue,
}

/// Writes a letter as compact JSON.
pub(super) fn exported(letter: &KeptLetter) -> Box<RawValue> {
    let message: Option<Message<'_>> = serde_json::from_str(letter.message.get()).ok();
    let message = message.as_ref();
    let own = message.map_or(&*letter.message, |message| message.body);
    let written = serde_json::value::to_raw_value(&Exported {
        id: letter.id,
        state: word(letter.state),
        flow: &letter.flow,
        step: &letter.step,
        port: letter.port.as_deref(),
        version: letter.version,
        connection: &letter.connection,
        run: letter.run.map(|run| run.to_string()),
        message_id: letter.message_id.to_string(),
        parent: message.and_then(|it| Some(it.parent?.to_string())),
        key: message.and_then(|it| it.key.as_deref()),
        group: &letter.fingerprint,
        cause: word(letter.cause),
        reason: &letter.reason,
        chain: &letter.chain,
        attempts: &letter.attempts,
        replica: letter.replica,
        at: letter.at,
        repeats: letter.repeats,
        last_at: letter.last_at,
        replays: letter.replays,
        job: letter.job,
        headers: message.and_then(|it| it.headers),
        lineage: message.map(|it| it.lineage),
        original_body: letter.edited.is_some().then_some(own),
        body: letter.edited.as_deref().unwrap_or(own),
    });
    written.expect("words, numbers and JSON are JSON")
}

/// The body as it is now, and its own if it was edited.
pub(super) fn bodies(letter: &KeptLetter) -> (Box<RawValue>, Option<Box<RawValue>>) {
    let message: Option<Message<'_>> = serde_json::from_str(letter.message.get()).ok();
    let own = message.map_or_else(|| letter.message.clone(), |it| it.body.to_owned());
    match &letter.edited {
        Some(edited) => (edited.clone(), Some(own)),
        None => (own, None),
    }
}
