//! The registrations of triggers at their sources: of each flow the last call.
//!
//! # Invariants
//!
//! - `an_answer_to_an_earlier_call_changes_nothing`.
//! - `what_a_trigger_keeps_is_not_in_the_file_in_clear`: it may be a secret of the source's.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use towpath_protocol::MessageId;

use super::secrets::Sealed;
use super::{Store, StoreError, columns};
use crate::registration::{Registration, Subject};

const SELECT: &str =
    "SELECT flow, call, act, url, made_with, state, at, nonce, kept, attempts, next_at, reason
    FROM registrations";

impl Store {
    /// The last calls, by flow, without what the triggers keep.
    pub async fn registrations(&self) -> Result<BTreeMap<String, Registration>, StoreError> {
        self.with("list registrations", |connection| {
            connection
                .prepare_cached(SELECT)?
                .query_map([], |row| {
                    let (record, _) = read(row)?;
                    Ok((record.flow.clone(), record))
                })?
                .collect()
        })
        .await
    }

    /// The last call to the trigger of a flow; none if nothing of it is registered.
    pub async fn registration(&self, flow: &str) -> Result<Option<Registration>, StoreError> {
        let flow = flow.to_owned();
        let found = self
            .with("read a registration", move |connection| {
                connection
                    .prepare_cached(&format!("{SELECT} WHERE flow = ?1"))?
                    .query_row([&flow], read)
                    .optional()
            })
            .await?;
        found.map(|stored| self.open_kept(stored)).transpose()
    }

    /// Records a call that is about to be made. The flow must be there.
    pub async fn registration_called(&self, record: Registration) -> Result<(), StoreError> {
        let kept = self.seal_kept(&record)?;
        self.with("record a call to register", move |connection| {
            write(connection, &record, kept.as_ref())
        })
        .await
    }

    /// Records what came of a call, as `change` says: nothing is registered any more if it gives
    /// nothing. Returns whether it is the last call of its flow; if not, nothing changes.
    pub async fn registration_answered(
        &self,
        call: MessageId,
        change: impl FnOnce(Registration) -> Option<Registration> + Send,
    ) -> Result<bool, StoreError> {
        let text = call.to_string();
        let found = self
            .with("read a registration", move |connection| {
                connection
                    .prepare_cached(&format!("{SELECT} WHERE call = ?1"))?
                    .query_row([&text], read)
                    .optional()
            })
            .await?;
        let Some(before) = found else {
            return Ok(false);
        };
        let after = change(self.open_kept(before)?);
        let kept = match &after {
            Some(after) => self.seal_kept(after)?,
            None => None,
        };
        // A newer call may have been recorded meanwhile.
        self.with(
            "record what came of a call to register",
            move |connection| {
                let transaction = connection.transaction()?;
                let text = call.to_string();
                let deleted =
                    transaction.execute("DELETE FROM registrations WHERE call = ?1", [&text])?;
                if let Some(after) = &after
                    && deleted == 1
                {
                    write(&transaction, after, kept.as_ref())?;
                }
                transaction.commit()?;
                Ok(deleted == 1)
            },
        )
        .await
    }

    fn seal_kept(&self, record: &Registration) -> Result<Option<Sealed>, StoreError> {
        let kept = record.kept.as_ref();
        kept.map(|kept| self.seal(&secret_name(&record.flow), kept))
            .transpose()
    }

    fn open_kept(&self, stored: Stored) -> Result<Registration, StoreError> {
        let (mut record, kept) = stored;
        record.kept = kept
            .map(|kept| self.unseal(&secret_name(&record.flow), &kept))
            .transpose()?;
        Ok(record)
    }
}

/// A registration whose `kept` is still sealed.
type Stored = (Registration, Option<Sealed>);

/// What is sealed belongs to this name: no secret has a space in its own.
fn secret_name(flow: &str) -> String {
    format!("registration of {flow}")
}

fn write(
    connection: &Connection,
    record: &Registration,
    kept: Option<&Sealed>,
) -> rusqlite::Result<()> {
    let nonce = kept.map(|kept| kept.nonce.as_slice());
    let value = kept.map(|kept| kept.value.as_slice());
    connection.execute(
        "INSERT INTO registrations
             (flow, call, act, url, made_with, state, at, nonce, kept, attempts, next_at, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT (flow) DO UPDATE SET call = ?2, act = ?3, url = ?4, made_with = ?5, state = ?6,
             at = ?7, nonce = ?8, kept = ?9, attempts = ?10, next_at = ?11, reason = ?12",
        params![
            record.flow,
            record.call.to_string(),
            columns::word(record.act),
            record.subject.url,
            record.subject.made_with,
            columns::word(record.state),
            record.at,
            nonce,
            value,
            record.attempts,
            record.next_at,
            record.reason,
        ],
    )?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let record = Registration {
        flow: row.get("flow")?,
        call: columns::id(row, "call")?,
        act: columns::unword(row, "act")?,
        subject: Subject {
            url: row.get("url")?,
            made_with: row.get("made_with")?,
        },
        state: columns::unword(row, "state")?,
        at: row.get("at")?,
        kept: None,
        attempts: row.get("attempts")?,
        next_at: row.get("next_at")?,
        reason: row.get("reason")?,
    };
    let nonce: Option<Vec<u8>> = row.get("nonce")?;
    let value: Option<Vec<u8>> = row.get("kept")?;
    let kept = nonce.zip(value);
    Ok((record, kept.map(|(nonce, value)| Sealed { nonce, value })))
}

#[cfg(test)]
mod tests {
    use towpath_protocol::office::{RegistrationAct, RegistrationOutcome};

    use super::*;
    use crate::store::flows::NewVersion;

    const KEPT: &str = "{\"secret\":\"whsec-that-is-nowhere-else\"}";

    async fn store_with_flow(store: &Store) {
        let flow = NewVersion {
            flow: "hooked".into(),
            ..NewVersion::default()
        };
        store.store_version(flow).await.unwrap();
    }

    fn call(before: Option<Registration>, number: u8) -> Registration {
        let subject = Subject {
            url: "http://here/hooks/hooked/k".into(),
            made_with: "w".into(),
        };
        let (act, id) = (
            RegistrationAct::Activate,
            MessageId::from_bytes([number; 16]),
        );
        Registration::called("hooked", before, act, Some(&subject), id, 1_000).unwrap()
    }

    fn activated(record: Registration) -> Option<Registration> {
        let kept = serde_json::value::RawValue::from_string(KEPT.into()).unwrap();
        let outcome = RegistrationOutcome::Activated { kept: Some(kept) };
        record.answered(outcome, 2_000)
    }

    #[tokio::test]
    async fn an_answer_to_an_earlier_call_changes_nothing() {
        let store = Store::in_memory().unwrap();
        assert!(
            store.registration_called(call(None, 1)).await.is_err(),
            "no flow, no registration"
        );
        store_with_flow(&store).await;
        let (first, second) = (call(None, 1), call(None, 2));
        store.registration_called(first.clone()).await.unwrap();
        store.registration_called(second.clone()).await.unwrap();
        let is_last = store.registration_answered(first.call, activated).await;
        assert!(!is_last.unwrap());
        assert_eq!(store.registration("hooked").await.unwrap().unwrap(), second);
        let answered = store.registration_answered(second.call, activated);
        assert!(answered.await.unwrap());
        let record = store.registration("hooked").await.unwrap().unwrap();
        assert_eq!((record.at, record.kept.as_deref()), (2_000, Some(KEPT)));
        let listed = store.registrations().await.unwrap().remove("hooked");
        let unkept = Registration {
            kept: None,
            ..record
        };
        assert_eq!(listed, Some(unkept));
        let gone = store.registration_answered(second.call, |_| None);
        assert!(gone.await.unwrap());
        assert_eq!(store.registration("hooked").await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_a_trigger_keeps_is_not_in_the_file_in_clear() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store_with_flow(&store).await;
        let record = call(None, 1);
        store.registration_called(record.clone()).await.unwrap();
        let answered = store.registration_answered(record.call, activated);
        assert!(answered.await.unwrap());
        let holds = |needle: &str| {
            std::fs::read_dir(folder.path()).unwrap().any(|entry| {
                let bytes = std::fs::read(entry.unwrap().path()).unwrap();
                let mut windows = bytes.windows(needle.len());
                windows.any(|window| window == needle.as_bytes())
            })
        };
        assert!(holds("/hooks/hooked/"), "it looks into the right files");
        assert!(!holds("whsec-that"));
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        let record = store.registration("hooked").await.unwrap().unwrap();
        assert_eq!(record.kept.as_deref(), Some(KEPT));
        store.delete_flow("hooked", vec![], false).await.unwrap();
        assert!(store.registrations().await.unwrap().is_empty());
    }
}
