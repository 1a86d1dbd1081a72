//! `webhook`: `true`, or what is asked of requests.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Steps, within};
use crate::diagnostic::{Code, Diagnostic};
use crate::keys;
use crate::limits;
use crate::placeholder::{Piece, has_any, pieces};
use crate::read::{head, is_misspelt};
use crate::text::shown;
use crate::tree::{Content, Node};
use crate::units::parse_rate;
use crate::webhook::{
    Algorithm, Auth, BodyType, Encoding, Handshake, Hmac, IdField, KeyPlace, Rate, Scheme, Webhook,
};

/// The forms in which requests show who sent them, by their words.
pub(crate) const AUTH_TYPES: [&str; 9] = [
    "none",
    "basic",
    "api-key",
    "hmac",
    "github",
    "shopify",
    "slack",
    "standard-webhooks",
    "stripe",
];

const SECRET_HELP: &str = "write `secret: \"${secrets.name}\"`, and `towpath secret set name` once";

impl Steps<'_, '_> {
    /// Reads what a webhook asks of requests; `true` is nothing.
    pub(super) fn webhook(&mut self, node: &Node) -> Webhook {
        let mut webhook = Webhook::default();
        if !matches!(node.content, Content::Mapping(_)) {
            return webhook;
        }
        self.reader.mapping(node, "`webhook`", &[keys::WEBHOOK]);
        self.placeholders(node);
        if let Some(entry) = node.entry("auth") {
            webhook.auth = self.auth(&entry.value);
        }
        if let Some(entry) = node.entry("types") {
            webhook.types = self.types(&entry.value);
        }
        if let Some(entry) = node.entry("id") {
            webhook.id = self.request_id(&entry.value);
        }
        if let Some(entry) = node.entry("rate") {
            webhook.rate = self.rate(&entry.value);
        }
        if let Some(entry) = node.entry("handshake") {
            webhook.handshake = self.handshake(&entry.value);
        }
        if let Some(entry) = node.entry("reply") {
            let range = &limits::WEBHOOK_REPLY;
            webhook.reply = self.reader.duration(&entry.value, "`reply`", range);
        }
        webhook
    }

    fn auth(&mut self, node: &Node) -> Option<Auth> {
        if matches!(&node.content, Content::Text(text) if text == "none") {
            return None;
        }
        self.reader.mapping(node, "`auth`", &[keys::AUTH])?;
        let Some(entry) = node.entry("type") else {
            self.lacks(
                node,
                "`auth`",
                "type",
                keys::AUTH,
                "say in which form requests are signed: `type: github`",
            );
            return None;
        };
        let kind = self.reader.choice(&entry.value, "`type`", &AUTH_TYPES)?;
        let (allowed, needed): (&[&str], &[&str]) = match kind {
            "none" => (&[], &[]),
            "basic" => (&["user", "secret"], &["user", "secret"]),
            "api-key" => (&["header", "query", "prefix", "secret"], &["secret"]),
            "hmac" => (
                &["header", "algorithm", "encoding", "prefix", "secret"],
                &["header", "secret"],
            ),
            "github" | "shopify" => (&["secret"], &["secret"]),
            _ => (&["secret", "tolerance"], &["secret"]),
        };
        self.useless(node, kind, allowed);
        for key in needed.iter().filter(|key| node.entry(key).is_none()) {
            let help = match *key {
                "secret" => SECRET_HELP,
                "user" => "write `user: shop`",
                _ => "name the header that has the signature: `header: x-signature`",
            };
            self.lacks(node, "`auth`", key, keys::AUTH, help);
        }
        let secrets = self.secrets(node);
        let tolerance = self.tolerance(node);
        let scheme = match kind {
            "none" => return None,
            "basic" => Scheme::Basic {
                user: self.plain(node, "user", limits::WEBHOOK_TEXT_CHARS_MAX)?,
            },
            "api-key" => Scheme::ApiKey {
                place: self.key_place(node)?,
                prefix: self.prefix(node),
            },
            "hmac" => Scheme::Hmac(self.hmac(node)?),
            "github" => Scheme::GitHub,
            "shopify" => Scheme::Shopify,
            "slack" => Scheme::Slack { tolerance },
            "stripe" => Scheme::Stripe { tolerance },
            _ => Scheme::StandardWebhooks { tolerance },
        };
        Some(Auth { scheme, secrets })
    }

    fn lacks(&mut self, node: &Node, what: &str, key: &str, table: &[keys::Key], help: &str) {
        let names: Vec<&str> = table.iter().map(|key| key.name).collect();
        if is_misspelt(node, key, &names) {
            return; // It is reported as an unknown key.
        }
        self.reader.report(
            Diagnostic::new(Code::MissingKey, format!("{what} has no `{key}`"))
                .at(head(node))
                .label(format!("`{key}` is missing"))
                .help(help),
        );
    }

    /// Keys that are known, but mean nothing with this type.
    fn useless(&mut self, node: &Node, kind: &str, allowed: &[&str]) {
        let Content::Mapping(entries) = &node.content else {
            return;
        };
        for entry in entries {
            let is_known = keys::AUTH.iter().any(|key| key.name == entry.key);
            if is_known && entry.key != "type" && !allowed.contains(&entry.key.as_str()) {
                let help = if allowed.is_empty() {
                    "leave it out, or choose another `type`".to_owned()
                } else {
                    format!("beside `type` it takes {}", crate::text::list(allowed))
                };
                self.reader.report(
                    Diagnostic::new(
                        Code::AuthKey,
                        format!("the type `{kind}` has no use for {}", shown(&entry.key)),
                    )
                    .at(entry.key_span.clone())
                    .label("this has no meaning here")
                    .help(help),
                );
            }
        }
    }

    /// One secret or a list of them.
    fn secrets(&mut self, node: &Node) -> Vec<String> {
        let Some(entry) = node.entry("secret") else {
            return Vec::new();
        };
        let items: Vec<&Node> = match &entry.value.content {
            Content::List(items) => items.iter().collect(),
            _ => vec![&entry.value],
        };
        if !(1..=limits::WEBHOOK_SECRETS_MAX).contains(&items.len()) {
            self.reader.report(
                Diagnostic::new(
                    Code::OutOfRange,
                    format!("`secret` cannot have {} entries", items.len()),
                )
                .at(entry.value.span.clone())
                .label(format!(
                    "it can have from 1 to {}",
                    limits::WEBHOOK_SECRETS_MAX
                )),
            );
        }
        let mut secrets = Vec::new();
        for item in items {
            let Some(text) = self.reader.text(item, "`secret`") else {
                continue;
            };
            let is_named = pieces(text)
                .iter()
                .any(|piece| matches!(piece, Piece::Secret(_) | Piece::Bad(..)));
            if !is_named {
                self.reader.report(
                    Diagnostic::new(Code::WrittenSecret, "a secret is written into the file")
                        .at(item.span.clone())
                        .label("whoever reads the file can sign requests")
                        .help(SECRET_HELP),
                );
            }
            secrets.push(text.to_owned());
        }
        secrets
    }

    fn tolerance(&mut self, node: &Node) -> Duration {
        node.entry("tolerance")
            .and_then(|entry| {
                let range = &limits::WEBHOOK_TOLERANCE;
                self.reader.duration(&entry.value, "`tolerance`", range)
            })
            .unwrap_or(limits::WEBHOOK_TOLERANCE_DEFAULT)
    }

    fn hmac(&mut self, node: &Node) -> Option<Hmac> {
        let algorithm = node.entry("algorithm").and_then(|entry| {
            let words = ["sha1", "sha256", "sha512"];
            self.reader.choice(&entry.value, "`algorithm`", &words)
        });
        let encoding = node.entry("encoding").and_then(|entry| {
            let words = ["hex", "base64"];
            self.reader.choice(&entry.value, "`encoding`", &words)
        });
        let prefix = self.prefix(node);
        Some(Hmac {
            header: self.header(&node.entry("header")?.value)?,
            algorithm: match algorithm {
                Some("sha1") => Algorithm::Sha1,
                Some("sha512") => Algorithm::Sha512,
                _ => Algorithm::Sha256,
            },
            encoding: match encoding {
                Some("base64") => Encoding::Base64,
                _ => Encoding::Hex,
            },
            prefix,
        })
    }

    fn key_place(&mut self, node: &Node) -> Option<KeyPlace> {
        let wrong = |message: &str| Diagnostic::new(Code::ApiKeyPlace, message);
        match (node.entry("header"), node.entry("query")) {
            (Some(header), None) => self.header(&header.value).map(KeyPlace::Header),
            (None, Some(_)) => self
                .plain(node, "query", limits::WEBHOOK_TEXT_CHARS_MAX)
                .map(KeyPlace::Query),
            (Some(_), Some(query)) => {
                self.reader.report(
                    wrong("an API key cannot be in a header and in the query")
                        .at(query.key_span.clone())
                        .label("the second place")
                        .help("leave one out: a header is not kept in the logs of proxies"),
                );
                None
            }
            (None, None) => {
                let names: Vec<&str> = keys::AUTH.iter().map(|key| key.name).collect();
                if !is_misspelt(node, "header", &names) && !is_misspelt(node, "query", &names) {
                    self.reader.report(
                        wrong("`auth` does not say where the API key is")
                            .at(head(node))
                            .label("neither `header` nor `query` is here")
                            .help("write `header: x-api-key`"),
                    );
                }
                None
            }
        }
    }

    /// The name of a header, in small letters.
    fn header(&mut self, node: &Node) -> Option<String> {
        let name = self.reader.text(node, "`header`")?;
        let is_name = !name.is_empty()
            && name.len() <= limits::WEBHOOK_TEXT_CHARS_MAX
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        if is_name {
            return Some(name.to_ascii_lowercase());
        }
        self.reader.report(
            Diagnostic::new(
                Code::BadHeader,
                format!("{} is not the name of a header", shown(name)),
            )
            .at(node.span.clone())
            .label("it has letters, digits and `-`")
            .help("write it without its colon and its value: `x-signature`"),
        );
        None
    }

    fn prefix(&mut self, node: &Node) -> String {
        self.plain(node, "prefix", limits::WEBHOOK_TEXT_CHARS_MAX)
            .unwrap_or_default()
    }

    /// A short text; placeholders have no meaning in it, unless it is the user.
    fn plain(&mut self, node: &Node, key: &str, chars_max: usize) -> Option<String> {
        let node = &node.entry(key)?.value;
        let text = self.reader.text(node, &format!("`{key}`"))?;
        let length = text.chars().count();
        if !(1..=chars_max).contains(&length) {
            self.reader.report(
                Diagnostic::new(
                    Code::OutOfRange,
                    format!("`{key}` cannot have {length} characters"),
                )
                .at(node.span.clone())
                .label(format!("it can have from 1 to {chars_max}")),
            );
            return None;
        }
        if key != "user" && has_any(text) {
            self.reader.report(
                Diagnostic::new(
                    Code::BadPlaceholder,
                    format!("placeholders are not filled in in `{key}`"),
                )
                .at(node.span.clone())
                .label("it is taken as it stands")
                .help("of a webhook, `secret` and `user` can have placeholders"),
            );
        }
        Some(text.to_owned())
    }

    fn types(&mut self, node: &Node) -> Option<BTreeSet<BodyType>> {
        let words = BodyType::ALL.map(|(word, _)| word);
        let items = self
            .reader
            .items(node, "`types`", "write `types: [json, form]`")?;
        if items.is_empty() {
            self.reader.report(
                Diagnostic::new(Code::OutOfRange, "`types` cannot be empty")
                    .at(node.span.clone())
                    .label("it names at least one kind of body")
                    .help("leave it out to take all of them"),
            );
            return None;
        }
        let mut types = BTreeSet::new();
        for item in items.iter().take(limits::DIAGNOSTICS_MAX) {
            let chosen = self.reader.choice(item, "an entry of `types`", &words);
            types.extend(
                BodyType::ALL
                    .iter()
                    .filter(|(word, _)| Some(*word) == chosen)
                    .map(|(_, kind)| *kind),
            );
        }
        Some(types)
    }

    fn request_id(&mut self, node: &Node) -> Option<IdField> {
        let text = self.reader.text(node, "`id`")?;
        let field = match text.split_once('.') {
            Some(("header", name)) => id_header(name),
            Some(("body", path)) => {
                let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
                let fits = keys.len() <= limits::WEBHOOK_ID_KEYS_MAX
                    && keys.iter().all(|key| !key.is_empty());
                fits.then_some(IdField::Body(keys))
            }
            _ => None,
        };
        if field.is_none() {
            self.reader.report(
                Diagnostic::new(
                    Code::BadRequestId,
                    format!("{} does not say where the id of a request is", shown(text)),
                )
                .at(within(self.text, node, text))
                .label("it is in a header or in the body")
                .help(
                    "write `header.x-shop-id`, or `body.event.id` for `{\"event\": {\"id\": …}}`",
                ),
            );
        }
        field
    }

    fn rate(&mut self, node: &Node) -> Option<Rate> {
        let text = self.reader.text(node, "`rate`")?;
        let read = parse_rate(text).ok().and_then(|(count, per_ms)| {
            let fits = limits::WEBHOOK_RATE.contains(&count);
            Some(Rate {
                count: u32::try_from(count).ok().filter(|_| fits)?,
                per: Duration::from_millis(per_ms),
            })
        });
        if read.is_none() {
            self.reader.report(
                Diagnostic::new(Code::BadRate, format!("{} is not a rate", shown(text)))
                    .at(node.span.clone())
                    .label(format!(
                        "it is a whole number from {} to {}, and `/s`, `/m` or `/h`",
                        limits::WEBHOOK_RATE.start(),
                        limits::WEBHOOK_RATE.end()
                    ))
                    .help("write it like `100/s`"),
            );
        }
        read
    }

    fn handshake(&mut self, node: &Node) -> Option<Handshake> {
        let words = ["slack", "meta"];
        let kind = if matches!(node.content, Content::Text(_)) {
            self.reader.choice(node, "`handshake`", &words)?
        } else {
            self.reader
                .mapping(node, "`handshake`", &[keys::HANDSHAKE])?;
            let Some(entry) = node.entry("type") else {
                let help = "write `type: meta`";
                self.lacks(node, "`handshake`", "type", keys::HANDSHAKE, help);
                return None;
            };
            self.reader.choice(&entry.value, "`type`", &words)?
        };
        if kind == "slack" {
            self.useless(node, kind, &[]);
            return Some(Handshake::Slack);
        }
        if node.entry("secret").is_none() {
            let help = "write `handshake: { type: meta, secret: \"${secrets.verify_token}\" }`";
            self.lacks(node, "`handshake`", "secret", keys::HANDSHAKE, help);
        }
        Some(Handshake::Meta {
            secrets: self.secrets(node),
        })
    }
}

/// A header that has an id; its name in small letters.
fn id_header(name: &str) -> Option<IdField> {
    let is_name = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    is_name.then(|| IdField::Header(name.to_ascii_lowercase()))
}
