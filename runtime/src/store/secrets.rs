//! Secrets, as they are stored: names in clear, values encrypted.
//!
//! # Invariants
//!
//! - `no_secret_is_in_the_file_in_clear`.
//! - `a_value_belongs_to_its_name`: a value that is moved to another name cannot be read.

use std::collections::BTreeMap;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, now_ms};

/// A secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretRecord {
    /// Its name.
    pub name: String,
    /// When it was set, in milliseconds since 1970.
    pub changed_at: u64,
}

/// A value that is encrypted, and belongs to a name.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) nonce: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Store {
    /// Sets a secret.
    pub async fn set_secret(&self, name: &str, value: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        let Sealed {
            nonce,
            value: sealed,
        } = self.seal(&name, value)?;
        self.with("set a secret", move |connection| {
            connection.execute(
                "INSERT INTO secrets (name, nonce, value, changed_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET nonce = ?2, value = ?3, changed_at = ?4",
                params![name, nonce, sealed, now_ms()],
            )?;
            Ok(())
        })
        .await
    }

    /// The names of all secrets.
    pub async fn secret_records(&self) -> Result<Vec<SecretRecord>, StoreError> {
        self.with("list secrets", |connection| {
            connection
                .prepare_cached("SELECT name, changed_at FROM secrets ORDER BY name")?
                .query_map([], |row| {
                    Ok(SecretRecord {
                        name: row.get(0)?,
                        changed_at: row.get(1)?,
                    })
                })?
                .collect()
        })
        .await
    }

    /// Forgets a secret. Returns whether there was one.
    pub async fn delete_secret(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.with("delete a secret", move |connection| {
            Ok(connection.execute("DELETE FROM secrets WHERE name = ?1", [&name])? == 1)
        })
        .await
    }

    /// The values of all secrets, by name.
    pub async fn secret_values(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let sealed: Vec<(String, Sealed)> = self
            .with("read secrets", |connection| {
                connection
                    .prepare_cached("SELECT name, nonce, value FROM secrets")?
                    .query_map([], |row| {
                        let sealed = Sealed {
                            nonce: row.get(1)?,
                            value: row.get(2)?,
                        };
                        Ok((row.get(0)?, sealed))
                    })?
                    .collect()
            })
            .await?;
        let opened = sealed.into_iter().map(|(name, sealed)| {
            let plain = self.unseal(&name, &sealed)?;
            Ok((name, plain))
        });
        opened.collect()
    }

    /// Encrypts a value for a name.
    pub(super) fn seal(&self, name: &str, plain: &str) -> Result<Sealed, StoreError> {
        // Random and 192 bits long, so that no two values ever share one.
        let nonce: [u8; 24] = rand::random();
        let payload = Payload {
            msg: plain.as_bytes(),
            aad: name.as_bytes(),
        };
        let value = self.cipher().encrypt(&XNonce::from(nonce), payload);
        let value = value.map_err(|_| undecryptable(name))?;
        Ok(Sealed {
            nonce: nonce.to_vec(),
            value,
        })
    }

    /// Decrypts what was encrypted for a name.
    pub(super) fn unseal(&self, name: &str, sealed: &Sealed) -> Result<String, StoreError> {
        let nonce = <[u8; 24]>::try_from(&*sealed.nonce).map_err(|_| undecryptable(name))?;
        let payload = Payload {
            msg: &sealed.value,
            aad: name.as_bytes(),
        };
        let plain = self.cipher().decrypt(&XNonce::from(nonce), payload);
        let plain = plain.map_err(|_| undecryptable(name))?;
        String::from_utf8(plain).map_err(|_| undecryptable(name))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.derive_key("towpath 2026-11-21 secrets at rest").into())
    }
}

fn undecryptable(name: &str) -> StoreError {
    StoreError::Undecryptable {
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "s3cret-value-that-is-nowhere-else";

    fn files_hold(folder: &std::path::Path, needle: &str) -> bool {
        std::fs::read_dir(folder).unwrap().any(|entry| {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes())
        })
    }

    #[tokio::test]
    async fn no_secret_is_in_the_file_in_clear() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.set_secret("crm_token", VALUE).await.unwrap();
        assert_eq!(store.secret_values().await.unwrap()["crm_token"], VALUE);
        assert!(
            files_hold(folder.path(), "crm_token"),
            "the test looks into the right files"
        );
        assert!(!files_hold(folder.path(), VALUE));
        drop(store);
        assert!(!files_hold(folder.path(), VALUE));
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.secret_values().await.unwrap()["crm_token"], VALUE);
    }

    #[tokio::test]
    async fn a_value_belongs_to_its_name() {
        let store = Store::in_memory().unwrap();
        store.set_secret("one", VALUE).await.unwrap();
        store
            .with("move it", |connection| {
                connection.execute("UPDATE secrets SET name = 'two'", [])
            })
            .await
            .unwrap();
        let error = store.secret_values().await.unwrap_err();
        assert!(matches!(error, StoreError::Undecryptable { name } if name == "two"));
    }

    #[tokio::test]
    async fn another_key_reads_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.set_secret("one", VALUE).await.unwrap();
        drop(store);
        std::fs::remove_file(folder.path().join("key")).unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(store.secret_values().await.is_err());
    }

    #[tokio::test]
    async fn a_secret_is_replaced_listed_and_deleted() {
        let store = Store::in_memory().unwrap();
        store.set_secret("a", "1").await.unwrap();
        store.set_secret("a", "2").await.unwrap();
        assert_eq!(store.secret_values().await.unwrap()["a"], "2");
        assert_eq!(store.secret_records().await.unwrap().len(), 1);
        assert!(store.delete_secret("a").await.unwrap());
        assert!(!store.delete_secret("a").await.unwrap());
    }
}
