//! Questions with known answers, and how an answer is scored.
//!
//! Owns: what a question is, how answers are compared, the arithmetic of a run, and the form in which a run tells its result.
//! Must not: ask anybody, read a clock or a file. Called by `fairlead-rag evaluate`, which asks, and by the operator, which reads
//! the questions to say what is wrong with them and the result to put it into a status.

pub mod contains;
pub mod exact_match;
pub mod f1;
pub mod grade;
pub mod items;
pub mod question;
pub mod refusal;
pub mod summary;
pub mod words;

pub use grade::{Grade, Rules, grade};
pub use items::Item;
pub use question::{Question, QuestionError, digest, parse};
pub use summary::{Summary, summarize};
pub use words::words;
