//! Entry point of `fairlead-inference`.

fn main() {}
