//! For tests and benchmarks of what stands in front of inference servers: a server that speaks OpenAI's API and has no model,
//! with the speed and the faults that it is told, and a load of requests that accounts for every one of them.
//!
//! Owns: those two. Must not: be used beside real traffic, or stand in for the engine where an answer's content matters. Called by
//! the end-to-end tests, as a program and in pods, and by `make bench-gateway`.

pub mod answer;
pub mod behaviour;
pub mod binomial;
pub mod load;
pub mod schedule;
pub mod serve;
pub mod tally;
pub mod tls;
