//! Tests of dead letters as the API shows them.
