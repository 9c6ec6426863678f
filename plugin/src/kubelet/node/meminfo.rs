//! Memory of the machine, from /proc/meminfo.

use plimsoll_core::units::Bytes;

/// Values from /proc/meminfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemInfo {
    /// `MemTotal`.
    pub total: Bytes,
    /// Memory set aside as hugepages of any size (`Hugetlb`). Kernels before 4.19 report only
    /// hugepages of the default size.
    pub hugepages: Bytes,
    /// `MemAvailable`: memory that programs could use without swapping. 0 if the line is missing.
    pub available: Bytes,
}

impl MemInfo {
    /// Returns the total memory without hugepages.
    pub fn usable(self) -> Bytes {
        self.total.saturating_sub(self.hugepages)
    }

    /// Parses /proc/meminfo.
    ///
    /// # Errors
    ///
    /// Fails if there is no readable `MemTotal`. The error text is a whole sentence. Other lines
    /// may be missing or malformed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        let kib = |amount: u64| Bytes::new(amount.saturating_mul(1024));
        let total = field("MemTotal").filter(|&total| total > 0).map(kib);
        let hugepages = field("Hugetlb").map(kib).or_else(|| {
            let size = field("Hugepagesize")?;
            field("HugePages_Total").map(|pages| kib(pages.saturating_mul(size)))
        });
        match total {
            Some(total) => Ok(Self {
                total,
                hugepages: hugepages.unwrap_or(Bytes::ZERO),
                available: field("MemAvailable").map_or(Bytes::ZERO, kib),
            }),
            None => Err("expected a line such as 'MemTotal: 16303428 kB'".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn mib(amount: u64) -> Bytes {
        Bytes::new(amount * MIB)
    }

    #[test]
    fn old_kernels_have_hugepages_of_one_size() {
        let meminfo =
            MemInfo::parse("MemTotal: 1024 kB\nHugePages_Total: 2\nHugepagesize: 128 kB\n");
        assert_eq!(
            meminfo,
            Ok(MemInfo { total: mib(1), hugepages: Bytes::new(256 << 10), available: Bytes::ZERO })
        );
    }

    proptest! {
        #[test]
        fn any_text_is_meminfo_or_an_error(text in "(MemTotal|Hugetlb|HugePages_Total|\
            Hugepagesize|:| |[0-9]{1,22}|kB|\n|.){0,20}") {
            let _ = MemInfo::parse(&text);
        }
    }
}
