//! The inference pod's server: OpenAI's API over an engine, with start-up, health, metrics and drain.
//!
//! `main.rs` is the command line; [`mod@serve`] ties everything together. Text lives here (tokenizer, chat template, stop strings),
//! tokens in `fairlead-engine`, tensors in `fairlead-backend-torch`.

pub mod adapters;
pub mod answer_text;
pub mod cache_size;
pub mod chat_template;
pub mod config;
pub mod constraint;
pub mod detokenize;
pub mod drain;
pub mod encoding;
pub mod generation;
pub mod http;
pub mod kv_tiers;
pub mod listener;
pub mod load;
pub mod measure;
pub mod memory;
pub mod metrics;
pub mod model_files;
pub mod observer;
pub mod openmp;
pub mod serve;
pub mod speculation;
pub mod startup;
pub mod state;
pub mod tier_metrics;
pub mod tokenizer;
pub mod tool_calls;
pub mod traces;
