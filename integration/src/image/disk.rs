//! The image of a node: disk, kernel and initial RAM file system.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::image::base::base;
use crate::image::files::{copy_tree, node_files};
use crate::runtime::{self, Runtime};
use crate::tools::cache::{self, Key};
use crate::tools::command::run;
use crate::tools::ext4;

/// The size of the disk. The disk is sparse.
const SIZE: &str = "4G";

/// The files that a node boots from. The files never change after they are built.
#[derive(Clone, Debug)]
pub struct Image {
    /// The directory with the kernel, the initial RAM file system and the ssh key.
    base: PathBuf,
    /// The directory with the disk, which includes the runtime.
    dir: PathBuf,
}

impl Image {
    /// Returns the image of a node with `runtime`. Builds the image first if it is not in the
    /// cache.
    ///
    /// Nodes of one distribution share a root directory. For each runtime, this function adds only
    /// the runtime's files to the root and packs the root into a disk.
    pub fn obtain(runtime: Runtime) -> Result<Image> {
        let base = base(runtime.distro())?;
        let files = node_files().join(runtime.name());
        let mut key = Key::default();
        key.add("base", base.file_name().unwrap_or_default().as_encoded_bytes())
            .add("runtime", runtime.name())
            .add("file system", ext4::OPTIONS.join(" "))
            .add_source("disk.rs", include_str!("disk.rs"))
            .add_source("files.rs", include_str!("files.rs"));
        runtime::add_programs(runtime, &mut key);
        key.add_tree(&files)?;
        let dir = cache::entry(&format!("image-{runtime}"), &key, |dir| {
            let root = dir.join("root");
            // Hard links are safe, because the steps below replace files and never write into them.
            run(Command::new("cp")
                .args(["--archive", "--link"])
                .arg(base.join("root"))
                .arg(&root))?;
            runtime::install(runtime, &root)?;
            copy_tree(&files, &root)?;
            ext4::make_disk(&root, &dir.join("disk.img"), SIZE)?;
            fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))
        })?;
        Ok(Image { base, dir })
    }

    /// Returns the path of the raw ext4 disk.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// Returns the path of the uncompressed kernel.
    pub fn kernel(&self) -> PathBuf {
        self.base.join("vmlinux")
    }

    /// Returns the path of the initial RAM file system, which loads the disk driver and starts
    /// systemd.
    pub fn initrd(&self) -> PathBuf {
        self.base.join("initrd")
    }

    /// Returns the path of the private key for the root login on the node.
    pub fn ssh_key(&self) -> PathBuf {
        self.base.join("ssh_key")
    }

    /// Returns the versions of packages and kernel, one `name version` per line.
    pub fn versions(&self) -> Result<String> {
        let path = self.base.join("versions");
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Returns an identifier of the image's content.
    pub(crate) fn id(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}
