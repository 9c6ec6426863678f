//! The name by which a plugin registers.

use std::fmt;

/// A plugin's index and name, which together identify it to the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    index: String,
    name: String,
}

/// The error for an index or name that no runtime accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidIdentity {
    /// The index is not two digits.
    #[error("{0:?} is not a plugin index, expected two digits as in 90")]
    Index(String),
    /// The name is empty or has characters that are not allowed.
    #[error("{0:?} is not a plugin name, expected letters, digits and any of _ . + -")]
    Name(String),
}

impl Identity {
    /// Returns an identity. Runtimes order plugins by `index`, which has two digits. `name` has the
    /// form `[a-zA-Z0-9_.+-]+`.
    ///
    /// # Errors
    ///
    /// Fails if the index or the name is invalid.
    pub fn new(index: impl Into<String>, name: impl Into<String>) -> Result<Self, InvalidIdentity> {
        let (index, name) = (index.into(), name.into());
        if index.len() != 2 || !index.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidIdentity::Index(index));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(InvalidIdentity::Name(name));
        }
        Ok(Self { index, name })
    }
}

impl Identity {
    /// Returns the identity that a runtime gave to a launched plugin. Does not check the identity,
    /// because the runtime requires exactly this identity.
    pub(crate) fn given_by_runtime(index: String, name: String) -> Self {
        Self { index, name }
    }

    /// Returns the index.
    pub fn index(&self) -> &str {
        &self.index
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}
