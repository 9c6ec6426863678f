//! The Debian releases of the nodes.

use std::fmt;

/// The Debian release of a node, which determines the versions of runc, systemd and kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Distro {
    /// Debian 14, which is still in development.
    Forky,
    /// Debian 13.
    Trixie,
}

impl Distro {
    /// Returns the suite's name in the Debian archive.
    pub fn suite(self) -> &'static str {
        match self {
            Distro::Forky => "forky",
            Distro::Trixie => "trixie",
        }
    }
}

impl fmt::Display for Distro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.suite())
    }
}
