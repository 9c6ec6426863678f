//! Whether the plugin took an action, or only planned it in observe mode.

/// Whether the plugin took an action, or only planned it in observe mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReportMode {
    /// The plugin took the action, or the incident has no action.
    #[default]
    Done,
    /// Observe mode: the plugin did not take the action.
    Planned,
}

impl ReportMode {
    /// Returns the message prefix of a planned action.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Done => "",
            Self::Planned => "observe mode, not done: ",
        }
    }
}
