//! Event counters and memory pressure of a cgroup, and whether the cgroup contains processes.

use std::time::Duration;

use super::directory::Cgroup;
use super::error::CgroupError;

/// File with event counters of a cgroup and its descendants. The kernel wakes watchers of this file
/// when a counter changes.
pub const EVENTS: &str = "memory.events";

const LOCAL_EVENTS: &str = "memory.events.local";

/// File that shows how long the processes of a cgroup waited for memory.
const PRESSURE: &str = "memory.pressure";

/// Event counters, which start at 0 when a cgroup is created. [`Cgroup::events`] also counts the
/// events of descendants, but [`Cgroup::local_events`] does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Number of times that processes were throttled at `memory.high`.
    pub high: u64,
    /// Number of times that usage reached a limit and the kernel could reclaim nothing.
    pub oom: u64,
    /// Number of processes that the kernel OOM-killed, because a cgroup reached its limit or the
    /// node had too little memory.
    pub oom_kill: u64,
    /// Number of times that the kernel killed all processes of a cgroup together, because of
    /// `memory.oom.group`. Always 0 before kernel 5.17.
    pub oom_group_kill: u64,
}

/// Time during which all processes of a cgroup waited for memory at the same time (`full`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// Percentage of the last ten seconds during which all processes waited.
    pub percent: f64,
    /// Total waiting time since the cgroup was created.
    pub total: Duration,
}

impl Cgroup {
    /// Reads `memory.events`, the event counters of the cgroup and its descendants.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn events(&self) -> Result<Events, CgroupError> {
        self.read_events(EVENTS)
    }

    /// Reads `memory.events.local`, the event counters of this cgroup alone. `oom` counts how often
    /// usage reached the cgroup's own `memory.max` and an allocation was about to fail. `oom` does
    /// not increase when a descendant reaches its limit or the node runs out of memory.
    ///
    /// Source: Documentation/admin-guide/cgroup-v2.rst.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn local_events(&self) -> Result<Events, CgroupError> {
        self.read_events(LOCAL_EVENTS)
    }

    fn read_events(&self, file: &'static str) -> Result<Events, CgroupError> {
        let events = self.read_text(file, 1 << 10)?;
        let count = |name: &str| {
            events.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        };
        let expected =
            |name: &str| self.malformed(file, format!("expected a line '{name}' with a number"));
        Ok(Events {
            high: count("high").ok_or_else(|| expected("high"))?,
            oom: count("oom").ok_or_else(|| expected("oom"))?,
            oom_kill: count("oom_kill").ok_or_else(|| expected("oom_kill"))?,
            // Kernels before 5.17 do not have this counter.
            oom_group_kill: count("oom_group_kill").unwrap_or_default(),
        })
    }

    /// Returns whether the cgroup or a descendant contains processes.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] or [`CgroupError::Io`].
    pub fn has_processes(&self) -> Result<bool, CgroupError> {
        match self.read_text("cgroup.events", 512) {
            Ok(events) => Ok(!events.lines().any(|line| line == "populated 0")),
            // Every kernel with cgroup v2 has this file. If the file is missing, assume that there
            // are processes.
            Err(CgroupError::Unsupported { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Reads from `memory.pressure` how long all processes of the cgroup waited for memory
    /// (`full`).
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] if the kernel does not measure memory pressure (boot option
    /// `psi=1`); [`CgroupError::Gone`].
    pub fn pressure(&self) -> Result<Pressure, CgroupError> {
        let pressure = self.read_text(PRESSURE, 512)?;
        let parse = || {
            let full = pressure.lines().find_map(|line| line.strip_prefix("full avg10="))?;
            let percent = full.split(' ').next()?.parse().ok()?;
            let total =
                full.split(' ').find_map(|part| part.strip_prefix("total="))?.parse().ok()?;
            Some(Pressure { percent, total: Duration::from_micros(total) })
        };
        parse()
            .ok_or_else(|| self.malformed(PRESSURE, "expected a line 'full avg10=' with numbers"))
    }
}
