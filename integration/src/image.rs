//! Builds the disk, kernel and initial RAM file system of a node from Debian packages.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fmt, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::cache::{self, Key, progress};
use crate::go::{self, Programs};
use crate::oci;
use crate::runtime::{self, Runtime};

const CRICTL: Programs = Programs {
    name: "crictl",
    module: "sigs.k8s.io/cri-tools",
    version: "v1.36.0",
    tags: &[],
    version_variable: Some("sigs.k8s.io/cri-tools/pkg/version.Version"),
    packages: &["./cmd/crictl"],
    tests: &[],
};

const PACKAGES: &[&str] = &[
    // mmdebstrap's variant `custom` installs no packages by itself. dpkg needs some of these
    // packages, and the node uses the others as essential tools.
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "init-system-helpers",
    "libc-bin",
    "login",
    "mount",
    "passwd",
    "sed",
    "tar",
    "util-linux",
    // The node's other programs.
    "busybox-static",
    "containerd",
    "dbus",
    "iproute2",
    "kmod",
    "openssh-server",
    "procps",
    "runc",
    "systemd",
    "systemd-sysv",
];

/// Returns all packages of a distribution.
///
/// On forky they include the packages that CRI-O and the newest containerd need; see `runtime.rs`.
fn packages(distro: Distro) -> Vec<&'static str> {
    match distro {
        Distro::Forky => {
            [PACKAGES, &["conmon", "containernetworking-plugins", "crun", "skopeo"]].concat()
        }
        Distro::Trixie => PACKAGES.to_vec(),
    }
}

/// The units that targets start on the node. All other units that the packages enable are disabled.
const WANTED_UNITS: &[(&str, &str)] = &[
    ("sysinit.target", "systemd-journald.service"),
    ("sockets.target", "systemd-journald.socket"),
    ("sockets.target", "systemd-journald-dev-log.socket"),
    ("sockets.target", "dbus.socket"),
];

/// The directories below /usr/share that nothing on the node reads.
const UNREAD: &[&str] =
    &["doc", "man", "locale", "info", "i18n", "zoneinfo", "bash-completion", "lintian"];

/// The Debian release of a node, which determines the versions of runc, systemd and kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Distro {
    /// Debian 14, which is still in development.
    Forky,
    /// Debian 13.
    Trixie,
}

impl Distro {
    /// Returns the suite's name in the Debian archive.
    pub fn suite(self) -> &'static str {
        match self {
            Distro::Forky => "forky",
            Distro::Trixie => "trixie",
        }
    }
}

impl fmt::Display for Distro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.suite())
    }
}

/// The files that a node boots from. They never change after they are built.
#[derive(Clone, Debug)]
pub struct Image {
    /// The directory with the kernel, the initial RAM file system and the ssh key.
    base: PathBuf,
    /// The directory with the disk, which includes the runtime.
    dir: PathBuf,
}

impl Image {
    /// Returns the image of a node with `runtime`. It is built first if it is not in the cache.
    ///
    /// Nodes of one distribution share a root directory. For each runtime only the runtime's files
    /// are added to the root and packed into a disk.
    pub fn obtain(runtime: Runtime) -> Result<Image> {
        let base = base(runtime.distro())?;
        let files = node_files().join(runtime.name());
        let mut key = Key::default();
        key.add("base", base.file_name().unwrap_or_default().as_encoded_bytes())
            .add("recipe", include_str!("runtime.rs"))
            .add("runtime", runtime.name());
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
            pack(&root, &dir.join("disk.img"))?;
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

/// Returns the directory with the files that the nodes of one distribution share.
///
/// These are the kernel, the initial RAM file system, the ssh key and `root`. The directory `root`
/// has all files of the node except the runtime's own.
fn base(distro: Distro) -> Result<PathBuf> {
    let program = workload()?;
    let files = node_files();
    let (common, hook) = (files.join("common"), files.join("kernel-hook.sh"));
    let mut key = Key::default();
    key.add("recipe", include_str!("image.rs"))
        .add("archive", include_str!("oci.rs"))
        .add("suite", distro.suite())
        .add("program", &program)
        .add("crictl", CRICTL.version)
        .add("hook", fs::read(&hook).with_context(|| format!("reading {}", hook.display()))?);
    key.add_tree(&common)?.add_tree(&go::source("cri"))?;
    cache::entry(&format!("base-{distro}"), &key, |dir| {
        build(distro, &hook, &common, &program, dir)
    })
}

fn node_files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("node")
}

fn build(distro: Distro, hook: &Path, common: &Path, program: &[u8], dir: &Path) -> Result<()> {
    let root = dir.join("root");
    // Do both at the same time: building the clients mostly computes, and the bootstrap mostly
    // downloads and unpacks.
    let (crictl, cri) = thread::scope(|scope| {
        let clients = scope.spawn(|| {
            CRICTL.obtain().and_then(|crictl| Ok((crictl, go::own("cri", &["-ldflags=-s -w"])?)))
        });
        bootstrap(distro, hook, &root)?;
        clients.join().map_err(|_| anyhow!("building crictl and cri: a panic"))?
    })?;
    record_versions(distro, &root, &dir.join("versions"))?;
    let kernel = find_kernel(&root)?;
    extract_vmlinux(&kernel, &dir.join("vmlinux"))?;
    write_initrd(&root, &dir.join("initrd"))?;

    copy_tree(common, &root)?;
    wire_units(&root)?;
    // The package generated a host key while it was installed. ssh-keygen below needs a free path.
    let host_key = root.join("etc/ssh/ssh_host_ed25519_key");
    if host_key.exists() {
        fs::remove_file(&host_key).context("removing the package's host key")?;
    }
    for key in [&dir.join("ssh_key"), &host_key] {
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "node", "-f"])
            .arg(key))?;
    }
    let login = root.join("root/.ssh");
    fs::create_dir_all(&login).context("creating /root/.ssh on the node")?;
    fs::copy(dir.join("ssh_key.pub"), login.join("authorized_keys"))
        .context("copying the ssh key into the node")?;
    fs::copy(crictl.join("crictl"), root.join("usr/local/bin/crictl"))
        .context("copying crictl into the node")?;
    fs::copy(cri, root.join("usr/local/bin/node-cri")).context("copying cri into the node")?;
    let workload = root.join("usr/local/bin/workload");
    fs::write(&workload, program).context("copying the workload into the node")?;
    fs::set_permissions(&workload, PermissionsExt::from_mode(0o755))
        .context("making the workload executable")?;
    let busybox = fs::read(busybox(&root)?).context("reading busybox")?;
    oci::write_archive(program, &busybox, &root.join(oci::ARCHIVE.trim_start_matches('/')))?;
    for unread in UNREAD {
        let path = root.join("usr/share").join(unread);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Makes a sparse ext4 disk from a root directory.
///
/// The disk has no journal, because a node's disk is discarded and never recovered.
fn pack(root: &Path, disk: &Path) -> Result<()> {
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum"])
        .args(["-E", "lazy_itable_init=1,root_owner=0:0", "-d"])
        .arg(root)
        .arg(disk)
        .arg("4G"))
    .map(|_| ())
}

/// Copies files into a root directory and replaces existing files.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    run(Command::new("cp")
        .args(["--recursive", "--no-preserve=ownership", "--remove-destination"])
        .arg(from.join("."))
        .arg(to))
    .map(|_| ())
}

fn bootstrap(distro: Distro, hook: &Path, root: &Path) -> Result<()> {
    let mirror = debian_mirror();
    let hook = hook.to_str().context("the path of integration/node is not UTF-8")?;
    ensure!(!hook.contains('\''), "the path of integration/node must not contain a quote: {hook}");
    let suite = distro.suite();
    // Mirrors fail now and then, especially for a testing suite that changes. Retrying costs
    // little.
    const TRIES: u32 = 3;
    for attempt in 1..=TRIES {
        progress(&format!("installing Debian {suite} from {mirror}"));
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--quiet", "--mode=root", "--variant=custom", "--format=directory"])
            .arg(format!("--include={}", packages(distro).join(",")))
            // A frozen or cached mirror serves expired release files. apt still verifies
            // signatures.
            .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
            .arg("--aptopt=Acquire::Retries \"5\"")
            .arg("--aptopt=APT::Install-Recommends \"false\"")
            .args(UNREAD.iter().map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*")))
            .arg(format!("--customize-hook=sh '{hook}' \"$1\""))
            .arg(suite)
            .arg(root)
            .arg(&mirror);
        match run(&mut command) {
            Ok(_) => return Ok(()),
            Err(error) if attempt < TRIES => {
                progress(&format!("attempt {attempt} of {TRIES} failed: {error:#}"));
                if root.exists() {
                    fs::remove_dir_all(root)
                        .with_context(|| format!("removing {}", root.display()))?;
                }
            }
            Err(error) => {
                return Err(error.context(format!(
                    "installing Debian {suite} from {mirror}; it needs root, the network, and a debian-archive-keyring \
                     that knows the suite's keys (apt-get install debian-archive-keyring)"
                )));
            }
        }
    }
    Ok(())
}

/// Returns the Debian mirror that this machine's apt uses, or else the default mirror.
pub(crate) fn debian_mirror() -> String {
    let targets = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
            "Identifier: Packages",
        ])
        .output();
    targets
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|lines| {
            let mirror = lines.lines().find_map(|line| line.strip_prefix("Debian|Debian|"))?;
            Some(mirror.trim_end_matches('/').to_owned())
        })
        .unwrap_or_else(|| "http://deb.debian.org/debian".to_owned())
}

fn record_versions(distro: Distro, root: &Path, path: &Path) -> Result<()> {
    let listing = run(Command::new("dpkg-query")
        .arg(format!("--admindir={}", root.join("var/lib/dpkg").display()))
        .args(["--show", "--showformat=${Package} ${Version}\\n"])
        .args(
            ["containerd", "runc", "crun", "conmon", "systemd"]
                .iter()
                .filter(|name| packages(distro).contains(name)),
        ))?;
    let kernel = find_kernel(root)?;
    let kernel = kernel.strip_prefix(root).unwrap_or(&kernel).display();
    fs::write(path, format!("{listing}kernel {kernel}\n"))
        .with_context(|| format!("writing {}", path.display()))
}

/// Returns the path of the compressed kernel.
///
/// The kernel is in /boot, or in newer suites beside its modules.
fn find_kernel(root: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join("boot")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            found.push(entry.path());
        }
    }
    let beside = modules(root)?.join("vmlinuz");
    if beside.exists() {
        found.push(beside);
    }
    match found.as_slice() {
        [kernel] => Ok(kernel.clone()),
        _ => bail!("expected one kernel image in the new root, found {found:?}"),
    }
}

fn modules(root: &Path) -> Result<PathBuf> {
    let dir = root.join("usr/lib/modules");
    let mut versions = fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?;
    match (versions.next(), versions.next()) {
        (Some(Ok(only)), None) => Ok(only.path()),
        _ => bail!("expected the modules of exactly one kernel in {}", dir.display()),
    }
}

/// Extracts the ELF kernel from a bzImage.
///
/// QEMU starts an ELF kernel directly (PVH), so no emulated processor has to decompress the kernel.
fn extract_vmlinux(bzimage: &Path, vmlinux: &Path) -> Result<()> {
    let image = fs::read(bzimage).with_context(|| format!("reading {}", bzimage.display()))?;
    // The offsets are those of the header of the x86 boot protocol.
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the kernel image ends inside its header")?;
        Ok(u32::from_le_bytes(bytes.try_into().context("reading the kernel's header")?) as usize)
    };
    let setup_sectors = match image.get(0x1f1) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = image
        .get(start..start + word(0x24c)?)
        .with_context(|| format!("{} has no payload where its header says", bzimage.display()))?;
    // The kernel's build appends the uncompressed size as four more bytes. Decompressors would
    // treat them as garbage.
    let payload = &payload[..payload.len() - 4];
    let decompressor = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x1f, 0x8b, ..] => "gzip",
        _ => bail!("{}: unknown compression {:x?}", bzimage.display(), &payload[..4]),
    };
    let output =
        File::create(vmlinux).with_context(|| format!("creating {}", vmlinux.display()))?;
    let mut child = Command::new(decompressor)
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .with_context(|| format!("starting {decompressor}: is it installed?"))?;
    child
        .stdin
        .take()
        .context("no pipe to the decompressor")?
        .write_all(payload)
        .with_context(|| format!("feeding {decompressor}"))?;
    let status = child.wait().with_context(|| format!("waiting for {decompressor}"))?;
    ensure!(status.success(), "{decompressor} could not unpack {}", bzimage.display());
    Ok(())
}

/// Writes an initial RAM file system that loads the disk driver, mounts the disk and starts
/// systemd.
///
/// The disk is a virtio disk, whose driver is a module in Debian's cloud kernels. The NVMe driver
/// is built into these kernels, but QEMU cannot make snapshots of an NVMe device.
fn write_initrd(root: &Path, initrd: &Path) -> Result<()> {
    let script = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /virtio_blk.ko
/bin/busybox mount -t ext4 -o rw /dev/vda /root
exec /bin/busybox switch_root /root /usr/lib/systemd/systemd
";
    let module = modules(root)?.join("kernel/drivers/block/virtio_blk.ko.xz");
    let module = Command::new("xz")
        .args(["-d", "-c"])
        .arg(&module)
        .output()
        .with_context(|| format!("unpacking {}", module.display()))?;
    ensure!(module.status.success(), "xz could not unpack the virtio_blk module");
    const DIRECTORY: u32 = 0o40755;
    const EXECUTABLE: u32 = 0o100755;
    let busybox = fs::read(busybox(root)?).context("reading busybox")?;
    let mut archive = Vec::new();
    for dir in ["bin", "dev", "root"] {
        append_cpio(&mut archive, dir, DIRECTORY, &[]);
    }
    append_cpio(&mut archive, "bin/busybox", EXECUTABLE, &busybox);
    append_cpio(&mut archive, "virtio_blk.ko", EXECUTABLE, &module.stdout);
    append_cpio(&mut archive, "init", EXECUTABLE, script.as_bytes());
    append_cpio(&mut archive, "TRAILER!!!", 0, &[]);
    fs::write(initrd, archive).with_context(|| format!("writing {}", initrd.display()))
}

fn busybox(root: &Path) -> Result<PathBuf> {
    let places = ["usr/bin/busybox", "bin/busybox"].map(|path| root.join(path));
    places.into_iter().find(|path| path.exists()).context("no busybox in the new root")
}

/// Appends one member in cpio's "newc" format.
///
/// A member has a magic number, thirteen hexadecimal fields, the name and the data. Zeros pad the
/// name and the data so that each ends at a multiple of four bytes.
fn append_cpio(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let inode = archive.len();
    let (size, name_size) = (data.len(), name.len() + 1);
    archive.extend(
        format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            0, 0, 1, 0, 0, 0, 0, 0, 0
        )
        .bytes(),
    );
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// Disables all units of the packages and enables only the units that the node needs.
///
/// Every further unit would cost emulated processor time.
fn wire_units(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for dir in [&root.join("usr/lib/systemd/system"), &units] {
        for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
            let path = entry.with_context(|| format!("listing {}", dir.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "wants") {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("removing {}", path.display()))?;
            }
        }
    }
    for (target, unit) in WANTED_UNITS {
        let wants = units.join(format!("{target}.wants"));
        fs::create_dir_all(&wants).with_context(|| format!("creating {}", wants.display()))?;
        symlink(format!("/usr/lib/systemd/system/{unit}"), wants.join(unit))
            .with_context(|| format!("enabling {unit}"))?;
    }
    let default = units.join("default.target");
    if default.is_symlink() {
        fs::remove_file(&default).context("removing the default target")?;
    }
    symlink("node.target", &default).context("setting the default target")
}

/// Builds the static program of the containers from `src/bin/workload.rs` and returns its content.
fn workload() -> Result<Vec<u8>> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = run(Command::new(&rustc).arg("-vV"))?;
    let mut key = Key::default();
    key.add("source", include_str!("bin/workload.rs")).add("compiler", version);
    let dir = cache::entry("workload", &key, |dir| {
        run(Command::new(&rustc)
            .args(["--edition", "2024", "-C", "opt-level=2", "-C", "strip=symbols"])
            .args(["-C", "panic=abort", "-C", "target-feature=+crt-static"])
            .args(["--target", "x86_64-unknown-linux-gnu", "-o"])
            .arg(dir.join("workload"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/workload.rs")))
        .map(|_| ())
    })?;
    fs::read(dir.join("workload")).context("reading the workload's binary")
}

/// Runs a command on this machine and returns its standard output.
///
/// If the command fails, the error has the last 20 lines of the command's standard error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("starting {name}: is it installed? (hack/prepare installs what is needed)")
    })?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let tail: Vec<&str> = stderr.lines().rev().take(20).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("{name} failed ({}):\n{}", output.status, tail.join("\n"));
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{name} printed something that is not UTF-8"))
}
