//! What a route says of slow, full and broken backends (`spec.timeouts`, `retries`, `circuitBreaker`, `hedging`, `fallbacks`),
//! as the request path reads it.

pub mod circuit;
pub mod rules;
