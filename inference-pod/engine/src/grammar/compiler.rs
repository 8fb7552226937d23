//! From a client's source to a grammar, in bounded time and memory.

use std::num::NonZeroUsize;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use llguidance::api::ParserLimits;
use llguidance::{Matcher, ParserFactory};
use lru::LruCache;

use super::source::GrammarSource;
use super::state::{GrammarState, problem};
use super::vocabulary::{Vocabulary, VocabularyError, VocabularyToken};
use crate::sequence::Constraint;

/// Grammars kept: most clients of a model send the same few.
const CACHED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);
/// Grammars compiled at once.
const AT_ONCE: usize = 2;
/// How long a compilation, or the wait for one, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Stack of a compiling thread. llguidance reads sources recursively; only what is used takes memory.
const STACK_BYTES: usize = 256 << 20;
/// States of a grammar's lexer, 1 to 2 KiB each.
const MAX_LEXER_STATES: usize = 20_000;

/// Why there is no grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The source is wrong, too large or too complex.
    #[error("{field}: {problem}")]
    Invalid {
        /// The request's field that it comes from.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Others' grammars are being compiled, and that takes too long.
    #[error("{field}: too many grammars are being compiled; try again later")]
    Busy {
        /// The request's field that the source comes from.
        field: String,
    },
}

/// Makes grammars for one model.
pub struct GrammarCompiler {
    vocabulary: Arc<Vocabulary>,
    factory: Arc<ParserFactory>,
    /// By the digests of their sources.
    compiled: Mutex<LruCache<[u8; 32], GrammarState>>,
    slots: Arc<Slots>,
}

impl GrammarCompiler {
    /// For a model with these tokens, by their numbers, of which `ends` end an answer. Takes up to a second for a large
    /// vocabulary.
    ///
    /// # Errors
    /// [`VocabularyError`].
    pub fn new(tokens: &[VocabularyToken], ends: &[u32]) -> Result<Self, VocabularyError> {
        let vocabulary = Vocabulary::new(tokens, ends)?;
        let mut factory = ParserFactory::new_simple(&vocabulary.env)
            .map_err(|error| VocabularyError::Unusable(problem(&error)))?;
        factory.quiet();
        let limits = factory.limits_mut();
        *limits =
            ParserLimits { max_lexer_states: MAX_LEXER_STATES, verbose_errors: false, ..limits.clone() };
        Ok(Self {
            vocabulary: Arc::new(vocabulary),
            factory: Arc::new(factory),
            compiled: Mutex::new(LruCache::new(CACHED)),
            slots: Arc::new(Slots { free: Mutex::new(AT_ONCE), freed: Condvar::new() }),
        })
    }

    /// The constraint that `source` describes, at its beginning. `field` is the request's field that it comes from.
    ///
    /// Blocks for as long as compiling takes, which is milliseconds for most sources and never more than some seconds: not to
    /// be called on a thread that serves others.
    ///
    /// # Errors
    /// [`GrammarError`].
    pub fn compile(&self, source: &GrammarSource, field: &str) -> Result<Box<dyn Constraint>, GrammarError> {
        let invalid =
            |problem: String| GrammarError::Invalid { field: field.to_owned(), problem: problem.to_owned() };
        source.check().map_err(invalid)?;
        let digest = source.digest();
        if let Some(state) = self.cache().get(&digest) {
            return Ok(Box::new(state.separate()));
        }
        let state = self.compile_aside(source, field)?.map_err(invalid)?;
        let answer = Box::new(state.separate());
        self.cache().put(digest, state);
        Ok(answer)
    }

    /// Compiles on a thread with a stack for it. One that takes too long is left behind; it keeps its slot until it ends.
    fn compile_aside(
        &self,
        source: &GrammarSource,
        field: &str,
    ) -> Result<Result<GrammarState, String>, GrammarError> {
        let busy = || GrammarError::Busy { field: field.to_owned() };
        let slot = Slots::take(&self.slots, PATIENCE).ok_or_else(busy)?;
        let (sender, receiver) = sync_channel(1);
        let (source, factory, vocabulary) =
            (source.clone(), Arc::clone(&self.factory), Arc::clone(&self.vocabulary));
        let compile = move || {
            let matcher = Matcher::new(factory.create_parser(source.grammar()));
            let state = match matcher.get_error() {
                Some(error) => Err(problem(&error)),
                None => GrammarState::new(matcher, vocabulary),
            };
            drop(slot);
            // Whoever asked may have gone.
            let _ = sender.send(state);
        };
        std::thread::Builder::new()
            .name("fairlead-grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(compile)
            .map_err(|_| busy())?;
        Ok(match receiver.recv_timeout(PATIENCE) {
            Ok(state) => state,
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("took more than {} s to compile; make it simpler", PATIENCE.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err("could not be compiled: the compiler failed on it".to_owned())
            }
        })
    }

    fn cache(&self) -> MutexGuard<'_, LruCache<[u8; 32], GrammarState>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("GrammarCompiler")
            .field("compiled", &self.cache().len())
            .finish_non_exhaustive()
    }
}

/// Counts compilations.
struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

/// The right to compile; given back when dropped.
struct Slot(Arc<Slots>);

impl Slots {
    fn take(slots: &Arc<Self>, patience: Duration) -> Option<Slot> {
        let deadline = Instant::now() + patience;
        let mut free = slots.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            let left = deadline.checked_duration_since(Instant::now())?;
            free = slots.freed.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        Some(Slot(Arc::clone(slots)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}
