//! The Go modules of the runtimes that have no Debian package.

use crate::tools::go::Programs;

pub(super) const CONTAINERD: Programs = Programs {
    name: "containerd",
    module: "github.com/containerd/containerd/v2",
    version: "v2.4.2",
    tags: &["no_btrfs", "no_devmapper", "no_zfs"],
    version_variable: Some("github.com/containerd/containerd/v2/version.Version"),
    packages: &["./cmd/containerd", "./cmd/containerd-shim-runc-v2", "./cmd/ctr"],
    tests: &[],
};

pub(crate) const CRIO: Programs = Programs {
    name: "crio",
    module: "github.com/cri-o/cri-o",
    version: "v1.36.3",
    // The build tags exclude or replace all code that needs C libraries.
    tags: &[
        "containers_image_openpgp",
        "containers_image_ostree_stub",
        "exclude_graphdriver_btrfs",
    ],
    version_variable: None,
    packages: &["./cmd/crio"],
    tests: &[],
};
