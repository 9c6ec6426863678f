//! Whether an action was done, or only planned in observe mode.

/// Whether an action was done, or only planned in observe mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReportMode {
    /// The action was done, or the incident is a plain fact.
    #[default]
    Done,
    /// Observe mode: the action was not done.
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
