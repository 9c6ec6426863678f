//! Memory settings in the kubelet's configuration file.

use std::collections::BTreeMap;

use plimsoll_core::units::{Bytes, excerpt};
use serde::Deserialize;
use serde_json::Value;

use super::memory_qos::{Conflict, MemoryQos};
use crate::yaml;

/// Default of the kubelet's hard eviction threshold for memory: 100Mi.
pub(super) const DEFAULT_EVICTION: Bytes = Bytes::new(100 << 20);

/// Memory that the kubelet reserves according to its configuration, and the state of the kubelet's
/// MemoryQoS feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KubeletReservations {
    /// `systemReserved.memory`.
    pub system: Bytes,
    /// `kubeReserved.memory`.
    pub kube: Bytes,
    /// `evictionHard["memory.available"]`.
    pub eviction: Threshold,
    /// Whether the list `enforceNodeAllocatable` contains `pods`. The default list contains `pods`.
    pub enforced_for_pods: bool,
    /// Whether the kubelet's own MemoryQoS feature is on according to this configuration.
    pub memory_qos: MemoryQos,
}

impl KubeletReservations {
    /// Interprets a `KubeletConfiguration`, with the values of the flags and with the defaults of
    /// `evictionHard`. Reads only fields about memory.
    ///
    /// # Errors
    ///
    /// Fails if one of these fields is malformed. The error text is a whole sentence.
    pub fn of(config: &Value, version: Option<MinorVersion>) -> Result<Self, String> {
        let raw: RawConfig = yaml::typed(config).map_err(|error| error.to_string())?;
        let eviction = raw.eviction()?;
        Ok(Self {
            system: reserved("systemReserved", raw.system_reserved.as_ref())?,
            kube: reserved("kubeReserved", raw.kube_reserved.as_ref())?,
            eviction,
            enforced_for_pods: raw
                .enforce_node_allocatable
                .as_ref()
                .is_none_or(|list| list.iter().any(|target| target == "pods")),
            memory_qos: raw.memory_qos(version),
        })
    }
}

/// Eviction threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// Amount of memory.
    Bytes(Bytes),
    /// Fraction of the total memory. The kubelet also uses a 32-bit float.
    Share(f32),
}

impl Threshold {
    /// Returns the amount for a node with `total` memory. The computation is the same as in the
    /// kubelet (`GetThresholdQuantity`).
    pub fn of(self, total: Bytes) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => Bytes::new((total.get() as f64 * f64::from(share)) as u64),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let Some(number) = text.strip_suffix('%') else {
            return Bytes::from_quantity(text).map(Self::Bytes).map_err(|error| error.to_string());
        };
        match number.parse::<f32>() {
            // Both of these percentages switch the threshold off.
            Ok(0.0 | 100.0) => Ok(Self::Bytes(Bytes::ZERO)),
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Share(percent / 100.0)),
            _ => Err(format!("expected a percentage from 0% to 100%, found '{}'", excerpt(text))),
        }
    }
}

/// Fields of a `KubeletConfiguration` that concern memory.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawConfig {
    system_reserved: Option<BTreeMap<String, Value>>,
    kube_reserved: Option<BTreeMap<String, Value>>,
    eviction_hard: Option<BTreeMap<String, Value>>,
    enforce_node_allocatable: Option<Vec<String>>,
    feature_gates: Option<BTreeMap<String, Option<bool>>>,
    memory_reservation_policy: Option<String>,
    memory_throttling_factor: Option<f64>,
}

impl RawConfig {
    /// Returns the hard eviction threshold for memory.
    fn eviction(&self) -> Result<Threshold, String> {
        // Without memory.available in the list, there is no threshold.
        match self.eviction_hard.as_ref().and_then(|list| text(list.get("memory.available")?)) {
            Some(text) => Threshold::parse(&text)
                .map_err(|error| format!("evictionHard[\"memory.available\"]: {error}")),
            None => Ok(Threshold::Bytes(Bytes::ZERO)),
        }
    }

    /// Returns the state of the kubelet's MemoryQoS feature. The gate MemoryQoS is alpha and off by
    /// default before Kubernetes 1.37, and beta and on by default since then.
    fn memory_qos(&self, version: Option<MinorVersion>) -> MemoryQos {
        let gate = |name: &str| self.feature_gates.as_ref()?.get(name).copied().flatten();
        let (alpha, beta) = (gate("AllAlpha"), gate("AllBeta"));
        let is_on = match (gate("MemoryQoS"), version) {
            (Some(is_on), _) => Some(is_on),
            (None, Some(version)) if version >= MinorVersion(37) => Some(beta != Some(false)),
            (None, Some(_)) => Some(alpha == Some(true)),
            (None, None) => match (alpha, beta) {
                (Some(true), None | Some(true)) => Some(true),
                (None | Some(false), Some(false)) => Some(false),
                _ => None,
            },
        };
        let is_configured =
            self.memory_reservation_policy.is_some() || self.memory_throttling_factor.is_some();
        match is_on {
            Some(false) => MemoryQos::Off,
            Some(true) => {
                // The field for the policy and its default None exist since Kubernetes 1.36.
                let is_default = version.is_some_and(|version| version >= MinorVersion(36));
                let is_none = self
                    .memory_reservation_policy
                    .as_deref()
                    .map_or(is_default, |policy| policy == "None");
                MemoryQos::On(if is_none { Conflict::MemoryQosNone } else { Conflict::MemoryQos })
            }
            None if is_configured => MemoryQos::On(Conflict::MemoryQosSign),
            None => MemoryQos::ByVersion,
        }
    }
}

/// Minor version of Kubernetes 1: 37 for Kubernetes 1.37.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MinorVersion(pub u32);

impl MinorVersion {
    /// Parses a version such as `1.37`, `v1.37.2` or `1.37.2+k3s1`.
    pub fn parse(text: &str) -> Option<Self> {
        let version = text.strip_prefix('v').unwrap_or(text).strip_prefix("1.")?;
        let minor: String = version.chars().take_while(char::is_ascii_digit).collect();
        let rest = &version[minor.len()..];
        let is_version = rest.is_empty() || rest.starts_with(['.', '+', '-']);
        is_version.then(|| minor.parse().ok().map(Self))?
    }
}

/// Returns a value as text. Returns `None` for null.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Returns the memory in a list of reserved resources. `field` is the name of the list in errors.
fn reserved(field: &str, list: Option<&BTreeMap<String, Value>>) -> Result<Bytes, String> {
    match list.and_then(|list| text(list.get("memory")?)) {
        Some(text) => {
            Bytes::from_quantity(&text).map_err(|error| format!("{field}.memory: {error}"))
        }
        None => Ok(Bytes::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use serde_json::Map;

    use super::*;
    use crate::kubelet::node::merge::add_default_eviction;

    const MIB: u64 = 1 << 20;

    fn mib(amount: u64) -> Bytes {
        Bytes::new(amount * MIB)
    }

    /// Interprets the text of a configuration file.
    fn parse(text: &str) -> Result<KubeletReservations, String> {
        let document = yaml::values(text).map_err(|error| error.to_string())?.into_iter().next();
        let mut config = match document {
            Some(Value::Object(config)) => config,
            None | Some(Value::Null) => Map::new(),
            Some(_) => return Err("expected a mapping".to_owned()),
        };
        add_default_eviction(&mut config);
        KubeletReservations::of(&Value::Object(config), None)
    }

    #[test]
    fn inconclusive_gates_make_memory_qos_version_dependent() {
        let of = |config: &str| parse(config).unwrap().memory_qos;
        let gates = |gates: &str| of(&format!("featureGates: {{{gates}}}"));
        assert_eq!(gates("MemoryQoS: false"), MemoryQos::Off);
        assert_eq!(gates("MemoryQoS: false, AllAlpha: true, AllBeta: true"), MemoryQos::Off);
        assert_eq!(gates("AllBeta: false"), MemoryQos::Off);
        assert_eq!(gates("AllBeta: false, AllAlpha: false"), MemoryQos::Off);
        for config in ["", "featureGates: {}", "featureGates: null", "featureGates: {Other: true}"]
        {
            assert_eq!(of(config), MemoryQos::ByVersion, "{config}");
        }
        assert_eq!(gates("AllAlpha: false"), MemoryQos::ByVersion);
        assert_eq!(gates("AllBeta: true"), MemoryQos::ByVersion);
        assert_eq!(
            gates("AllAlpha: true, AllBeta: false"),
            MemoryQos::ByVersion,
            "AllAlpha switches MemoryQoS on only before 1.37"
        );
        assert_eq!(gates("AllAlpha: true"), MemoryQos::On(Conflict::MemoryQos));
        assert_eq!(gates("MemoryQoS: true"), MemoryQos::On(Conflict::MemoryQos));
        let none = "memoryReservationPolicy: None\n";
        assert_eq!(
            of(&format!("{none}featureGates: {{MemoryQoS: true}}")),
            MemoryQos::On(Conflict::MemoryQosNone)
        );
        assert_eq!(of(&format!("{none}featureGates: {{MemoryQoS: false}}")), MemoryQos::Off);
        for sign in
            [none, "memoryReservationPolicy: TieredReservation", "memoryThrottlingFactor: 0.9"]
        {
            assert_eq!(of(sign), MemoryQos::On(Conflict::MemoryQosSign), "{sign}");
        }
    }

    #[test]
    fn eviction_thresholds_use_defaults_and_percentages() {
        for (config, total, expected) in [
            ("", 8192, mib(100)),
            ("evictionHard: null", 8192, mib(100)),
            ("evictionHard: {}", 8192, Bytes::ZERO),
            ("evictionHard: {nodefs.available: 10%}", 8192, Bytes::ZERO),
            (
                "evictionHard: {nodefs.available: 10%}\nmergeDefaultEvictionSettings: true",
                8192,
                mib(100),
            ),
            ("evictionHard: {memory.available: 1Gi}", 8192, mib(1024)),
            ("evictionHard: {memory.available: '0'}", 8192, Bytes::ZERO),
            ("evictionHard: {memory.available: 25%}", 8192, mib(2048)),
            // As a 32-bit float, 0.05 is slightly more than 0.05.
            ("evictionHard: {memory.available: '5%'}", 8192, Bytes::new(429_496_736)),
        ] {
            let reservations = parse(config).unwrap();
            assert_eq!(reservations.eviction.of(mib(total)), expected, "{config}");
        }
        assert!(parse("evictionHard: {memory.available: 101%}").is_err());
        assert!(parse("evictionHard: {memory.available: x%}").is_err());
    }

    #[test]
    fn json_and_numeric_quantities_are_accepted() {
        let reservations = parse(
            r#"{"systemReserved": {"memory": 1048576}, "kubeReserved": null, "port": 10250}"#,
        );
        assert_eq!(reservations.map(|reservations| reservations.system), Ok(mib(1)));
    }

    proptest! {
        #[test]
        fn arbitrary_text_causes_no_parser_panic(text in "(systemReserved|kubeReserved|\
            evictionHard|memory|memory.available|: |[{}%\\[\\],-]|[0-9]{1,22}|Mi|\n|.){0,20}") {
            let _ = parse(&text);
        }
    }
}
