//! Converts a configuration into the text of an equivalent file.

use std::fmt;

use crate::config::fields::{FIELDS, Field};
use crate::config::model::Config;
use crate::config::setting::Value;

/// Writes the configuration as the text of an equivalent file.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for field in FIELDS {
            if let Some(value) = field.value(self) {
                writeln!(f, "{}: {value}", field.name)?;
            }
        }
        Ok(())
    }
}

impl Field {
    /// Returns the value of the field as YAML, or `None` if the field is not set.
    pub(super) fn value(&self, config: &Config) -> Option<String> {
        match (self.access.get)(config)? {
            Value::Mapping => {
                let inner = self.fields().iter().filter_map(|field| {
                    field.value(config).map(|value| format!("{}: {value}", field.name))
                });
                Some(format!("{{{}}}", inner.collect::<Vec<_>>().join(", ")))
            }
            value => Some(value.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::time::Duration;

    use plimsoll_core::pod::CgroupPath;
    use plimsoll_core::policy::rescue::{Ceiling, OomRescue};
    use plimsoll_core::policy::{Policy, ReservationPolicy, ThrottlingFactor};
    use plimsoll_core::units::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::config::brake::Bounds;
    use crate::config::choices::{LogLevel, Mode, NodeAllocatable, Shrink};
    use crate::config::reserved::{Owner, Reserved};
    use crate::config::testing::parse;
    use crate::kubelet::node::{KubeletFiles, MinorVersion};

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

    fn kubelets() -> impl Strategy<Value = KubeletFiles> {
        let path = || proptest::option::of("/[ -~ü]{0,20}");
        (path(), path(), path(), proptest::option::of((20..=99u32).prop_map(MinorVersion)))
            .prop_map(|(config, config_dir, root_dir, version)| KubeletFiles {
                config,
                config_dir,
                root_dir,
                version,
            })
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
                proptest::option::of(kubelets()),
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
                    // The amount must be at least the sum of `reserved`.
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
                    kubelet: seen.5,
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
