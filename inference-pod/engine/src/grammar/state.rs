//! A grammar and how far along it one answer is.

use std::sync::Arc;

use llguidance::Matcher;

use super::vocabulary::Vocabulary;
use crate::sampling::TokenMask;
use crate::sequence::Constraint;

/// Characters kept of an error's beginning and of its end: between them llguidance may quote a whole grammar.
const KEPT: usize = 200;

/// One answer's way through a grammar.
///
/// llguidance catches its own panics: they are errors here, and the state is of no use afterwards.
pub(super) struct GrammarState {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
    /// Tokens that the matcher has taken in. Those that end an answer are kept from it.
    taken: usize,
    /// Ends taken in; after the first only more of them may come.
    ended: usize,
    /// The mask at this place, once it is known.
    mask: Option<Arc<TokenMask>>,
}

impl GrammarState {
    /// A new answer. Finds the first mask at once: a grammar that allows nothing, or is too complex, shows it there.
    pub(super) fn new(matcher: Matcher, vocabulary: Arc<Vocabulary>) -> Result<Self, String> {
        let mut state = Self { matcher, vocabulary, taken: 0, ended: 0, mask: None };
        state.mask()?;
        Ok(state)
    }

    /// A new answer that shares nothing which changes with this one.
    pub(super) fn separate(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), ..self.shared() }
    }

    fn shared(&self) -> Self {
        Self {
            matcher: self.matcher.clone(),
            vocabulary: Arc::clone(&self.vocabulary),
            taken: self.taken,
            ended: self.ended,
            mask: self.mask.clone(),
        }
    }
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { matcher: _, vocabulary: _, taken, ended, mask: _ } = self;
        formatter.debug_struct("GrammarState").field("taken", taken).field("ended", ended).finish()
    }
}

impl Constraint for GrammarState {
    fn mask(&mut self) -> Result<Arc<TokenMask>, String> {
        if let Some(mask) = &self.mask {
            return Ok(Arc::clone(mask));
        }
        let mask = if self.ended > 0 {
            Arc::clone(&self.vocabulary.ends)
        } else {
            let allowed = self.matcher.compute_mask_or_eos().map_err(|error| problem(&error))?;
            Arc::new(TokenMask { words: allowed.as_slice().to_vec() })
        };
        self.mask = Some(Arc::clone(&mask));
        Ok(mask)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if self.ended > 0 || self.vocabulary.is_end(token) || self.matcher.is_stopped() {
            if !self.mask()?.allows(token) {
                return Err(format!("token {token} may not come here"));
            }
            self.ended += 1;
        } else {
            if !self.vocabulary.is_used(token) {
                return Err(format!("token {token} stands for nothing"));
            }
            self.matcher.consume_token(token).map_err(|error| problem(&error))?;
            self.taken += 1;
        }
        self.mask = None;
        Ok(())
    }

    fn valid_prefix(&mut self, tokens: &[u32]) -> usize {
        let ends = |tokens: &[u32]| tokens.iter().take_while(|&&token| self.vocabulary.is_end(token)).count();
        if self.ended > 0 || self.matcher.is_stopped() {
            return ends(tokens);
        }
        let is_text = |token: &&u32| self.vocabulary.is_used(**token) && !self.vocabulary.is_end(**token);
        let text = tokens.iter().take_while(is_text).count();
        let following = ends(&tokens[text..]);
        // Of several ends the matcher is asked about the first; after it the others may come.
        match self.matcher.validate_tokens(&tokens[..text + following.min(1)]) {
            Ok(valid) if valid > text => text + following,
            Ok(valid) => valid,
            Err(_) => 0,
        }
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.shared())
    }
}

/// An error of llguidance's in a line or two: without the parser's state or a backtrace.
pub(super) fn problem(error: &impl std::fmt::Display) -> String {
    let text = format!("{error:#}");
    let end = ["\n<backtrace>", "\n<state>", "\n<non-verbose/>"]
        .iter()
        .filter_map(|mark| text.find(mark))
        .min()
        .unwrap_or(text.len());
    let text = text[..end].trim();
    if text == "NoExtensionBias" {
        return "allows no text at all".to_owned();
    }
    let length = text.chars().count();
    if length <= 2 * KEPT {
        return text.to_owned();
    }
    let (head, tail) = (text.chars().take(KEPT), text.chars().skip(length - KEPT));
    head.chain([' ', '…', ' ']).chain(tail).collect()
}
