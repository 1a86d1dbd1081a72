//! Webhooks: what stands in front of them, and new keys for their URLs.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use towpath_flow::{Fires, Values, substitute};

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::view::WebhookKeys;
use crate::engine::chain;
use crate::ingress::{Gate, UrlKey};

/// The random bytes of a webhook key: 256 bits cannot be guessed.
const KEY_BYTES: usize = 32;

/// The longest time that a former key may still be good: whoever needs more does not change it.
const GRACE_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Makes a key that nobody can guess.
pub(super) fn new_key() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; KEY_BYTES]>())
}

impl Control {
    /// What stands in front of all webhooks now.
    pub(super) async fn gates(&self) -> Result<Vec<Gate>, ControlError> {
        let store = &self.catalog.store;
        let former = store.former_webhook_keys().await?;
        // Webhooks that need no secret go on if the secrets cannot be read.
        let secrets = store.secret_values().await.map_err(|error| chain(&error));
        let mut gates = Vec::new();
        for record in store.flows().await? {
            let flow = self.catalog.flow(&record)?;
            let (Some(webhook), Some(key)) = (&flow.webhook, &record.webhook_key) else {
                continue;
            };
            let of_flow = former.iter().filter(|one| one.flow == record.name);
            let keys = std::iter::once(UrlKey::new(key, None))
                .chain(of_flow.map(|one| UrlKey::new(&one.key, Some(one.until))));
            let fill = |text: &str| {
                let values = Values {
                    secrets: secrets.clone()?,
                    env: record.env.clone(),
                };
                let filled = substitute(&Value::String(text.to_owned()), &values)
                    .map_err(|error| error.to_string())?;
                Ok(filled.value.as_str().unwrap_or_default().to_owned())
            };
            gates.push(Gate::new(&record.name, keys.collect(), webhook, fill));
        }
        Ok(gates)
    }

    /// Gives a webhook another URL. The one before is good for `grace`; without grace, no former one
    /// is good any more.
    pub async fn rotate_webhook(
        &self,
        flow: &str,
        grace: Duration,
    ) -> Result<WebhookKeys, ControlError> {
        let _alone = self.applying.lock().await;
        let (record, checked) = self.record(flow).await?;
        if checked.fires != Fires::Webhook {
            let message = format!("`{flow}` has no webhook");
            return Err(
                ControlError::new(ErrorKind::Conflict, "no_webhook", message)
                    .hint("only a flow with `webhook` in its trigger has a URL"),
            );
        }
        if grace > GRACE_MAX {
            let message = "a former URL is good for 30 days at most".to_owned();
            return Err(ControlError::new(ErrorKind::Bad, "bad_grace", message)
                .hint("give both URLs to the sender within that time"));
        }
        let now = (self.scheduler.clock)();
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let key = new_key();
        self.catalog
            .store
            .rotate_webhook_key(flow, &key, now, grace_ms)
            .await?;
        tracing::info!(flow, grace_s = grace.as_secs(), "its webhook has a new URL");
        self.changed().await?;
        Ok(WebhookKeys {
            flow: record.name.clone(),
            webhook_url: self.webhook_url(&record.name, &key),
            former_until: self.former_keys_until(flow).await?,
        })
    }

    /// Until when former URLs of a webhook are good, the last one first.
    pub(super) async fn former_keys_until(&self, flow: &str) -> Result<Vec<u64>, ControlError> {
        let now = (self.scheduler.clock)();
        let former = self.catalog.store.former_webhook_keys().await?;
        let mut until: Vec<u64> = former
            .into_iter()
            .filter(|one| one.flow == flow && one.until > now)
            .map(|one| one.until)
            .collect();
        until.sort_unstable_by(|one, other| other.cmp(one));
        Ok(until)
    }
}
