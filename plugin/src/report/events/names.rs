//! Valid names, hashes and notes of Events.

use plimsoll_core::units::harmless;

/// Maximum length of a note in bytes. Source: Kubernetes `pkg/apis/core/validation/events.go`.
const NOTE: usize = 1024;

/// Returns the FNV-1a hash. Unlike the standard library's hash, this hash is the same in every
/// version of the plugin.
pub(super) fn stable_hash(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Returns whether the text is a valid part of a name (RFC 1123) of at most 253 bytes.
pub(super) fn is_name_part(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let bytes = text.as_bytes();
    bytes.len() <= 253
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| is_end(Some(byte)) || *byte == b'-')
}

pub(super) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_name_part(text)
}

/// Returns the text on one line without terminal control characters, shortened to [`NOTE`].
pub(super) fn note(text: &str) -> String {
    let mut note = harmless(text, NOTE, &['\'', '"']);
    if note.len() > NOTE {
        let mut end = NOTE - '…'.len_utf8();
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_shortened_and_control_characters_escaped() {
        for text in [
            "x".repeat(1 << 20),
            "ü".repeat(2000),
            "\u{1b}[2J".repeat(500),
            format!("x{}", "€".repeat(400)),
        ] {
            let note = note(&text);
            assert!(
                note.len() <= NOTE && note.len() > NOTE - 8 && note.ends_with('…'),
                "{}",
                note.len()
            );
            assert!(!note.chars().any(char::is_control));
        }
        assert_eq!(note("it's\n\"so\""), "it's\\n\"so\"");
    }

    #[test]
    fn stable_hash_matches_published_fnv_values() {
        // The published test values of FNV-1a.
        assert_eq!(stable_hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
