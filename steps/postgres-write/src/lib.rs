//! Writes messages to a PostgreSQL table: insert, upsert, update and delete, in bulk.
//!
//! A batch is one transaction. Its messages become **records**, records with the same columns go in
//! one statement, and a statement that fails is taken apart until the one record is found whose
//! fault it is: only that one fails.

mod config;
mod record;
mod statement;
mod step;
mod transaction;
mod waves;

pub use config::{Config, Emit, Mode, OnConflict, OnMissing, Unknown};
pub use step::{BATCH_MAX, State, setup, write};
