//! The text of one answer: tokens in, pieces out, stop strings found across their borders.

use std::sync::Arc;

use fairlead_engine::backend::{ChosenToken, TokenLogprob};
use fairlead_engine::sequence::EndReason;
use fairlead_engine::stop::StopMatcher;
use fairlead_openai::{FinishReason, GenerationOptions};

use crate::detokenize::Detokenizer;
use crate::tokenizer::{CodecError, TextCodec};

/// A token with what is known about its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    /// The token.
    pub token: u32,
    /// Its log-probability; absent for a prompt's first.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place.
    pub top: Vec<TokenLogprob>,
}

/// More of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Number of the answer.
    pub choice: u32,
    /// New text; may be empty.
    pub text: String,
    /// New tokens, when log-probabilities were asked for.
    pub tokens: Vec<ScoredToken>,
    /// New tokens, when ids were asked for, those that ended the answer included.
    pub token_ids: Vec<u32>,
    /// Set in the last piece.
    pub finish: Option<FinishReason>,
}

/// How text is made of an answer's tokens.
pub struct TextOptions<'a> {
    /// What the client asked for.
    pub options: &'a GenerationOptions,
    /// Whether log-probabilities are reported.
    pub logprobs: bool,
    /// Tokens of the prompt, where the answer's text continues theirs.
    pub continues: Option<&'a [u32]>,
    /// Whether special tokens are part of the text: for who looks for tool calls in it.
    pub special_tokens: bool,
}

/// The text of an answer that grows.
pub struct AnswerText {
    choice: u32,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    logprobs: bool,
    token_ids: bool,
    shows_stop: bool,
    /// Tokens before stop strings count.
    unstoppable: usize,
    seen: usize,
    resumed: String,
    ended: bool,
}

impl AnswerText {
    /// An answer, resumed where the request says so: text that was there before is not sent again.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn new(choice: u32, codec: &Arc<TextCodec>, how: &TextOptions<'_>) -> Result<Self, CodecError> {
        let TextOptions { options, logprobs, continues, special_tokens } = *how;
        let codec = Arc::clone(codec);
        let detokenizer = match continues {
            Some(prompt) => Detokenizer::continuing(codec, special_tokens, prompt)?,
            None => Detokenizer::new(codec, special_tokens),
        };
        let mut answer = Self {
            choice,
            detokenizer,
            stops: StopMatcher::new(&options.stop).showing(options.include_stop),
            logprobs,
            token_ids: options.return_token_ids,
            shows_stop: options.include_stop,
            unstoppable: options.min_tokens as usize,
            seen: 0,
            resumed: String::new(),
            ended: false,
        };
        for &token in &options.resume_token_ids {
            answer.seen += 1;
            let new = answer.detokenizer.push(token)?;
            // Had a stop string been met, nobody would resume.
            let (text, _) = answer.released(&new);
            answer.resumed.push_str(&text);
        }
        Ok(answer)
    }

    /// The text that was sent before it was resumed.
    pub fn resumed_text(&self) -> &str {
        &self.resumed
    }

    /// Whether its last piece has been made.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What a token adds; `None` when there is nothing to send yet, or nothing more.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn push(&mut self, token: ChosenToken, end: Option<EndReason>) -> Result<Option<Piece>, CodecError> {
        if self.ended {
            return Ok(None);
        }
        self.seen += 1;
        let is_stop_token = end == Some(EndReason::StopToken);
        let mut new = if is_stop_token && !self.shows_stop {
            String::new()
        } else {
            self.detokenizer.push(token.token)?
        };
        if end.is_some() {
            new.push_str(&self.detokenizer.finish()?);
        }
        let (mut text, stopped) = self.released(&new);
        let finish = match end {
            _ if stopped => Some(FinishReason::Stop),
            Some(EndReason::StopToken) => Some(FinishReason::Stop),
            Some(EndReason::Length) => Some(FinishReason::Length),
            None => None,
        };
        if finish.is_some() {
            if !stopped {
                text.push_str(&self.stops.finish());
            }
            self.ended = true;
        }
        let token_ids = if self.token_ids { vec![token.token] } else { Vec::new() };
        let scored = ScoredToken { token: token.token, logprob: token.logprob, top: token.top_logprobs };
        let tokens = if self.logprobs && !is_stop_token { vec![scored] } else { Vec::new() };
        let is_empty = text.is_empty() && tokens.is_empty() && token_ids.is_empty() && finish.is_none();
        Ok((!is_empty).then_some(Piece { choice: self.choice, text, tokens, token_ids, finish }))
    }

    /// It ends without a token.
    pub fn end(&mut self) -> Piece {
        self.ended = true;
        Piece { choice: self.choice, finish: Some(FinishReason::Length), ..Piece::default() }
    }

    /// What of new text can be sent, and whether a stop string was met. Before `min_tokens` none is looked for.
    fn released(&mut self, new: &str) -> (String, bool) {
        if self.seen <= self.unstoppable {
            return (new.to_owned(), false);
        }
        let released = self.stops.push(new);
        (released.text, released.stopped)
    }
}
