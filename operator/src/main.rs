//! Entry point of `fairlead-operator`.

fn main() {}
