//! The set of events that a plugin subscribes to.

use std::fmt;

use bitflags::bitflags;

use crate::api::Event;

bitflags! {
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
    pub struct EventMask: i32 {
        /// The runtime has started a pod sandbox.
        const RUN_POD_SANDBOX = bit(Event::RUN_POD_SANDBOX);
        /// The runtime has stopped a pod sandbox.
        const STOP_POD_SANDBOX = bit(Event::STOP_POD_SANDBOX);
        /// The runtime has removed a pod sandbox.
        const REMOVE_POD_SANDBOX = bit(Event::REMOVE_POD_SANDBOX);
        /// The runtime is about to create a container.
        const CREATE_CONTAINER = bit(Event::CREATE_CONTAINER);
        /// The runtime has created a container.
        const POST_CREATE_CONTAINER = bit(Event::POST_CREATE_CONTAINER);
        /// The runtime is about to start a container.
        const START_CONTAINER = bit(Event::START_CONTAINER);
        /// The runtime has started a container.
        const POST_START_CONTAINER = bit(Event::POST_START_CONTAINER);
        /// The runtime is about to change the resources of a container.
        const UPDATE_CONTAINER = bit(Event::UPDATE_CONTAINER);
        /// The runtime has changed the resources of a container.
        const POST_UPDATE_CONTAINER = bit(Event::POST_UPDATE_CONTAINER);
        /// The runtime has stopped a container or is about to stop it.
        const STOP_CONTAINER = bit(Event::STOP_CONTAINER);
        /// The runtime has removed a container.
        const REMOVE_CONTAINER = bit(Event::REMOVE_CONTAINER);
        /// The runtime is about to change the resources of a pod. This event needs NRI 0.9.1 or
        /// newer.
        const UPDATE_POD_SANDBOX = bit(Event::UPDATE_POD_SANDBOX);
        /// The runtime has changed the resources of a pod. This event needs NRI 0.9.1 or newer.
        const POST_UPDATE_POD_SANDBOX = bit(Event::POST_UPDATE_POD_SANDBOX);
        /// The runtime asks plugins to validate the combined adjustments of all plugins. This event
        /// needs NRI 0.10 or newer.
        const VALIDATE_CONTAINER_ADJUSTMENT = bit(Event::VALIDATE_CONTAINER_ADJUSTMENT);
        // Allow unknown bits, because a runtime may know newer events.
        const _ = !0;
    }
}

const fn bit(event: Event) -> i32 {
    1 << (event as i32 - 1)
}

/// Returns the protocol's name of an event, for example `CreateContainer` for the flag
/// `CREATE_CONTAINER`.
fn protocol_name(flag: &str) -> impl Iterator<Item = char> {
    flag.split('_').flat_map(|word| {
        word.char_indices().map(|(at, char)| if at == 0 { char } else { char.to_ascii_lowercase() })
    })
}

impl EventMask {
    /// Returns the set of the `count` events with the lowest numbers.
    pub(crate) const fn first(count: u32) -> Self {
        Self::from_bits_retain(((1_u32 << count) - 1) as i32)
    }
}

impl From<Event> for EventMask {
    fn from(event: Event) -> Self {
        match event {
            Event::UNKNOWN | Event::LAST => Self::empty(),
            event => Self::from_bits_retain(bit(event)),
        }
    }
}

impl fmt::Display for EventMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut names = self.iter_names();
        let mut separator = "";
        for (name, _) in names.by_ref() {
            f.write_str(separator)?;
            protocol_name(name).try_for_each(|char| fmt::Write::write_char(f, char))?;
            separator = ",";
        }
        let unknown = names.remaining();
        if unknown.is_empty() { Ok(()) } else { write!(f, "{separator}{:#x}", unknown.bits()) }
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
    fn an_unknown_bit_is_printed_in_hex() {
        assert_eq!(EventMask::from_bits_retain(1 << 20 | 1).to_string(), "RunPodSandbox,0x100000");
        assert_eq!(EventMask::empty().to_string(), "none");
    }

    #[test]
    fn unknown_and_last_are_no_events() {
        assert!(EventMask::from(Event::UNKNOWN).is_empty());
        assert!(EventMask::from(Event::LAST).is_empty());
    }
}
