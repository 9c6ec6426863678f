//! Fuzz target for messages from the runtime. Decoding never panics. A decoded message is the same
//! after it was encoded and decoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nri::api::protobuf::Message;
use nri::api::{
    ConfigureRequest, CreateContainerRequest, StateChangeEvent, SynchronizeRequest,
    UpdateContainerRequest,
};

fn check<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::parse_from_bytes(bytes) {
        let again =
            M::parse_from_bytes(&message.write_to_bytes().expect("encodes")).expect("decodes");
        assert_eq!(message, again);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<ConfigureRequest>(bytes);
    check::<SynchronizeRequest>(bytes);
    check::<CreateContainerRequest>(bytes);
    check::<UpdateContainerRequest>(bytes);
    check::<StateChangeEvent>(bytes);
});
