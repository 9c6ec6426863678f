//! The container images of the tests: one for sandboxes, one for workloads and one with a shell.
//!
//! Each image contains a single static program.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The name of the sandbox image in the runtime's configuration.
pub const PAUSE: &str = "plimsoll.test/pause:1";

/// The name of the workload image, which contains the program from `src/bin/workload.rs`.
pub const WORKLOAD: &str = "plimsoll.test/workload:1";

/// The name of the image that CRI-O's tests use for containers.
pub const NRI_TEST_IMAGE: &str = "quay.io/crio/fedora-crio-ci:latest";

/// Path of the archive with all images, on the node.
pub(crate) const ARCHIVE: &str = "/usr/share/node-images.tar";

/// The media type of a manifest.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The busybox commands of the image with a shell. Each command is a symbolic link to busybox.
const APPLETS: &[&str] =
    &["sh", "cat", "echo", "grep", "id", "ls", "mount", "sleep", "stat", "test"];

/// A container image with one layer.
struct ContainerImage<'a> {
    name: &'a str,
    layer: &'a [u8],
    entrypoint: &'a [&'a str],
    command: &'a [&'a str],
}

/// Writes an archive with all images.
///
/// `program` is the static workload binary and `busybox` is the static busybox binary.
pub(super) fn write_archive(program: &[u8], busybox: &[u8], archive: &Path) -> Result<()> {
    let file = File::create(archive).with_context(|| format!("creating {}", archive.display()))?;
    let mut tar = tar::Builder::new(file);
    let (workload, shell) = (workload_layer(program)?, shell_layer(busybox)?);
    let entrypoint = &["/workload"][..];
    let images = [
        (PAUSE, &workload, entrypoint, &["pause"][..]),
        (WORKLOAD, &workload, entrypoint, &["serve", "/control"]),
        (NRI_TEST_IMAGE, &shell, &[], &["sh"]),
    ];
    let manifests: Vec<Value> = images
        .into_iter()
        .map(|(name, layer, entrypoint, command)| {
            append_image(&mut tar, &ContainerImage { name, layer, entrypoint, command })
        })
        .collect::<Result<_>>()?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    append(&mut tar, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
    append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.finish().with_context(|| format!("finishing {}", archive.display()))
}

/// Returns the layer with the workload.
fn workload_layer(program: &[u8]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "workload", 0o755, program)?;
    layer.into_inner().context("finishing the layer with the workload")
}

/// Returns the layer with busybox and its commands.
fn shell_layer(busybox: &[u8]) -> Result<Vec<u8>> {
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
    layer.into_inner().context("finishing the layer with the shell")
}

/// Adds the blobs of an image to the archive and returns the image's entry in the index.
fn append_image<W: Write>(tar: &mut tar::Builder<W>, image: &ContainerImage<'_>) -> Result<Value> {
    let ContainerImage { name, layer, entrypoint, command } = image;
    let layer_digest = append_blob(tar, layer)?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": entrypoint,
            "Cmd": command,
            "Env": ["PATH=/bin"],
            // The program is process 1 of its PID namespace and does not handle SIGTERM. The kernel
            // discards SIGTERM for process 1 without a handler.
            "StopSignal": "SIGKILL",
        },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }))?;
    append_blob(tar, &config)?;
    append_blob(tar, &manifest)?;
    let mut entry = descriptor(MANIFEST, &manifest);
    // containerd reads its own annotation. Other programs read the annotation of the OCI
    // specification.
    entry["annotations"] =
        json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
    Ok(entry)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    /// Returns the files of an archive by their paths.
    fn files(archive: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(archive).unwrap());
        let read = |entry: std::io::Result<tar::Entry<'_, File>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn every_descriptor_leads_to_its_blob() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("images.tar");
        write_archive(b"program", b"busybox", &archive).unwrap();
        let files = files(&archive);
        let blob = |descriptor: &Value| {
            let digest_of = descriptor["digest"].as_str().unwrap();
            let content = &files[&format!("blobs/{}", digest_of.replace(':', "/"))];
            assert_eq!(digest(content), digest_of);
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let mut names = Vec::new();
        for entry in index["manifests"].as_array().unwrap() {
            names.push(entry["annotations"]["io.containerd.image.name"].as_str().unwrap());
            let manifest: Value = serde_json::from_slice(&blob(entry)).unwrap();
            let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
            let layer = blob(&manifest["layers"][0]);
            assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
        }
        assert_eq!(names, [PAUSE, WORKLOAD, NRI_TEST_IMAGE]);
    }
}
