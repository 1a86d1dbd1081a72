//! Brings in the rows of a PostgreSQL table or query: page by page, only what is new, from where it
//! left off.
//!
//! A **walk** reads rows in the order of (cursor, key), a page at a time, each page from after the
//! last row of the one before. The key tells apart the rows that have one cursor value, so a page
//! may end between any two of them. The [`Progress`] says where a walk begins, what of it is new,
//! and what is saved as the trigger's checkpoint.

mod config;
mod page;
mod plan;
mod progress;
mod step;

pub use config::{Config, LookBack, Numbers, Since};
pub use progress::{Checkpoint, Progress, Row, Start, Window};
pub use step::{State, poll, setup};
