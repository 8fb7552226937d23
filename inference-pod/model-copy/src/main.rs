//! Copies a model out of an image.

fn main() {}
