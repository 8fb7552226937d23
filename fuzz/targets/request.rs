//! The body of a request.
#![no_main]

use fairlead_openai::{ChatCompletionRequest, CompletionRequest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let errors = [ChatCompletionRequest::from_slice(body).err(), CompletionRequest::from_slice(body).err()];
    for error in errors.into_iter().flatten() {
        assert!((400..500).contains(&error.status), "{error:?} for what a client sent");
        let _ = error.to_json();
    }
});
