//! A model's tokenizer.json, and what is done with a tokenizer that was taken.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The server's own module; the server as a whole would bring libtorch along.
#[allow(dead_code, unused_imports)]
#[path = "../../inference-pod/server/src"]
mod server {
    pub mod tokenizer;
}
use server::tokenizer;

/// Tokens of the model around it.
const VOCABULARY: u32 = 300;

// A panic that the server catches is no finding; one that comes through ends the run all the same.
fuzz_target!(init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))), |bytes: &[u8]| {
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
