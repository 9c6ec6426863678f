//! Formats of the checkpoint files, and the parser for these formats.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use plimsoll_core::pod::PodUid;
use plimsoll_core::units::{Bytes, MilliCpu, QuantityError, excerpt};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::error::FormError;
use super::record::{Entry, PodLevel, PodRecord, RecordedLimits};

/// Content of a checkpoint: memory request, memory limit and CPU limit of every container, and the
/// pod-level limits.
#[derive(Debug, Default)]
pub struct Records {
    pub(super) pods: HashMap<PodUid, Arc<PodRecord>>,
    pub(super) unreadable: usize,
    pub(super) first_unreadable: Option<String>,
}

impl Records {
    /// Returns the number of containers that have an entry.
    pub fn len(&self) -> usize {
        self.pods
            .values()
            .map(|pod| pod.containers.iter().filter(|(_, entry)| entry.is_some()).count())
            .sum()
    }

    /// Returns whether no container has an entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Converts `raw` to an entry. An invalid memory quantity makes the entry unreadable and never
    /// counts as 0. The function also counts the unreadable entries.
    fn read(&mut self, raw: RawResources, whose: impl FnOnce() -> String) -> Option<Entry> {
        let memory = |list: Option<&RawList>| {
            quantity(list.and_then(|list| list.memory.as_ref()), Bytes::from_quantity)
        };
        match (memory(raw.requests.as_ref()), memory(raw.limits.as_ref())) {
            (Ok(request), Ok(limit)) => {
                let cpu_limit = raw.limits.as_ref().and_then(|limits| limits.cpu.as_ref());
                // An invalid CPU quantity counts as no CPU limit, because no memory value depends
                // on it.
                let cpu_limit = quantity(cpu_limit, MilliCpu::from_quantity).unwrap_or(None);
                Some(Entry { request, limit, cpu_limit })
            }
            (Err(error), _) | (_, Err(error)) => {
                self.unreadable += 1;
                self.first_unreadable.get_or_insert_with(|| format!("{}: {error}", whose()));
                None
            }
        }
    }
}

/// Parses a checkpoint file.
///
/// Frees the bytes of the file before parsing the inner JSON, so that the peak memory usage is not
/// much higher than the size of the file.
///
/// # Errors
///
/// Fails if the bytes have none of the formats in the [module documentation](super). Unknown fields
/// are no error.
pub fn parse(file: Vec<u8>) -> Result<Records, FormError> {
    #[derive(Deserialize)]
    struct Envelope {
        data: String,
        #[serde(default)]
        version: Option<String>,
    }
    #[derive(Deserialize)]
    struct Data {
        entries: Option<Pairs<Option<RawPod>>>,
        #[serde(rename = "allocationEntries")]
        allocation_entries: Option<Pairs<Option<RawContainers>>>,
        #[serde(rename = "podList")]
        pod_list: Option<IgnoredAny>,
    }

    let envelope: Envelope = serde_json::from_slice(&file).map_err(FormError::Envelope)?;
    drop(file);
    let data: Data = serde_json::from_str(&envelope.data).map_err(FormError::Data)?;
    drop(envelope.data);

    // If there are no pods, the kubelet writes neither `entries` nor `podList`. A file with only a
    // `podList` has a newer format.
    let known_version = envelope.version.as_deref().is_none_or(|version| version == "v2");
    if data.entries.is_none()
        && data.allocation_entries.is_none()
        && (data.pod_list.is_some() || !known_version)
    {
        return Err(FormError::Newer(excerpt(envelope.version.as_deref().unwrap_or("unknown"))));
    }

    let mut records = Records::default();
    let entries =
        data.entries.into_iter().flatten().map(|(uid, pod)| (uid, pod.unwrap_or_default()));
    let older = data.allocation_entries.into_iter().flatten().map(|(uid, containers)| {
        (uid, RawPod { container_resources: containers, pod_level_resources: None })
    });
    for (uid, raw) in entries.chain(older) {
        let containers = raw
            .container_resources
            .into_iter()
            .flatten()
            .map(|(name, resources)| {
                let whose = || format!("container {} of pod {}", excerpt(&name), excerpt(&uid));
                let entry = records.read(resources.unwrap_or_default(), whose);
                (name.into_boxed_str(), entry)
            })
            .collect();
        let pod_level = raw.pod_level_resources.map_or(PodLevel::Unrecorded, RawPodLevel::read);
        records.pods.insert(PodUid::new(uid), Arc::new(PodRecord { containers, pod_level }));
    }
    Ok(records)
}

/// Resources of containers, by container name. Go writes an empty map or list as `null`.
type RawContainers = Pairs<Option<RawResources>>;

/// JSON object, stored as a list of keys with values. Building many small maps would take longer
/// than the rest of the parsing.
struct Pairs<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

impl<V> IntoIterator for Pairs<V> {
    type Item = (String, V);
    type IntoIter = std::vec::IntoIter<(String, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[derive(Default, Deserialize)]
struct RawPod {
    #[serde(rename = "ContainerResources")]
    container_resources: Option<RawContainers>,
    #[serde(rename = "PodLevelResources")]
    pod_level_resources: Option<RawPodLevel>,
}

#[derive(Deserialize)]
struct RawPodLevel {
    requests: Option<RawList>,
    limits: Option<RawList>,
}

impl RawPodLevel {
    fn read(self) -> PodLevel {
        let limits = self.limits.unwrap_or_default();
        let memory = quantity(limits.memory.as_ref(), Bytes::from_quantity);
        let cpu = quantity(limits.cpu.as_ref(), MilliCpu::from_quantity);
        let requests = self.requests.unwrap_or_default();
        match (memory, cpu, quantity(requests.memory.as_ref(), Bytes::from_quantity)) {
            (Ok(memory), Ok(cpu), Ok(memory_request)) => {
                PodLevel::Recorded { limits: RecordedLimits { memory, cpu }, memory_request }
            }
            _ => PodLevel::Unreadable,
        }
    }
}

#[derive(Default, Deserialize)]
struct RawResources {
    requests: Option<RawList>,
    limits: Option<RawList>,
}

#[derive(Default, Deserialize)]
struct RawList {
    /// Quantity, which the kubelet writes as a string. The field holds the unparsed JSON value, so
    /// that an invalid quantity does not make the whole file unreadable.
    memory: Option<Value>,
    cpu: Option<Value>,
}

/// Parses a quantity, which the kubelet writes as a string.
fn quantity<T>(
    value: Option<&Value>,
    parse: impl FnOnce(&str) -> Result<T, QuantityError>,
) -> Result<Option<T>, String> {
    let parsed = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => parse(text),
        Some(Value::Number(number)) => parse(&number.to_string()),
        Some(other) => {
            return Err(format!("expected a quantity, found '{}'", excerpt(&other.to_string())));
        }
    };
    parsed.map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use plimsoll_core::pod::CheckpointFile;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::lookup::Moment;
    use super::super::testing::{MIB, Node, entries, envelope};
    use super::*;

    #[test]
    fn every_truncated_checkpoint_is_refused() {
        let good = envelope(&entries("2Mi"), Some("v2"));
        for end in 0..good.len() {
            assert!(parse(good.as_bytes()[..end].to_vec()).is_err(), "{end}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let data = format!("{{\"entries\":{deep}}}");
        assert!(parse(json!({"data": data}).to_string().into_bytes()).is_err());
        assert!(parse(deep.into_bytes()).is_err());
    }

    #[test]
    fn a_record_holds_pod_and_container_limits() {
        let found = |pod_level: Value| {
            let mut node = Node::new();
            let data = json!({"entries": {"uid-1": {
                "ContainerResources": {
                    "web": {"limits": {"cpu": "500m", "memory": "64Mi"}},
                    "bare": {},
                    "odd": {"limits": {"cpu": "x", "memory": "1Mi"}},
                },
                "PodLevelResources": pod_level,
            }}});
            node.write(CheckpointFile::Actuated, &envelope(&data, None));
            // An ephemeral container has no checkpoint entry, but its pod has one.
            let found = node
                .checkpoints
                .lookup(&PodUid::new("uid-1"), "debugger", Moment::Create)
                .found
                .unwrap();
            assert!(found.record.is_none());
            found.pod.unwrap()
        };
        let limits = |memory: u64, cpu: &str| RecordedLimits {
            memory: (memory > 0).then_some(Bytes::new(memory * MIB)),
            cpu: MilliCpu::from_quantity(cpu).ok(),
        };
        let pod = found(json!(null));
        assert_eq!(pod.limits("web"), Some(limits(64, "500m")));
        assert_eq!(pod.limits("bare"), Some(RecordedLimits::default()));
        assert_eq!(
            pod.limits("odd"),
            Some(limits(1, "")),
            "an invalid CPU limit counts as no CPU limit"
        );
        assert_eq!(pod.limits("debugger"), None);
        assert_eq!(pod.names().count(), 3);
        let recorded = |limits, request: u64| PodLevel::Recorded {
            limits,
            memory_request: (request != 0).then(|| Bytes::new(request << 20)),
        };
        for (pod_level, expected) in [
            (json!(null), PodLevel::Unrecorded),
            (json!({}), recorded(RecordedLimits::default(), 0)),
            (json!({"requests": {"memory": "1Gi"}}), recorded(RecordedLimits::default(), 1024)),
            (json!({"requests": {"memory": "much"}}), PodLevel::Unreadable),
            (json!({"limits": {"hugepages-2Mi": "4Mi"}}), recorded(RecordedLimits::default(), 0)),
            (json!({"limits": {"cpu": "1"}}), recorded(limits(0, "1"), 0)),
            (json!({"limits": {"memory": "128Mi"}}), recorded(limits(128, ""), 0)),
            (json!({"limits": {"memory": "much"}}), PodLevel::Unreadable),
        ] {
            assert_eq!(found(pod_level.clone()).pod_level(), expected, "{pod_level}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_parser_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = parse(bytes);
        }

        #[test]
        fn an_arbitrary_data_string_causes_no_panic(data in r#"[{}\[\]":,a-z0-9]{0,60}"#) {
            let _ = parse(json!({"data": data}).to_string().into_bytes());
        }

        #[test]
        fn any_quantity_is_a_record_or_reported(quantity in ".{0,20}") {
            let data = entries(&quantity).to_string();
            let records = parse(json!({"data": data}).to_string().into_bytes()).unwrap();
            prop_assert_eq!(records.len() + records.unreadable, 1);
        }
    }
}
