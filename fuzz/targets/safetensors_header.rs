//! The first bytes of a weight file.
#![no_main]

use fairlead_model::SafetensorsHeader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // As the text of a header too: a random length in front of it nearly never fits.
    let framed = [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
    for file in [bytes, &framed] {
        if let Ok(header) = SafetensorsHeader::parse("model.safetensors", file) {
            let _ = header.check_length("model.safetensors", header.file_bytes());
            for tensor in header.tensors.values() {
                assert!(tensor.bytes() <= header.data_bytes, "a tensor is larger than its file");
                let _ = tensor.elements();
            }
        }
    }
});
