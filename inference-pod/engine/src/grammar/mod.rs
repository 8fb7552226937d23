//! Answers of a given form: JSON of a schema, a regular expression, a choice, a grammar.
//!
//! A [`GrammarCompiler`] is made once for a model, from the bytes of its tokens. It turns a [`GrammarSource`], which a client
//! sent, into a [`crate::sequence::Constraint`], which the scheduler asks for the tokens that may come next. The grammars
//! themselves are llguidance's; here is what bounds them: sources are limited before they are read, compiled on a thread of
//! their own that is not waited for without end, and what panics inside fails one request.

mod compiler;
mod source;
mod state;
mod vocabulary;

pub use compiler::{GrammarCompiler, GrammarError};
pub use source::{GrammarSource, MAX_CHOICES, MAX_DEPTH, MAX_SCHEMA_BYTES, MAX_TEXT_BYTES};
pub use vocabulary::{VocabularyError, VocabularyToken};
