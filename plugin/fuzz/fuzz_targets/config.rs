//! Fuzz target for the configuration file. An accepted configuration is the same after it was
//! printed and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll::config::Config;

fuzz_target!(|bytes: &[u8]| match Config::parse(bytes, "fuzz") {
    Ok(config) => assert_eq!(Config::parse(config.to_string().as_bytes(), "fuzz"), Ok(config)),
    Err(errors) => assert_eq!(errors.to_string().lines().count(), errors.errors.len()),
});
