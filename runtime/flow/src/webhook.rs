//! What a webhook asks of requests, as a flow file says it.

use std::collections::BTreeSet;
use std::time::Duration;

/// A webhook; `webhook: true` is one that asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Webhook {
    /// How a request shows who sent it; none if its URL is enough.
    pub auth: Option<Auth>,
    /// The kinds of bodies that are taken; all if none are said.
    pub types: Option<BTreeSet<BodyType>>,
    /// Where a request says which one it is.
    pub id: Option<IdField>,
    /// The most messages there may be in a time.
    pub rate: Option<Rate>,
    /// How a sender makes sure that the URL is ours.
    pub handshake: Option<Handshake>,
    /// How long a request waits for the flow's answer; none if it does not wait.
    pub reply: Option<Duration>,
}

impl Webhook {
    /// Every text in which placeholders are filled in.
    pub fn texts(&self) -> Vec<&str> {
        let mut texts = Vec::new();
        if let Some(auth) = &self.auth {
            texts.extend(auth.secrets.iter().map(String::as_str));
            if let Scheme::Basic { user } = &auth.scheme {
                texts.push(user);
            }
        }
        if let Some(Handshake::Meta { secrets }) = &self.handshake {
            texts.extend(secrets.iter().map(String::as_str));
        }
        texts
    }
}

/// How a request shows who sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// In which form.
    pub scheme: Scheme,
    /// The secrets, as written: each of them is good, so that one can follow another. At least one.
    pub secrets: Vec<String>,
}

/// The forms in which requests show who sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// A user and a password.
    Basic {
        /// The user, as written.
        user: String,
    },
    /// A key.
    ApiKey {
        /// Where it is.
        place: KeyPlace,
        /// What stands before it.
        prefix: String,
    },
    /// An HMAC of the body in a header.
    Hmac(Hmac),
    /// As GitHub signs: `X-Hub-Signature-256`.
    GitHub,
    /// As Shopify signs: `X-Shopify-Hmac-Sha256`.
    Shopify,
    /// As Slack signs: `X-Slack-Signature`.
    Slack {
        /// How far its time may be from ours.
        tolerance: Duration,
    },
    /// As the Standard Webhooks specification says: `webhook-signature`.
    StandardWebhooks {
        /// How far its time may be from ours.
        tolerance: Duration,
    },
    /// As Stripe signs: `Stripe-Signature`.
    Stripe {
        /// How far its time may be from ours.
        tolerance: Duration,
    },
}

/// Where a request has its API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// In a header; its name is in small letters.
    Header(String),
    /// In a parameter of the query.
    Query(String),
}

/// An HMAC of the body in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hmac {
    /// The header; its name is in small letters.
    pub header: String,
    /// The hash.
    pub algorithm: Algorithm,
    /// How it is written.
    pub encoding: Encoding,
    /// What stands before it.
    pub prefix: String,
}

/// The hash of an HMAC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-1: only for senders that know no better.
    Sha1,
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
}

/// How bytes are written as text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Two hexadecimal digits a byte.
    #[default]
    Hex,
    /// Base64, with its usual alphabet.
    Base64,
}

/// A kind of body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BodyType {
    /// JSON.
    Json,
    /// The fields of a form.
    Form,
    /// Text.
    Text,
    /// XML, handed on as text.
    Xml,
    /// Anything else, handed on in base64.
    Bytes,
}

impl BodyType {
    /// All of them, with their words in a flow file.
    pub const ALL: [(&'static str, Self); 5] = [
        ("json", Self::Json),
        ("form", Self::Form),
        ("text", Self::Text),
        ("xml", Self::Xml),
        ("bytes", Self::Bytes),
    ];
}

/// Where a request says which one it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdField {
    /// In a header; its name is in small letters.
    Header(String),
    /// In its body, behind these keys one after the other.
    Body(Vec<String>),
}

/// So many in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least one.
    pub count: u32,
    /// The time.
    pub per: Duration,
}

/// How a sender makes sure that the URL is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handshake {
    /// Slack sends a `url_verification` with a `challenge`, and gets it back.
    Slack,
    /// Meta asks with a `hub.challenge` and a `hub.verify_token`, and gets the challenge back.
    Meta {
        /// The tokens that are good, as written. At least one.
        secrets: Vec<String>,
    },
}
