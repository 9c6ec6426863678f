//! Helper for the tests of this folder.

use crate::config::model::Config;

pub(super) fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text.as_bytes(), "f.yaml").map_err(|errors| errors.to_string())
}
