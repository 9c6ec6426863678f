//! Unit properties that systemd writes to cgroup files together with the protection.

use std::collections::HashMap;

use crate::cgroup::beneath::open_beneath;
use crate::cgroup::directory::Cgroup;

/// Files that systemd rewrites together with the protection, each with the property that determines
/// its value. The list does not contain `cpu.max`, because two properties determine its value.
pub(super) const CARRIED: [(&str, &str); 6] = [
    ("memory.high", "MemoryHigh"),
    ("memory.max", "MemoryMax"),
    ("memory.swap.max", "MemorySwapMax"),
    ("memory.zswap.max", "MemoryZSwapMax"),
    ("cpu.weight", "CPUWeight"),
    ("pids.max", "TasksMax"),
];

/// Properties for the memory limit and the CPU limit.
pub(super) const LIMITS: [&str; 2] = ["MemoryMax", "CPUQuotaPerSecUSec"];

/// systemd's value for "none" and "not set". Files contain `max` instead.
pub(super) const INFINITY: u64 = u64::MAX;

/// One second in microseconds. The values in `cpu.max` are also in microseconds.
const A_SECOND: u64 = 1_000_000;

/// Returns each property whose file has a different value, together with the value in the file.
pub(super) fn carried(
    properties: &HashMap<String, u64>,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<(&'static str, u64)> {
    let mut carried = Vec::new();
    for (file, property) in CARRIED {
        // A missing file means that the controller is not enabled. A missing property means that
        // this systemd version is too old for the file and does not write it.
        if let Some(text) = read(file)
            && let Some(in_force) = number(&text)
            && let Some(&value) = properties.get(property)
            && in_force != in_file(file, value)
        {
            // systemd rejects 0 for these properties but accepts 1 byte. The kernel rounds 1 byte
            // down to 0 pages in the file.
            let least = u64::from(matches!(property, "MemoryHigh" | "MemoryMax"));
            carried.push((property, in_force.max(least)));
        }
    }
    // If MemoryMax is set without MemorySwapMax, systemd changes a swap limit of 0 to "max"
    // (observed with systemd 257 and 262).
    if carried.iter().any(|(property, _)| *property == "MemoryMax")
        && !carried.iter().any(|(property, _)| *property == "MemorySwapMax")
        && let Some(in_force) = read("memory.swap.max").and_then(|text| number(&text))
    {
        carried.push(("MemorySwapMax", in_force));
    }
    let (quota, period) = ("CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec");
    if let Some(text) = read("cpu.max")
        && let Some((file_quota, file_period)) = text.split_once(' ')
        && let (Some(file_quota), Some(file_period)) = (number(file_quota), number(file_period))
        && let (Some(&property_quota), Some(&property_period)) =
            (properties.get(quota), properties.get(period))
    {
        let property_period = if property_period == INFINITY { 100_000 } else { property_period };
        if file_quota == INFINITY {
            // Without a quota the period has no meaning.
            if property_quota != INFINITY {
                carried.push((quota, INFINITY));
            }
        } else if property_quota == INFINITY
            || file_period != property_period
            || file_quota != property_quota.saturating_mul(property_period) / A_SECOND
        {
            // Round up, because systemd rounds down when it computes the quota for the file.
            carried.push((quota, file_quota.saturating_mul(A_SECOND).div_ceil(file_period.max(1))));
            if file_period != property_period {
                carried.push((period, file_period));
            }
        }
    }
    carried
}

/// Returns the number that the file contains after systemd has applied `value` to the cgroup.
fn in_file(file: &str, value: u64) -> u64 {
    let whole_pages = |value: u64| value & !(rustix::param::page_size() as u64 - 1);
    match file {
        "cpu.weight" if value == INFINITY => 100,
        "cpu.weight" | "pids.max" => value,
        _ if value >= whole_pages(i64::MAX.unsigned_abs()) => INFINITY,
        _ => whole_pages(value),
    }
}

fn number(text: &str) -> Option<u64> {
    match text.trim_end() {
        "max" => Some(INFINITY),
        number => number.parse().ok(),
    }
}

pub(super) fn read(cgroup: &Cgroup, file: &str) -> Option<String> {
    let file = open_beneath(
        &cgroup.directory,
        file,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
    )
    .ok()?;
    let mut buffer = [0; 64];
    let length = rustix::io::read(&file, &mut buffer).ok()?;
    String::from_utf8(buffer[..length].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_differing_cpu_quota_is_carried() {
        let carried = |file: &str, quota: u64, period: u64| {
            let properties = HashMap::from(
                [("CPUQuotaPerSecUSec", quota), ("CPUQuotaPeriodUSec", period)]
                    .map(|(name, value)| (name.to_owned(), value)),
            );
            carried(&properties, |name| (name == "cpu.max").then(|| file.to_owned()))
        };
        let (quota, period) = ("CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec");
        assert_eq!(carried("max 50000\n", INFINITY, INFINITY), []);
        assert_eq!(carried("50000 100000\n", 500_000, INFINITY), []);
        assert_eq!(carried("50000 100000\n", 500_000, 100_000), []);
        assert_eq!(carried("max 100000\n", 500_000, INFINITY), [(quota, INFINITY)]);
        // For 0.505 CPUs, runc sets this property, because it rounds up to a whole percentage.
        assert_eq!(carried("50500 100000\n", 510_000, INFINITY), [(quota, 505_000)]);
        assert_eq!(
            carried("6250 50000\n", INFINITY, INFINITY),
            [(quota, 125_000), (period, 50_000)]
        );
        // 33333 of 99999 µs is a third, but a third of a second is no whole number of µs.
        assert_eq!(carried("33333 99999\n", INFINITY, 99_999), [(quota, 333_334)]);
        assert_eq!(carried("33333 99999\n", 333_334, 99_999), []);
        for broken in ["", "max", "a b", "1 0"] {
            let _ = carried(broken, 1, 0);
        }
    }

    #[test]
    fn huge_memory_values_mean_no_limit() {
        assert_eq!(in_file("memory.max", INFINITY), INFINITY);
        assert_eq!(in_file("memory.max", i64::MAX.unsigned_abs()), INFINITY);
        assert_eq!(in_file("memory.max", 0), 0);
        assert_eq!(in_file("pids.max", 1001), 1001);
    }
}
