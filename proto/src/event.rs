//! Which events a plugin wants.

use std::fmt;
use std::ops::{BitAnd, BitOr};

use crate::api::Event;

const NAMES: [(EventMask, &str); 14] = [
    (EventMask::RUN_POD_SANDBOX, "RunPodSandbox"),
    (EventMask::STOP_POD_SANDBOX, "StopPodSandbox"),
    (EventMask::REMOVE_POD_SANDBOX, "RemovePodSandbox"),
    (EventMask::CREATE_CONTAINER, "CreateContainer"),
    (EventMask::POST_CREATE_CONTAINER, "PostCreateContainer"),
    (EventMask::START_CONTAINER, "StartContainer"),
    (EventMask::POST_START_CONTAINER, "PostStartContainer"),
    (EventMask::UPDATE_CONTAINER, "UpdateContainer"),
    (EventMask::POST_UPDATE_CONTAINER, "PostUpdateContainer"),
    (EventMask::STOP_CONTAINER, "StopContainer"),
    (EventMask::REMOVE_CONTAINER, "RemoveContainer"),
    (EventMask::UPDATE_POD_SANDBOX, "UpdatePodSandbox"),
    (EventMask::POST_UPDATE_POD_SANDBOX, "PostUpdatePodSandbox"),
    (EventMask::VALIDATE_CONTAINER_ADJUSTMENT, "ValidateContainerAdjustment"),
];

/// A set of events.
///
/// On the wire bit N - 1 stands for [`Event`] number N. An empty set cannot be sent: runtimes take 0 for "all events".
///
/// ```
/// use nri::EventMask;
///
/// let wanted = EventMask::CREATE_CONTAINER | EventMask::REMOVE_CONTAINER;
/// assert_eq!(wanted.bits(), 0b100_0000_1000);
/// assert_eq!(wanted.to_string(), "CreateContainer,RemoveContainer");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct EventMask(i32);

impl EventMask {
    /// No event.
    pub const NONE: Self = Self(0);
    /// A pod sandbox was started.
    pub const RUN_POD_SANDBOX: Self = Self::of(Event::RUN_POD_SANDBOX);
    /// A pod sandbox was stopped.
    pub const STOP_POD_SANDBOX: Self = Self::of(Event::STOP_POD_SANDBOX);
    /// A pod sandbox was removed.
    pub const REMOVE_POD_SANDBOX: Self = Self::of(Event::REMOVE_POD_SANDBOX);
    /// A container is about to be created.
    pub const CREATE_CONTAINER: Self = Self::of(Event::CREATE_CONTAINER);
    /// A container was created.
    pub const POST_CREATE_CONTAINER: Self = Self::of(Event::POST_CREATE_CONTAINER);
    /// A container is about to be started.
    pub const START_CONTAINER: Self = Self::of(Event::START_CONTAINER);
    /// A container was started.
    pub const POST_START_CONTAINER: Self = Self::of(Event::POST_START_CONTAINER);
    /// The resources of a container are about to change.
    pub const UPDATE_CONTAINER: Self = Self::of(Event::UPDATE_CONTAINER);
    /// The resources of a container have changed.
    pub const POST_UPDATE_CONTAINER: Self = Self::of(Event::POST_UPDATE_CONTAINER);
    /// A container has stopped or is about to be stopped.
    pub const STOP_CONTAINER: Self = Self::of(Event::STOP_CONTAINER);
    /// A container was removed.
    pub const REMOVE_CONTAINER: Self = Self::of(Event::REMOVE_CONTAINER);
    /// The resources of a pod are about to change. Runtimes with NRI 0.9.1 or newer.
    pub const UPDATE_POD_SANDBOX: Self = Self::of(Event::UPDATE_POD_SANDBOX);
    /// The resources of a pod have changed. Runtimes with NRI 0.9.1 or newer.
    pub const POST_UPDATE_POD_SANDBOX: Self = Self::of(Event::POST_UPDATE_POD_SANDBOX);
    /// The adjustments of all plugins are to be judged. Runtimes with NRI 0.10 or newer.
    pub const VALIDATE_CONTAINER_ADJUSTMENT: Self = Self::of(Event::VALIDATE_CONTAINER_ADJUSTMENT);

    const fn of(event: Event) -> Self {
        Self(1 << (event as i32 - 1))
    }

    /// The first `count` events, by number.
    pub(crate) const fn first(count: u32) -> Self {
        Self(((1_u32 << count) - 1) as i32)
    }

    /// The set as it goes over the wire, in `ConfigureResponse.events`.
    pub const fn bits(self) -> i32 {
        self.0
    }

    /// The set with these bits, known or not.
    pub const fn from_bits(bits: i32) -> Self {
        Self(bits)
    }

    /// True when every event of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when no event is in this set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The events of this set that are not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for EventMask {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for EventMask {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl From<Event> for EventMask {
    fn from(event: Event) -> Self {
        match event {
            Event::UNKNOWN | Event::LAST => Self::NONE,
            event => Self::of(event),
        }
    }
}

impl fmt::Display for EventMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut separator = "";
        for (event, name) in NAMES {
            if self.contains(event) {
                write!(f, "{separator}{name}")?;
                separator = ",";
                rest = rest.without(event);
            }
        }
        if !rest.is_empty() {
            write!(f, "{separator}{:#x}", rest.0)?;
        } else if self.is_empty() {
            f.write_str("none")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_wire() {
        assert_eq!(EventMask::RUN_POD_SANDBOX.bits(), 1);
        assert_eq!(EventMask::REMOVE_CONTAINER.bits(), 1 << 10);
        assert_eq!(EventMask::VALIDATE_CONTAINER_ADJUSTMENT.bits(), 1 << 13);
        assert_eq!(EventMask::first(11).bits(), 0x7ff);
    }

    #[test]
    fn an_unknown_bit_is_printed_as_a_number() {
        assert_eq!(EventMask::from_bits(1 << 20 | 1).to_string(), "RunPodSandbox,0x100000");
        assert_eq!(EventMask::NONE.to_string(), "none");
    }

    #[test]
    fn unknown_and_last_are_no_events() {
        assert!(EventMask::from(Event::UNKNOWN).is_empty());
        assert!(EventMask::from(Event::LAST).is_empty());
    }
}
