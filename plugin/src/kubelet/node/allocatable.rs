//! Chooses the source for the amount of node allocatable memory.

use std::fmt;

use plimsoll_core::units::{Bytes, Limit, PageSize};

use super::kubelet_config::{DEFAULT_EVICTION, KubeletReservations};
use super::meminfo::MemInfo;

/// Source of node allocatable. `Display` writes a phrase that fits into the middle of a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocatableSource {
    /// The kubelet's configuration.
    KubeletConfig,
    /// The kubelet's configuration, confirmed by `memory.max` of kubepods.
    KubeletConfigConfirmed,
    /// `memory.max` of kubepods minus the eviction threshold, because the kubelet's configuration
    /// leads to a different `memory.max`.
    KubepodsOverConfig,
    /// `memory.max` of kubepods minus the eviction threshold, because no kubelet configuration is
    /// readable.
    Kubepods,
    /// Total memory without hugepages, because the plugin found no kubelet on the node.
    AllMemory,
    /// No source, because the plugin could read none of the sources.
    Nowhere,
}

impl fmt::Display for AllocatableSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KubeletConfig => "the kubelet's configuration",
            Self::KubeletConfigConfirmed => {
                "the kubelet's configuration, which kubepods memory.max confirms"
            }
            Self::KubepodsOverConfig => {
                "kubepods memory.max less hard eviction, as the kubelet's configuration does not \
                 explain it"
            }
            Self::Kubepods => "kubepods memory.max less hard eviction",
            Self::AllMemory => "all memory less hugepages, as there is no sign of a kubelet",
            Self::Nowhere => "nowhere: nothing could be read; set nodeAllocatable",
        })
    }
}

pub(super) fn choose(
    meminfo: Option<MemInfo>,
    config: Option<&KubeletReservations>,
    kubepods: Option<Limit>,
    page: PageSize,
) -> (Option<Bytes>, AllocatableSource) {
    let eviction =
        |total: Bytes| config.map_or(DEFAULT_EVICTION, |config| config.eviction.of(total));
    let enforced = kubepods.and_then(Limit::bytes);
    let Some(meminfo) = meminfo else {
        // The total memory is unknown, so a percentage is computed from memory.max of kubepods.
        return match enforced {
            Some(max) => (Some(max.saturating_sub(eviction(max))), AllocatableSource::Kubepods),
            None => (None, AllocatableSource::Nowhere),
        };
    };
    let usable = meminfo.usable();
    // A kubelet that does not enforce node allocatable for pods sets memory.max of kubepods to all
    // memory.
    let enforced = enforced.filter(|&max| max < usable.floor_to(page));
    match (config, enforced) {
        (Some(config), enforced) => {
            let reserved = config.system.saturating_add(config.kube);
            let before_eviction = usable.saturating_sub(reserved);
            // Older kubelets did not subtract hugepages from memory.max of kubepods.
            let explained = |max| {
                max == before_eviction.floor_to(page)
                    || max == meminfo.total.saturating_sub(reserved).floor_to(page)
            };
            let from_config = Some(before_eviction.saturating_sub(eviction(meminfo.total)));
            match enforced {
                Some(max) if explained(max) => {
                    (from_config, AllocatableSource::KubeletConfigConfirmed)
                }
                Some(max) if config.enforced_for_pods => (
                    Some(max.saturating_sub(eviction(meminfo.total))),
                    AllocatableSource::KubepodsOverConfig,
                ),
                _ => (from_config, AllocatableSource::KubeletConfig),
            }
        }
        (None, Some(max)) => {
            (Some(max.saturating_sub(DEFAULT_EVICTION)), AllocatableSource::Kubepods)
        }
        (None, None) if kubepods.is_some() => {
            (Some(usable.saturating_sub(DEFAULT_EVICTION)), AllocatableSource::Kubepods)
        }
        (None, None) => (Some(usable), AllocatableSource::AllMemory),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kubelet_config::Threshold;
    use super::super::memory_qos::MemoryQos;
    use super::*;

    proptest! {
        #[test]
        fn allocatable_is_at_most_all_memory(
            total in 1u64..1 << 40,
            hugepages in 0u64..1 << 40,
            max in proptest::option::of(0u64..1 << 40),
            reserved in proptest::option::of(0u64..1 << 40),
        ) {
            let meminfo = MemInfo {
                total: Bytes::new(total),
                hugepages: Bytes::new(hugepages),
                available: Bytes::ZERO,
            };
            let config = reserved.map(|reserved| KubeletReservations {
                system: Bytes::new(reserved),
                kube: Bytes::ZERO,
                eviction: Threshold::Share(0.05),
                enforced_for_pods: true,
                memory_qos: MemoryQos::Off,
            });
            let max = max.map(|max| Limit::Bytes(Bytes::new(max)));
            let (allocatable, _) = choose(Some(meminfo), config.as_ref(), max, PageSize::KIB4);
            prop_assert!(allocatable.unwrap() <= meminfo.total);
        }
    }
}
