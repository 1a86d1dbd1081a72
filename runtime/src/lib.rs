//! Towpath's control plane and command line, as a library for the binary and the tests.

pub mod api;
pub mod broker;
pub mod cli;
pub mod control;
pub mod engine;
pub mod filter;
pub mod fingerprint;
pub mod ingress;
pub mod inquiry;
pub mod json_text;
pub mod ledger;
pub mod live;
pub mod metrics;
pub mod office;
pub mod pack;
pub mod rates;
pub mod reconcile;
pub mod registration;
pub mod replay;
pub mod reports;
pub mod run_watch;
pub mod schedule;
pub mod serve;
pub mod settings;
pub mod store;
pub mod sweep;
