//! Failure of a command and its exit code.

/// The failure of a command. Each variant has its own exit code.
pub(crate) enum Failure {
    /// A failure that the user did not cause: exit code 1.
    Runtime(anyhow::Error),
    /// Invalid input from the user: exit code 2.
    Usage(anyhow::Error),
}

impl Failure {
    /// Returns the error and the exit code.
    pub(super) fn into_parts(self) -> (anyhow::Error, u8) {
        match self {
            Self::Runtime(error) => (error, 1),
            Self::Usage(error) => (error, 2),
        }
    }
}
