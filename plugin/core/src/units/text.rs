//! Functions that safely print text from users, pods or other programs.

/// Escapes a name from an untrusted source, so that it has one line and no control characters.
/// Keeps up to 253 characters, the longest name in Kubernetes.
pub fn printable(name: &str) -> String {
    name.chars().take(253).flat_map(char::escape_debug).collect()
}

/// Shortens text from an untrusted source to one line without control characters.
pub fn excerpt(text: &str) -> String {
    harmless(text, 64, &[])
}

/// Escapes characters of untrusted text that a terminal would interpret, and keeps at most `most`
/// characters. Does not escape the characters in `kept`.
pub fn harmless(text: &str, most: usize, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for character in text.chars().take(most) {
        if kept.contains(&character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_debug());
        }
    }
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_escape_newlines_and_truncate_text() {
        assert_eq!(excerpt("a\nb"), "a\\nb");
        assert_eq!(excerpt(&"x".repeat(1000)).chars().count(), 65);
    }
}
