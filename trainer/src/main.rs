//! Trainer of the demo model.
fn main() {}
