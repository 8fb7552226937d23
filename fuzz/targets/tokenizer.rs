//! A model's tokenizer.json, and what is done with a tokenizer that was taken.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The server's own module; the server as a whole would bring libtorch along.
#[allow(dead_code)]
#[path = "../../inference-pod/server/src/tokenizer.rs"]
mod tokenizer;

/// Tokens of the model around it.
const VOCABULARY: u32 = 300;

fuzz_target!(|bytes: &[u8]| {
    let Ok(codec) = tokenizer::TextCodec::from_bytes(bytes, VOCABULARY) else { return };
    let _ = codec.vocabulary();
    for text in ["", "Hello, world", "  \n\t<|x|>é\u{1f600}", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
        for special in [true, false] {
            if let Ok(tokens) = codec.encode(text, special) {
                assert!(tokens.iter().all(|&token| token < VOCABULARY), "a token beyond the model's");
                let _ = codec.decode(&tokens);
            }
        }
    }
});
