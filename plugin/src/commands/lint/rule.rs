//! Rules that the command checks manifests against, and the severity of each rule.

use std::fmt;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The finding needs no correction.
    Note,
    /// Kubernetes accepts the value, but the author probably meant another value.
    Warning,
    /// The file cannot be read, or Kubernetes would refuse the object.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Rule that the command checks manifests against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The file cannot be read.
    Unreadable,
    /// The document is not YAML or JSON.
    Syntax,
    /// An object that is a pod or has a pod template is invalid.
    Invalid,
    /// The memory request is above the limit.
    MemoryRequestAboveLimit,
    /// The memory limit divided by the memory request exceeds the maximum ratio.
    LimitRequestRatio,
    /// The memory request is missing.
    MemoryRequestMissing,
    /// The memory limit is missing.
    MemoryLimitMissing,
    /// An annotation of the domain `plimsoll.nri.io` has no effect.
    AnnotationIgnored,
    /// A document with a pod has a field twice.
    DuplicateField,
    /// A container has a limit but no request, so Kubernetes uses the limit as the request too.
    MemoryRequestDefaulted,
}

impl Rule {
    /// All rules, the most important first.
    pub const ALL: [Self; 10] = [
        Self::Unreadable,
        Self::Syntax,
        Self::Invalid,
        Self::MemoryRequestAboveLimit,
        Self::LimitRequestRatio,
        Self::MemoryRequestMissing,
        Self::MemoryLimitMissing,
        Self::AnnotationIgnored,
        Self::DuplicateField,
        Self::MemoryRequestDefaulted,
    ];

    /// Returns the name of the rule, which stays the same in all versions.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Syntax => "syntax",
            Self::Invalid => "invalid",
            Self::MemoryRequestAboveLimit => "memory-request-above-limit",
            Self::LimitRequestRatio => "limit-request-ratio",
            Self::MemoryRequestMissing => "memory-request-missing",
            Self::MemoryLimitMissing => "memory-limit-missing",
            Self::AnnotationIgnored => "annotation-ignored",
            Self::DuplicateField => "duplicate-field",
            Self::MemoryRequestDefaulted => "memory-request-defaulted",
        }
    }

    /// Returns the severity of the rule's findings.
    pub const fn level(self) -> Level {
        match self {
            Self::Unreadable | Self::Syntax | Self::Invalid | Self::MemoryRequestAboveLimit => {
                Level::Error
            }
            Self::LimitRequestRatio
            | Self::MemoryRequestMissing
            | Self::MemoryLimitMissing
            | Self::AnnotationIgnored
            | Self::DuplicateField => Level::Warning,
            Self::MemoryRequestDefaulted => Level::Note,
        }
    }

    /// Returns a short description of the rule.
    pub const fn summary(self) -> &'static str {
        match self {
            Self::Unreadable => "a file that cannot be read",
            Self::Syntax => "a document that is not YAML or JSON",
            Self::Invalid => "a pod without containers, or with invalid values",
            Self::MemoryRequestAboveLimit => "a memory request above the limit",
            Self::LimitRequestRatio => "a memory limit too many times the request",
            Self::MemoryRequestMissing => "a container without a memory request",
            Self::MemoryLimitMissing => "a container without a memory limit",
            Self::AnnotationIgnored => "an annotation of plimsoll.nri.io without effect",
            Self::DuplicateField => "a field that occurs twice",
            Self::MemoryRequestDefaulted => "a memory limit without a request",
        }
    }

    /// Returns the consequence of a violation, and the advice.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Unreadable => "The file was not checked. Correct its path or its permissions.",
            Self::Syntax => {
                "The document was not checked. Correct the syntax. Render a template first."
            }
            Self::Invalid => "Kubernetes would refuse the pod. Correct the field.",
            Self::MemoryRequestAboveLimit => {
                "Kubernetes would refuse the pod. Lower the request or raise the limit."
            }
            Self::LimitRequestRatio => {
                "The scheduler counts only the request, but the container may use up to the \
                 limit. The node may run short of memory, and the kernel protects only the \
                 request. Raise the request or lower the limit."
            }
            Self::MemoryRequestMissing => {
                "The scheduler counts nothing for the container, and the kernel protects none of \
                 its memory. Request the memory that the container needs."
            }
            Self::MemoryLimitMissing => {
                "The container may use all memory of the node, and the kernel throttles it only \
                 near node allocatable. Set a limit."
            }
            Self::AnnotationIgnored => {
                "The container gets the values that it would get without the annotation. Correct \
                 or remove the annotation."
            }
            Self::DuplicateField => "Kubernetes uses only the last value. Remove the other values.",
            Self::MemoryRequestDefaulted => {
                "Kubernetes uses the limit as the request: the kernel protects all of it, and \
                 memory.high is not set. Set a request if it should be below the limit."
            }
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_names_are_unique_and_lowercase() {
        let mut ids = Rule::ALL.map(Rule::id);
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(ids.iter().all(|id| {
            id.chars().all(|character| character.is_ascii_lowercase() || character == '-')
        }));
    }
}
