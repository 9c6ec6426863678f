//! Command line of `plimsoll explain`.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use plimsoll_core::policy::Node;
use plimsoll_core::units::Bytes;

use crate::commands::explain::{Basis, LARGEST, explain};
use crate::commands::failure::Failure;
use crate::commands::input::{load_config, quantity, read, shown};
use crate::commands::output::print;
use crate::config::{Config, NodeAllocatable};
use crate::state::settings::discover_memory;

/// Show the values that a pod's containers would get, with reasons.
#[derive(Args)]
#[command(
    long_about = "\
Show memory.min, memory.low and memory.high of each container of a pod, with the reason for each
value, and draw them to scale. The command needs no node and changes nothing.

The manifest may have several documents, lists, and objects with a pod template such as
Deployments. These annotations of the pod count. Each may end in /container.<name>, /pod or neither:

  throttling-factor.plimsoll.nri.io  a number above 0 and at most 1, or none
  reservation.plimsoll.nri.io        none, tiered or hard, at most the node's policy
  memory-request.plimsoll.nri.io     a quantity; ignored here, because the manifest has the request

Node allocatable replaces the limit of containers without a limit. It comes from
--node-allocatable, from the configuration, or from this machine.",
    after_long_help = "\
Examples:
  plimsoll explain -f pod.yaml --node-allocatable 60Gi
  plimsoll explain -f pod.yaml --config /etc/nri/conf.d/90-plimsoll.conf
  kubectl get pod web -o yaml | plimsoll explain -f - --json"
)]
pub(crate) struct Explain {
    /// Manifest in YAML or JSON; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,

    /// Configuration file of the node; by default, the default configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Memory that all pods of the node may use together, such as 60Gi
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    node_allocatable: Option<Bytes>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Explain {
    /// Explains the pods of the manifest.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let config = match &self.config {
            Some(path) => load_config(path)?,
            None => Config::default(),
        };
        let page_size = crate::cgroup::page_size();
        let (allocatable, allocatable_source) =
            match (self.node_allocatable, config.node_allocatable) {
                (Some(bytes), _) => (Some(bytes), "given by --node-allocatable".to_owned()),
                (None, NodeAllocatable::Fixed(bytes)) => {
                    (Some(bytes), "given by the configuration".to_owned())
                }
                (None, NodeAllocatable::Auto) => {
                    let host = Path::new("/");
                    let memory = discover_memory(host, &config.kubelet.clone().unwrap_or_default());
                    for problem in &memory.problems {
                        eprintln!("note: {problem}");
                    }
                    (memory.allocatable, format!("of this machine, from {}", memory.source))
                }
            };
        let basis = Basis {
            policy: config.policy,
            node: Node { allocatable, page_size },
            allocatable_source,
        };

        let manifest = read(&self.file, LARGEST)?;
        let refused = |error: anyhow::Error| Failure::Usage(error.context(shown(&self.file)));
        let manifest = String::from_utf8(manifest)
            .map_err(|error| refused(anyhow!("expected UTF-8 text: {error}")))?;
        let explanation = explain(&manifest, &basis).map_err(|error| refused(error.into()))?;
        if self.json {
            let json = serde_json::to_string_pretty(&explanation)
                .map_err(|error| Failure::Runtime(error.into()))?;
            print(format_args!("{json}\n"))
        } else {
            print(format_args!("{explanation}"))
        }
    }
}
