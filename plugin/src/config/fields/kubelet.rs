//! Fields for the files of the kubelet.

use crate::config::fields::access::access;
use crate::config::fields::field_type::{Access, Field, Kind};
use crate::config::setting::Setting as _;

pub(super) static KUBELET: Field = Field {
    name: "kubelet",
    doc: "Files and version of the node's kubelet. \
          Set this field if the plugin cannot see the kubelet's process, and the kubelet's files \
          are not at the paths of a known distribution. \
          Each field inside is optional.",
    kind: Kind::Mapping {
        fields: &[&CONFIG, &CONFIG_DIR, &ROOT_DIR, &VERSION],
        is_complete: false,
    },
    null: Some("the plugin finds the files itself"),
    unit: "",
    default: Some("null"),
    examples: &["{config: /etc/kubelet.yaml}"],
    is_in_chart: true,
    access: access!(kubelet),
};

static CONFIG: Field = Field {
    name: "config",
    doc: "The kubelet's configuration file (--config).",
    kind: Kind::Path,
    null: Some("the plugin finds the file itself"),
    unit: "",
    default: Some("null"),
    examples: &["/var/lib/kubelet/config.yaml"],
    is_in_chart: true,
    access: access!(kubelet => config),
};

static CONFIG_DIR: Field = Field {
    name: "configDir",
    doc: "The directory with drop-ins of the kubelet's configuration file (--config-dir).",
    kind: Kind::Path,
    null: Some("the plugin finds the directory itself"),
    unit: "",
    default: Some("null"),
    examples: &["/etc/kubernetes/kubelet.conf.d"],
    is_in_chart: true,
    access: access!(kubelet => config_dir),
};

static ROOT_DIR: Field = Field {
    name: "rootDir",
    doc: "The kubelet's directory (--root-dir), which contains the checkpoints.",
    kind: Kind::Path,
    null: Some("the plugin finds the directory itself"),
    unit: "",
    default: Some("null"),
    examples: &["/var/lib/kubelet"],
    is_in_chart: true,
    access: access!(kubelet => root_dir),
};

static VERSION: Field = Field {
    name: "version",
    doc: "Version of the kubelet. \
          It decides whether the kubelet's own MemoryQoS is on if its feature gate is not set.",
    kind: Kind::KubernetesVersion,
    null: Some("the version is unknown"),
    unit: "",
    default: Some("null"),
    examples: &["'1.37'"],
    is_in_chart: true,
    access: access!(kubelet => version),
};
