//! `rollout …`: where a canary is, and what a person asks of it.

pub mod ask;
mod bar;
mod gates;
pub mod history;
pub mod render;
pub mod report;
pub mod status;

#[cfg(test)]
mod tests;
