//! The binary `towpath`: the CLI and the control plane.

fn main() {}
