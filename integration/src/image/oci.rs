//! The container images of the tests: one for sandboxes, one for workloads and one with a shell.
//!
//! Each image has a single static program.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The image of sandboxes, as named in the runtime's configuration.
pub const PAUSE: &str = "plimsoll.test/pause:1";

/// The image of workloads with the program from `src/bin/workload.rs`.
pub const WORKLOAD: &str = "plimsoll.test/workload:1";

/// The image from which CRI-O's tests start containers.
pub const NRI_TEST_IMAGE: &str = "quay.io/crio/fedora-crio-ci:latest";

/// The path on a node of the archive with all images.
pub(crate) const ARCHIVE: &str = "/usr/share/node-images.tar";

/// The busybox commands of the image with a shell. Each one is a symbolic link to busybox.
const APPLETS: &[&str] =
    &["sh", "cat", "echo", "grep", "id", "ls", "mount", "sleep", "stat", "test"];

/// Writes an archive with all images.
///
/// `program` is the static workload binary and `busybox` is the static busybox binary.
pub(super) fn write_archive(program: &[u8], busybox: &[u8], archive: &Path) -> Result<()> {
    let file = File::create(archive).with_context(|| format!("creating {}", archive.display()))?;
    let mut tar = tar::Builder::new(file);
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "workload", 0o755, program)?;
    let workload = layer.into_inner().context("finishing the image layer")?;
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "bin/busybox", 0o755, busybox)?;
    for applet in APPLETS {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer
            .append_link(&mut header, format!("bin/{applet}"), "busybox")
            .context("adding a link to the image")?;
    }
    let shell = layer.into_inner().context("finishing the image layer")?;

    let entrypoint = &["/workload"][..];
    let images = [
        (PAUSE, &workload, entrypoint, &["pause"][..]),
        (WORKLOAD, &workload, entrypoint, &["serve", "/control"]),
        (NRI_TEST_IMAGE, &shell, &[], &["sh"]),
    ];
    let mut manifests = Vec::new();
    for (name, layer, entrypoint, command) in images {
        let layer_digest = append_blob(&mut tar, layer)?;
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": entrypoint,
                "Cmd": command,
                "Env": ["PATH=/bin"],
                // The program is process 1 of its PID namespace and does not handle SIGTERM. The
                // kernel discards such a signal.
                "StopSignal": "SIGKILL",
            },
            "rootfs": { "type": "layers", "diff_ids": [&layer_digest] },
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }))?;
        append_blob(&mut tar, &config)?;
        append_blob(&mut tar, &manifest)?;
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        // containerd reads its own annotation. Other programs read the one of the OCI
        // specification.
        entry["annotations"] =
            json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
        manifests.push(entry);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    append(&mut tar, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
    append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.finish().with_context(|| format!("finishing {}", archive.display()))
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn append_blob<W: Write>(tar: &mut tar::Builder<W>, content: &[u8]) -> Result<String> {
    let digest = digest(content);
    append(tar, &format!("blobs/{}", digest.replace(':', "/")), 0o644, content)?;
    Ok(digest)
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, content)
        .with_context(|| format!("adding {path} to the image archive"))
}
