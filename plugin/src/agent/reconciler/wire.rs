//! Converts requests to the runtime into NRI messages.

use nri::api::{ContainerUpdate, LinuxContainerUpdate, LinuxMemory, LinuxResources, OptionalInt64};
use plimsoll_core::units::{Bytes, Knob, Limit};

use crate::cgroup::SWAP_MAX;

/// Returns the update that sets a container's files to `values`. The update contains `memory.max`
/// as the memory limit, because the runtime stores this limit.
///
/// `swap_max` is the swap limit, if there is one. If an update has no swap limit, containerd and
/// runc remove the old one. Therefore this update repeats the swap limit in force.
pub fn update(
    id: &str,
    values: impl IntoIterator<Item = (Knob, Limit)>,
    swap_max: Option<Bytes>,
) -> ContainerUpdate {
    let (limit, values): (Vec<_>, Vec<_>) =
        values.into_iter().partition(|(knob, _)| *knob == Knob::Max);
    let memory = limit.first().map(|(_, limit)| memory_limit(*limit, None));
    let values =
        values.into_iter().map(|(knob, value)| (knob.file_name().to_owned(), value.to_string()));
    let unified = values
        .chain(swap_max.map(|swap_max| (SWAP_MAX.to_owned(), swap_max.to_string())))
        .collect();
    let resources = LinuxResources { unified, memory: memory.into(), ..Default::default() };
    let linux = LinuxContainerUpdate { resources: Some(resources).into(), ..Default::default() };
    ContainerUpdate { container_id: id.to_owned(), linux: Some(linux).into(), ..Default::default() }
}

/// Returns a memory limit as a part of an NRI message. `asked` are the limits that the client asked
/// for. The client's swap limit includes memory, so the result contains a swap limit adapted to the
/// new memory limit.
pub fn memory_limit(limit: Limit, asked: Option<&LinuxMemory>) -> LinuxMemory {
    let number = |value| Some(OptionalInt64 { value, ..Default::default() }).into();
    // The maximum limit that the message can contain is 2^63-1.
    let limit = limit.bytes().map_or(-1, |bytes| i64::try_from(bytes.get()).unwrap_or(i64::MAX));
    let [asked_limit, asked_swap] = asked.map_or([0, 0], |asked| {
        [&asked.limit, &asked.swap].map(|value| value.as_ref().map_or(0, |value| value.value))
    });
    let swap = match asked_swap {
        1.. if limit < 0 => number(-1),
        1.. => number(limit.saturating_add(asked_swap.saturating_sub(asked_limit).max(0))),
        _ => None.into(),
    };
    LinuxMemory { limit: number(limit), swap, ..Default::default() }
}
