//! What stands in front of a webhook: the keys of its URL, and what its flow asks of requests.
//!
//! # Invariants
//!
//! - `a_wrong_key_looks_like_a_wrong_flow`: as many comparisons, each in constant time.
//! - `a_gate_that_cannot_check_lets_nobody_in`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use towpath_flow::webhook::{self, BodyType, IdField, Webhook};

use super::auth::Auth;
use super::handshake::Handshake;
use super::rate::Limiter;

/// The most keys of one URL that are good at a time: the one there is, and former ones that are
/// still good.
pub const KEYS_MAX: usize = 5;

/// A key of a URL.
#[derive(Debug, Clone, Copy)]
pub struct UrlKey {
    hash: blake3::Hash,
    until: Option<u64>,
}

impl UrlKey {
    /// A key that is good until a time in milliseconds since 1970, or for ever.
    pub fn new(key: &str, until: Option<u64>) -> Self {
        Self {
            hash: blake3::hash(key.as_bytes()),
            until,
        }
    }
}

/// What stands in front of one webhook.
pub struct Gate {
    /// The flow.
    pub flow: String,
    keys: Vec<UrlKey>,
    pub(super) auth: Option<Auth>,
    pub(super) types: Option<BTreeSet<BodyType>>,
    pub(super) id: Option<IdField>,
    pub(super) handshake: Option<Handshake>,
    pub(super) limiter: Option<Arc<Limiter>>,
    /// How long a request waits for the flow's answer.
    pub(super) reply: Option<Duration>,
    /// Why nobody can be let in.
    pub(super) trouble: Option<String>,
}

impl Gate {
    /// Makes one. `fill` fills in placeholders; if it cannot, nobody is let in, and that is said.
    pub fn new(
        flow: &str,
        keys: Vec<UrlKey>,
        webhook: &Webhook,
        fill: impl Fn(&str) -> Result<String, String>,
    ) -> Self {
        let mut gate = Self {
            flow: flow.to_owned(),
            keys,
            auth: None,
            types: webhook.types.clone(),
            id: webhook.id.clone(),
            handshake: None,
            limiter: webhook.rate.map(|rate| Arc::new(Limiter::new(rate))),
            reply: webhook.reply,
            trouble: None,
        };
        if let Err(trouble) = gate.fill(webhook, fill) {
            tracing::error!(flow, trouble, "the webhook takes nothing");
            gate.trouble = Some(trouble);
        }
        gate
    }

    fn fill(
        &mut self,
        webhook: &Webhook,
        fill: impl Fn(&str) -> Result<String, String>,
    ) -> Result<(), String> {
        let all = |texts: &[String]| {
            texts
                .iter()
                .map(|text| fill(text))
                .collect::<Result<Vec<_>, _>>()
        };
        if let Some(auth) = &webhook.auth {
            let user = match &auth.scheme {
                webhook::Scheme::Basic { user } => fill(user)?,
                _ => String::new(),
            };
            self.auth = Some(Auth::new(&auth.scheme, &user, &all(&auth.secrets)?)?);
        }
        self.handshake = match &webhook.handshake {
            None => None,
            Some(webhook::Handshake::Slack) => Some(Handshake::Slack),
            Some(webhook::Handshake::Meta { secrets }) => Some(Handshake::Meta(
                all(secrets)?
                    .iter()
                    .map(|token| blake3::hash(token.as_bytes()))
                    .collect(),
            )),
        };
        Ok(())
    }
}

/// The gates of all webhooks. Clones share them.
#[derive(Clone, Default)]
pub struct Gates {
    inner: Arc<RwLock<BTreeMap<String, Arc<Gate>>>>,
}

impl Gates {
    /// Puts other gates in the place of those there are. A rate that is the same goes on counting.
    pub fn replace(&self, gates: impl IntoIterator<Item = Gate>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let next = gates.into_iter().map(|mut gate| {
            let before = inner.get(&gate.flow).and_then(|it| it.limiter.as_ref());
            if let (Some(before), Some(now)) = (before, &gate.limiter)
                && before.rate == now.rate
            {
                gate.limiter = Some(Arc::clone(before));
            }
            (gate.flow.clone(), Arc::new(gate))
        });
        *inner = next.collect();
    }

    /// The gate that a URL leads to, if its key is good.
    pub fn open(&self, flow: &str, key: &str, now_ms: u64) -> Option<Arc<Gate>> {
        let hash = blake3::hash(key.as_bytes());
        let nobodys = UrlKey {
            // No text has a hash of zeros.
            hash: blake3::Hash::from_bytes([0; 32]),
            until: None,
        };
        let gate = {
            let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            inner.get(flow).cloned()
        };
        let mut is_open = false;
        for slot in 0..KEYS_MAX {
            let keys = gate.as_ref().map(|gate| gate.keys.as_slice());
            let one = keys.and_then(|keys| keys.get(slot)).unwrap_or(&nobodys);
            // `blake3::Hash` compares in constant time.
            is_open |= (one.hash == hash) & one.until.is_none_or(|until| now_ms < until);
        }
        gate.filter(|_| is_open)
    }
}

#[cfg(test)]
mod tests {
    use towpath_flow::webhook::{Rate, Scheme};

    use super::*;

    fn plain(keys: Vec<UrlKey>) -> Gate {
        Gate::new("orders", keys, &Webhook::default(), |text| {
            Ok(text.to_owned())
        })
    }

    #[test]
    fn a_former_key_is_good_until_its_time() {
        let gates = Gates::default();
        gates.replace([plain(vec![
            UrlKey::new("new", None),
            UrlKey::new("old", Some(100)),
        ])]);
        let opens = |flow: &str, key: &str, now| gates.open(flow, key, now).is_some();
        assert!(opens("orders", "new", 99) && opens("orders", "new", 500));
        assert!(opens("orders", "old", 99));
        assert!(!opens("orders", "old", 100));
        assert!(!opens("orders", "other", 1) && !opens("nosuch", "new", 1));
        assert!(!opens("orders", "", 1));
    }

    #[test]
    fn a_gate_that_cannot_check_lets_nobody_in() {
        let mut webhook = Webhook::default();
        webhook.auth = Some(webhook::Auth {
            scheme: Scheme::StandardWebhooks {
                tolerance: Duration::from_secs(300),
            },
            secrets: vec!["${secrets.x}".to_owned()],
        });
        let missing = Gate::new("orders", vec![], &webhook, |_| {
            Err("the secret `x` does not exist".to_owned())
        });
        assert!(missing.trouble.is_some_and(|why| why.contains("`x`")));
        let unusable = Gate::new("orders", vec![], &webhook, |_| Ok("s3cr3t!".to_owned()));
        let trouble = unusable.trouble.unwrap();
        assert!(trouble.contains("base64") && !trouble.contains("s3cr3t"));
    }

    #[test]
    fn a_rate_goes_on_counting_when_flows_change() {
        let rated = |count| {
            let mut webhook = Webhook::default();
            webhook.rate = Some(Rate {
                count,
                per: Duration::from_secs(1),
            });
            let key = UrlKey::new("k", None);
            Gate::new("orders", vec![key], &webhook, |text| Ok(text.to_owned()))
        };
        let gates = Gates::default();
        let pass = || {
            let gate = gates.open("orders", "k", 0).unwrap();
            gate.limiter.as_ref().unwrap().pass(0).is_ok()
        };
        gates.replace([rated(1)]);
        assert!(pass());
        gates.replace([rated(1)]);
        assert!(!pass());
        gates.replace([rated(2)]);
        assert!(pass());
    }
}
