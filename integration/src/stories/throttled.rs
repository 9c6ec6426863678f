//! A container that is throttled at its memory.high.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::kubelet::{Container, MIB, Pod};
use crate::machine::Node;
use crate::probe::cgroup;

/// The allocation in bytes of a container that is throttled at its memory.high.
///
/// The allocation is 60 MiB above memory.high and well below the container's limit of 200 MiB.
const BEYOND: u64 = 150 * MIB;

/// The memory.high of this container in bytes.
pub const MEMORY_HIGH: u64 = 90 * MIB;

/// Lets a container allocate beyond its memory.high, so that the kernel throttles it.
///
/// Returns whether the allocation completes within 280 s.
pub fn exceed_high(node: &Node, pod: &Pod) -> Result<bool> {
    const LIMIT: Duration = Duration::from_secs(300);
    let control = &pod.container("app")?.control;
    let script = format!("timeout {} workload call {control} alloc {BEYOND}", LIMIT.as_secs() - 20);
    let output = node.try_run_within(LIMIT, &script, Vec::new())?;
    ensure!(
        output.status.success() || output.status.code() == Some(124),
        "allocating beyond memory.high ({}): {}",
        output.status,
        output.stderr
    );
    Ok(output.status.success())
}

/// The state of a container that is throttled at its memory.high.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    /// The stall time of the container in microseconds, from its memory.pressure.
    pub stalled: u64,
    /// The container's memory usage in bytes when the wait ended.
    pub current: u64,
    /// The number of times that the container exceeded memory.high.
    pub times: u64,
    /// Whether the workload has answered. The workload answers when the allocation completes.
    pub is_satisfied: bool,
}

/// Lets a container allocate beyond its memory.high, so that the kernel throttles it.
///
/// Waits until the allocation completes or the container has stalled for 10 seconds. The kernel
/// counts the stall time, so the wait takes longer on a slow machine.
pub fn stall_at_high(node: &Node, pod: &Pod) -> Result<Stall> {
    const LIMIT: Duration = Duration::from_secs(300);
    let Container { control, cgroup, .. } = pod.container("app")?;
    let script = format!(
        "cd {}/{cgroup}
         stalled() {{ sed -n 's/^some .*total=//p' memory.pressure; }}
         rm -f /run/beyond; before=$(stalled)
         setsid workload call {control} alloc {BEYOND} </dev/null >/run/beyond 2>&1 &
         until [ -s /run/beyond ] || [ $(($(stalled) - before)) -ge 10000000 ]; do sleep 0.2; done
         times=$(awk '$1 == \"high\" {{ print $2 }}' memory.events)
         echo $(($(stalled) - before)) $(<memory.current) $times $(wc -w </run/beyond)",
        cgroup::ROOT
    );
    let output = node.try_run_within(LIMIT, &script, Vec::new())?;
    ensure!(
        output.status.success(),
        "waiting for the stall ({}): {}",
        output.status,
        output.stderr
    );
    let numbers: Vec<u64> =
        output.stdout.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let &[stalled, current, times, words] = numbers.as_slice() else {
        bail!("the script must print 4 numbers, but printed {numbers:?}")
    };
    Ok(Stall { stalled, current, times, is_satisfied: words > 0 })
}
