//! Secrets: set, listed by name, deleted. No value ever comes back out.

use towpath_flow::is_secret_name;

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::view::{Done, SecretList};

/// The largest secret: a key or a certificate, not a file.
const SECRET_BYTES_MAX: usize = 64 << 10;

impl Control {
    /// Sets a secret. What uses it is replaced; webhooks go by the new value at once.
    pub async fn set_secret(&self, name: &str, value: &str) -> Result<Done, ControlError> {
        let bad = |message: String| ControlError::new(ErrorKind::Bad, "bad_secret", message);
        if !is_secret_name(name) {
            return Err(bad(format!("`{name}` cannot be the name of a secret"))
                .hint("use lower-case letters, digits and underscores: `crm_token`"));
        }
        if value.is_empty() || value.len() > SECRET_BYTES_MAX {
            return Err(bad(format!(
                "a secret has from 1 to {SECRET_BYTES_MAX} bytes"
            )));
        }
        self.catalog.store.set_secret(name, value).await?;
        tracing::info!(name, "set a secret");
        let _alone = self.applying.lock().await;
        self.changed().await?;
        Ok(Done {
            changed: true,
            message: format!("the secret `{name}` is set"),
        })
    }

    /// Lists the names of all secrets.
    pub async fn secrets(&self) -> Result<SecretList, ControlError> {
        Ok(SecretList {
            secrets: self.catalog.store.secret_records().await?,
        })
    }

    /// Deletes a secret; refused while a flow uses it.
    pub async fn delete_secret(&self, name: &str) -> Result<Done, ControlError> {
        let _alone = self.applying.lock().await;
        let mut users = Vec::new();
        for record in self.catalog.store.flows().await? {
            let flow = self.catalog.flow(&record)?;
            if towpath_flow::references(&flow).secrets.contains(name) {
                users.push(format!("`{}`", record.name));
            }
        }
        if !users.is_empty() {
            let message = format!("the secret `{name}` is used by {}", users.join(", "));
            return Err(
                ControlError::new(ErrorKind::Conflict, "secret_in_use", message)
                    .hint("change or delete those flows first"),
            );
        }
        if !self.catalog.store.delete_secret(name).await? {
            let message = format!("there is no secret `{name}`");
            return Err(
                ControlError::new(ErrorKind::NotFound, "no_such_secret", message)
                    .hint("`towpath secret list` shows all secrets"),
            );
        }
        tracing::info!(name, "deleted a secret");
        Ok(Done {
            changed: true,
            message: format!("the secret `{name}` is deleted"),
        })
    }
}
