//! The form that a client wants its answer to have. The first letter says how it is written: 0 schema, 1 regex, 2 Lark,
//! 3 choices.
#![no_main]

use std::sync::OnceLock;

use fairlead_engine::grammar::{GrammarCompiler, GrammarSource, VocabularyToken};
use libfuzzer_sys::fuzz_target;

/// The end of an answer; the tokens before it are the bytes.
const END: u32 = 256;

fn compiler() -> Option<&'static GrammarCompiler> {
    static COMPILER: OnceLock<Option<GrammarCompiler>> = OnceLock::new();
    let make = || {
        let mut tokens: Vec<VocabularyToken> =
            (0..=255).map(|byte| VocabularyToken::Text(vec![byte])).collect();
        tokens.push(VocabularyToken::Special("</s>".to_owned()));
        GrammarCompiler::new(&tokens, &[END]).ok()
    };
    COMPILER.get_or_init(make).as_ref()
}

fuzz_target!(|input: &str| {
    let (Some(kind), Some(text)) = (input.bytes().next(), input.get(1..)) else { return };
    let source = match kind % 4 {
        0 => match serde_json::from_str(text) {
            Ok(schema) => GrammarSource::JsonSchema(schema),
            Err(_) => return,
        },
        1 => GrammarSource::Regex(text.to_owned()),
        2 => GrammarSource::Lark(text.to_owned()),
        _ => GrammarSource::Choice(text.split('|').map(str::to_owned).collect()),
    };
    let Some(compiler) = compiler() else { return };
    let Ok(mut constraint) = compiler.compile(&source, "f") else { return };
    // Along some way through it; it may find that it is too complex, but not more than that.
    for step in 0..24_usize {
        let Ok(mask) = constraint.mask() else { return };
        let choices: Vec<u32> = (0..=END).filter(|&token| mask.allows(token)).collect();
        assert!(!choices.is_empty(), "a mask that allows nothing");
        let token = choices[(step * 7 + usize::from(kind)) % choices.len()];
        assert_eq!(constraint.valid_prefix(&[token]), 1, "a mask and its constraint disagree");
        // A guess that is not checked in the end.
        let aside = constraint.fork().accept(token).is_ok();
        let taken = constraint.accept(token).is_ok();
        assert_eq!(aside, taken, "a fork takes something else");
        if !taken {
            return;
        }
    }
});
