//! Exact sums of protection, and the part of the needed protection that the budget covers.

use crate::pod::QosClass;
use crate::policy::protection::Protection;
use crate::units::Bytes;

/// Exact sum of protections. A node has so few containers and pods that the sum cannot overflow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    pub(super) min: u128,
    pub(super) low: u128,
}

impl Sum {
    /// Replaces one addend.
    pub(super) fn replace(&mut self, last: Protection, new: Protection) {
        self.replace_min(last.min, new.min);
        self.low = self.low + u128::from(new.low.get()) - u128::from(last.low.get());
    }

    pub(super) fn replace_min(&mut self, last: Bytes, new: Bytes) {
        self.min = self.min + u128::from(new.get()) - u128::from(last.get());
    }

    /// Returns the sum. Lowers `min` and `low` to at most [`Bytes::MAX`].
    pub(super) fn protection(&self) -> Protection {
        Protection { min: saturated(self.min), low: saturated(self.low) }
    }
}

pub(super) fn saturated(bytes: u128) -> Bytes {
    u64::try_from(bytes).map_or(Bytes::MAX, Bytes::new)
}

pub(super) fn total(protection: Protection) -> u128 {
    u128::from(protection.min.get()) + u128::from(protection.low.get())
}

/// Protection that a group of pods needs (`asked`), and the part of it that the pods get.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Share {
    pub(super) asked: u128,
    pub(super) granted: u128,
}

impl Share {
    pub(super) fn is_short(self) -> bool {
        self.granted < self.asked
    }

    /// Returns whether every pod would get the same protection with either share.
    pub(super) fn is_same_for_all(self, other: Self) -> bool {
        self == other || !self.is_short() && !other.is_short()
    }

    /// Returns the protection that a pod gets if it needs `asked`. The amounts in `asked` and the
    /// granted amount are below 2^63, so their products cannot overflow.
    pub(super) fn part(self, asked: Protection) -> Protection {
        if !self.is_short() {
            return asked;
        }
        let part = |bytes: Bytes| saturated(u128::from(bytes.get()) * self.granted / self.asked);
        Protection { min: part(asked.min), low: part(asked.low) }
    }
}

pub(super) struct Shares {
    pub(super) guaranteed: Share,
    pub(super) others: Share,
}

impl Shares {
    pub(super) fn of(&self, class: QosClass) -> Share {
        match class {
            QosClass::Guaranteed => self.guaranteed,
            QosClass::Burstable | QosClass::BestEffort => self.others,
        }
    }
}
