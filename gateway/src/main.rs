//! Entry point of `fairlead-gateway`.

fn main() {}
