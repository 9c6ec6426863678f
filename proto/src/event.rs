//! The set of events that a plugin subscribes to.

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
/// In a message, bit N - 1 stands for [`Event`] number N. A plugin cannot send an empty set,
/// because runtimes interpret 0 as all events.
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
    /// The empty set.
    pub const NONE: Self = Self(0);
    /// The runtime has started a pod sandbox.
    pub const RUN_POD_SANDBOX: Self = Self::of(Event::RUN_POD_SANDBOX);
    /// The runtime has stopped a pod sandbox.
    pub const STOP_POD_SANDBOX: Self = Self::of(Event::STOP_POD_SANDBOX);
    /// The runtime has removed a pod sandbox.
    pub const REMOVE_POD_SANDBOX: Self = Self::of(Event::REMOVE_POD_SANDBOX);
    /// The runtime is about to create a container.
    pub const CREATE_CONTAINER: Self = Self::of(Event::CREATE_CONTAINER);
    /// The runtime has created a container.
    pub const POST_CREATE_CONTAINER: Self = Self::of(Event::POST_CREATE_CONTAINER);
    /// The runtime is about to start a container.
    pub const START_CONTAINER: Self = Self::of(Event::START_CONTAINER);
    /// The runtime has started a container.
    pub const POST_START_CONTAINER: Self = Self::of(Event::POST_START_CONTAINER);
    /// The runtime is about to change the resources of a container.
    pub const UPDATE_CONTAINER: Self = Self::of(Event::UPDATE_CONTAINER);
    /// The runtime has changed the resources of a container.
    pub const POST_UPDATE_CONTAINER: Self = Self::of(Event::POST_UPDATE_CONTAINER);
    /// The runtime has stopped a container or is about to stop it.
    pub const STOP_CONTAINER: Self = Self::of(Event::STOP_CONTAINER);
    /// The runtime has removed a container.
    pub const REMOVE_CONTAINER: Self = Self::of(Event::REMOVE_CONTAINER);
    /// The runtime is about to change the resources of a pod. Needs NRI 0.9.1 or newer.
    pub const UPDATE_POD_SANDBOX: Self = Self::of(Event::UPDATE_POD_SANDBOX);
    /// The runtime has changed the resources of a pod. Needs NRI 0.9.1 or newer.
    pub const POST_UPDATE_POD_SANDBOX: Self = Self::of(Event::POST_UPDATE_POD_SANDBOX);
    /// The runtime asks plugins to validate the combined adjustments of all plugins. Needs NRI 0.10
    /// or newer.
    pub const VALIDATE_CONTAINER_ADJUSTMENT: Self = Self::of(Event::VALIDATE_CONTAINER_ADJUSTMENT);

    const fn of(event: Event) -> Self {
        Self(1 << (event as i32 - 1))
    }

    /// Returns the set of the first `count` events, by number.
    pub(crate) const fn first(count: u32) -> Self {
        Self(((1_u32 << count) - 1) as i32)
    }

    /// Returns the set as an integer, as in `ConfigureResponse.events`.
    pub const fn bits(self) -> i32 {
        self.0
    }

    /// Returns the set with these bits. Unknown bits are kept.
    pub const fn from_bits(bits: i32) -> Self {
        Self(bits)
    }

    /// Returns whether this set contains every event of `other`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns whether this set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the events of this set that are not in `other`.
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
