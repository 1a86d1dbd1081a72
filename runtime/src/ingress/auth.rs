//! How a request shows who sent it: passwords, keys and signatures.
//!
//! # Invariants
//!
//! - What is compared with a secret is compared in constant time.
//! - `a_request_of_another_time_is_refused`, where its time is signed.
//! - Neither a refusal nor a `Debug` here has a secret in it.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::hmac;
use subtle::ConstantTimeEq as _;
use towpath_flow::webhook::{Algorithm, Encoding, KeyPlace, Scheme};

use super::Request;
use super::query;

/// The most signatures of one request that are looked at: there is one for each secret that the
/// sender has at the time.
const SIGNATURES_MAX: usize = 16;

/// Secrets are written with their padding or without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is asked of a request; the secrets are filled in.
pub(super) struct Auth {
    form: Form,
}

/// Why a request is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Something that must be there is not.
    #[error("there is no {what}")]
    Missing {
        /// What.
        what: String,
    },
    /// Something is there, and not as it should be.
    #[error("the {what} cannot be read")]
    Unreadable {
        /// What.
        what: String,
    },
    /// It was signed too long ago, or in the future.
    #[error("it was signed more than {}s from now: it is a replay, or a clock is wrong", tolerance.as_secs())]
    WrongTime {
        /// How far is allowed.
        tolerance: Duration,
    },
    /// It does not fit.
    #[error("the {what} is wrong")]
    Wrong {
        /// What.
        what: &'static str,
    },
}

enum Form {
    /// Hashes of `user:password`.
    Basic(Vec<blake3::Hash>),
    ApiKey {
        place: KeyPlace,
        prefix: String,
        keys: Vec<blake3::Hash>,
    },
    Body {
        header: String,
        encoding: Encoding,
        prefix: String,
        keys: Vec<hmac::Key>,
    },
    Slack {
        tolerance: Duration,
        keys: Vec<hmac::Key>,
    },
    Standard {
        tolerance: Duration,
        keys: Vec<hmac::Key>,
    },
    Stripe {
        tolerance: Duration,
        keys: Vec<hmac::Key>,
    },
}

impl fmt::Debug for Auth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.challenge())
    }
}

impl Auth {
    /// Makes it of a scheme, the user of `basic`, and the secrets. An error says what is wrong with
    /// a secret, without saying what it is.
    pub(super) fn new(scheme: &Scheme, user: &str, secrets: &[String]) -> Result<Self, String> {
        if secrets.iter().any(String::is_empty) {
            return Err("a secret of the webhook is empty".to_owned());
        }
        let keys = |algorithm| {
            let key = |secret: &String| hmac::Key::new(algorithm, secret.as_bytes());
            secrets.iter().map(key).collect::<Vec<_>>()
        };
        let body = |header: &str, encoding, prefix: &str, algorithm| Form::Body {
            header: header.to_owned(),
            encoding,
            prefix: prefix.to_owned(),
            keys: keys(algorithm),
        };
        let form = match scheme {
            Scheme::Basic { .. } => Form::Basic(
                secrets
                    .iter()
                    .map(|secret| blake3::hash(format!("{user}:{secret}").as_bytes()))
                    .collect(),
            ),
            Scheme::ApiKey { place, prefix } => Form::ApiKey {
                place: place.clone(),
                prefix: prefix.clone(),
                keys: secrets
                    .iter()
                    .map(|secret| blake3::hash(secret.as_bytes()))
                    .collect(),
            },
            Scheme::Hmac(form) => body(
                &form.header,
                form.encoding,
                &form.prefix,
                match form.algorithm {
                    Algorithm::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
                    Algorithm::Sha256 => hmac::HMAC_SHA256,
                    Algorithm::Sha512 => hmac::HMAC_SHA512,
                },
            ),
            Scheme::GitHub => body(
                "x-hub-signature-256",
                Encoding::Hex,
                "sha256=",
                hmac::HMAC_SHA256,
            ),
            Scheme::Shopify => body(
                "x-shopify-hmac-sha256",
                Encoding::Base64,
                "",
                hmac::HMAC_SHA256,
            ),
            Scheme::Slack { tolerance } => Form::Slack {
                tolerance: *tolerance,
                keys: keys(hmac::HMAC_SHA256),
            },
            Scheme::Stripe { tolerance } => Form::Stripe {
                tolerance: *tolerance,
                keys: keys(hmac::HMAC_SHA256),
            },
            Scheme::StandardWebhooks { tolerance } => Form::Standard {
                tolerance: *tolerance,
                keys: secrets
                    .iter()
                    .map(|secret| standard_key(secret))
                    .collect::<Result<_, _>>()?,
            },
        };
        Ok(Self { form })
    }

    /// What an answer of 401 says in `WWW-Authenticate`.
    pub(super) fn challenge(&self) -> &'static str {
        match self.form {
            Form::Basic(_) => "Basic realm=\"webhook\"",
            Form::ApiKey { .. } => "ApiKey realm=\"webhook\"",
            _ => "Signature realm=\"webhook\"",
        }
    }

    /// The header that travels no further, because it is a credential or only of use here.
    pub(super) fn header(&self) -> Option<&str> {
        match &self.form {
            Form::Basic(_) => Some("authorization"),
            Form::ApiKey {
                place: KeyPlace::Header(name),
                ..
            } => Some(name),
            Form::ApiKey { .. } => None,
            Form::Body { header, .. } => Some(header),
            Form::Slack { .. } => Some("x-slack-signature"),
            Form::Standard { .. } => Some("webhook-signature"),
            Form::Stripe { .. } => Some("stripe-signature"),
        }
    }

    /// The parameter of the query that is a credential.
    pub(super) fn parameter(&self) -> Option<&str> {
        match &self.form {
            Form::ApiKey {
                place: KeyPlace::Query(name),
                ..
            } => Some(name),
            _ => None,
        }
    }

    /// Says whether a request shows what it must.
    pub(super) fn verify(&self, request: &Request, now_ms: u64) -> Result<(), Refusal> {
        match &self.form {
            Form::Basic(pairs) => basic(request, pairs),
            Form::ApiKey {
                place,
                prefix,
                keys,
            } => api_key(request, place, prefix, keys),
            Form::Body {
                header,
                encoding,
                prefix,
                keys,
            } => {
                let value = needed(request, header)?;
                let unreadable = || Refusal::Unreadable {
                    what: format!("header `{header}`"),
                };
                let signature = value
                    .strip_prefix(prefix.as_str())
                    .and_then(|text| decode(text.trim(), *encoding))
                    .ok_or_else(unreadable)?;
                fits(keys, &[&request.body], &[signature])
            }
            Form::Slack { tolerance, keys } => slack(request, now_ms, *tolerance, keys),
            Form::Standard { tolerance, keys } => standard(request, now_ms, *tolerance, keys),
            Form::Stripe { tolerance, keys } => stripe(request, now_ms, *tolerance, keys),
        }
    }
}

/// The key of a Standard Webhooks secret: base64 after `whsec_`.
fn standard_key(secret: &str) -> Result<hmac::Key, String> {
    let text = secret.strip_prefix("whsec_").unwrap_or(secret);
    match LENIENT.decode(text) {
        Ok(key) if !key.is_empty() => Ok(hmac::Key::new(hmac::HMAC_SHA256, &key)),
        _ => Err("a secret of the webhook is not base64 after `whsec_`".to_owned()),
    }
}

fn needed<'r>(request: &'r Request, header: &str) -> Result<&'r str, Refusal> {
    request.header(header).ok_or_else(|| Refusal::Missing {
        what: format!("header `{header}`"),
    })
}

fn decode(text: &str, encoding: Encoding) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Hex => hex::decode(text).ok(),
        Encoding::Base64 => STANDARD.decode(text).ok(),
    }
}

/// Whether one of the signatures is that of one of the keys. Each key signs once, however many
/// signatures there are.
fn fits(keys: &[hmac::Key], parts: &[&[u8]], signatures: &[Vec<u8>]) -> Result<(), Refusal> {
    let mut is_right = false;
    for key in keys {
        let mut context = hmac::Context::with_key(key);
        for part in parts {
            context.update(part);
        }
        let tag = context.sign();
        for signature in signatures {
            is_right |= bool::from(tag.as_ref().ct_eq(signature));
        }
    }
    let wrong = Refusal::Wrong { what: "signature" };
    if is_right { Ok(()) } else { Err(wrong) }
}

/// Whether a text is one of the secrets.
fn is_one_of(secrets: &[blake3::Hash], text: &[u8]) -> bool {
    let hash = blake3::hash(text);
    // `blake3::Hash` compares in constant time.
    secrets.contains(&hash)
}

fn in_time(seconds: &str, what: &str, now_ms: u64, tolerance: Duration) -> Result<(), Refusal> {
    let at: u64 = seconds.parse().map_err(|_| Refusal::Unreadable {
        what: what.to_owned(),
    })?;
    let tolerance_s = tolerance.as_secs();
    if at.abs_diff(now_ms / 1_000) > tolerance_s {
        return Err(Refusal::WrongTime { tolerance });
    }
    Ok(())
}

fn basic(request: &Request, pairs: &[blake3::Hash]) -> Result<(), Refusal> {
    let value = needed(request, "authorization")?;
    let pair = value
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, text)| LENIENT.decode(text.trim()).ok())
        .ok_or_else(|| Refusal::Unreadable {
            what: "header `authorization`".to_owned(),
        })?;
    if is_one_of(pairs, &pair) {
        return Ok(());
    }
    Err(Refusal::Wrong {
        what: "user or the password",
    })
}

fn api_key(
    request: &Request,
    place: &KeyPlace,
    prefix: &str,
    keys: &[blake3::Hash],
) -> Result<(), Refusal> {
    let value = match place {
        KeyPlace::Header(name) => needed(request, name)?.to_owned(),
        KeyPlace::Query(name) => {
            query::value(&request.query, name).ok_or_else(|| Refusal::Missing {
                what: format!("parameter `{name}`"),
            })?
        }
    };
    let key = value.strip_prefix(prefix);
    if key.is_some_and(|key| is_one_of(keys, key.as_bytes())) {
        return Ok(());
    }
    Err(Refusal::Wrong { what: "key" })
}

/// `v0=` and hexadecimal digits, of `v0:<time>:<body>`.
fn slack(
    request: &Request,
    now_ms: u64,
    tolerance: Duration,
    keys: &[hmac::Key],
) -> Result<(), Refusal> {
    let time = needed(request, "x-slack-request-timestamp")?;
    let value = needed(request, "x-slack-signature")?;
    in_time(
        time,
        "header `x-slack-request-timestamp`",
        now_ms,
        tolerance,
    )?;
    let signature = value
        .strip_prefix("v0=")
        .and_then(|text| decode(text, Encoding::Hex))
        .ok_or_else(|| Refusal::Unreadable {
            what: "header `x-slack-signature`".to_owned(),
        })?;
    let parts: [&[u8]; 4] = [b"v0:", time.as_bytes(), b":", &request.body];
    fits(keys, &parts, &[signature])
}

/// `v1,` and base64, several with spaces between, of `<id>.<time>.<body>`.
fn standard(
    request: &Request,
    now_ms: u64,
    tolerance: Duration,
    keys: &[hmac::Key],
) -> Result<(), Refusal> {
    let id = needed(request, "webhook-id")?;
    let time = needed(request, "webhook-timestamp")?;
    let value = needed(request, "webhook-signature")?;
    in_time(time, "header `webhook-timestamp`", now_ms, tolerance)?;
    // Signatures of other versions are not looked at: a sender may have several.
    let signatures: Vec<Vec<u8>> = value
        .split(' ')
        .take(SIGNATURES_MAX)
        .filter_map(|one| decode(one.strip_prefix("v1,")?, Encoding::Base64))
        .collect();
    let parts: [&[u8]; 5] = [id.as_bytes(), b".", time.as_bytes(), b".", &request.body];
    fits(keys, &parts, &signatures)
}

/// `t=<time>,v1=<hexadecimal digits>`, several `v1`, of `<time>.<body>`.
fn stripe(
    request: &Request,
    now_ms: u64,
    tolerance: Duration,
    keys: &[hmac::Key],
) -> Result<(), Refusal> {
    let value = needed(request, "stripe-signature")?;
    let parts = || {
        let pairs = value.split(',').take(2 * SIGNATURES_MAX);
        pairs.filter_map(|part| part.trim().split_once('='))
    };
    let unreadable = || Refusal::Unreadable {
        what: "header `stripe-signature`".to_owned(),
    };
    let (_, time) = parts()
        .find(|(name, _)| *name == "t")
        .ok_or_else(unreadable)?;
    in_time(time, "header `stripe-signature`", now_ms, tolerance)?;
    let signatures: Vec<Vec<u8>> = parts()
        .filter(|(name, _)| *name == "v1")
        .take(SIGNATURES_MAX)
        .filter_map(|(_, text)| decode(text, Encoding::Hex))
        .collect();
    let parts: [&[u8]; 3] = [time.as_bytes(), b".", &request.body];
    fits(keys, &parts, &signatures)
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
