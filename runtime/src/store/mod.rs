//! Records that last: flows and their versions, checkpoints, runs, dead letters, secrets.
//!
//! # Invariants
//!
//! - Only this folder names `rusqlite`.
//! - `no_secret_is_in_the_file_in_clear`: values of secrets are encrypted before they get here,
//!   with a key that is not in the database.
//! - `a_second_process_is_refused`: one process at a time uses a data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

pub mod answered;
pub mod answers;
pub mod checkpoints;
mod columns;
pub mod dead_groups;
pub mod dead_letters;
#[cfg(test)]
mod dead_letters_tests;
pub mod flows;
pub mod former;
mod holds;
pub mod ledger;
mod migrations;
pub mod records;
#[cfg(test)]
mod records_tests;
pub mod registrations;
pub mod replay_jobs;
pub mod runs;
pub mod secrets;
pub mod tracking;
pub mod waiting;
pub mod webhook_keys;

/// How long a statement waits for a lock that another reader of the file holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The records of one instance. Clones share one database.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Mutex<Connection>,
    key: [u8; 32],
    /// Held as long as the store is open; the system releases it when the process ends.
    _lock: Option<File>,
}

/// What the store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data directory cannot be used.
    #[error("cannot use `{}`", path.display())]
    Files {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process uses the data directory.
    #[error("another `towpath serve` uses the data directory `{}`", data.display())]
    InUse {
        /// The directory.
        data: PathBuf,
    },
    /// The database was made by a newer version.
    #[error("the database has version {found}, and this Towpath knows versions up to {known}")]
    TooNew {
        /// The database's version.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// The key file is not one.
    #[error("`{}` is not a key: it must hold 32 bytes as 64 hexadecimal digits", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
    },
    /// A statement failed.
    #[error("the store cannot {what}")]
    Statement {
        /// What it was to do.
        what: &'static str,
        /// Why it could not.
        #[source]
        source: rusqlite::Error,
    },
    /// A secret cannot be decrypted: the key file is another one.
    #[error("the secret `{name}` cannot be decrypted with the key of this data directory")]
    Undecryptable {
        /// The secret.
        name: String,
    },
    /// Something stored cannot be read back.
    #[error("the store holds {what} that cannot be read")]
    Corrupt {
        /// What.
        what: String,
    },
    /// The process is ending.
    #[error("the store is closing")]
    Closing,
}

impl Store {
    /// Opens the store in a data directory, and makes both if they are not there.
    pub fn open(data: &Path) -> Result<Self, StoreError> {
        create_private_dir(data).map_err(|source| files(data, source))?;
        let lock = lock(data)?;
        let key = key_file(&data.join("key"))?;
        let path = data.join("towpath.db");
        // Made by hand first, so that it is private from the first byte.
        private_file(&path, false).map_err(|source| files(&path, source))?;
        let connection = Connection::open(&path).map_err(|source| StoreError::Statement {
            what: "open its database",
            source,
        })?;
        Self::prepare(connection, key, Some(lock))
    }

    /// Makes a store that lives as long as it is held, for tests.
    pub fn in_memory() -> Result<Self, StoreError> {
        let connection = Connection::open_in_memory().map_err(|source| StoreError::Statement {
            what: "open its database",
            source,
        })?;
        Self::prepare(connection, rand::random(), None)
    }

    fn prepare(
        mut connection: Connection,
        key: [u8; 32],
        lock: Option<File>,
    ) -> Result<Self, StoreError> {
        let set_up = |connection: &Connection| -> rusqlite::Result<()> {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // A query, because the answer is a row.
            connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
            // FULL: what was confirmed to an agent must survive a power cut.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            // What is deleted is overwritten: secrets are encrypted, but bodies of dead letters are not.
            connection.pragma_update(None, "secure_delete", true)
        };
        set_up(&connection).map_err(|source| StoreError::Statement {
            what: "set up its database",
            source,
        })?;
        migrations::run(&mut connection)?;
        dead_letters::bring_up_to_date(&mut connection).map_err(|source| {
            StoreError::Statement {
                what: "bring its dead letters up to date",
                source,
            }
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                connection: Mutex::new(connection),
                key,
                _lock: lock,
            }),
        })
    }

    /// Derives a key for one purpose from the key of the data directory.
    pub fn derive_key(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.inner.key)
    }

    /// Says whether the store answers now.
    pub async fn is_up(&self) -> bool {
        self.with("answer", |connection| {
            connection.query_row("SELECT 1", [], |_| Ok(()))
        })
        .await
        .is_ok()
    }

    /// Runs statements on a thread that may block. They are one after the other: SQLite has one
    /// writer, and the control plane writes little.
    pub(crate) async fn with<T, F>(&self, what: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            // A panic in a statement left no transaction open: dropping one rolls it back.
            let mut connection = inner
                .connection
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            work(&mut connection)
        })
        .await
        .map_err(|_| StoreError::Closing)?
        .map_err(|source| StoreError::Statement { what, source })
    }
}

/// The time now, in milliseconds since 1970: what every record is stamped with.
pub fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

fn files(path: &Path, source: io::Error) -> StoreError {
    StoreError::Files {
        path: path.to_owned(),
        source,
    }
}

fn create_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn private_file(path: &Path, new: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(!new)
        .create_new(new)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn lock(data: &Path) -> Result<File, StoreError> {
    let path = data.join("lock");
    let file = private_file(&path, false).map_err(|source| files(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            data: data.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(files(&path, source)),
    }
}

/// Reads a private file, or makes it with what `fresh` gives. Nobody but the owner can read it.
pub(crate) fn private_text(
    path: &Path,
    fresh: impl FnOnce() -> String,
) -> Result<String, StoreError> {
    let read = |mut file: File| -> io::Result<String> {
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    let write = |mut file: File| -> io::Result<String> {
        let text = fresh();
        writeln!(file, "{text}")?;
        file.sync_all()?;
        Ok(text)
    };
    match File::open(path) {
        Ok(file) => read(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private_file(path, true).and_then(write)
        }
        Err(error) => Err(error),
    }
    .map(|text| text.trim().to_owned())
    .map_err(|source| files(path, source))
}

fn key_file(path: &Path) -> Result<[u8; 32], StoreError> {
    let text = private_text(path, || {
        blake3::Hash::from_bytes(rand::random())
            .to_hex()
            .to_string()
    })?;
    blake3::Hash::from_hex(&text)
        .map(|key| *key.as_bytes())
        .map_err(|_| StoreError::BadKey {
            path: path.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        let Err(second) = Store::open(folder.path()) else {
            panic!("two stores in one folder")
        };
        assert!(matches!(second, StoreError::InUse { .. }), "{second}");
        drop(first);
        Store::open(folder.path()).unwrap();
    }

    #[test]
    fn what_is_private_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let _store = Store::open(&data).unwrap();
        for name in ["key", "towpath.db", "lock"] {
            let mode = std::fs::metadata(data.join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(
            std::fs::metadata(&data).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_database_of_a_newer_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        let connection = Connection::open(folder.path().join("towpath.db")).unwrap();
        connection.pragma_update(None, "user_version", 999).unwrap();
        drop(connection);
        assert!(matches!(
            Store::open(folder.path()),
            Err(StoreError::TooNew { found: 999, .. })
        ));
    }
}
