//! The programs of the control plane other than the API server.

use std::path::Path;

use anyhow::Result;

use crate::cluster::apiserver::ApiServer;
use crate::tools::process::{self, Running};

/// The controllers that the controller manager runs: a DaemonSet and its service account need them.
pub(super) const CONTROLLERS: &[&str] = &[
    "daemonset-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "taint-eviction-controller",
];

/// Starts a control plane program that communicates only with the API server.
pub(super) fn start(
    program: &Path,
    server: &ApiServer,
    name: &str,
    more: &[String],
) -> Result<Running> {
    let arguments = [
        name.to_owned(),
        format!("--kubeconfig={}", server.path("admin.conf").display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ];
    let arguments: Vec<_> = arguments.into_iter().chain(more.iter().cloned()).collect();
    process::spawn(program, &arguments, &server.path(&format!("{name}.log")))
}
