//! What the steps that speak to PostgreSQL share: connections with TLS and without a system's
//! resolver, the catalog, names, and what an error means for whoever waits.

mod catalog;
mod failure;
mod names;
mod server;
mod trust;

pub use catalog::{Column, Table, find_table};
pub use failure::{Meaning, Unreachable, explain, meaning};
pub use names::{NotAName, TableName, did_you_mean, quote};
pub use server::{Server, Session, Settings, SetupError};
