//! Fuzz target for the kubelet's checkpoint. The input is first the whole file, and then the data
//! inside a valid envelope.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll::kubelet::checkpoint;

fuzz_target!(|bytes: &[u8]| {
    let _ = checkpoint::parse(bytes.to_vec());
    if let Ok(text) = std::str::from_utf8(bytes) {
        let envelope = serde_json::json!({ "data": text });
        let _ = checkpoint::parse(envelope.to_string().into_bytes());
    }
});
