//! `fairlead-rag`: what asks models questions, as a Job or by hand.
//!
//! Owns: asking, trying again, showing and delivering results. Must not: know how an answer is scored (that is
//! `fairlead_evaluation`), or what an Evaluation is in a cluster (that is the operator, which calls it by its command line).

pub mod cli;
pub mod evaluate;
pub mod failure;
