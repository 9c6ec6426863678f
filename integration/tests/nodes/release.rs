//! Tests of the released files: their content, their reproducibility, and the Debian package on
//! nodes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Result;
use integration::kubelet::{ContainerSpec, Kubelet, MIB, PodSpec};
use integration::machine::Node;
use integration::placement;
use integration::probe::cgroup::{self, Expected, MAX};
use integration::runtime::Driver;
use serde_json::Value;
use tempfile::TempDir;

// The Debian package is the same for every runtime.
mod containerd_2_1 {
    integration::node_tests!(@driver Containerd21 systemd Systemd control [
        the_debian_package_keeps_out_of_the_way_of_another_installation;
        the_package_protects_and_purge_leaves_nothing
    ]);
}
mod crio_1_36 {
    integration::node_tests!(@driver Crio136 systemd Systemd control [
        the_package_protects_and_purge_leaves_nothing;
    ]);
}

/// Time stamp of the packed files, in seconds since 1970. Real builds never have this timestamp.
const EPOCH: u64 = 1_700_000_000;

/// Maximum size of the image archive in bytes, so that a node pulls the image quickly.
const MOST: u64 = 15_000_000;

fn released() -> &'static Path {
    static RELEASED: OnceLock<TempDir> = OnceLock::new();
    let directory = RELEASED.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        placement::package(directory.path(), EPOCH).unwrap();
        directory
    });
    directory.path()
}

fn file(suffix: &str) -> PathBuf {
    let names = fs::read_dir(released()).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = names.filter(|path| path.to_str().unwrap().ends_with(suffix)).collect();
    assert_eq!(found.len(), 1, "{suffix}: {found:?}");
    found.remove(0)
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the files of the image archive by path.
fn image() -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(File::open(file(".oci.tar")).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
    });
    entries.collect()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Returns the blob that a descriptor refers to.
fn blob<'a>(image: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    &image[&format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))]
}

#[test]
fn another_umask_and_timezone_change_no_checksum() {
    let again = tempfile::tempdir().unwrap();
    // Pack with another umask, time zone and locale, from a copy of the program with other times
    // and permissions.
    let program = again.path().join("program");
    fs::copy(placement::build().unwrap(), &program).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
    let script = "umask 077; exec \"$0\" \"$@\"";
    let out = again.path().join("out");
    said(
        Command::new("sh")
            .args(["-c", script, concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/package")])
            .args([&program, &out])
            .envs([
                ("SOURCE_DATE_EPOCH", EPOCH.to_string().as_str()),
                ("TZ", "Pacific/Chatham"),
                ("LC_ALL", "C.UTF-8"),
            ]),
    );
    let sums = |directory: &Path| fs::read_to_string(directory.join("SHA256SUMS")).unwrap();
    assert_eq!(sums(released()), sums(&out));
    assert_eq!(sums(&out).lines().count(), 4);
    said(
        Command::new("sha256sum")
            .args(["--check", "--strict", "SHA256SUMS"])
            .current_dir(released()),
    );
}

#[test]
fn the_binary_is_static_without_build_paths() {
    let program = fs::read(placement::build().unwrap()).unwrap();
    let has = |text: &str| program.windows(text.len()).any(|window| window == text.as_bytes());
    let headers =
        said(Command::new("readelf").arg("--program-headers").arg(placement::build().unwrap()));
    assert!(
        headers.contains("LOAD") && !headers.contains("INTERP"),
        "the program must not need a dynamic linker: {headers}"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let home = std::env::var("HOME").unwrap();
    for directory in [root.to_str().unwrap(), &format!("{home}/.cargo")] {
        assert!(!has(directory), "the program must not contain {directory}");
    }
    // The program contains source paths, so the checks above would have found a directory.
    assert!(has("plugin/src/"));
}

#[test]
fn the_image_contains_only_a_runnable_program() {
    assert!(fs::metadata(file(".oci.tar")).unwrap().len() < MOST);
    let image = image();
    let index = json(&image["index.json"]);
    let [descriptor] = index["manifests"].as_array().unwrap().as_slice() else {
        panic!("the index must have one manifest: {index:#}")
    };
    let kustomization =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/base/kustomization.yaml");
    let kustomization = fs::read_to_string(kustomization).unwrap();
    let field = |name: &str| {
        kustomization.split_once(name).unwrap().1.lines().next().unwrap().trim().to_owned()
    };
    let name = format!("{}:{}", field("newName:"), field("newTag:"));
    for annotation in ["io.containerd.image.name", "org.opencontainers.image.ref.name"] {
        assert_eq!(descriptor["annotations"][annotation], name);
    }
    let manifest = json(blob(&image, descriptor));
    let config = json(blob(&image, &manifest["config"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["plimsoll"]));
    let [layer] = manifest["layers"].as_array().unwrap().as_slice() else {
        panic!("the manifest must have one layer: {manifest:#}")
    };

    let root = tempfile::tempdir().unwrap();
    let packed = root.path().join("layer.tar.gz");
    fs::write(&packed, blob(&image, layer)).unwrap();
    let listed = said(
        Command::new("tar").args(["--list", "--verbose", "--numeric-owner", "--file"]).arg(&packed),
    );
    let files: Vec<Vec<_>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    let files: Vec<_> = files.iter().map(|fields| (fields[0], fields[1], fields[5])).collect();
    let directory = |path| ("drwxr-xr-x", "0/0", path);
    assert_eq!(
        files,
        [directory("usr/"), directory("usr/bin/"), ("-rwxr-xr-x", "0/0", "usr/bin/plimsoll")]
    );
    // The program runs in a root directory that contains no other file.
    said(Command::new("tar").arg("--extract").arg("--file").arg(&packed).current_dir(&root));
    fs::remove_file(&packed).unwrap();
    let version = said(
        Command::new("setpriv")
            .args(["--reuid=65532", "--regid=65532", "--clear-groups", "--no-new-privs", "--"])
            .args(["unshare", "--user", "--root"])
            .arg(root.path())
            .args(["/usr/bin/plimsoll", "--version"]),
    );
    assert_eq!(version, format!("plimsoll {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_deb_is_complete_without_dependencies() {
    let package = file(".deb");
    let field = |name| {
        said(Command::new("dpkg-deb").arg("--field").arg(&package).arg(name)).trim_end().to_owned()
    };
    assert_eq!([field("Package"), field("Version")], ["plimsoll", env!("CARGO_PKG_VERSION")]);
    // The program contains the C library.
    assert_eq!(field("Depends"), "");
    let root = tempfile::tempdir().unwrap();
    said(Command::new("dpkg-deb").arg("--raw-extract").args([package.as_path(), root.path()]));
    let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
    assert_eq!(read("DEBIAN/conffiles"), "/etc/nri/conf.d/90-plimsoll.conf\n");
    assert!(
        read("usr/lib/systemd/system/plimsoll.service")
            .contains("\nExecStart=/usr/bin/plimsoll run")
    );
    for file in [
        "usr/bin/plimsoll",
        "etc/nri/conf.d/90-plimsoll.conf",
        "usr/share/man/man1/plimsoll.1.gz",
        "usr/share/man/man1/plimsoll-status.1.gz",
        "usr/share/bash-completion/completions/plimsoll",
        "usr/share/zsh/vendor-completions/_plimsoll",
        "usr/share/fish/vendor_completions.d/plimsoll.fish",
        "usr/share/doc/plimsoll/copyright",
        "usr/share/doc/plimsoll/changelog.gz",
    ] {
        assert!(fs::metadata(root.path().join(file)).is_ok_and(|file| file.len() > 0), "{file}");
    }
    said(Command::new("md5sum").args(["--check", "--quiet", "DEBIAN/md5sums"]).current_dir(&root));
}

const PACKAGE: &str = "/var/cache/plimsoll.deb";

fn upload(node: &Node) -> Result<()> {
    node.write_file(PACKAGE, fs::read(file(".deb"))?, 0o644)
}

/// Waits until memory.min and memory.high of a container have these values.
fn reaches(node: &Node, cgroup: &str, min: u64, high: u64) -> Result<()> {
    let expected =
        [Expected::new(cgroup, "memory.min", min), Expected::new(cgroup, "memory.high", high)];
    cgroup::settle(node, "", &expected, Duration::ZERO, Duration::from_secs(60)).map(|_| ())
}

fn the_package_protects_and_purge_leaves_nothing(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let pod = kubelet.run_pod(
        PodSpec::new("shop").container(ContainerSpec::new("app").request(40 * MIB).limit(90 * MIB)),
    )?;
    let cgroup = &pod.container("app")?.cgroup;
    let high = (40 + 45) * MIB;
    upload(node)?;
    let files = "find / -xdev -name '*plimsoll*' ! -path '/proc/*' ! -path '/var/*' | sort";
    let before = node.run(files)?.stdout;
    placement::until_synchronised(node, &format!("dpkg --install {PACKAGE}"))?;
    reaches(node, cgroup, 40 * MIB, high)?;
    assert_eq!(node.run("systemctl is-enabled plimsoll")?.stdout, "enabled\n");

    // An update starts a new process, which reconnects once. The values in the cgroups stay.
    let process =
        || Ok::<_, anyhow::Error>(node.run("systemctl show --property MainPID plimsoll")?.stdout);
    let first = process()?;
    placement::until_synchronised(node, &format!("dpkg --install {PACKAGE}"))?;
    assert_ne!(process()?, first);
    reaches(node, cgroup, 40 * MIB, high)?;

    node.run("echo 'memoryThrottlingFactor: 0.5' > /etc/nri/conf.d/90-plimsoll.conf")?;
    reaches(node, cgroup, 40 * MIB, 65 * MIB)?;
    node.run("dpkg --remove plimsoll")?;
    reaches(node, cgroup, 0, MAX)?;
    // `dpkg --remove` keeps the operator's configuration file. `dpkg --purge` deletes this file.
    assert_eq!(node.read("/etc/nri/conf.d/90-plimsoll.conf")?, "memoryThrottlingFactor: 0.5\n");
    node.run("! systemctl is-active plimsoll && ! test -e /run/plimsoll")?;
    placement::until_synchronised(node, &format!("dpkg --install {PACKAGE}"))?;
    reaches(node, cgroup, 40 * MIB, 65 * MIB)?;
    node.run("dpkg --purge plimsoll")?;
    reaches(node, cgroup, 0, MAX)?;
    assert_eq!(node.run(files)?.stdout, before);
    Ok(())
}

fn the_debian_package_keeps_out_of_the_way_of_another_installation(
    node: &Node,
    _driver: Driver,
) -> Result<()> {
    upload(node)?;
    let other = "/opt/nri/plugins/90-plimsoll";
    let output = node.run(&format!("install -D /bin/true {other}; dpkg --install {PACKAGE}"))?;
    assert!(output.stderr.contains(other), "{}", output.stderr);
    node.run("! systemctl is-active plimsoll && ! systemctl is-enabled plimsoll")?;
    // The purge of the package does not restore the values that the other installation has set.
    node.run(&format!("dpkg --purge plimsoll; ! test -e /run/plimsoll/restored; rm {other}"))?;
    Ok(())
}
