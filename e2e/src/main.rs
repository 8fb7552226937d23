//! Entry point of `fairlead-e2e`.

fn main() {}
