//! Files of findings, and text of manifests in messages.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use plimsoll_core::units::harmless;
use serde::{Serialize, Serializer};

/// Path of a file in two forms. Only the path for readers is serialized.
#[derive(Clone, Debug)]
pub(super) struct File {
    /// Path for readers. Characters that would control a terminal are escaped.
    pub(super) shown: String,
    /// Path as a URI. The URI is relative if the path is relative.
    pub(super) uri: String,
}

impl File {
    pub(super) fn new(path: &Path) -> Self {
        const ENCODED: &AsciiSet =
            &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');
        if path == Path::new("-") {
            return Self { shown: "standard input".to_owned(), uri: "stdin".to_owned() };
        }
        let encoded = percent_encode(path.as_os_str().as_bytes(), ENCODED);
        let scheme = if path.is_absolute() { "file://" } else { "" };
        Self {
            shown: shown(&path.to_string_lossy(), usize::MAX),
            uri: format!("{scheme}{encoded}"),
        }
    }
}

impl Serialize for File {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown)
    }
}

/// Maximum length of the description of a mistake, in characters.
pub(super) const LONGEST_PROBLEM: usize = 300;

/// Escapes a manifest's text, so that the text cannot control the terminal. Keeps quotes and
/// backslashes, and shortens the text to `most` characters.
pub(super) fn shown(text: &str, most: usize) -> String {
    harmless(text, most, &['\'', '"', '\\'])
}
