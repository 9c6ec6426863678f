//! Version numbers of programs and of the kernel.

use std::fmt;

/// Version that consists of a major, a minor and a patch number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub(crate) u64, pub(crate) u64, pub(crate) u64);

impl Version {
    /// Returns the first word that is a version, such as `v2.1.9`, `"1.34.0"` or
    /// `6.12.0-cloud-amd64`. A missing patch number counts as 0.
    pub(crate) fn find(text: &str) -> Option<Self> {
        text.split_ascii_whitespace().find_map(|word| {
            let word = word.trim_start_matches(['v', '"']);
            let mut numbers = word.splitn(3, '.').map(|part| {
                let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
                part[..digits].parse().ok()
            });
            Some(Self(numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, expected) in [
            ("containerd github.com/containerd/containerd/v2 v2.1.9 abc", Some(Version(2, 1, 9))),
            (
                "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+b4",
                Some(Version(1, 7, 24)),
            ),
            ("\"1.34.0+dev\"", Some(Version(1, 34, 0))),
            ("6.12", Some(Version(6, 12, 0))),
            ("6", None),
            ("99999999999999999999.1", None),
        ] {
            assert_eq!(Version::find(text), expected, "{text}");
        }
    }
}
