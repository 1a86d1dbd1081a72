//! Towpath's control plane and command line, as a library for the binary and the tests.

pub mod broker;
pub mod engine;
pub mod reconcile;
pub mod store;
