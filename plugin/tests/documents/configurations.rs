//! Configurations, manifests and dependencies that the documents show. The programs that read these
//! texts must accept the texts.

use crate::blocks::{self, Kind};
use crate::sandbox::Sandbox;

#[test]
fn documented_files_are_accepted() {
    let mut checked = 0;
    for document in blocks::read_all() {
        let sandbox = Sandbox::new(&document);
        for block in &document.blocks {
            let script = match &block.kind {
                Kind::Configuration => {
                    format!("plimsoll check - <<'END'\n{}END", block.text)
                }
                Kind::File(name) if block.text.lines().any(|line| line.starts_with("kind:")) => {
                    format!(
                        "set -e\nplimsoll lint {name}\n\
                         plimsoll explain --file {name} --node-allocatable 8Gi"
                    )
                }
                Kind::File(name) => format!("plimsoll check {name}"),
                _ => continue,
            };
            let output = sandbox.run(&script);
            assert!(
                output.status.success(),
                "{}: expected a file that plimsoll accepts, found:\n{}",
                block.place,
                String::from_utf8_lossy(&output.stdout)
            );
            checked += 1;
        }
    }
    assert!(checked > 0, "no document has a configuration or a manifest");
}

#[test]
fn documented_dependencies_name_this_version() {
    let blocks = blocks::read_all().into_iter().flat_map(|document| document.blocks);
    for block in blocks.filter(|block| block.kind == Kind::Dependencies) {
        let manifest: toml::Table =
            block.text.parse().unwrap_or_else(|error| panic!("{}: {error}", block.place));
        let version = manifest["dependencies"]["nri"].as_str().unwrap();
        let own = env!("CARGO_PKG_VERSION");
        assert!(
            own.starts_with(&format!("{version}.")),
            "{}: expected the version {own} of nri, found {version}",
            block.place
        );
    }
}
