//! The flow file: parsed with positions, checked all at once, never half valid.

pub mod model;
