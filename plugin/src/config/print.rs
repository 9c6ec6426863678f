//! Configuration as an equivalent file.

use std::fmt;

use plimsoll_core::policy::rescue::OomRescue;

use crate::config::brake::Bounds;
use crate::config::choices::NodeAllocatable;
use crate::config::model::Config;
use crate::config::names::*;
use crate::config::reserved::Reserved;

/// Writes the effective configuration as an equivalent file.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MODE}: {}", self.mode)?;
        match self.policy.throttling {
            // Always write a decimal point, as in the documentation.
            Some(factor) => writeln!(f, "{THROTTLING}: {:?}", factor.get())?,
            None => writeln!(f, "{THROTTLING}: null")?,
        }
        writeln!(f, "{RESERVATION}: {}", self.policy.reservation)?;
        writeln!(f, "{HEADROOM}: {}", self.policy.headroom.quantity())?;
        match self.node_allocatable {
            NodeAllocatable::Auto => writeln!(f, "{ALLOCATABLE}: auto")?,
            NodeAllocatable::Fixed(bytes) => writeln!(f, "{ALLOCATABLE}: {}", bytes.quantity())?,
        }
        for Reserved { owner, cgroup, memory } in &self.reserved {
            let (cgroup_field, memory_field) = owner.fields();
            // A cgroup's name may contain any character. Quote the name as JSON, which is valid
            // YAML.
            writeln!(f, "{cgroup_field}: {}", serde_json::Value::from(cgroup.to_string()))?;
            writeln!(f, "{memory_field}: {{memory: {}}}", memory.quantity())?;
        }
        match self.node_guard {
            Some(kept) => writeln!(f, "{GUARD}: {}", kept.quantity())?,
            None => writeln!(f, "{GUARD}: null")?,
        }
        match self.throttle_deadline {
            Some(deadline) => writeln!(f, "{DEADLINE}: {}", humantime::format_duration(deadline))?,
            None => writeln!(f, "{DEADLINE}: null")?,
        }
        writeln!(f, "{SHRINK}: {}", self.shrink)?;
        writeln!(f, "{SHRINK_DEADLINE}: {}", humantime::format_duration(self.shrink_deadline))?;
        match &self.oom_rescue {
            Some(OomRescue { kills, window, factor, minimum, ceiling }) => {
                let (window, minimum) = (humantime::format_duration(*window), minimum.quantity());
                writeln!(
                    f,
                    "{RESCUE}: {{{KILLS}: {kills}, {WINDOW}: {window}, {FACTOR}: {factor:?}, {MINIMUM}: {minimum}, \
                     {CEILING}: {ceiling}}}"
                )?;
            }
            None => writeln!(f, "{RESCUE}: null")?,
        }
        writeln!(f, "{RAISE}: {}", self.raise_pod_limits)?;
        writeln!(f, "{REPAIR}: {}", self.repair)?;
        match &self.brake {
            Some(Bounds { repairs, conflicts, kills, window }) => {
                let window = humantime::format_duration(*window);
                writeln!(
                    f,
                    "{BRAKE}: {{{REPAIRS}: {repairs}, {CONFLICTS}: {conflicts}, {KILLS}: {kills}, {WINDOW}: {window}}}"
                )?;
            }
            None => writeln!(f, "{BRAKE}: null")?,
        }
        match self.max_limit_request_ratio {
            Some(ratio) => writeln!(f, "{RATIO}: {ratio:?}")?,
            None => writeln!(f, "{RATIO}: null")?,
        }
        match self.metrics_address {
            // Quotes are needed for the brackets of IPv6.
            Some(address) => writeln!(f, "{METRICS_ADDRESS}: \"{address}\"")?,
            None => writeln!(f, "{METRICS_ADDRESS}: null")?,
        }
        writeln!(f, "{CONTAINER_METRICS}: {}", self.container_metrics)?;
        match &self.kubeconfig {
            // Quote as JSON, as above.
            Some(path) => {
                writeln!(f, "{KUBECONFIG}: {}", serde_json::Value::from(path.to_string_lossy()))?
            }
            None => writeln!(f, "{KUBECONFIG}: null")?,
        }
        writeln!(f, "{LOG_LEVEL}: {}", self.log_level.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::time::Duration;

    use plimsoll_core::pod::CgroupPath;
    use plimsoll_core::policy::rescue::Ceiling;
    use plimsoll_core::policy::{Policy, ReservationPolicy, ThrottlingFactor};
    use plimsoll_core::units::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::config::choices::{LogLevel, Mode, Shrink};
    use crate::config::reserved::Owner;
    use crate::config::testing::parse;

    fn rescues() -> impl Strategy<Value = OomRescue> {
        let ceilings = prop_oneof![
            (1..=Bytes::MAX.get()).prop_map(|bytes| Ceiling::Limit(Bytes::new(bytes))),
            (1..=100u64).prop_map(Ceiling::Share),
        ];
        (1..=1000u32, 1..=1_000_000u64, 101..=1000u32, 0..=Bytes::MAX.get(), ceilings).prop_map(
            |(kills, window, hundredths, minimum, ceiling)| OomRescue {
                kills,
                window: Duration::from_millis(window),
                factor: f64::from(hundredths) / 100.0,
                minimum: Bytes::new(minimum),
                ceiling,
            },
        )
    }

    fn configs() -> impl Strategy<Value = Config> {
        (
            proptest::option::of(1u32..=1000),
            proptest::sample::select(&ReservationPolicy::ALL[..]),
            proptest::option::of(1..=Bytes::MAX.get()),
            0..=Bytes::MAX.get(),
            proptest::option::of(("[ -~]{1,20}", 1..=Bytes::MAX.get())),
            proptest::option::of(1..=1_000_000u64),
            (
                proptest::sample::select(&Shrink::ALL[..]),
                1..=1_000_000u64,
                proptest::option::of(rescues()),
                (proptest::sample::select(&Mode::ALL[..]), any::<bool>(), any::<bool>()),
                proptest::option::of((
                    1..=1_000_000u32,
                    1..=1_000_000u32,
                    1..=1_000_000u32,
                    1..=1_000_000u64,
                )),
            ),
            (
                proptest::option::of(1.0..1e9),
                proptest::option::of(
                    any::<std::net::IpAddr>().prop_map(|ip| SocketAddr::new(ip, 9477)),
                ),
                any::<bool>(),
                proptest::option::of(0..=Bytes::MAX.get()),
                proptest::option::of("/[ -~ü]{0,20}"),
            ),
            proptest::sample::select(&LogLevel::ALL[..]),
        )
            .prop_map(
                |(
                    thousandths,
                    reservation,
                    allocatable,
                    headroom,
                    system,
                    deadline,
                    shrink,
                    seen,
                    log_level,
                )| Config {
                    max_limit_request_ratio: seen.0,
                    metrics_address: seen.1,
                    container_metrics: seen.2,
                    // At least the sum of `reserved`.
                    node_guard: seen.3.map(|most| {
                        Bytes::new(system.as_ref().map_or(1, |(_, memory)| *memory).max(most))
                    }),
                    kubeconfig: seen.4.map(PathBuf::from),
                    throttle_deadline: deadline.map(Duration::from_millis),
                    shrink: shrink.0,
                    shrink_deadline: Duration::from_millis(shrink.1),
                    oom_rescue: shrink.2,
                    mode: shrink.3.0,
                    raise_pod_limits: shrink.2.is_some() || shrink.3.1,
                    repair: shrink.3.2,
                    brake: shrink.4.map(|(repairs, conflicts, kills, window)| Bounds {
                        repairs,
                        conflicts,
                        kills,
                        window: Duration::from_millis(window),
                    }),
                    policy: Policy {
                        throttling: thousandths.and_then(|thousandths| {
                            ThrottlingFactor::new(f64::from(thousandths) / 1000.0)
                        }),
                        reservation,
                        headroom: Bytes::new(headroom),
                    },
                    reserved: system
                        .and_then(|(name, memory)| {
                            let cgroup = CgroupPath::parse(&format!("/x/{name}")).ok()?;
                            let fine = !cgroup.as_str().contains(':');
                            fine.then_some(Reserved {
                                owner: Owner::System,
                                cgroup,
                                memory: Bytes::new(memory),
                            })
                        })
                        .into_iter()
                        .collect(),
                    node_allocatable: allocatable.map_or(NodeAllocatable::Auto, |bytes| {
                        NodeAllocatable::Fixed(Bytes::new(bytes))
                    }),
                    log_level,
                },
            )
    }

    proptest! {
        #[test]
        fn printing_then_parsing_is_identity(config in configs()) {
            prop_assert_eq!(parse(&config.to_string()), Ok(config));
        }
    }
}
