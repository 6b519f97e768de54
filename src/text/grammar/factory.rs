//! Constraints from grammars, over one vocabulary.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv};
use llguidance::{Matcher, ParserFactory, TokenParser};

use super::{Constraint, Grammar, places, reason, trie};
use crate::text::{TextError, Tokenizer};

/// Stack of the thread that compiles: 50,000 levels, the crate's bound of a schema, take some 3 KB each.
/// What is not used of it takes no memory.
const STACK: usize = 512 << 20;

/// Makes constraints for answers in one vocabulary. Its trie is built once; clones share it.
#[derive(Clone)]
pub struct GrammarFactory {
    parsers: Arc<ParserFactory>,
    ends: Arc<[u32]>,
}

impl GrammarFactory {
    /// A factory for a tokenizer's vocabulary.
    ///
    /// # Errors
    /// A vocabulary without a token that ends a generation, or larger than can be.
    pub fn new(tokenizer: &Tokenizer) -> Result<GrammarFactory, TextError> {
        let trie = trie::build(tokenizer)?;
        let ends = trie.eos_tokens().into();
        // Forced text is left to the model to cut into tokens, so that no tokenizer is needed.
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut parsers =
            ParserFactory::new_simple(&env).map_err(|error| TextError::Constraint(reason(&error)))?;
        parsers.quiet().limits_mut().verbose_errors = false;
        Ok(GrammarFactory { parsers: Arc::new(parsers), ends })
    }

    /// A constraint at the beginning of an answer.
    ///
    /// # Errors
    /// A grammar that is wrong, not supported or too large, with what and where.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, TextError> {
        let parser = on_a_large_stack(|| {
            self.compile(grammar.inner()).map_err(|found| {
                let mut compiles = |other: TopLevelGrammar| self.compile(other).err();
                let place = grammar.schema().and_then(|schema| places::find(schema, &found, &mut compiles));
                grammar.refused(found, place)
            })
        })??;
        let mut constraint = Constraint::new(Matcher::new(Ok(parser)), self.ends.clone());
        match constraint.mask() {
            Ok(_) => Ok(constraint),
            // A schema that refers to itself alone, say.
            Err(error) => Err(grammar.refused(format!("no answer can obey it: {error}"), None)),
        }
    }

    fn compile(&self, grammar: TopLevelGrammar) -> Result<TokenParser, String> {
        self.parsers.create_parser(grammar).map_err(|error| reason(&error))
    }
}

impl fmt::Debug for GrammarFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.parsers.tok_env().tok_trie().vocab_size();
        f.debug_struct("GrammarFactory").field("tokens", &tokens).finish_non_exhaustive()
    }
}

/// Runs what may recurse deeply.
fn on_a_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, TextError> {
    let failed = |reason: String| TextError::Constraint(format!("the grammar cannot be compiled: {reason}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, work).map_err(|error| failed(error.to_string()))?;
        thread.join().map_err(|_| failed("a panic".to_owned()))
    })
}
