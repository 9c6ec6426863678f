//! State of the kubelet's own MemoryQoS, which sets the same files as this plugin.

use thiserror::Error;

/// State of the kubelet's own MemoryQoS according to its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryQos {
    /// MemoryQoS is off.
    Off,
    /// MemoryQoS is on.
    On(Conflict),
    /// The state depends on the kubelet's version: it changes with Kubernetes 1.37.
    ByVersion,
}

/// Conflict with the kubelet, which sets the same cgroup files as this plugin. `Display` names the
/// files and the solution.
///
/// Source: `pkg/kubelet/cm/qos_container_manager_linux.go` and `helpers_linux.go` of Kubernetes
/// 1.36 and 1.37.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Conflict {
    /// The feature gate `MemoryQoS` is on, and its policy is not `None`.
    #[error(
        "has its own MemoryQoS on (featureGates), which sets memory.min, memory.low and \
         memory.high of the same cgroups by its own rules, and those of kubepods and the classes \
         every minute; set featureGates.MemoryQoS to false and restart it"
    )]
    MemoryQos,
    /// The feature gate `MemoryQoS` is on, and its policy is `None`.
    #[error(
        "has its own MemoryQoS on with memoryReservationPolicy None: when it starts (Kubernetes \
         1.36.0: every minute) it sets memory.min of kubepods and memory.low of the classes to 0, \
         so no cgroup below them is protected; set featureGates.MemoryQoS to false and \
         restart it"
    )]
    MemoryQosNone,
    /// The feature gate is not set, but the configuration has fields that have an effect only with
    /// the feature gate.
    #[error(
        "is configured with memoryReservationPolicy or memoryThrottlingFactor, a sign that its \
         own MemoryQoS is on, which sets memory.min, memory.low and memory.high of the same \
         cgroups by its own rules; set featureGates.MemoryQoS to false, remove both fields and \
         restart it"
    )]
    MemoryQosSign,
}

/// Reason why the plugin does not know whether the kubelet's own MemoryQoS is on. `Display`
/// includes the solution.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnknownMemoryQos {
    /// The feature gate is not set, and its default depends on the kubelet's version. Contains the
    /// path of the configuration.
    #[error(
        "{0} does not set featureGates.MemoryQoS, which is on by default from Kubernetes 1.37 on: \
         the kubelet then sets memory.min of kubepods and memory.low of the classes to 0 when it \
         starts; set featureGates.MemoryQoS to false there and restart the kubelet, or set \
         kubelet.version in the plugin's configuration"
    )]
    DefaultOfVersion(String),
    /// The kubelet's configuration does not exist at this path.
    #[error(
        "found no configuration of the kubelet at {0}; set kubelet.config in the plugin's \
         configuration to the file that the kubelet's --config names, and featureGates.MemoryQoS \
         to false in that file"
    )]
    NoConfig(String),
    /// The plugin could not use the file at this path.
    #[error("cannot use {0}; correct it, and set featureGates.MemoryQoS to false there")]
    Unusable(String),
    /// The kubelet may have other settings than those that the plugin found. Contains the reasons.
    #[error(
        "{0}; check that no flag or drop-in of the kubelet sets featureGates.MemoryQoS, or set \
         kubelet.config in the plugin's configuration"
    )]
    Doubt(String),
}
