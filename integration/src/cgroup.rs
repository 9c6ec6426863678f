//! The memory files of cgroups as the node's kernel has them.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::node::Node;

/// Where cgroup v2 is mounted on the node.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The kernel's `max`: no limit.
pub const MAX: u64 = u64::MAX;

/// The memory values of one cgroup in bytes; [`MAX`] where the file says `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// memory.min
    pub min: u64,
    /// memory.low
    pub low: u64,
    /// memory.high
    pub high: u64,
    /// memory.max
    pub max: u64,
    /// memory.swap.max
    pub swap_max: u64,
}

/// Reads the values of several cgroups (paths below [`ROOT`]) in one go.
pub fn memory(node: &Node, cgroups: &[&str]) -> Result<Vec<Memory>> {
    let mut script = String::new();
    for cgroup in cgroups {
        let _ =
            writeln!(script, "cd {ROOT}/{cgroup}; cat memory.min memory.low memory.high memory.max memory.swap.max");
    }
    let output = node.run(&script).context("reading the memory files of cgroups")?;
    let values: Vec<u64> = output
        .stdout
        .lines()
        .map(|line| match line {
            "max" => Ok(MAX),
            bytes => bytes.parse().with_context(|| format!("{bytes:?} is neither bytes nor max")),
        })
        .collect::<Result<_>>()?;
    let mut memory = Vec::new();
    for value in values.chunks(5) {
        let &[min, low, high, max, swap_max] = value else {
            anyhow::bail!("five values expected for each cgroup, got {value:?}");
        };
        memory.push(Memory { min, low, high, max, swap_max });
    }
    Ok(memory)
}
