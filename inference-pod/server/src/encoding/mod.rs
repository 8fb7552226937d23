//! Texts to vectors and scores: tokens, the length they may have, and the way through the encoder's queue.
//!
//! Called by the handlers of `/v1/embeddings` and `/v1/rerank`; what the numbers become in an answer is theirs.

mod tokens;

use std::sync::Arc;

use fairlead_engine::encoder::{EncodeRequest, Encoded, EncoderHandle, EncoderInput};
use fairlead_engine::engine::{Failure, SubmitError};
use fairlead_model::EncoderConfig;
use fairlead_openai::ApiError;
use fairlead_openai::embedding::Truncation;

use crate::generation::Timing;
use crate::measure::Measure;
use crate::metrics::{Finished, Metrics};
use crate::state::engine_dead;
use crate::tokenizer::TextCodec;

pub use tokens::InputBuilder;

/// A loaded encoder and what handlers need of it.
pub struct EncoderModel {
    /// Where numbers are made.
    pub engine: EncoderHandle,
    /// Text to tokens.
    pub codec: Arc<TextCodec>,
    /// The model's shape.
    pub config: EncoderConfig,
    /// Longest input in tokens, special tokens included.
    pub max_input_tokens: u32,
}

/// Numbers for each input, and the tokens of all.
pub struct EncodedInputs {
    /// In the inputs' order.
    pub numbers: Encoded,
    /// Tokens of all inputs, special tokens included.
    pub tokens: u64,
}

impl EncoderModel {
    /// Makes inputs for this model, each cut or refused as `truncation` says.
    pub fn inputs(&self, truncation: Truncation) -> InputBuilder<'_> {
        let most = match truncation {
            Truncation::To(tokens) => tokens.min(self.max_input_tokens),
            Truncation::Refuse | Truncation::ToModel => self.max_input_tokens,
        };
        InputBuilder::new(&self.codec, most as usize, truncation != Truncation::Refuse)
    }

    /// Sends inputs through the encoder. Dropping the future drops them.
    ///
    /// # Errors
    /// 429 where too many wait, 503 where the encoder has stopped, 504 where the client's time is over, 500 where it failed
    /// for these inputs.
    pub async fn encode(
        &self,
        metrics: &Metrics,
        inputs: Vec<EncoderInput>,
        timing: Timing,
    ) -> Result<EncodedInputs, ApiError> {
        let tokens = inputs.iter().map(|input| input.tokens.len() as u64).sum();
        let answer =
            self.engine.submit(EncodeRequest { inputs, deadline: timing.deadline }).map_err(|error| {
                match error {
                    SubmitError::Full { waiting } => ApiError::overloaded(
                        format!("{waiting} inputs are waiting for this model already; try again later"),
                        1,
                    ),
                    SubmitError::Dead(reason) => engine_dead(&reason),
                }
            })?;
        let mut measure = Measure::new(metrics.clone(), tokens, 0, 1, timing.arrived);
        let failed = |failure: Failure| match failure {
            Failure::Dead(reason) => engine_dead(&reason),
            Failure::DeadlinePassed => ApiError::deadline_passed(
                "the time that x-request-timeout-ms allows has passed; allow more, or send fewer texts",
            ),
            other => ApiError::internal(other.to_string()),
        };
        match answer.await {
            Ok(Ok(numbers)) => {
                measure.scored();
                measure.end(0, Finished::Stop);
                Ok(EncodedInputs { numbers, tokens })
            }
            Ok(Err(failure)) => {
                measure.end(0, Finished::Error);
                Err(failed(failure))
            }
            Err(_) => {
                measure.end(0, Finished::Error);
                Err(failed(Failure::Dead("it gave no answer".to_owned())))
            }
        }
    }
}
