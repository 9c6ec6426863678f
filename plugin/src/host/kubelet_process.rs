//! Kubelet processes that run on the node, with their flags and the names of their drop-ins.

use std::fs;
use std::io;
use std::path::Path;

use crate::host::files::{Unreadable, below, list, read};

/// Maximum number of entries of `/proc` to read.
const MOST_PROCESSES: usize = 1 << 16;

/// Running kubelet process.
#[derive(Debug)]
pub(crate) struct KubeletProcess {
    pub(crate) arguments: Vec<String>,
    /// File names in the kubelet's drop-in directory (`--config-dir`).
    pub(crate) drop_ins: Result<Vec<String>, Unreadable>,
}

impl KubeletProcess {
    /// Returns all kubelets that run on the node whose file system is at `host`.
    pub(crate) fn all(host: &Path) -> Result<Vec<Self>, Unreadable> {
        let processes = match fs::read_dir(host.join("proc")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            processes => processes?,
        };
        let mut kubelets = Vec::new();
        for (count, process) in processes.enumerate() {
            if count == MOST_PROCESSES {
                let why = format!("expected at most {MOST_PROCESSES} entries");
                return Err(Unreadable { is_denied: false, why });
            }
            let process = process?;
            if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            match Self::read(host, &process.path()) {
                Ok(kubelet) => kubelets.extend(kubelet),
                // The process has ended in the meantime.
                Err(_) if !process.path().exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(kubelets)
    }

    /// Reads the process whose directory in `/proc` is `process`. Returns `None` if the process is
    /// not a kubelet.
    fn read(host: &Path, process: &Path) -> Result<Option<Self>, Unreadable> {
        if read(&process.join("comm"))?.is_none_or(|name| name.trim_end() != "kubelet") {
            return Ok(None);
        }
        let line = read(&process.join("cmdline"))?.unwrap_or_default();
        let arguments = line.split_terminator('\0').map(str::to_owned).collect();
        let mut kubelet = Self { arguments, drop_ins: Ok(Vec::new()) };
        if let Some(directory) = kubelet.values("--config-dir").last() {
            kubelet.drop_ins = list(&below(host, directory));
        }
        Ok(Some(kubelet))
    }

    /// Returns the values of a flag in the order of the command line. For a flag that does not take
    /// a list, the kubelet uses the last value.
    pub(crate) fn values<'a>(&'a self, flag: &'a str) -> impl Iterator<Item = &'a str> {
        let arguments = self.arguments.iter().enumerate();
        arguments.filter_map(move |(at, argument)| match argument.strip_prefix(flag)? {
            "" => self.arguments.get(at + 1).map(String::as_str),
            value => value.strip_prefix('='),
        })
    }

    /// Returns the value of the feature gate `MemoryQoS` in the kubelet's flags. The flags override
    /// the kubelet's configuration files.
    pub(crate) fn memory_qos(&self) -> GateFlag {
        let gates = self.values("--feature-gates").flat_map(|gates| gates.split(','));
        let pairs = gates.filter_map(|gate| gate.split_once('='));
        let gate =
            pairs.filter(|(name, _)| name.trim() == "MemoryQoS").map(|(_, value)| value).last();
        gate.map_or(GateFlag::Unset, GateFlag::parse)
    }
}

/// Value of a feature gate in the flags of a Kubernetes program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GateFlag {
    /// No flag sets the gate.
    Unset,
    On,
    Off,
    /// The value is not a boolean, so the program should not have started.
    Invalid(String),
}

impl GateFlag {
    /// Parses a boolean as Go's `strconv.ParseBool` does.
    fn parse(text: &str) -> Self {
        match text.trim() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Self::On,
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Self::Off,
            other => Self::Invalid(other.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_gates_are_booleans_of_go() {
        let gate = |value: &str| {
            let gates = format!("--feature-gates=A=true,MemoryQoS={value}");
            KubeletProcess { arguments: vec![gates], drop_ins: Ok(Vec::new()) }.memory_qos()
        };
        for value in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(gate(value), GateFlag::On, "{value}");
        }
        for value in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(gate(value), GateFlag::Off, "{value}");
        }
        for value in ["", "no", "fALSE", "off"] {
            assert_eq!(gate(value), GateFlag::Invalid(value.to_owned()), "{value}");
        }
        let none = KubeletProcess { arguments: Vec::new(), drop_ins: Ok(Vec::new()) };
        assert_eq!(none.memory_qos(), GateFlag::Unset);
    }
}
