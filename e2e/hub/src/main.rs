//! Entry point of `fairlead-test-hub`.

fn main() {}
