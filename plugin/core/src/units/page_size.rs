//! Page size of a machine, and functions that round amounts to whole pages.

use std::fmt;

use super::bytes::Bytes;

/// Size of a page in bytes, a power of two.
///
/// Kubernetes rounds to the page size of the machine (`os.Getpagesize()`), which is 4096 on amd64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(u64);

impl PageSize {
    /// 4096 bytes: the page size of amd64, and the most common page size of arm64.
    pub const KIB4: Self = Self(4096);

    /// Creates a page size. Returns `None` unless `bytes` is a power of two between 1 and 2^30.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes <= 1 << 30 { Some(Self(bytes)) } else { None }
    }

    /// Returns the size in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Rounds a limit down to whole pages, as the kernel does.
    pub const fn round_down(self, bytes: Bytes) -> Bytes {
        Bytes::new(bytes.get() / self.0 * self.0)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Bytes {
    /// Rounds down to whole pages, as the kernel does with values in `memory.*` files.
    #[must_use]
    pub const fn floor_to(self, page: PageSize) -> Self {
        Self::new(self.get() & !(page.0 - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_powers_of_two() {
        assert_eq!(PageSize::new(0), None);
        assert_eq!(PageSize::new(4095), None);
        assert_eq!(PageSize::new(65536).map(PageSize::get), Some(65536));
        assert_eq!(Bytes::new(8191).floor_to(PageSize::KIB4), Bytes::new(4096));
    }
}
