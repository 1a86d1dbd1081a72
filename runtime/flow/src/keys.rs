//! Every key of a flow file, with a sentence about it. The check, the schema for editors and the
//! page of the manual are all held to these tables.

/// A key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
}

const fn key(name: &'static str, about: &'static str) -> Key {
    Key { name, about }
}

/// Of the file.
pub(crate) const FLOW: &[Key] = &[
    key(
        "flow",
        "The name of the flow: a small letter, then small letters, digits and `-`, at most 48.",
    ),
    key("description", "What the flow does, in a sentence."),
    key("trigger", "The step that brings messages in."),
    key(
        "track",
        "Whether it is noted what comes of each run, message by message; `true` unless the trigger is a webhook.",
    ),
    key(
        "actions",
        "The steps that handle messages, each after the one before unless `after` says otherwise.",
    ),
];

/// Of every step.
pub(crate) const STEP: &[Key] = &[
    key("id", "The name of the step, unique in the flow."),
    key("image", "The container image of the step."),
    key(
        "with",
        "The configuration of the step; what it takes is in its manifest. `${secrets.name}` and `${env.NAME}` are filled in when the flow is deployed.",
    ),
    key(
        "env",
        "Environment variables of the step's process, for programs that read them.",
    ),
    key(
        "command",
        "What to run in the image, as a list, in place of what the image says.",
    ),
    key(
        "mode",
        "How the program is spoken to: `frames` (the step protocol) or `lines` (a JSON body a line on standard input, JSON lines on standard output).",
    ),
    key(
        "replicas",
        "How many containers the step has: a number, or `{ min, max, backlog_per_replica }` or `{ min, max, latency }` to let the work say.",
    ),
    key(
        "concurrency",
        "The most messages in the hands of one replica at a time.",
    ),
    key(
        "timeout",
        "How long the step has for one message; 0 is without limit.",
    ),
    key("retry", "When a message that failed is tried again."),
    key(
        "once",
        "For actions: `true` has a message that is settled never handled again, whatever breaks; it costs a look-up a batch.",
    ),
    key("memory", "How much memory a replica may use."),
    key(
        "cpus",
        "How many processors a replica may use; 0.5 is half of one.",
    ),
    key("pids", "How many processes and threads a replica may have."),
    key(
        "writable",
        "Whether the root file system of the container can be written.",
    ),
    key(
        "folders",
        "Folders of the host that the step may use, by the names the control plane has for them, each with `read` or `write`; the step finds them in `/folders`.",
    ),
    key(
        "privileges",
        "`image` leaves the step root and the engine's default capabilities, for images that need them.",
    ),
];

/// Of the trigger alone.
pub(crate) const TRIGGER: &[Key] = &[
    key(
        "every",
        "Fires the trigger on a schedule: the time from one firing to the next.",
    ),
    key(
        "cron",
        "Fires the trigger by the clock on the wall: minute, hour, day of the month, month, day of the week; with a second before them, if there are six.",
    ),
    key(
        "timezone",
        "The place whose clock `cron` goes by, such as `Europe/Berlin`; `UTC` if it says nothing.",
    ),
    key(
        "stream",
        "`true` has the trigger run for ever: it is fired at once, and again when it ends.",
    ),
    key(
        "overlap",
        "What becomes of a firing while the trigger still runs: `skip` leaves it out, `queue-one` remembers one.",
    ),
    key(
        "missed",
        "What becomes of firings while nobody was there: `skip` leaves them out, `once` makes up for all of them with one.",
    ),
    key(
        "webhook",
        "Gives the flow a URL; each request to it is a message. `true`, or what is asked of requests.",
    ),
    key(
        "from",
        "`flows` takes the messages that other flows hand over with `to: flow/<name>`.",
    ),
];

/// Of actions alone.
pub(crate) const ACTION: &[Key] = &[
    key(
        "after",
        "The step, or the list of steps, that it takes messages from: `step`, or `step.port` for a port other than `out`. The step before, if it says nothing.",
    ),
    key(
        "order_by",
        "A jq expression on the body: messages for which it gives the same are handled in order, one at a time.",
    ),
    key(
        "partitions",
        "How many messages of a step with `order_by` are handled at a time, by all its replicas together.",
    ),
    key(
        "when",
        "A jq condition on the body: the step takes only messages that it holds for.",
    ),
    key(
        "to",
        "In place of an image: `flow/<name>` hands every message to another flow, whose trigger says `from: flows`.",
    ),
    key(
        "validate",
        "What becomes of a message whose body is not what the manifest of the image says it takes: `off`, `warn` or `dead-letter`.",
    ),
    key(
        "rate",
        "How many messages all replicas together are handed, at most: `10/s`, `600/m`, `1000/h`.",
    ),
    key(
        "batch",
        "How many messages are handed over together, for steps that write in bulk: `{ max: 500, wait: 1s }`.",
    ),
];

/// Of `retry`.
pub(crate) const RETRY: &[Key] = &[
    key(
        "attempts",
        "How many attempts there are in all, the first included.",
    ),
    key("initial", "The wait after the first attempt."),
    key("factor", "What each wait is multiplied by to get the next."),
    key("max", "The longest wait."),
    key(
        "jitter",
        "The part of each wait that is left to chance, from 0 to 1.",
    ),
];

/// Of `replicas`, where it is not a number.
pub(crate) const AUTOSCALE: &[Key] = &[
    key(
        "min",
        "The fewest replicas; 0 lets the step sleep while there is nothing to do.",
    ),
    key("max", "The most replicas."),
    key(
        "backlog_per_replica",
        "One replica for so many messages that wait or are in hand.",
    ),
    key(
        "latency",
        "So many replicas that what waits is worked off within this time.",
    ),
];

/// Of `webhook`, where it is not `true`.
pub(crate) const WEBHOOK: &[Key] = &[
    key(
        "auth",
        "How a request shows who sent it, beside knowing the URL; `none` or a mapping.",
    ),
    key(
        "types",
        "The kinds of bodies that are taken: `json`, `form`, `text`, `xml`, `bytes`. Others are answered 415.",
    ),
    key(
        "id",
        "Where a request says which one it is: `header.x-shop-id` or `body.event.id`. A second request with the same id makes no second message.",
    ),
    key(
        "rate",
        "The most messages in a time: `100/s`, `600/m`, `5000/h`. What is more is answered 429.",
    ),
    key(
        "handshake",
        "How the sender makes sure that the URL is yours: `slack`, or `{ type: meta, secret }`.",
    ),
    key(
        "reply",
        "How long a request waits for the answer that a step of the flow gives; then it is answered 202.",
    ),
];

/// Of `auth`.
pub(crate) const AUTH: &[Key] = &[
    key(
        "type",
        "In which form: `basic`, `api-key`, `hmac`, `github`, `shopify`, `slack`, `standard-webhooks`, `stripe` or `none`.",
    ),
    key(
        "secret",
        "The secret, or the list of those that are good: `${secrets.name}`.",
    ),
    key("user", "For `basic`: the name of the user."),
    key(
        "header",
        "For `hmac` and `api-key`: the header that has the signature or the key.",
    ),
    key(
        "query",
        "For `api-key`: the parameter of the query that has the key.",
    ),
    key(
        "prefix",
        "For `hmac` and `api-key`: what stands before the signature or the key.",
    ),
    key("algorithm", "For `hmac`: `sha256`, `sha512` or `sha1`."),
    key("encoding", "For `hmac`: `hex` or `base64`."),
    key(
        "tolerance",
        "For `slack`, `standard-webhooks` and `stripe`: how far the time of a request may be from ours.",
    ),
];

/// Of `handshake`, where it is not a word.
pub(crate) const HANDSHAKE: &[Key] = &[
    key("type", "Which: `slack` or `meta`."),
    key(
        "secret",
        "For `meta`: the `hub.verify_token`, or the list of those that are good.",
    ),
];

/// Of `batch`.
pub(crate) const BATCH: &[Key] = &[
    key("max", "The most messages that are handed over together."),
    key(
        "wait",
        "How long the first of them waits for more; nothing is waited for when left out.",
    ),
];

/// Words of later versions, each with what to do until then.
pub(crate) const RESERVED: &[(&str, &str)] = &[
    ("connection", "a flow has one connection, `default`"),
    ("connections", "a flow has one connection, `default`"),
    ("ports", "the ports of a step are in its manifest"),
    ("deadline", "use `timeout` and `retry`"),
    ("priority", "all messages are equal"),
    (
        "schedule",
        "write `every: 30s`, or `cron: \"0 6 * * MON-FRI\"`",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::{Code, Severity};

    const MANUAL: &str = include_str!("../../../docs/flow-file.md");

    #[test]
    fn the_manual_has_every_key() {
        for key in [
            FLOW, STEP, TRIGGER, ACTION, RETRY, AUTOSCALE, WEBHOOK, AUTH, HANDSHAKE,
        ]
        .into_iter()
        .flatten()
        {
            let row = MANUAL.lines().any(|line| {
                line.starts_with(&format!("| `{}`", key.name))
                    || line.starts_with(&format!("| `{}: true`", key.name))
            });
            assert!(row, "docs/flow-file.md has no row for `{}`", key.name);
        }
    }

    #[test]
    fn the_manual_has_every_code() {
        for code in Code::ALL {
            let severity = match code.severity() {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            };
            let row = format!("| {code} | {severity} | {} |", code.about());
            assert!(
                MANUAL.lines().any(|line| line == row),
                "docs/flow-file.md lacks: {row}"
            );
        }
    }

    #[test]
    fn reserved_words_are_no_keys() {
        for key in [FLOW, STEP, TRIGGER, ACTION, RETRY, AUTOSCALE, BATCH]
            .into_iter()
            .flatten()
        {
            assert!(
                RESERVED.iter().all(|(word, _)| *word != key.name),
                "{}",
                key.name
            );
        }
    }
}
